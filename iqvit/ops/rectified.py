"""`rectified`: GELU and SiLU of a 16-bit value, as ReLU plus an interpolated bump."""

import math
from collections.abc import Callable
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
)
from iqvit.inttype import LIMITS, IntType, QParams, constant_type
from iqvit.ops.base import Op, Sample, want
from iqvit.ops.unary import unary

SEGMENTS = 256
TABLE_LIMIT = 2**14


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU's tanh form (Hendrycks and Gimpel, arXiv 1606.08415, section 2)."""
    return torch.nn.functional.gelu(x, approximate="tanh")


FUNCTIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float]] = {
    # function, and the |x| beyond which f(x) - relu(x) is below 1e-5
    "gelu": (torch.nn.functional.gelu, 4.75),
    "gelu_tanh": (gelu_tanh, 4.75),
    "silu": (torch.nn.functional.silu, 14.5),
}


@dataclass(frozen=True)
class Rectified(Op):
    """`out[..., c] = clamp((v * m[c] + 2**(shift-1) >> shift) + z[c])`, `v = relu(x) << f + bump`.

    GELU and SiLU are `x * F(x)` with `F(-x) = 1 - F(x)`, so `f(x) = relu(x) + bump(|x|)` and the
    bump is a small even function that vanishes for large |x|. It is interpolated linearly between
    the entries of a table over |x|, spaced by `2**step`; `f = fraction` is the number of fractional
    bits of the entries. Past the last entry the bump is 0.

    Inputs: x int16 with zero point 0, table int16 `[entries]`, m int32 `[C]` or `[1]`, z int32
    `[C]` or `[1]` along the last axis. Error: 0.5 output steps for the rounding, plus the
    interpolation's, at most `step**2 / 8 * max|f''|` (below 4e-4 for GELU with 256 segments).
    """

    NAME: ClassVar[str] = "rectified"
    MADE: ClassVar[tuple[int, ...]] = (1, 2, 3)
    step: int
    fraction: int
    shift: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(
        function: str, qin: QParams, qout: QParams, dtype: str
    ) -> tuple["Rectified", np.ndarray, np.ndarray, np.ndarray]:
        """The operator with its table, multipliers and zero points."""
        real, cutoff = FUNCTIONS[function]
        scale = float(qin.scale)
        end = min(cutoff / scale, 32768.0)
        step = max(0, math.ceil(math.log2(end / SEGMENTS)))
        entries = math.ceil(end / 2**step) + 1
        u = torch.arange(entries, dtype=torch.float64) * (2**step * scale)
        bump = real(-u) / scale
        fraction = math.floor(math.log2(TABLE_LIMIT / max(float(bump.abs().max()), 1e-9)))
        fraction = min(max(fraction, 0), 12)
        table = torch.floor(bump * 2**fraction + 0.5)
        table[-1] = 0
        m, shift = multipliers(np.atleast_1d(scale / qout.scale) / 2**fraction)
        op = Rectified(step, fraction, shift, dtype, *LIMITS[dtype])
        zero = np.atleast_1d(qout.zero_point).astype(np.int32)
        return op, table.numpy().astype(np.int16), m.astype(np.int32), zero

    def infer(self, *args: IntType) -> IntType:
        x, table, multiplier, zero = args
        want(x.dtype == "int16", f"x is {x.dtype}, not int16")
        want(table.dtype == "int16" and len(table.shape) == 1, "the table is int16 [entries]")
        # a rise of 16 bits and a sign times a part of `step` bits is interpolated in int32
        want(0 <= self.step < 15, f"entries 2**{self.step} apart")
        for kind in (multiplier, zero):
            want(kind.dtype == "int32", "multipliers and zero points are int32")
            want(kind.shape in ((1,), (x.shape[-1],)), f"{kind.shape} does not fit {x.shape}")
        lo = (max(x.lo, 0) << self.fraction) + min(table.lo, 0)
        hi = (max(x.hi, 0) << self.fraction) + max(table.hi, 0)
        require_int32(lo, hi, "rectified value")
        lo, hi = requantise_range(lo, hi, [multiplier.lo, multiplier.hi], self.shift)
        lo, hi = clamp_range(lo + zero.lo, hi + zero.hi, self.lo, self.hi)
        return IntType(self.dtype, x.shape, lo, hi)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x, table, multiplier, zero = args
        entries = table.to(torch.int64)
        last = table.numel() - 1

        def value(x: torch.Tensor) -> torch.Tensor:
            u = x.abs()
            index = (u >> self.step).clamp(max=last)
            left = entries[index]
            right = entries[(index + 1).clamp(max=last)]
            part = u & ((1 << self.step) - 1)
            bump = left + requantise(right - left, part, self.step)
            return (x.clamp(min=0) << self.fraction) + bump

        return unary(value, x, multiplier, zero, self)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        last = types[1].shape[0] - 1

        def body(x: Any, table: Any, multiplier: Any, zero: Any) -> Any:
            def value(*i: Any) -> Any:
                q = te.i32(x(*i))
                u = tirx.max(q, -q)
                index = tirx.min(u >> self.step, tirx.const(last, "int32"))
                right = tirx.min(index + 1, tirx.const(last, "int32"))
                part = u & tirx.const((1 << self.step) - 1, "int32")
                rise = te.i32(table(right)) - te.i32(table(index))
                half = tirx.const((1 << self.step) >> 1, "int32")
                bump = te.i32(table(index)) + ((rise * part + half) >> self.step)
                positive = tirx.max(q, tirx.const(0, "int32"))
                return (positive << self.fraction) + bump

            values = tvm_te.compute(out.shape, value, "value")

            def element(*i: Any) -> Any:
                c = [te.broadcast_index(i, (t.shape[0],)) for t in types[2:]]
                scaled = te.requantise(values(*i), multiplier(*c[0]), self.shift)
                return te.saturate(scaled + te.i64(zero(*c[1])), self.dtype, self.lo, self.hi)

            return tvm_te.compute(out.shape, element, "rectified")

        return bb.emit_te(body, *args, primfunc_name_hint="rectified")

    @classmethod
    def samples(cls) -> list[Sample]:
        cases = [
            ("gelu", QParams.of(0.0003), QParams.of(0.04, 10), "uint8"),
            (
                "gelu_tanh",
                QParams.of(0.0011),
                QParams.of(np.linspace(0.01, 0.2, 24), 7.0, -1),
                "uint8",
            ),
            ("silu", QParams.of(0.0007), QParams.of(0.0008), "int16"),
        ]
        samples = []
        for function, qin, qout, dtype in cases:
            op, *constants = cls.of(function, qin, qout, dtype)
            x = IntType("int16", (1, 300, 24), *LIMITS["int16"])
            samples.append(
                Sample(
                    op,
                    (x, *map(constant_type, constants)),
                    lambda x, *_, function=function: FUNCTIONS[function][0](x),
                    (qin, None, None, None),
                    qout,
                    error=0.55 if dtype == "uint8" else 1.5,
                )
            )
        return samples
