"""`permute`: the axes in another order."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.inttype import LIMITS, IntType
from iqvit.ops.base import Op, Sample, want


@dataclass(frozen=True)
class Permute(Op):
    """`out = x.permute(dims)`; exact."""

    NAME: ClassVar[str] = "permute"
    dims: tuple[int, ...]

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        want(
            sorted(self.dims) == list(range(len(x.shape))), f"{self.dims} does not order {x.shape}"
        )
        return IntType(x.dtype, tuple(x.shape[d] for d in self.dims), x.lo, x.hi)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        return args[0].permute(self.dims).contiguous()

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from tvm import topi

        return bb.emit_te(topi.transpose, args[0], self.dims, primfunc_name_hint="permute")

    @classmethod
    def samples(cls) -> list[Sample]:
        x = IntType("int8", (2, 3, 4, 5), *LIMITS["int8"])
        return [Sample(cls((0, 2, 3, 1)), (x,), lambda x: x.permute(0, 2, 3, 1))]
