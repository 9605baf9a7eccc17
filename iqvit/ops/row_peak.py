"""`row_peak`: the largest magnitude of every row, from which a row takes its own scale."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.inttype import LIMITS, IntType
from iqvit.ops.base import Op, Sample, want


@dataclass(frozen=True)
class RowPeak(Op):
    """`out[..., 0] = max(1, max_c (x[..., c] - offset))`, or of `|x|` where `one_sided` is 0.

    x int16 `[..., C]`, out int32 `[..., 1]`; exact. `one_sided` is for values with a proved lower
    bound near 0 (`offset`), such as GELU's: all 256 levels then serve the side that is used.
    """

    NAME: ClassVar[str] = "row_peak"
    one_sided: int
    offset: int

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        want(x.dtype == "int16", f"x is {x.dtype}, not int16")
        if self.one_sided:
            want(x.lo >= self.offset, f"x reaches {x.lo}, below the offset {self.offset}")
            most = x.hi - self.offset
        else:
            most = max(-x.lo, x.hi)
        return IntType("int32", (*x.shape[:-1], 1), 1, max(1, most))

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x = args[0].to(torch.int32)
        size = x - self.offset if self.one_sided else x.abs()
        return size.amax(-1, keepdim=True).clamp(min=1)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        def size(x: Any) -> Any:
            q = te.i32(x)
            return q - tirx.const(self.offset, "int32") if self.one_sided else tirx.max(q, -q)

        def body(x: Any) -> Any:
            c = tvm_te.reduce_axis((0, types[0].shape[-1]), "c")
            most = tvm_te.compute(
                out.shape, lambda *i: tvm_te.max(size(x(*i[:-1], c)), axis=c), "most"
            )
            one = tirx.const(1, "int32")
            return tvm_te.compute(out.shape, lambda *i: tirx.max(most(*i), one), "peak")

        return bb.emit_te(body, *args, primfunc_name_hint="row_peak")

    @classmethod
    def samples(cls) -> list[Sample]:
        return [
            Sample(
                cls(0, 0),
                (IntType("int16", (1, 7, 20), *LIMITS["int16"]),),
                lambda x: x.abs().amax(-1, keepdim=True).clamp(min=1),
            ),
            Sample(
                cls(1, -90),
                (IntType("int16", (3, 5), -90, 3000),),
                lambda x: (x + 90).amax(-1, keepdim=True).clamp(min=1),
            ),
        ]
