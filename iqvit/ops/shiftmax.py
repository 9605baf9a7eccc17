"""`shiftmax`: I-ViT's integer softmax (Li and Gu, arXiv 2207.01405, section 3.4)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.arith import tabulated
from iqvit.inttype import LIMITS, IntType, QParams
from iqvit.ops.base import Op, Sample, want
from iqvit.ops.shiftexp import INT31, shift_exp, shift_exp_te

OCTAVES = 15  # n of the released code


@dataclass(frozen=True)
class Shiftmax(Op):
    """Normalised 16-bit softmax over the last axis of 8-bit logits, out int16 at scale 2**-15.

    `e = ShiftExp(x - max)`, `factor = (2**31 - 1) // min(sum(e), 2**31 - 1)`,
    `out = e * factor >> 16`. Published form, defects kept: the exponential is off by up to 9.8 %,
    and with 1025 flat logits the factor has so few bits that rows sum to 0.62..0.97.
    """

    NAME: ClassVar[str] = "shiftmax"
    x0: int

    @staticmethod
    def of(qin: QParams) -> "Shiftmax":
        """The operator for a per-tensor input scale."""
        return Shiftmax(math.floor(-1 / float(qin.scale)))

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        want(self.x0 <= -1, "the input scale is above 1")
        want(x.dtype in ("int8", "uint8"), f"Shiftmax takes 8-bit logits, x is {x.dtype}")
        return IntType("int16", x.shape, 0, 32767)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x = args[0].to(torch.int16)

        def exponential(below: torch.Tensor) -> torch.Tensor:
            return shift_exp(-below, self.x0, OCTAVES).clamp(min=0)

        e = tabulated(exponential, (x.amax(-1, keepdim=True) - x).to(torch.uint8))
        factor = INT31 // e.sum(-1, keepdim=True).clamp(max=INT31)
        return ((e * factor) >> 16).clamp(max=32767).to(torch.int16)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        rows = (*out.shape[:-1], 1)
        zero = tirx.const(0, "int64")

        def body(x: Any) -> Any:
            m, n = (tvm_te.reduce_axis((0, out.shape[-1]), name) for name in "mn")
            top = tvm_te.compute(rows, lambda *i: tvm_te.max(te.i64(x(*i[:-1], m)), axis=m), "top")

            def exponential(*i: Any) -> Any:
                y = te.i64(x(*i)) - top(*i[:-1], zero)
                return tirx.max(shift_exp_te(y, self.x0, OCTAVES), zero)

            e = tvm_te.compute(out.shape, exponential, "e")
            total = tvm_te.compute(rows, lambda *i: tvm_te.sum(e(*i[:-1], n), axis=n), "row_sum")

            def element(*i: Any) -> Any:
                bounded = tirx.min(total(*i[:-1], zero), te.const64(INT31))
                factor = tirx.truncdiv(te.const64(INT31), bounded)
                return te.saturate((e(*i) * factor) >> te.const64(16), "int16", 0, 32767)

            return tvm_te.compute(out.shape, element, "shiftmax")

        return bb.emit_te(body, *args, primfunc_name_hint="shiftmax")

    @classmethod
    def samples(cls) -> list[Sample]:
        return [
            Sample(
                cls.of(QParams.of(scale)),
                (IntType("int8", shape, *LIMITS["int8"]),),
                lambda x: torch.softmax(x, -1),
                (QParams.of(scale),),
                QParams.of(2**-15),
                error=3300.0,
            )
            for shape, scale in (((2, 4, 20), 0.06), ((1, 3, 9), 0.11))
        ]
