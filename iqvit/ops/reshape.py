"""`reshape`: the same elements in row-major order under another shape."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from iqvit.inttype import LIMITS, IntType
from iqvit.ops.base import Op, Sample, want


@dataclass(frozen=True)
class Reshape(Op):
    """`out = x.reshape(shape)`; exact."""

    NAME: ClassVar[str] = "reshape"
    shape: tuple[int, ...]

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        want(int(np.prod(self.shape)) == x.size, f"{x.shape} cannot become {self.shape}")
        return IntType(x.dtype, self.shape, x.lo, x.hi)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        return args[0].reshape(self.shape)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from tvm import topi

        return bb.emit_te(topi.reshape, args[0], self.shape, primfunc_name_hint="reshape")

    @classmethod
    def samples(cls) -> list[Sample]:
        x = IntType("int16", (1, 6, 4), *LIMITS["int16"])
        return [Sample(cls((2, 3, 4)), (x,), lambda x: x.reshape(2, 3, 4))]
