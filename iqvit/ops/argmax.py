"""`argmax`: the index of the largest element, the lowest where several are equal."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.inttype import LIMITS, TORCH_DTYPES, IntType
from iqvit.ops.base import Op, Sample, want


@dataclass(frozen=True)
class Argmax(Op):
    """`out = argmax over axis of x`; ties go to the lowest index (torch's are open).

    `dtype` is int32, or uint8 for at most 256 elements (a class map).
    """

    NAME: ClassVar[str] = "argmax"
    axis: int
    keepdim: int
    dtype: str = "int32"

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        want(0 <= self.axis < len(x.shape), f"axis {self.axis} is none of {x.shape}")
        size = x.shape[self.axis]
        want(self.dtype in ("int32", "uint8"), f"indices are int32 or uint8, not {self.dtype}")
        want(self.dtype == "int32" or size <= 256, f"an index of {size} elements leaves uint8")
        rest = x.shape[self.axis + 1 :]
        kept = (1,) if self.keepdim else ()
        return IntType(self.dtype, (*x.shape[: self.axis], *kept, *rest), 0, size - 1)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x = args[0].to(torch.int64)
        size = x.shape[self.axis]
        shape = [1] * x.ndim
        shape[self.axis] = size
        # One key orders by value, then by lowest index, so the result is unique.
        key = x * size + (size - 1 - torch.arange(size, device=x.device).reshape(shape))
        return key.argmax(self.axis, keepdim=bool(self.keepdim)).to(TORCH_DTYPES[self.dtype])

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tvm_te

        size = types[0].shape[self.axis]

        def body(x: Any) -> Any:
            k = tvm_te.reduce_axis((0, size), "k")

            def source(i: tuple[Any, ...]) -> tuple[Any, ...]:
                return (*i[: self.axis], k, *i[self.axis + (1 if self.keepdim else 0) :])

            def key(*i: Any) -> Any:
                index = te.i64(k)
                value = te.i64(x(*source(i))) * te.const64(size)
                return tvm_te.max(value + te.const64(size - 1) - index, axis=k)

            best = tvm_te.compute(out.shape, key, "best")

            def index_of(*i: Any) -> Any:
                from iqvit.ops.te import tirx

                rest = tirx.floormod(best(*i), te.const64(size))
                return (te.const64(size - 1) - rest).astype(self.dtype)

            return tvm_te.compute(out.shape, index_of, "index")

        return bb.emit_te(body, *args, primfunc_name_hint="argmax")

    @classmethod
    def samples(cls) -> list[Sample]:
        x = IntType("int16", (1, 6, 40), -3, 3)
        return [
            Sample(cls(2, 0), (x,)),
            Sample(cls(1, 1), (IntType("int8", (2, 5, 3), *LIMITS["int8"]),)),
            Sample(cls(1, 0, "uint8"), (IntType("int32", (1, 256, 3), -2, 2),)),
        ]
