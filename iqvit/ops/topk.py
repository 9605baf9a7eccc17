"""`topk`: the indices of the k largest elements of the last axis, best first."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.inttype import LIMITS, IntType
from iqvit.ops.base import Op, Sample, want


@dataclass(frozen=True)
class TopK(Op):
    """`out[..., j]` = index of the j-th largest of `x[..., :]`, int32.

    Order: by value, then by lowest index. Integers tie often, and torch and TVM break ties
    differently, so the order is part of the operator. The values are a `gather` of x.
    """

    NAME: ClassVar[str] = "topk"
    k: int

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        want(0 < self.k <= x.shape[-1], f"top {self.k} of {x.shape[-1]} elements")
        return IntType("int32", (*x.shape[:-1], self.k), 0, x.shape[-1] - 1)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        order = torch.sort(args[0], dim=-1, descending=True, stable=True).indices
        return order[..., : self.k].to(torch.int32)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        size = types[0].shape[-1]

        def body(x: Any) -> Any:
            j = tvm_te.reduce_axis((0, size), "j")

            def before(*i: Any) -> Any:
                # How many elements come before this one: its place in the order.
                mine, other = te.i32(x(*i)), te.i32(x(*i[:-1], j))
                earlier = tirx.any(other > mine, tirx.all(other == mine, te.i64(j) < te.i64(i[-1])))
                return tvm_te.sum(
                    tirx.Select(earlier, tirx.const(1, "int32"), tirx.const(0, "int32")), axis=j
                )

            place = tvm_te.compute(types[0].shape, before, "place")
            n = tvm_te.reduce_axis((0, size), "n")

            def index(*i: Any) -> Any:
                here = place(*i[:-1], n) == te.i32(i[-1])
                return tvm_te.sum(tirx.Select(here, te.i32(n), tirx.const(0, "int32")), axis=n)

            return tvm_te.compute(out.shape, index, "index")

        return bb.emit_te(body, *args, primfunc_name_hint="topk")

    @classmethod
    def samples(cls) -> list[Sample]:
        return [
            Sample(cls(5), (IntType("int16", (2, 40), -4, 4),)),
            Sample(cls(3), (IntType("uint8", (1, 2, 9), *LIMITS["uint8"]),)),
        ]
