"""`mean`: average over axes, with one rounding (global average pooling)."""

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
from iqvit.inttype import LIMITS, IntType, QParams
from iqvit.ops.base import Op, Sample, want


@dataclass(frozen=True)
class Mean(Op):
    """`out = clamp(((sum_axes x - n*zx) * m + 2**(shift-1) >> shift) + z)`, `m` holding 1/n.

    The int32 sum is proved not to overflow. Error: half an output step, plus that of `m`.
    """

    NAME: ClassVar[str] = "mean"
    axes: tuple[int, ...]
    keepdim: int
    offset: int
    multiplier: int
    shift: int
    zero_point: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(
        shape: tuple[int, ...],
        axes: tuple[int, ...],
        keepdim: bool,
        qin: QParams,
        qout: QParams,
        dtype: str,
    ) -> "Mean":
        """The operator for per-tensor scales."""
        count = int(np.prod([shape[a] for a in axes]))
        m, shift = multipliers(float(qin.scale / qout.scale) / count)
        offset = -count * int(qin.zero_point)
        zero = int(qout.zero_point)
        return Mean(axes, int(keepdim), offset, int(m), shift, zero, dtype, *LIMITS[dtype])

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape without (or with 1 for) the averaged axes."""
        if self.keepdim:
            return tuple(1 if a in self.axes else d for a, d in enumerate(shape))
        return tuple(d for a, d in enumerate(shape) if a not in self.axes)

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        want(all(0 <= a < len(x.shape) for a in self.axes), f"axes {self.axes} of {x.shape}")
        count = int(np.prod([x.shape[a] for a in self.axes]))
        self.accumulator(x)
        lo, hi = x.lo * count + self.offset, x.hi * count + self.offset
        lo, hi = requantise_range(lo, hi, [self.multiplier], self.shift)
        lo, hi = clamp_range(lo + self.zero_point, hi + self.zero_point, self.lo, self.hi)
        return IntType(self.dtype, self.out_shape(x.shape), lo, hi)

    def accumulator(self, *args: IntType) -> tuple[int, int]:
        (x,) = args
        count = int(np.prod([x.shape[a] for a in self.axes]))
        # the sum alone and with the zero points taken off
        lo, hi = x.lo * count + min(self.offset, 0), x.hi * count + max(self.offset, 0)
        require_int32(lo, hi, "sum")
        return lo, hi

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        acc = args[0].to(torch.int64).sum(self.axes, keepdim=bool(self.keepdim)) + self.offset
        out = requantise(acc, self.multiplier, self.shift) + self.zero_point
        return saturate(out, self.dtype, self.lo, self.hi)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from tvm import topi

        from iqvit.ops import te
        from iqvit.ops.te import tvm_te

        def body(x: Any) -> Any:
            acc = topi.sum(x.astype("int32"), axis=self.axes, keepdims=bool(self.keepdim))

            def element(*i: Any) -> Any:
                centred = te.i64(acc(*i)) + te.const64(self.offset)
                value = te.requantise(centred, te.const64(self.multiplier), self.shift)
                return te.saturate(
                    value + te.const64(self.zero_point), self.dtype, self.lo, self.hi
                )

            return tvm_te.compute(out.shape, element, "mean")

        return bb.emit_te(body, *args, primfunc_name_hint="mean")

    @classmethod
    def samples(cls) -> list[Sample]:
        cases = [
            ("int16", (1, 7, 5), (1,), False, QParams.of(0.01), "int8", QParams.of(1.0, 3)),
            ("uint8", (1, 3, 4, 6), (2, 3), True, QParams.of(0.1, 128), "int16", QParams.of(0.001)),
        ]
        return [
            Sample(
                cls.of(shape, axes, keep, qin, qout, dtype),
                (IntType(kind, shape, *LIMITS[kind]),),
                lambda x, axes=axes, keep=keep: x.mean(axes, keepdim=keep),
                (qin,),
                qout,
                error=0.501,
            )
            for kind, shape, axes, keep, qin, dtype, qout in cases
        ]
