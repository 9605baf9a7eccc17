"""`row_linear`: int8 weights times activations whose rows have their own scales."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
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
from iqvit.inttype import LIMITS, IntType, QParams, constant_type
from iqvit.ops.base import Op, Sample, want
from iqvit.ops.linear import check_epilogue, known, largest_sum, weighted_range

FRACTION = 8  # bits below an output step that the bias is added with
MULTIPLIER_BITS = 15  # times a peak of at most 16 bits gives 31


@dataclass(frozen=True)
class RowLinear(Op):
    """`out = clamp(((acc * (m[n] * peak) + 2**(shift-1) >> shift) + b[n] + 128) >> 8)`.

    `acc = sum_k x[..., k] * w[n, k]`, int32 by proof. Inputs: x int8 or uint8 `[..., K]` and peak
    int32 `[..., 1]` of a `row_quantise`, w int8 `[N, K]`, b and m int32 `[N]`. m holds the scales
    and 1/levels, b the bias, the offset of x and the output's zero point, with 8 fractional bits.
    Error: half an output step, 2**-8 for the first rounding, and 2**-15 of the largest product.
    """

    NAME: ClassVar[str] = "row_linear"
    shift: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(
        ratio: np.ndarray, bias: np.ndarray, dtype: str, limits: tuple[int, int]
    ) -> tuple["RowLinear", np.ndarray, np.ndarray]:
        """The operator, its bias and multipliers: `ratio` `[N]` is output steps for an accumulator
        of 1 and a peak of 1, `bias` `[N]` the rest in output steps."""
        m, shift = multipliers(ratio * 2.0**FRACTION, bits=MULTIPLIER_BITS)
        b = np.floor(bias * 2.0**FRACTION + 0.5)
        b = np.clip(b, *LIMITS["int32"]).astype(np.int32)
        return RowLinear(shift, dtype, *limits), b, m.astype(np.int32)

    def infer(self, *args: IntType) -> IntType:
        x, peak, weight, bias, multiplier = args
        want(x.dtype in ("int8", "uint8"), f"operands of products are 8-bit, x is {x.dtype}")
        want(x.shape[-1] == weight.shape[1], f"x {x.shape} does not fit the weight {weight.shape}")
        want(peak.shape == (*x.shape[:-1], 1) and peak.lo >= 1, f"{peak} is no row peak of {x}")
        check_epilogue(weight, bias, multiplier)
        most = peak.hi * max(abs(multiplier.lo), abs(multiplier.hi))
        want(most < 1 << 31, f"multiplier times peak reaches {most}, above 31 bits")
        require_int32(*self.accumulator(*args))
        shape = (*x.shape[:-1], weight.shape[0])
        return IntType(self.dtype, shape, *clamp_range(*self.unsaturated(*args), self.lo, self.hi))

    def unsaturated(self, *args: IntType) -> tuple[int, int]:
        """Proved range of the result before it saturates."""
        _, peak, _, bias, multiplier = args
        factors = [m * p for m in (multiplier.lo, multiplier.hi) for p in (peak.lo, peak.hi)]
        lo, hi = requantise_range(*self.accumulator(*args), factors, self.shift)
        half = 1 << (FRACTION - 1)
        return (lo + bias.lo + half) >> FRACTION, (hi + bias.hi + half) >> FRACTION

    def accumulator(self, *args: IntType) -> tuple[int, int]:
        """Proved range of the int32 accumulator."""
        x, _, weight = args[:3]
        return weighted_range(x, known(weight), np.zeros(weight.shape[0], np.int64))

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x, peak, weight, bias, multiplier = args
        acc = exact_matmul(x, weight.T, largest_sum(x, weight))
        factor = peak.to(torch.int64) * multiplier.to(torch.int64)
        fine = requantise(acc, factor, self.shift)
        rounded = fine.add_(bias.to(torch.int64) + (1 << (FRACTION - 1)))
        return saturate(rounded.bitwise_right_shift_(FRACTION), self.dtype, self.lo, self.hi)

    def macs(self, *args: IntType) -> int:
        return args[0].size * args[2].shape[0]

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        x, peak, weight, bias, multiplier = args
        acc = bb.emit_te(te.product, x, weight, primfunc_name_hint="row_linear_acc")

        def body(acc: Any, peak: Any, bias: Any, multiplier: Any) -> Any:
            def element(*i: Any) -> Any:
                factor = te.i64(multiplier(i[-1])) * te.i64(peak(*i[:-1], tirx.const(0, "int64")))
                fine = te.requantise(acc(*i), factor, self.shift) + te.i64(bias(i[-1]))
                rounded = te.requantise(fine, te.const64(1), FRACTION)
                return te.saturate(rounded, self.dtype, self.lo, self.hi)

            return tvm_te.compute(out.shape, element, "requantised")

        return bb.emit_te(
            body, acc, peak, bias, multiplier, primfunc_name_hint="row_linear_requantise"
        )

    @classmethod
    def samples(cls) -> list[Sample]:
        rng = np.random.default_rng(4)
        samples = []
        for rows, k, n, kind, dtype, peak in (
            ((1, 5), 12, 7, "int8", "int16", 900),
            ((2,), 65, 20, "uint8", "int16", 32767),
            ((1, 3), 33, 9, "int8", "int8", 20000),
        ):
            weight = rng.integers(-127, 128, (n, k)).astype(np.int8)
            scale_w, scale_x = rng.uniform(0.002, 0.01, n), 0.01
            qout = QParams.of(0.005 if dtype == "int16" else 1.1)
            real_bias = rng.uniform(-3, 3, n)
            op, b, m = cls.of(
                scale_x / peak * scale_w / float(qout.scale),
                real_bias / float(qout.scale),
                dtype,
                LIMITS[dtype],
            )
            types = (
                IntType(kind, (*rows, k), *((-127, 127) if kind == "int8" else (0, 255))),
                constant_type(np.full((*rows, 1), peak, np.int32)),
                constant_type(weight),
                constant_type(b),
                constant_type(m),
            )
            offset = torch.from_numpy(real_bias)
            samples.append(
                Sample(
                    op,
                    types,
                    lambda x, _p, w, *_, offset=offset: torch.nn.functional.linear(x, w, offset),
                    (QParams.of(scale_x), None, QParams.of(scale_w, axis=0), None, None),
                    qout,
                    error=0.51 + 2.0**-14 * 32768 if dtype == "int16" else 0.52,
                    macs=int(np.prod(rows)) * k * n,
                )
            )
        return samples
