"""`matmul`: the product of two activations."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.arith import (
    clamp_range,
    exact_matmul,
    multipliers,
    requantise,
    requantise_range,
    require_int32,
    saturate,
)
from iqvit.inttype import LIMITS, IntType, QParams
from iqvit.ops.base import Op, Sample, broadcast_shapes, want


def product_range(a: IntType, b: IntType, terms: int) -> tuple[int, int]:
    """Proved range of a sum of `terms` products."""
    ends = [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    return min(ends) * terms, max(ends) * terms


@dataclass(frozen=True)
class Matmul(Op):
    """`out = clamp(((a @ b) * m + 2**(shift-1) >> shift) + z)`, batched as `torch.matmul`.

    a `[..., M, K]` is 8- or 16-bit (16 only for the normalised probabilities of the published
    softmax forms), b `[..., K, N]` is int8; both have zero point 0. `shift = 0`, `m = 1` with dtype
    int32 gives the raw accumulator.
    """

    NAME: ClassVar[str] = "matmul"
    multiplier: int
    shift: int
    zero_point: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(qa: QParams, qb: QParams, qout: QParams, dtype: str) -> "Matmul":
        """The operator for per-tensor scales; operands have zero point 0."""
        m, shift = multipliers(float(qa.scale * qb.scale / qout.scale))
        return Matmul(int(m), shift, int(qout.zero_point), dtype, *LIMITS[dtype])

    def infer(self, *args: IntType) -> IntType:
        a, b = args
        want(a.dtype in ("int8", "uint8", "int16"), f"a is {a.dtype}, not 8- or 16-bit")
        want(b.dtype in ("int8", "uint8"), f"operands of products are 8-bit, b is {b.dtype}")
        want(min(len(a.shape), len(b.shape)) >= 2, "operands are matrices or batches of them")
        want(a.shape[-1] == b.shape[-2], f"shapes {a.shape} and {b.shape} do not multiply")
        lo, hi = self.accumulator(*args)
        lo, hi = requantise_range(lo, hi, [self.multiplier], self.shift)
        lo, hi = clamp_range(lo + self.zero_point, hi + self.zero_point, self.lo, self.hi)
        batch = broadcast_shapes(a.shape[:-2], b.shape[:-2])
        return IntType(self.dtype, (*batch, a.shape[-2], b.shape[-1]), lo, hi)

    def accumulator(self, *args: IntType) -> tuple[int, int]:
        a, b = args
        lo, hi = product_range(a, b, a.shape[-1])
        require_int32(lo, hi)
        return lo, hi

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        a, b = args
        largest = 2**15 if a.dtype == torch.int16 else 255
        acc = exact_matmul(a, b, a.shape[-1] * largest * 255)
        if self.shift == 0 and self.multiplier == 1:
            return saturate(acc + self.zero_point, self.dtype, self.lo, self.hi)
        out = requantise(acc, self.multiplier, self.shift).add_(self.zero_point)
        return saturate(out, self.dtype, self.lo, self.hi)

    def macs(self, *args: IntType) -> int:
        a, b = args
        batch = broadcast_shapes(a.shape[:-2], b.shape[:-2])
        count = a.shape[-2] * a.shape[-1] * b.shape[-1]
        for d in batch:
            count *= d
        return count

    def wide_macs(self, *args: IntType) -> int:
        return self.macs(*args) if args[0].dtype == "int16" else 0

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tvm_te

        def body(a: Any, b: Any) -> Any:
            k = tvm_te.reduce_axis((0, types[0].shape[-1]), "k")

            def element(*i: Any) -> Any:
                left = te.broadcast_index(i[:-2], types[0].shape[:-2])
                right = te.broadcast_index(i[:-2], types[1].shape[:-2])
                terms = te.i32(a(*left, i[-2], k)) * te.i32(b(*right, k, i[-1]))
                return tvm_te.sum(terms, axis=k)

            acc = tvm_te.compute(out.shape, element, "acc")

            def finish(*i: Any) -> Any:
                value = te.requantise(acc(*i), te.const64(self.multiplier), self.shift)
                return te.saturate(
                    value + te.const64(self.zero_point), self.dtype, self.lo, self.hi
                )

            return tvm_te.compute(out.shape, finish, "requantised")

        return bb.emit_te(body, *args, primfunc_name_hint="matmul")

    @classmethod
    def samples(cls) -> list[Sample]:
        qa, qb = QParams.of(0.05), QParams.of(0.02)
        return [
            Sample(
                cls.of(qa, qb, qout, dtype),
                (IntType(ka, sa, *LIMITS[ka]), IntType("int8", sb, *LIMITS["int8"])),
                torch.matmul,
                (qa, qb),
                qout,
                error=0.501,
                macs=macs,
            )
            for ka, sa, sb, dtype, qout, macs in (
                ("int8", (2, 5, 9), (2, 9, 4), "int8", QParams.of(0.9, 5), 360),
                ("uint8", (1, 3, 7, 33), (2, 1, 33, 6), "int16", QParams.of(0.06), 8316),
                ("int16", (3, 70), (70, 5), "int16", QParams.of(3.0), 1050),
            )
        ]
