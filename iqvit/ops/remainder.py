"""`remainder`: what a division of an index by a constant leaves (the class of such a pair)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.inttype import IntType
from iqvit.ops.base import Op, Sample, want


@dataclass(frozen=True)
class Remainder(Op):
    """`out = x - divisor * floor(x / divisor)` of int32 indices; exact. x is proved
    not to be negative."""

    NAME: ClassVar[str] = "remainder"
    divisor: int

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        want(self.divisor > 0, f"the divisor {self.divisor} is not positive")
        want(x.dtype == "int32" and x.lo >= 0, f"{x.dtype} in {x.lo}..{x.hi} is no index")
        if x.lo // self.divisor == x.hi // self.divisor:
            return IntType("int32", x.shape, x.lo % self.divisor, x.hi % self.divisor)
        return IntType("int32", x.shape, 0, self.divisor - 1)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        return args[0] % self.divisor

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops.te import tirx, tvm_te

        divisor = tirx.const(self.divisor, "int32")

        def body(x: Any) -> Any:
            return tvm_te.compute(out.shape, lambda *i: tirx.floormod(x(*i), divisor), "rest")

        return bb.emit_te(body, *args, primfunc_name_hint="remainder")

    @classmethod
    def samples(cls) -> list[Sample]:
        return [
            Sample(cls(3), (IntType("int32", (1, 40), 0, 299),)),
            Sample(cls(1), (IntType("int32", (2, 5), 7, 2**31 - 1),)),
            Sample(cls(80), (IntType("int32", (1, 2, 9), 81, 158),)),
        ]
