"""`lambda_shiftgelu`: ShiftGELU for clipped inputs, its sigmoid split by the sign of x."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from iqvit.arith import clamp_range, multipliers, requantise_range
from iqvit.errors import GraphError
from iqvit.inttype import LIMITS, IntType, QParams, constant_type
from iqvit.ops.base import Op, Sample, want
from iqvit.ops.shiftexp import shift_exp, shift_exp_te
from iqvit.ops.unary import unary

SIGMOID_BITS = 15
OCTAVES = 16  # exp goes down to 2**-16, below half a step of the sigmoid
UNIT_BITS = 13  # of what stands for 1 in the argument of exp


@dataclass(frozen=True)
class LambdaShiftGelu(Op):
    """`x * sigmoid(1.702 x)` with x clipped to -lambda..lambda and an exponential of -|x| only.

    I-Segmenter names an activation lambda-ShiftGELU that "mitigates uniform quantisation of
    long-tailed activations"; its formula was in no source that we could read. **This is our reading
    of it**, from I-ViT's ShiftGELU (Li and Gu, arXiv 2207.01405, section 3.5), in two changes:

    - x is int8 at a scale of lambda/127, where lambda is the bound that calibration found to lose
      least of GELU's output: the long tail saturates and the levels go to the rest;
    - with `e = ShiftExp(-1.702 |x|)` and `one = ShiftExp(0)`, the sigmoid is `one / (one + e)` for
      x >= 0 and `e / (one + e)` below. No row maximum is subtracted, so no row can make the sigmoid
      of all negative x collapse to 1/2, as it does in ShiftGELU.

        e = ShiftExp(-|x| << fine),  sigmoid = ((x >= 0 ? one : e) << 15 + half) // (one + e)
        out = clamp((x * sigmoid * m[c] + half >> shift) + z[c])

    Inputs: x int8 with zero point 0; m and z int32 `[C]` or `[1]`. Error against GELU inside the
    bound: 0.025, of which 0.0203 is that of `x sigmoid(1.702 x)` itself.
    """

    NAME: ClassVar[str] = "lambda_shiftgelu"
    MADE: ClassVar[tuple[int, ...]] = (1, 2)
    x0: int
    fine: int
    shift: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(
        qin: QParams, qout: QParams, dtype: str
    ) -> tuple["LambdaShiftGelu", np.ndarray, np.ndarray]:
        """The operator with its multipliers and zero points."""
        unit = 1 / (1.702 * float(qin.scale))
        if unit >= 2**UNIT_BITS or unit < 0.01:
            raise GraphError(f"an 8-bit GELU input of scale {float(qin.scale):g} has no use")
        fine = UNIT_BITS - 1 - int(np.floor(np.log2(unit)))
        m, shift = multipliers(np.atleast_1d(float(qin.scale) * 2.0**-SIGMOID_BITS / qout.scale))
        zero = np.atleast_1d(qout.zero_point).astype(np.int32)
        x0 = -round(unit * 2.0**fine)
        return (
            LambdaShiftGelu(x0, fine, shift, dtype, *LIMITS[dtype]),
            m.astype(np.int32),
            zero,
        )

    def infer(self, *args: IntType) -> IntType:
        x, multiplier, zero = args
        want(-(2**UNIT_BITS) <= self.x0 <= -1, f"the unit {self.x0} has more than 13 bits")
        want(0 <= self.fine <= 24, f"the argument is shifted by {self.fine} bits")
        want(x.dtype == "int8", f"lambda_shiftgelu takes 8-bit values, x is {x.dtype}")
        for kind in (multiplier, zero):
            want(kind.shape in ((1,), (x.shape[-1],)), f"{kind.shape} does not fit {x.shape}")
        # below 0 the sigmoid is at most 1/2, and its rounding adds at most half a step
        lo = min(x.lo, 0) * ((1 << (SIGMOID_BITS - 1)) + 1)
        hi = max(x.hi, 0) << SIGMOID_BITS
        lo, hi = requantise_range(lo, hi, [multiplier.lo, multiplier.hi], self.shift)
        lo, hi = clamp_range(lo + zero.lo, hi + zero.hi, self.lo, self.hi)
        return IntType(self.dtype, x.shape, lo, hi)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        one = -self.x0 << OCTAVES

        def value(x: torch.Tensor) -> torch.Tensor:
            e = shift_exp(-(x.abs() << self.fine), self.x0, OCTAVES)
            total = one + e
            upper = torch.where(x < 0, e, torch.full_like(e, one))
            return x * (((upper << SIGMOID_BITS) + (total >> 1)) // total)

        q, multiplier, zero = args
        return unary(value, q, multiplier, zero, self)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        one = te.const64(-self.x0 << OCTAVES)

        def body(x: Any, multiplier: Any, zero: Any) -> Any:
            def exponential(*i: Any) -> Any:
                q = te.i64(x(*i))
                size = tirx.max(q, -q) << te.const64(self.fine)
                return shift_exp_te(-size, self.x0, OCTAVES)

            e = tvm_te.compute(out.shape, exponential, "e")

            def element(*i: Any) -> Any:
                q, total = te.i64(x(*i)), one + e(*i)
                upper = tirx.Select(q < te.const64(0), e(*i), one)
                half = total >> te.const64(1)
                sigmoid = tirx.truncdiv((upper << te.const64(SIGMOID_BITS)) + half, total)
                c = [te.broadcast_index(i, t.shape) for t in types[1:]]
                scaled = te.requantise(q * sigmoid, multiplier(*c[0]), self.shift)
                return te.saturate(scaled + te.i64(zero(*c[1])), self.dtype, self.lo, self.hi)

            return tvm_te.compute(out.shape, element, "lambda_shiftgelu")

        return bb.emit_te(body, *args, primfunc_name_hint="lambda_shiftgelu")

    @classmethod
    def samples(cls) -> list[Sample]:
        samples = []
        for qin, qout, dtype in (
            (QParams.of(6 / 127), QParams.of(0.02, 10), "uint8"),
            (QParams.of(30 / 127), QParams.of(np.linspace(0.03, 0.1, 6), 3.0, -1), "int8"),
            (QParams.of(2 / 127), QParams.of(0.0001), "int16"),
        ):
            op, m, zero = cls.of(qin, qout, dtype)
            types = (IntType("int8", (1, 50, 6), -128, 127), constant_type(m), constant_type(zero))
            samples.append(
                Sample(
                    op,
                    types,
                    lambda x, _m, _z: torch.nn.functional.gelu(x),
                    (qin, None, None),
                    qout,
                    error=0.5 + 0.025 / float(qout.scale.min()),
                )
            )
        return samples
