"""`multiply`: product of two tensors, or of a tensor and a constant (LayerScale)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.arith import clamp_range, multipliers, requantise, requantise_range, saturate
from iqvit.inttype import LIMITS, IntType, QParams
from iqvit.ops.base import Op, Sample, broadcast_shapes


@dataclass(frozen=True)
class Multiply(Op):
    """`out = clamp(((a - za) * (b - zb) * m + 2**(shift-1) >> shift) + z)`, broadcasting.

    `za`, `zb` are the operands' zero points. Error: half an output step, plus that of `m`.
    """

    NAME: ClassVar[str] = "multiply"
    zero_a: int
    zero_b: int
    multiplier: int
    shift: int
    zero_point: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(qa: QParams, qb: QParams, qout: QParams, dtype: str) -> "Multiply":
        """The operator for per-tensor scales and integer zero points."""
        m, shift = multipliers(float(qa.scale * qb.scale / qout.scale))
        zero_a, zero_b = int(qa.zero_point), int(qb.zero_point)
        return Multiply(zero_a, zero_b, int(m), shift, int(qout.zero_point), dtype, *LIMITS[dtype])

    def infer(self, *args: IntType) -> IntType:
        a, b = args
        ends = [(x - self.zero_a) * (y - self.zero_b) for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
        lo, hi = requantise_range(min(ends), max(ends), [self.multiplier], self.shift)
        lo, hi = clamp_range(lo + self.zero_point, hi + self.zero_point, self.lo, self.hi)
        return IntType(self.dtype, broadcast_shapes(a.shape, b.shape), lo, hi)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        a, b = (x.to(torch.int64) for x in args)
        acc = (a - self.zero_a) * (b - self.zero_b)
        out = requantise(acc, self.multiplier, self.shift) + self.zero_point
        return saturate(out, self.dtype, self.lo, self.hi)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tvm_te

        def body(a: Any, b: Any) -> Any:
            def element(*i: Any) -> Any:
                x = te.i64(a(*te.broadcast_index(i, types[0].shape))) - te.const64(self.zero_a)
                y = te.i64(b(*te.broadcast_index(i, types[1].shape))) - te.const64(self.zero_b)
                value = te.requantise(x * y, te.const64(self.multiplier), self.shift)
                return te.saturate(
                    value + te.const64(self.zero_point), self.dtype, self.lo, self.hi
                )

            return tvm_te.compute(out.shape, element, "product")

        return bb.emit_te(body, *args, primfunc_name_hint="multiply")

    @classmethod
    def samples(cls) -> list[Sample]:
        cases = [
            ("int16", "int16", (4, 6), (6,), QParams.of(0.001), QParams.of(0.0003), "int16"),
            ("int8", "uint8", (2, 1, 5), (3, 1), QParams.of(0.1, 4), QParams.of(0.02, 128), "int8"),
        ]
        out = {"int16": QParams.of(0.012), "int8": QParams.of(0.3, -9)}
        return [
            Sample(
                cls.of(qa, qb, out[dtype], dtype),
                (IntType(ka, sa, *LIMITS[ka]), IntType(kb, sb, *LIMITS[kb])),
                torch.mul,
                (qa, qb),
                out[dtype],
                error=0.501,
            )
            for ka, kb, sa, sb, qa, qb, dtype in cases
        ]
