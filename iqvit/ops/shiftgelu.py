"""`shiftgelu`: I-ViT's integer GELU (Li and Gu, arXiv 2207.01405, section 3.5)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from iqvit.arith import clamp_range, multipliers, requantise_range
from iqvit.inttype import LIMITS, IntType, QParams, constant_type
from iqvit.ops.base import Op, Sample, want
from iqvit.ops.shiftexp import INT31, shift_exp, shift_exp_te
from iqvit.ops.unary import unary

OCTAVES = 23  # n of the released code
SIGMOID_BITS = 8
SIGMOID_SHIFT = 31 - SIGMOID_BITS + 1


@dataclass(frozen=True)
class ShiftGelu(Op):
    """`x * sigmoid(1.702 x)` with `sigmoid = e(x-m) / (e(x-m) + e(-m))`, m the maximum of the row.

    Inputs: x int8 `[..., C]` with zero point 0; multipliers and zero points int32 `[C]` or `[1]`.
    `e` is ShiftExp at 1.702 times the input's scale, the sigmoid has 8 bits. Published form,
    defects kept: once the row maximum passes about 9.4, both exponentials clip and the sigmoid is
    0.5 for every negative x. Error: 0.28 |x| for rows whose maximum is below 3, unbounded beyond.
    """

    NAME: ClassVar[str] = "shiftgelu"
    MADE: ClassVar[tuple[int, ...]] = (1, 2)
    x0: int
    shift: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(qin: QParams, qout: QParams, dtype: str) -> tuple["ShiftGelu", np.ndarray, np.ndarray]:
        """The operator with its multipliers and zero points."""
        scale = float(qin.scale)
        ratio = np.atleast_1d(scale * 2.0 ** -(SIGMOID_BITS - 1) / qout.scale)
        m, shift = multipliers(ratio)
        zero = np.atleast_1d(qout.zero_point).astype(np.int32)
        op = ShiftGelu(math.floor(-1 / (1.702 * scale)), shift, dtype, *LIMITS[dtype])
        return op, m.astype(np.int32), zero

    @staticmethod
    def real(x: torch.Tensor) -> torch.Tensor:
        """The real function that the integers round, over rows `[..., C]`; differentiable."""
        top = x.amax(-1, keepdim=True).clamp(min=0)
        octave = 1.702 / math.log(2)
        e, one = (torch.exp2((octave * y).clamp(min=-OCTAVES)) for y in (x - top, -top))
        return x * e / (e + one)

    def infer(self, *args: IntType) -> IntType:
        x, multiplier, zero = args
        want(self.x0 <= -1, "the input scale is above 1/1.702")
        want(x.dtype == "int8", f"ShiftGELU takes 8-bit values, x is {x.dtype}")
        for kind in (multiplier, zero):
            want(kind.shape in ((1,), (x.shape[-1],)), f"{kind.shape} does not fit {x.shape}")
        bound = max(abs(x.lo), abs(x.hi)) << (SIGMOID_BITS - 1)
        lo, hi = requantise_range(-bound, bound, [multiplier.lo, multiplier.hi], self.shift)
        lo, hi = clamp_range(lo + zero.lo, hi + zero.hi, self.lo, self.hi)
        return IntType(self.dtype, x.shape, lo, hi)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x, multiplier, zero = args
        top = x.amax(-1, keepdim=True).clamp(min=0)

        def value(pair: torch.Tensor) -> torch.Tensor:
            # A table has pairs, too, that no row has: a top below 0, or below x.
            x, top = (pair & 255) - 128, (pair >> 8).clamp(min=0)
            e = shift_exp((x - top).clamp(max=0), self.x0, OCTAVES)
            total = (e + shift_exp(-top, self.x0, OCTAVES)).clamp(max=INT31)
            return x * ((e * (INT31 // total)) >> SIGMOID_SHIFT)

        pair = (top.to(torch.int16) << 8) + (x.to(torch.int16) + 128)
        return unary(value, pair, multiplier, zero, self)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        rows = (*out.shape[:-1], 1)
        zero64 = tirx.const(0, "int64")

        def body(x: Any, multiplier: Any, zero: Any) -> Any:
            m = tvm_te.reduce_axis((0, out.shape[-1]), "m")
            highest = tvm_te.compute(
                rows, lambda *i: tvm_te.max(te.i64(x(*i[:-1], m)), axis=m), "highest"
            )
            top = tvm_te.compute(rows, lambda *i: tirx.max(highest(*i), zero64), "top")
            e = tvm_te.compute(
                out.shape,
                lambda *i: shift_exp_te(te.i64(x(*i)) - top(*i[:-1], zero64), self.x0, OCTAVES),
                "e",
            )
            base = tvm_te.compute(rows, lambda *i: shift_exp_te(-top(*i), self.x0, OCTAVES), "base")

            def element(*i: Any) -> Any:
                total = tirx.min(e(*i) + base(*i[:-1], zero64), te.const64(INT31))
                factor = tirx.truncdiv(te.const64(INT31), total)
                sigmoid = (e(*i) * factor) >> te.const64(SIGMOID_SHIFT)
                c = [te.broadcast_index(i, t.shape) for t in types[1:]]
                scaled = te.requantise(te.i64(x(*i)) * sigmoid, multiplier(*c[0]), self.shift)
                return te.saturate(scaled + te.i64(zero(*c[1])), self.dtype, self.lo, self.hi)

            return tvm_te.compute(out.shape, element, "shiftgelu")

        return bb.emit_te(body, *args, primfunc_name_hint="shiftgelu")

    @classmethod
    def samples(cls) -> list[Sample]:
        samples = []
        for qin, qout, dtype in (
            (QParams.of(0.02), QParams.of(0.02, 10), "uint8"),
            (QParams.of(0.03), QParams.of(np.linspace(0.03, 0.1, 6), 3.0, -1), "int8"),
        ):
            op, m, zero = cls.of(qin, qout, dtype)
            types = (IntType("int8", (1, 50, 6), -128, 90), constant_type(m), constant_type(zero))
            samples.append(
                Sample(
                    op,
                    types,
                    lambda x, _m, _z: torch.nn.functional.gelu(x),
                    (qin, None, None),
                    qout,
                    error=0.5 + 0.75 / float(qout.scale.min()),
                )
            )
        return samples
