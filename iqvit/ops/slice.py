"""`slice`: every step-th index of one axis from start to end."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.inttype import LIMITS, IntType
from iqvit.ops.base import Op, Sample, want


@dataclass(frozen=True)
class Slice(Op):
    """`out = x[..., start:end:step, ...]` on `axis`; exact."""

    NAME: ClassVar[str] = "slice"
    axis: int
    start: int
    end: int
    step: int

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        want(0 <= self.axis < len(x.shape), f"axis {self.axis} is none of {x.shape}")
        size = x.shape[self.axis]
        fits = 0 <= self.start < self.end <= size and self.step > 0
        want(fits, f"{self.start}:{self.end}:{self.step} is no part of an axis of {size}")
        shape = list(x.shape)
        shape[self.axis] = -((self.start - self.end) // self.step)
        return IntType(x.dtype, tuple(shape), x.lo, x.hi)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        index = [slice(None)] * args[0].ndim
        index[self.axis] = slice(self.start, self.end, self.step)
        return args[0][tuple(index)].contiguous()

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops.te import tvm_te

        def body(x: Any) -> Any:
            def element(*i: Any) -> Any:
                source = i[self.axis] * self.step + self.start
                return x(*i[: self.axis], source, *i[self.axis + 1 :])

            return tvm_te.compute(out.shape, element, "sliced")

        return bb.emit_te(body, *args, primfunc_name_hint="slice")

    @classmethod
    def samples(cls) -> list[Sample]:
        x = IntType("uint8", (2, 9, 3), *LIMITS["uint8"])
        return [
            Sample(cls(1, 1, 9, 3), (x,), lambda x: x[:, 1:9:3]),
            Sample(cls(2, 0, 2, 1), (x,), lambda x: x[:, :, :2]),
        ]
