"""`interpolate`: any smooth function of a 16-bit value, linear between the entries of a table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from iqvit.arith import clamp_range, requantise, require_int32, saturate
from iqvit.inttype import LIMITS, IntType, QParams, constant_type
from iqvit.ops.base import Op, Sample, want

STEPS = (6, 5, 4, 3)  # 1025 to 8193 entries
TOLERANCE = 0.3  # output steps that the interpolation may cost
TABLE_BITS = 30  # of an entry times 2**step


@dataclass(frozen=True)
class Interpolate(Op):
    """`out = clamp((table[i] << step) + (table[i+1] - table[i]) * part + half >> step + fraction)`.

    x int16 `[...]`; `i` and `part` are the quotient and rest of `x + 32768` by `2**step`; the table
    int32 `[(65536 >> step) + 1]` holds the function at multiples of `2**step`, in output steps with
    `fraction` bits, zero point included. Everything stays in int32.

    Error: half an output step, 2**-fraction for the entries, and the interpolation's: `step` is
    chosen so that it costs at most 0.3 output steps, if 8192 segments can do that.
    """

    NAME: ClassVar[str] = "interpolate"
    MADE: ClassVar[tuple[int, ...]] = (1,)
    step: int
    fraction: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(
        function: Callable[[torch.Tensor], torch.Tensor],
        qin: QParams,
        qout: QParams,
        dtype: str,
        limits: tuple[int, int] | None = None,
    ) -> tuple["Interpolate", np.ndarray]:
        """The operator and its table, for per-tensor scales; saturates at `limits`."""
        least, most = limits or LIMITS[dtype]
        every = torch.arange(-(2**15), 2**15 + 1)
        exact = function(qin.dequantize(every)) / float(qout.scale) + float(qout.zero_point)
        # What saturates needs no more than to stay there.
        exact = exact.clamp(least - 1, most + 1)
        chosen = STEPS[-1]
        for step in STEPS:
            if _error(exact, step) <= TOLERANCE:
                chosen = step
                break
        room = TABLE_BITS - chosen - int(exact.abs().max()).bit_length()
        fraction = min(room, 12)
        table = torch.floor(exact[:: 1 << chosen] * 2**fraction + 0.5)
        return Interpolate(chosen, fraction, dtype, least, most), table.numpy().astype(np.int32)

    def infer(self, *args: IntType) -> IntType:
        x, table = args
        want(x.dtype == "int16", f"x is {x.dtype}, not int16")
        size = (1 << (16 - self.step)) + 1
        want(table.dtype == "int32", f"the table is {table.dtype}, not int32")
        want(table.shape == (size,), f"the table has shape {table.shape}, not ({size},)")
        want(table.value is not None, "the table must be a constant")
        first, last = (x.lo + 2**15) >> self.step, (x.hi + 2**15) >> self.step
        reached = np.asarray(table.value)[first : last + 2].astype(np.int64)
        ends = [int(v) << self.step for v in (reached.min(), reached.max())]
        shift = self.step + self.fraction
        half = (1 << shift) >> 1
        require_int32(ends[0], ends[1] + half, "interpolated value")
        rise = int(np.abs(np.diff(reached)).max()) << self.step
        require_int32(-rise, rise, "rise")
        lo, hi = ((end + half) >> shift for end in ends)
        return IntType(self.dtype, x.shape, *clamp_range(lo, hi, self.lo, self.hi))

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x, table = (t.to(torch.int64) for t in args)
        u = x + 2**15
        index, part = u >> self.step, u & ((1 << self.step) - 1)
        left = table[index]
        value = (left << self.step) + (table[index + 1] - left) * part
        out = requantise(value, 1, self.step + self.fraction)
        return saturate(out, self.dtype, self.lo, self.hi)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        shift = self.step + self.fraction

        def body(x: Any, table: Any) -> Any:
            def element(*i: Any) -> Any:
                u = te.i32(x(*i)) + tirx.const(2**15, "int32")
                index = u >> self.step
                part = u & tirx.const((1 << self.step) - 1, "int32")
                left = table(index)
                value = (left << self.step) + (table(index + 1) - left) * part
                half = tirx.const((1 << shift) >> 1, "int32")
                return te.saturate(te.i64((value + half) >> shift), self.dtype, self.lo, self.hi)

            return tvm_te.compute(out.shape, element, "interpolated")

        return bb.emit_te(body, *args, primfunc_name_hint="interpolate")

    @classmethod
    def samples(cls) -> list[Sample]:
        cases = [
            (torch.sigmoid, QParams.of(2.0**-11), QParams.of(1 / 32767), "int16"),
            (torch.tanh, QParams.of(0.0003), QParams.of(1 / 32767), "int16"),
            (torch.sigmoid, QParams.of(0.001), QParams.of(1 / 255, 3), "uint8"),
        ]
        samples = []
        for function, qin, qout, dtype in cases:
            op, table = cls.of(function, qin, qout, dtype)
            samples.append(
                Sample(
                    op,
                    (IntType("int16", (1, 20, 50), *LIMITS["int16"]), constant_type(table)),
                    lambda x, _table, function=function: function(x),
                    (qin, None),
                    qout,
                    error=0.5 + TOLERANCE + 2.0**-op.fraction,
                )
            )
        return samples


def _error(exact: torch.Tensor, step: int) -> float:
    """The largest error of interpolating between every 2**step-th value, in the unit of `exact`."""
    entries = exact[:: 1 << step]
    part = torch.arange(1 << step) / (1 << step)
    between = entries[:-1, None] * (1 - part) + entries[1:, None] * part
    return float((between.reshape(-1) - exact[:-1]).abs().max())
