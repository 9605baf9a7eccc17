"""`ilayernorm`: I-ViT's integer LayerNorm (Li and Gu, arXiv 2207.01405, section 3.6)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from iqvit.arith import (
    clamp_range,
    multipliers,
    requantise,
    requantise_range,
    require_int32,
    saturate,
)
from iqvit.inttype import LIMITS, IntType, QParams, constant_type
from iqvit.ops.base import Op, Sample, want

STEPS = 10  # Newton steps of the released code, from 2**16
START = 1 << 16
INT31 = 2**31 - 1


@dataclass(frozen=True)
class ILayerNorm(Op):
    """LayerNorm over the last axis with the published square root: ten Newton steps from 2**16.

        y = x - round(mean(x)),  std = newton(sum(y^2)),  t = y * ((2**31 - 1) // std) >> 1
        out = clamp(((t + b[c]) * m[c] + half >> shift) + z[c])

    t has scale sqrt(n)/2**30, b is `beta/gamma` at that scale and m holds gamma. Published form,
    defects kept: no epsilon, and the root never falls below 64, so rows of small variance come out
    too small (a standard deviation of 10 steps as 64). Inputs: x int16 `[..., n]`; b, m, z int32.
    """

    NAME: ClassVar[str] = "ilayernorm"
    MADE: ClassVar[tuple[int, ...]] = (3,)
    shift: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(
        count: int, gain: np.ndarray, bias: np.ndarray, qout: QParams, dtype: str
    ) -> tuple["ILayerNorm", np.ndarray, np.ndarray, np.ndarray]:
        """The operator with its bias, multipliers and zero points; `qout` may be per channel."""
        norm = np.sqrt(count) / 2**30
        # gamma near 0 would divide by 0: it is kept at 2**-16 of the largest, as its own sign
        floor = np.max(np.abs(gain)) * 2.0**-16
        gamma = np.where(np.abs(gain) < floor, np.where(gain < 0, -floor, floor), gain)
        b = np.clip(np.floor(bias / gamma / norm), -INT31, INT31)
        m, shift = multipliers(np.broadcast_to(gamma * norm / qout.scale, (count,)), bits=24)
        zero = np.broadcast_to(qout.zero_point, (count,)).astype(np.int32)
        op = ILayerNorm(shift, dtype, *LIMITS[dtype])
        return op, b.astype(np.int32), m.astype(np.int32), zero

    def infer(self, *args: IntType) -> IntType:
        x, bias, multiplier, zero = args
        count = x.shape[-1]
        want(x.dtype == "int16", f"x is {x.dtype}, not int16")
        for kind in (bias, multiplier, zero):
            want(kind.shape == (count,) and kind.dtype == "int32", f"{kind} is not int32[{count}]")
        require_int32(x.lo * count, x.hi * count, "sum")
        # |y| <= sqrt(sum(y^2)) and Newton's root stays above its floor and above 64, so
        # |t| <= 2**30 * 65/64
        bound = (1 << 30) + (1 << 24) + max(abs(bias.lo), abs(bias.hi))
        lo, hi = requantise_range(-bound, bound, [multiplier.lo, multiplier.hi], self.shift)
        lo, hi = clamp_range(lo + zero.lo, hi + zero.hi, self.lo, self.hi)
        return IntType(self.dtype, x.shape, lo, hi)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x, bias, multiplier, zero = (t.to(torch.int64) for t in args)
        count = x.shape[-1]
        mean = (2 * x.sum(-1, keepdim=True) + count) // (2 * count)
        y = x - mean
        variance = (y * y).sum(-1, keepdim=True)
        std = torch.full_like(variance, START)
        for _ in range(STEPS):
            std = (std + variance // std) >> 1
        t = (y * (INT31 // std)) >> 1
        out = requantise(t + bias, multiplier, self.shift) + zero
        return saturate(out, self.dtype, self.lo, self.hi)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        count = types[0].shape[-1]
        rows = (*out.shape[:-1], 1)
        zero64 = tirx.const(0, "int64")

        def body(x: Any, bias: Any, multiplier: Any, zero: Any) -> Any:
            k, j = (tvm_te.reduce_axis((0, count), name) for name in "kj")
            total = tvm_te.compute(
                rows, lambda *i: tvm_te.sum(te.i64(x(*i[:-1], k)), axis=k), "total"
            )
            mean = tvm_te.compute(
                rows,
                lambda *i: tirx.floordiv(
                    te.const64(2) * total(*i) + te.const64(count), te.const64(2 * count)
                ),
                "mean",
            )
            y = tvm_te.compute(
                out.shape, lambda *i: te.i64(x(*i)) - mean(*i[:-1], zero64), "centred"
            )
            variance = tvm_te.compute(
                rows, lambda *i: tvm_te.sum(y(*i[:-1], j) * y(*i[:-1], j), axis=j), "variance"
            )
            std = tvm_te.compute(rows, lambda *i: te.const64(START), "std")
            for step in range(STEPS):
                std = _newton(std, variance, rows, step)

            def element(*i: Any) -> Any:
                factor = tirx.truncdiv(te.const64(INT31), std(*i[:-1], zero64))
                t = (y(*i) * factor) >> te.const64(1)
                scaled = te.requantise(t + te.i64(bias(i[-1])), multiplier(i[-1]), self.shift)
                return te.saturate(scaled + te.i64(zero(i[-1])), self.dtype, self.lo, self.hi)

            return tvm_te.compute(out.shape, element, "ilayernorm")

        return bb.emit_te(body, *args, primfunc_name_hint="ilayernorm")

    @classmethod
    def samples(cls) -> list[Sample]:
        rng = np.random.default_rng(3)
        samples = []
        for count, qout, dtype in (
            (48, QParams.of(0.05, -3), "int8"),
            (192, QParams.of(0.05), "int8"),
        ):
            gain, bias = rng.uniform(0.5, 2, count), rng.uniform(-1, 1, count)
            op, *constants = cls.of(count, gain, bias, qout, dtype)
            weight, offset = torch.from_numpy(gain), torch.from_numpy(bias)
            types = (
                IntType("int16", (1, 40, count), *LIMITS["int16"]),
                *map(constant_type, constants),
            )
            samples.append(
                Sample(
                    op,
                    types,
                    lambda x, *_, count=count, weight=weight, offset=offset: (
                        torch.nn.functional.layer_norm(x, (count,), weight, offset, 0.0)
                    ),
                    (QParams.of(0.002), None, None, None),
                    qout,
                    error=1.0,
                )
            )
        return samples


def _newton(std: Any, variance: Any, rows: tuple[int, ...], step: int) -> Any:
    from iqvit.ops import te
    from iqvit.ops.te import tirx, tvm_te

    def element(*i: Any) -> Any:
        return (std(*i) + tirx.truncdiv(variance(*i), std(*i))) >> te.const64(1)

    return tvm_te.compute(rows, element, f"std_{step}")
