"""`floor_divide`: an index by a constant, rounded down (the query of a pair of query and class)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.inttype import IntType
from iqvit.ops.base import Op, Sample, want


@dataclass(frozen=True)
class FloorDivide(Op):
    """`out = floor(x / divisor)` of int32 indices; exact. x is proved not to be negative."""

    NAME: ClassVar[str] = "floor_divide"
    divisor: int

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        want(self.divisor > 0, f"the divisor {self.divisor} is not positive")
        want(x.dtype == "int32" and x.lo >= 0, f"{x.dtype} in {x.lo}..{x.hi} is no index")
        return IntType("int32", x.shape, x.lo // self.divisor, x.hi // self.divisor)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        return args[0] // self.divisor

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops.te import tirx, tvm_te

        divisor = tirx.const(self.divisor, "int32")

        def body(x: Any) -> Any:
            return tvm_te.compute(out.shape, lambda *i: tirx.floordiv(x(*i), divisor), "quotient")

        return bb.emit_te(body, *args, primfunc_name_hint="floor_divide")

    @classmethod
    def samples(cls) -> list[Sample]:
        return [
            Sample(cls(3), (IntType("int32", (1, 40), 0, 299),)),
            Sample(cls(1), (IntType("int32", (2, 5), 7, 2**31 - 1),)),
            Sample(cls(80), (IntType("int32", (1, 2, 9), 79, 23999),)),
        ]
