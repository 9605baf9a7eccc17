"""`take_rows`: rows of a matrix by index (the queries that a `topk` has chosen)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.inttype import LIMITS, IntType
from iqvit.ops.base import Op, Sample, want


@dataclass(frozen=True)
class TakeRows(Op):
    """`out[0, j, c] = x[0, index[0, j], c]`; exact. The index is proved to be inside."""

    NAME: ClassVar[str] = "take_rows"

    def infer(self, *args: IntType) -> IntType:
        x, index = args
        want(len(x.shape) == 3 and x.shape[0] == 1, f"x {x.shape} is not [1, N, C]")
        want(len(index.shape) == 2 and index.shape[0] == 1, f"index {index.shape} is not [1, K]")
        inside = index.lo >= 0 and index.hi < x.shape[1]
        want(inside, f"an index in {index.lo}..{index.hi} leaves {x.shape[1]} rows")
        return IntType(x.dtype, (1, index.shape[1], x.shape[2]), x.lo, x.hi)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x, index = args
        return x[:, index[0].to(torch.int64)]

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops.te import tvm_te

        def body(x: Any, index: Any) -> Any:
            return tvm_te.compute(
                out.shape, lambda b, j, c: x(b, index(b, j).astype("int64"), c), "taken"
            )

        return bb.emit_te(body, *args, primfunc_name_hint="take_rows")

    @classmethod
    def samples(cls) -> list[Sample]:
        index = IntType("int32", (1, 6), 0, 8)
        return [
            Sample(cls(), (IntType("int16", (1, 9, 4), *LIMITS["int16"]), index)),
            Sample(cls(), (IntType("uint8", (1, 12, 3), 7, 90), index)),
        ]
