"""`upsample_bilinear`: bilinear interpolation without any rounding."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from iqvit.errors import GraphError, OverflowProofError
from iqvit.inttype import LIMITS, IntType, QParams
from iqvit.ops.base import Op, Sample, want


@dataclass(frozen=True, eq=False)
class Taps:
    """Where `m` outputs of one axis read its `n` inputs, as exact rationals.

    Output i is `(in[low[i]] * (denominator - weight[i]) + in[high[i]] * weight[i]) / denominator`.
    All arrays are int64 `[m]`.
    """

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray
    denominator: int


def taps(n: int, m: int) -> Taps:
    """The taps of half-pixel centres (`align_corners=False`) from `n` to `m` pixels.

    Output i lies at `(i + 1/2) n/m - 1/2 = ((2i+1) n - m) / (2m)`, limited to the first and the
    last input pixel. The denominator is reduced: 2k for an upsampling by k.
    """
    place = np.maximum((2 * np.arange(m, dtype=np.int64) + 1) * n - m, 0)
    low, weight = np.divmod(place, 2 * m)
    common = int(np.gcd.reduce(np.append(weight, 2 * m)))
    return Taps(low, np.minimum(low + 1, n - 1), weight // common, 2 * m // common)


@dataclass(frozen=True)
class UpsampleBilinear(Op):
    """`out = denominator * bilinear(x)` in int32: the numerators of exact rationals.

    Half-pixel centres, as `F.interpolate(mode="bilinear", align_corners=False)`. The denominator is
    the product of those of the two axes (`taps`); for an upsampling by k it is `(2k)**2`, a power
    of two where k is one. The output's scale is the input's over the denominator, so nothing is
    rounded. Input `[..., h, w]` of at most 16 bits (or a range that fits); the proof fails where
    the numerators would leave int32.
    """

    NAME: ClassVar[str] = "upsample_bilinear"
    height: int
    width: int

    def denominator(self, shape: tuple[int, ...]) -> int:
        """What the integers of an input of `shape` are multiplied by."""
        rows, columns = self.taps(shape)
        return rows.denominator * columns.denominator

    def taps(self, shape: tuple[int, ...]) -> tuple[Taps, Taps]:
        """Taps of the rows and of the columns for an input of `shape`."""
        return taps(shape[-2], self.height), taps(shape[-1], self.width)

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        want(len(x.shape) >= 2, f"x is {x.shape}, not [..., height, width]")
        want(min(self.height, self.width) >= 1, f"the size {self.height}x{self.width} is empty")
        lo, hi = self.accumulator(*args)
        return IntType("int32", (*x.shape[:-2], self.height, self.width), lo, hi)

    def accumulator(self, *args: IntType) -> tuple[int, int]:
        (x,) = args
        factor = self.denominator(x.shape)
        lo, hi = x.lo * factor, x.hi * factor
        least, most = LIMITS["int32"]
        if least <= lo and hi <= most:
            return lo, hi
        raise OverflowProofError(
            f"bilinear weights from {x.shape[-2]}x{x.shape[-1]} to {self.height}x{self.width} have "
            f"the denominator {factor}, with which {x.lo}..{x.hi} leaves int32: give this value 8 "
            "bits, or a size with a smaller denominator (twice the factor for whole factors)"
        )

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x = args[0].to(torch.int32)  # every sum lies in int32 by proof
        for axis, tap in zip((-2, -1), self.taps(tuple(x.shape)), strict=True):
            low, high, weight = (
                torch.from_numpy(v).to(x.device) for v in (tap.low, tap.high, tap.weight)
            )
            weight = weight.to(torch.int32)
            if axis == -2:
                weight = weight[:, None]
            first, second = x.index_select(axis, low), x.index_select(axis, high)
            x = first * (tap.denominator - weight) + second * weight
        return x

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tvm_te

        height, width = types[0].shape[-2:]
        rows, columns = self.taps(types[0].shape)

        def body(x: Any) -> Any:
            def tall(*i: Any) -> Any:
                low, high, weight = _tap_te(i[-2], height, self.height, rows)
                first, second = x(*i[:-2], low, i[-1]), x(*i[:-2], high, i[-1])
                return te.i32(first) * (rows.denominator - weight) + te.i32(second) * weight

            vertical = tvm_te.compute((*out.shape[:-1], width), tall, "rows")

            def wide(*i: Any) -> Any:
                low, high, weight = _tap_te(i[-1], width, self.width, columns)
                first, second = vertical(*i[:-1], low), vertical(*i[:-1], high)
                return first * (columns.denominator - weight) + second * weight

            return tvm_te.compute(out.shape, wide, "upsampled")

        return bb.emit_te(body, *args, primfunc_name_hint="upsample_bilinear")

    @classmethod
    def samples(cls) -> list[Sample]:
        cases = [
            ("int16", (1, 3, 2, 3), 32, 48, QParams.of(0.01)),
            ("uint8", (1, 2, 4, 5), 7, 3, QParams.of(0.5, 12)),
            ("int8", (2, 1, 5), 3, 10, QParams.of(0.5)),
        ]
        return [cls._sample(*case) for case in cases]

    @classmethod
    def _sample(
        cls, kind: str, shape: tuple[int, ...], height: int, width: int, qin: QParams
    ) -> Sample:
        op = cls(height, width)

        def real(x: torch.Tensor) -> torch.Tensor:
            batch = x.reshape(1, -1, *shape[-2:])
            grown = torch.nn.functional.interpolate(batch, (height, width), mode="bilinear")
            return grown.reshape(*shape[:-2], height, width)

        qout = scaled(qin, op.denominator(shape))
        # the float64 reference rounds; the integers do not
        return Sample(op, (IntType(kind, shape, *LIMITS[kind]),), real, (qin,), qout, error=1e-3)


def scaled(qin: QParams, factor: int) -> QParams:
    """What `factor * q` stands for, where q stands for itself by `qin`."""
    if factor < 1:
        raise GraphError(f"a scale cannot be divided by {factor}")
    return QParams.of(qin.scale / factor, qin.zero_point * factor, qin.axis)


def _tap_te(i: Any, n: int, m: int, tap: Taps) -> tuple[Any, Any, Any]:
    """`taps` for one output index: both input indices and the int32 weight of the second."""
    from iqvit.ops.te import const64, tirx

    place = tirx.max((i * const64(2) + const64(1)) * const64(n) - const64(m), const64(0))
    low = tirx.floordiv(place, const64(2 * m))
    weight = tirx.floordiv(tirx.floormod(place, const64(2 * m)), const64(2 * m // tap.denominator))
    return low, tirx.min(low + const64(1), const64(n - 1)), weight.astype("int32")
