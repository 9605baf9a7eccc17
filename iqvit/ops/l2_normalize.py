"""`l2_normalize`: every row of the last axis over its Euclidean length."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.arith import clamp_range, isqrt, saturate
from iqvit.errors import GraphError
from iqvit.inttype import LIMITS, IntType, QParams
from iqvit.ops.base import Op, Sample, want

SQUARES = 61  # the sum of squares is scaled to 2**59 .. 2**61 - 1 before its root is taken
NUMERATOR = 60  # bits of what is divided by the root, so the quotient has at most 31


def octaves(squares: torch.Tensor) -> torch.Tensor:
    """The largest e with `squares << 2e < 2**61`, for int64 values in 1..2**61-1."""
    count = torch.zeros_like(squares)
    for e in range(1, SQUARES // 2 + 1):
        count += squares < 1 << (SQUARES - 2 * e)
    return count


@dataclass(frozen=True)
class L2Normalize(Op):
    """`x / max(|x|, eps)` along the last axis (`F.normalize`).

        S = max(sum(q^2), least),   e = largest with S << 2e < 2**61
        inverse = numerator // isqrt(S << 2e)
        out = clamp((q * inverse + half >> (fraction - e)) + z)

    S is exact; the root has 29.5 bits or more whatever the row's size, and so has the reciprocal.
    Input of any dtype with zero point 0, `[..., n]`. `least` is eps^2 in units of the input's
    scale, at least 1: a row of zeros gives zeros. `numerator` is `2**fraction` over the output's
    scale. Error: half an output step and 2**-28 of the value.
    """

    NAME: ClassVar[str] = "l2_normalize"
    least: int
    numerator: int
    fraction: int
    zero_point: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(eps: float, qin: QParams, qout: QParams, dtype: str) -> "L2Normalize":
        """The operator for per-tensor scales; the input has zero point 0."""
        if float(qin.zero_point):
            raise GraphError("an L2 norm reads values with zero point 0")
        least = max(1, round((eps / float(qin.scale)) ** 2))
        if least.bit_length() > SQUARES:
            raise GraphError(f"eps = {eps:g} is too large for values with scale {qin.scale:g}")
        inverse = 1 / float(qout.scale)
        fraction = NUMERATOR - max(0, int(inverse)).bit_length()
        numerator, zero = int(inverse * 2.0**fraction), int(qout.zero_point)
        return L2Normalize(least, numerator, fraction, zero, dtype, *LIMITS[dtype])

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        want(len(x.shape) >= 1, "x has no axis")
        want(0 < self.numerator < 1 << NUMERATOR, "the numerator leaves 60 bits")
        want(1 <= self.least < 1 << SQUARES, "the smallest sum of squares leaves 61 bits")
        largest = max(abs(x.lo), abs(x.hi))
        squares = max(largest * largest * x.shape[-1], self.least)
        want(squares < 1 << SQUARES, f"a sum of {x.shape[-1]} squares of {x} leaves 61 bits")
        want(self.fraction > SQUARES // 2, "the output's scale is too small")
        want(self.fraction <= NUMERATOR, f"the result is shifted by {self.fraction} bits")
        want(abs(self.zero_point) < 1 << 31, f"the zero point {self.zero_point} leaves int32")
        # |q| <= sqrt(S), so |out| <= numerator >> fraction, one more for the root and the rounding
        most = (self.numerator >> self.fraction) + 2
        lo, hi = (-most if x.lo < 0 else 0), (most if x.hi > 0 else 0)
        z = self.zero_point
        return IntType(self.dtype, x.shape, *clamp_range(lo + z, hi + z, self.lo, self.hi))

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x = args[0].to(torch.int64)
        squares = (x * x).sum(-1, keepdim=True).clamp(min=self.least)
        e = octaves(squares)
        inverse = self.numerator // isqrt(squares << (2 * e))
        shift = self.fraction - e
        out = (x * inverse + (torch.ones_like(shift) << (shift - 1))) >> shift
        return saturate(out + self.zero_point, self.dtype, self.lo, self.hi)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        rows = (*out.shape[:-1], 1)

        def body(x: Any) -> Any:
            k = tvm_te.reduce_axis((0, out.shape[-1]), "k")

            def square(*i: Any) -> Any:
                value = te.i64(x(*i[:-1], k))
                return tvm_te.sum(value * value, axis=k)

            total = tvm_te.compute(rows, square, "total")
            squares = tvm_te.compute(
                rows, lambda *i: tirx.max(total(*i), te.const64(self.least)), "squares"
            )

            def octave(*i: Any) -> Any:
                count = te.const64(0)
                for e in range(1, SQUARES // 2 + 1):
                    small = squares(*i) < te.const64(1 << (SQUARES - 2 * e))
                    count = count + tirx.Select(small, te.const64(1), te.const64(0))
                return count

            e = tvm_te.compute(rows, octave, "octaves")
            scaled = tvm_te.compute(
                rows,
                lambda *i: tirx.shift_left(squares(*i), e(*i) * te.const64(2)),
                "scaled",
            )
            root = te.isqrt(scaled)

            def element(*i: Any) -> Any:
                row = (*i[:-1], te.const64(0))
                inverse = tirx.truncdiv(te.const64(self.numerator), root(*row))
                shift = te.const64(self.fraction) - e(*row)
                half = tirx.shift_left(te.const64(1), shift - te.const64(1))
                value = tirx.shift_right(te.i64(x(*i)) * inverse + half, shift)
                value = value + te.const64(self.zero_point)
                return te.saturate(value, self.dtype, self.lo, self.hi)

            return tvm_te.compute(out.shape, element, "normalised")

        return bb.emit_te(body, *args, primfunc_name_hint="l2_normalize")

    @classmethod
    def samples(cls) -> list[Sample]:
        cases = [
            ("int16", (1, 40, 48), 1e-12, QParams.of(0.002), "int8", QParams.of(1 / 127)),
            ("int16", (2, 3, 192), 0.0, QParams.of(0.002), "int16", QParams.of(1 / 32767)),
            ("int8", (40, 7), 0.0, QParams.of(0.05), "uint8", QParams.of(1 / 127, 128)),
            ("int8", (40, 7), 3.0, QParams.of(0.05), "int16", QParams.of(0.7 / 32767)),
        ]
        return [
            Sample(
                cls.of(eps, qin, qout, dtype),
                (IntType(kind, shape, *LIMITS[kind]),),
                lambda x, eps=eps: torch.nn.functional.normalize(x, dim=-1, eps=max(eps, 1e-300)),
                (qin,),
                qout,
                error=0.501,
            )
            for kind, shape, eps, qin, dtype, qout in cases
        ]
