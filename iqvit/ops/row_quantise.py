"""`row_quantise`: 16-bit values to 8 bits, every row at its own scale."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from iqvit.arith import requantise
from iqvit.inttype import LIMITS, IntType, QParams, constant_type
from iqvit.ops.base import Op, Sample, want

FRACTION = 23  # 255 << 23 and its rounding still fit in int32


@dataclass(frozen=True)
class RowQuantise(Op):
    """`out = ((x - offset) * ((levels << 23) // peak) + 2**22) >> 23`, all in int32.

    x int16 `[..., C]`, peak int32 `[..., 1]` from `row_peak` of the same attributes; out uint8 in
    0..255 (`one_sided`) or int8 in -127..127. Then `x = offset + out * peak / levels` within half a
    step, whatever the row's size: nothing saturates, and small rows keep all their levels. Scaling
    activations by token is LLM.int8's (Dettmers et al., arXiv 2208.07339, section 2.1, row-wise
    scaling); here the scale is an integer of the program. Error: 0.51 steps.
    """

    NAME: ClassVar[str] = "row_quantise"
    one_sided: int
    offset: int

    @property
    def levels(self) -> int:
        """The integer that stands for a row's peak."""
        return 255 if self.one_sided else 127

    def infer(self, *args: IntType) -> IntType:
        x, peak = args
        want(x.dtype == "int16", f"x is {x.dtype}, not int16")
        want(peak.shape == (*x.shape[:-1], 1) and peak.lo >= 1, f"{peak} is no row peak of {x}")
        if self.one_sided:
            return IntType("uint8", x.shape, 0, 255)
        return IntType("int8", x.shape, -127, 127)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x, peak = (t.to(torch.int32) for t in args)
        inverse = (self.levels << FRACTION) // peak
        shifted = x - self.offset if self.one_sided else x
        out = requantise(shifted, inverse, FRACTION)
        return out.to(torch.uint8 if self.one_sided else torch.int8)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        zero = tirx.const(0, "int64")

        def const(value: int) -> Any:
            return tirx.const(value, "int32")

        def body(x: Any, peak: Any) -> Any:
            inverse = tvm_te.compute(
                types[1].shape,
                lambda *i: tirx.truncdiv(const(self.levels << FRACTION), peak(*i)),
                "inverse",
            )

            def element(*i: Any) -> Any:
                shifted = te.i32(x(*i)) - const(self.offset if self.one_sided else 0)
                product = shifted * inverse(*i[:-1], zero) + const(1 << (FRACTION - 1))
                return (product >> const(FRACTION)).astype(out.dtype)

            return tvm_te.compute(out.shape, element, "row_quantised")

        return bb.emit_te(body, *args, primfunc_name_hint="row_quantise")

    @classmethod
    def samples(cls) -> list[Sample]:
        # The peak is constant in the test cases, so that the output has one scale.
        samples = []
        cases = ((0, 0, -3000, 3000, 3000), (1, -170, -170, 31000, 31170))
        for one_sided, offset, lo, hi, peak in cases:
            op = cls(one_sided, offset)
            kind = constant_type(np.full((2, 4, 1), peak, np.int32))
            scale = peak / op.levels
            samples.append(
                Sample(
                    op,
                    (IntType("int16", (2, 4, 30), lo, hi), kind),
                    lambda x, _peak: x,
                    (QParams.of(1.0), None),
                    QParams.of(scale, -offset / scale),
                    error=0.51,
                )
            )
        widest = constant_type(np.full((3, 1), 32768, np.int32))
        return [*samples, Sample(cls(0, 0), (IntType("int16", (3, 8), *LIMITS["int16"]), widest))]
