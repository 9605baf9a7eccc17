"""`gather`: elements of the last axis by index (the values of a `topk`)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.inttype import LIMITS, IntType
from iqvit.ops.base import Op, Sample, want


@dataclass(frozen=True)
class Gather(Op):
    """`out[..., j] = x[..., index[..., j]]`; exact. The index is proved to be inside."""

    NAME: ClassVar[str] = "gather"

    def infer(self, *args: IntType) -> IntType:
        x, index = args
        want(
            x.shape[:-1] == index.shape[:-1], f"shapes {x.shape} and {index.shape} differ in front"
        )
        inside = index.lo >= 0 and index.hi < x.shape[-1]
        want(inside, f"an index in {index.lo}..{index.hi} leaves an axis of {x.shape[-1]}")
        return IntType(x.dtype, index.shape, x.lo, x.hi)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x, index = args
        return x.gather(-1, index.to(torch.int64))

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops.te import tvm_te

        def body(x: Any, index: Any) -> Any:
            return tvm_te.compute(
                out.shape, lambda *i: x(*i[:-1], index(*i).astype("int64")), "gathered"
            )

        return bb.emit_te(body, *args, primfunc_name_hint="gather")

    @classmethod
    def samples(cls) -> list[Sample]:
        x = IntType("int16", (3, 20), *LIMITS["int16"])
        return [Sample(cls(), (x, IntType("int32", (3, 6), 0, 19)))]
