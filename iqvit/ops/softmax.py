"""`softmax`: over the last axis, normalised, for a softmax that is not inside an attention."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.arith import clamp_range, requantise, require_int32, saturate
from iqvit.inttype import LIMITS, IntType, QParams
from iqvit.ops.base import Op, Sample, want
from iqvit.ops.exp2 import Exp2

FULL = 32767


@dataclass(frozen=True)
class Softmax(Op):
    """`p = full * 2**-t(max(x) - x)`, `out = clamp(p * (numerator // sum(p)) + half >> shift)`.

    x of any width `[..., N]`, per-tensor scale. Error: half an output step, `1.3e-4 + 2/32767`
    of full scale for p, and the same again for the sum.
    """

    NAME: ClassVar[str] = "softmax"
    pre: int
    cap: int
    exp_multiplier: int
    exp_shift: int
    numerator: int
    shift: int
    zero_point: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(qin: QParams, qout: QParams, dtype: str) -> "Softmax":
        """The operator for per-tensor scales."""
        exp = Exp2.of(float(qin.scale))
        ratio = 1 / float(qout.scale)
        shift = min(62 - math.ceil(math.log2(ratio)) - 1, 45)
        return Softmax(
            exp.pre,
            exp.cap,
            exp.multiplier,
            exp.shift,
            round(ratio * 2**shift),
            shift,
            int(qout.zero_point),
            dtype,
            *LIMITS[dtype],
        )

    @property
    def exp(self) -> Exp2:
        """The exponential of the probabilities."""
        return Exp2(self.pre, self.cap, self.exp_multiplier, self.exp_shift)

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        require_int32(0, x.hi - x.lo, "logit difference")
        require_int32(0, FULL * x.shape[-1], "sum")
        want(self.numerator < 1 << 62, "the numerator leaves 62 bits")
        half = (1 << self.shift) >> 1
        hi = ((self.numerator + half) >> self.shift) + self.zero_point
        return IntType(self.dtype, x.shape, *clamp_range(self.zero_point, hi, self.lo, self.hi))

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x = args[0].to(torch.int64)
        p = self.exp.run(x.amax(-1, keepdim=True) - x, FULL).to(torch.int64)
        reciprocal = self.numerator // p.sum(-1, keepdim=True)
        out = requantise(p * reciprocal, 1, self.shift) + self.zero_point
        return saturate(out, self.dtype, self.lo, self.hi)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        rows = (*out.shape[:-1], 1)

        def body(x: Any) -> Any:
            m, n = (tvm_te.reduce_axis((0, out.shape[-1]), name) for name in "mn")
            zero = tirx.const(0, "int64")
            top = tvm_te.compute(rows, lambda *i: tvm_te.max(te.i32(x(*i[:-1], m)), axis=m), "top")
            p = tvm_te.compute(
                out.shape,
                lambda *i: self.exp.te(top(*i[:-1], zero) - te.i32(x(*i)), FULL),
                "p",
            )
            total = tvm_te.compute(rows, lambda *i: tvm_te.sum(p(*i[:-1], n), axis=n), "row_sum")

            def element(*i: Any) -> Any:
                r = tirx.truncdiv(te.const64(self.numerator), te.i64(total(*i[:-1], zero)))
                value = te.requantise(te.i64(p(*i)) * r, te.const64(1), self.shift)
                return te.saturate(
                    value + te.const64(self.zero_point), self.dtype, self.lo, self.hi
                )

            return tvm_te.compute(out.shape, element, "softmax")

        return bb.emit_te(body, *args, primfunc_name_hint="softmax")

    @classmethod
    def samples(cls) -> list[Sample]:
        cases = [
            ("int16", (2, 5, 20), QParams.of(0.0004), QParams.of(2**-15), "int16", 16.0),
            ("int8", (1, 6, 12), QParams.of(0.05, 3), QParams.of(1 / 255), "uint8", 0.7),
        ]
        return [
            Sample(
                cls.of(qin, qout, dtype),
                (IntType(kind, shape, *LIMITS[kind]),),
                lambda x: torch.softmax(x, -1),
                (qin,),
                qout,
                error=error,
            )
            for kind, shape, qin, qout, dtype, error in cases
        ]
