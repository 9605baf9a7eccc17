"""`requantise`: the same reals at another scale or width."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.arith import clamp_range, multipliers, requantise, requantise_range, saturate
from iqvit.inttype import LIMITS, IntType, QParams
from iqvit.ops.base import Op, Sample


@dataclass(frozen=True)
class Requantise(Op):
    """`out = clamp((x * multiplier + offset + 2**(shift-1)) >> shift)`.

    `offset` (int64) holds both zero points, `(zero_out << shift) - zero_in * multiplier`, so there
    is one rounding. Error: half an output step, plus that of the 31-bit multiplier.
    """

    NAME: ClassVar[str] = "requantise"
    multiplier: int
    offset: int
    shift: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def between(
        qin: QParams, qout: QParams, dtype: str, limits: tuple[int, int] | None = None
    ) -> "Requantise":
        """The operator from per-tensor `qin` to per-tensor `qout`, saturating at `limits`."""
        m, shift = multipliers(float(qin.scale / qout.scale))
        offset = round(float(qout.zero_point) * 2**shift - float(qin.zero_point) * int(m))
        return Requantise(int(m), offset, shift, dtype, *(limits or LIMITS[dtype]))

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        at_zero = requantise_range(x.lo, x.hi, [self.multiplier], self.shift)
        ends = [x.lo * self.multiplier, x.hi * self.multiplier]
        if self.offset:
            requantise_range(min(ends) + self.offset, max(ends) + self.offset, [1], self.shift)
            half = (1 << self.shift) >> 1
            at_zero = (
                (min(ends) + self.offset + half) >> self.shift,
                (max(ends) + self.offset + half) >> self.shift,
            )
        return IntType(self.dtype, x.shape, *clamp_range(*at_zero, self.lo, self.hi))

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        (x,) = args
        acc = x.to(torch.int64) * self.multiplier + self.offset
        return saturate(requantise(acc, 1, self.shift), self.dtype, self.lo, self.hi)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tvm_te

        def body(x: Any) -> Any:
            def element(*i: Any) -> Any:
                acc = te.i64(x(*i)) * te.const64(self.multiplier) + te.const64(self.offset)
                value = te.requantise(acc, te.const64(1), self.shift)
                return te.saturate(value, self.dtype, self.lo, self.hi)

            return tvm_te.compute(out.shape, element, "requantised")

        return bb.emit_te(body, *args, primfunc_name_hint="requantise")

    @classmethod
    def samples(cls) -> list[Sample]:
        cases = [
            ("int16", QParams.of(0.003), "int8", QParams.of(0.5, -7)),
            ("uint8", QParams.of(0.02, 12), "int16", QParams.of(0.0007)),
            ("int32", QParams.of(1e-6), "int16", QParams.of(0.04, 100)),
        ]
        return [
            Sample(
                cls.between(qin, qout, dtype),
                (IntType(kind, (3, 50), *LIMITS[kind]),),
                lambda x: x,
                (qin,),
                qout,
                error=0.501,
            )
            for kind, qin, dtype, qout in cases
        ]
