"""`amax`: the largest element along axes (global max pooling)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.inttype import LIMITS, IntType
from iqvit.ops.base import Op, Sample, want


@dataclass(frozen=True)
class Amax(Op):
    """`out = max over axes of x`; exact, the scale is the input's."""

    NAME: ClassVar[str] = "amax"
    axes: tuple[int, ...]
    keepdim: int

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        want(all(0 <= a < len(x.shape) for a in self.axes), f"axes {self.axes} of {x.shape}")
        shape = tuple(
            1 if a in self.axes else d
            for a, d in enumerate(x.shape)
            if self.keepdim or a not in self.axes
        )
        return IntType(x.dtype, shape, x.lo, x.hi)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        return args[0].amax(self.axes, keepdim=bool(self.keepdim))

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from tvm import topi

        return bb.emit_te(
            topi.max, args[0], self.axes, bool(self.keepdim), primfunc_name_hint="amax"
        )

    @classmethod
    def samples(cls) -> list[Sample]:
        x = IntType("int16", (1, 6, 4, 3), *LIMITS["int16"])
        return [
            Sample(cls((1,), 0), (x,), lambda x: x.amax(1)),
            Sample(cls((2, 3), 1), (x,), lambda x: x.amax((2, 3), keepdim=True)),
        ]
