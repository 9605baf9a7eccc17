"""`add`: two tensors at their own scales, summed with one rounding (the residual stream)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.arith import clamp_range, multipliers, requantise, saturate
from iqvit.errors import OverflowProofError
from iqvit.inttype import LIMITS, IntType, QParams
from iqvit.ops.base import Op, Sample, broadcast_shapes


@dataclass(frozen=True)
class Add(Op):
    """`out = clamp((a * ma + b * mb + offset + 2**(shift-1)) >> shift)`, in int64, broadcasting.

    `offset` holds all three zero points. Error: half an output step, plus that of the multipliers.
    """

    NAME: ClassVar[str] = "add"
    multiplier_a: int
    multiplier_b: int
    offset: int
    shift: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(
        qa: QParams,
        qb: QParams,
        qout: QParams,
        dtype: str,
        limits: tuple[int, int] | None = None,
    ) -> "Add":
        """The operator for per-tensor scales; it saturates at `limits`, or where the dtype does."""
        ratios = [float(qa.scale / qout.scale), float(qb.scale / qout.scale)]
        _, shift = multipliers(max(ratios))
        ma, mb = (round(r * 2**shift) for r in ratios)
        offset = float(qout.zero_point) * 2**shift
        offset -= float(qa.zero_point) * ma + float(qb.zero_point) * mb
        return Add(ma, mb, round(offset), shift, dtype, *(limits or LIMITS[dtype]))

    def infer(self, *args: IntType) -> IntType:
        a, b = args
        ends_a = sorted((a.lo * self.multiplier_a, a.hi * self.multiplier_a))
        ends_b = sorted((b.lo * self.multiplier_b, b.hi * self.multiplier_b))
        half = (1 << self.shift) >> 1
        lo, hi = (x + y + self.offset + half for x, y in zip(ends_a, ends_b, strict=True))
        if max(abs(lo), abs(hi)) >= 1 << 63:
            raise OverflowProofError(f"the sum range {lo}..{hi} leaves int64")
        lo, hi = clamp_range(lo >> self.shift, hi >> self.shift, self.lo, self.hi)
        return IntType(self.dtype, broadcast_shapes(a.shape, b.shape), lo, hi)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        a, b = (x.to(torch.int64) for x in args)
        acc = torch.add(a * self.multiplier_a, b, alpha=self.multiplier_b).add_(self.offset)
        return saturate(requantise(acc, 1, self.shift), self.dtype, self.lo, self.hi)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tvm_te

        def body(a: Any, b: Any) -> Any:
            def element(*i: Any) -> Any:
                x = te.i64(a(*te.broadcast_index(i, types[0].shape)))
                y = te.i64(b(*te.broadcast_index(i, types[1].shape)))
                acc = x * te.const64(self.multiplier_a) + y * te.const64(self.multiplier_b)
                value = te.requantise(acc + te.const64(self.offset), te.const64(1), self.shift)
                return te.saturate(value, self.dtype, self.lo, self.hi)

            return tvm_te.compute(out.shape, element, "sum")

        return bb.emit_te(body, *args, primfunc_name_hint="add")

    @classmethod
    def samples(cls) -> list[Sample]:
        cases = [
            ("int16", "int16", (4, 6), (4, 6), QParams.of(0.001), QParams.of(0.0003), "int16"),
            ("int8", "uint8", (2, 1, 5), (3, 1), QParams.of(0.1, 4), QParams.of(0.02, 128), "int8"),
        ]
        out = {"int16": QParams.of(0.0011), "int8": QParams.of(0.12, -9)}
        return [
            Sample(
                cls.of(qa, qb, out[dtype], dtype),
                (IntType(ka, sa, *LIMITS[ka]), IntType(kb, sb, *LIMITS[kb])),
                torch.add,
                (qa, qb),
                out[dtype],
                error=0.501,
            )
            for ka, kb, sa, sb, qa, qb, dtype in cases
        ]
