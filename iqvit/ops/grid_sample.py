"""`grid_sample`: an image read at fixed-point coordinates, zeros outside."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

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
from iqvit.ops.taps import TeLib, TorchLib, cell_taps, centre, check_mode
from iqvit.sampling import grid_sample

PLACE_BITS = 61  # of the scaled coordinate before its shift


@dataclass(frozen=True)
class GridSample(Op):
    """`out[c, i, j] = clamp((sum over taps of (x[c, tap] - zero) * weight) * m >> shift) + z)`.

    x 8- or 16-bit `[1, C, H, W]`; grid `[1, I, J, 2]` of any width, (x, y) as in torch's
    `grid_sample` with `align_corners=False`, `padding_mode="zeros"`. A place is
    `(grid * scale + base) >> place_shift` along each axis, in pixels with `fraction` bits,
    counted as `taps.centre` says: "bilinear" rounds it half up and weighs four cells, "nearest"
    reads one. Weights have `2 * fraction` bits, the int32 sum is proved.

    Error: half an output step, and for bilinear the rounding of the place: `2**-(fraction + 1)`
    pixels along each axis times the largest difference of neighbours.
    """

    NAME: ClassVar[str] = "grid_sample"
    mode: str
    fraction: int
    scale: tuple[int, ...]
    base: tuple[int, ...]
    place_shift: int
    zero: int
    multiplier: int
    shift: int
    zero_point: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(
        size: tuple[int, int],
        qx: QParams,
        qgrid: QParams,
        qout: QParams,
        dtype: str,
        mode: str = "bilinear",
        fraction: int = 8,
    ) -> "GridSample":
        """For an image of `size` (height, width) and per-tensor scales."""
        fraction = fraction if mode == "bilinear" else 0
        extents = (size[1], size[0])
        steps = [float(qgrid.scale) * extent / 2 for extent in extents]
        # A grid of 32 bits, or half an extent, times its factor stays inside.
        largest = max(*(step * 2.0**31 for step in steps), max(extents) / 2)
        shift = max(1, PLACE_BITS - 1 - fraction - math.ceil(math.log2(largest)))
        shift = min(shift, 40)
        unit = 2.0 ** (fraction + shift)
        scale = tuple(round(step * unit) for step in steps)
        origins = zip(extents, steps, strict=True)
        base = tuple(round((e / 2 - s * float(qgrid.zero_point)) * unit) for e, s in origins)
        m, m_shift = multipliers(float(qx.scale / qout.scale) / 4.0**fraction)
        return GridSample(
            mode,
            fraction,
            scale,
            base,
            shift,
            int(qx.zero_point),
            int(m),
            m_shift,
            int(qout.zero_point),
            dtype,
            *LIMITS[dtype],
        )

    def infer(self, *args: IntType) -> IntType:
        x, grid = args
        check_mode(self.mode, self.fraction, ("bilinear", "nearest"))
        want(x.dtype in ("int8", "uint8", "int16"), f"x is {x.dtype}, not 8- or 16-bit")
        want(len(x.shape) == 4 and x.shape[0] == 1, f"x {x.shape} is not [1, C, H, W]")
        fits = len(grid.shape) == 4 and grid.shape[0] == 1 and grid.shape[-1] == 2
        want(fits, f"the grid {grid.shape} is not [1, I, J, 2]")
        before, after = centre(self.mode, self.fraction, self.place_shift)
        for scale, base in zip(self.scale, self.base, strict=True):
            ends = [g * scale + base + before for g in (grid.lo, grid.hi)]
            want(max(map(abs, ends)) < 1 << 62, "a scaled coordinate leaves 62 bits")
            places = [(end >> self.place_shift) + after for end in ends]
            require_int32(min(places), max(places), "place")
        lo, hi = self.accumulator(*args)
        lo, hi = requantise_range(lo, hi, [self.multiplier], self.shift)
        lo, hi = clamp_range(lo + self.zero_point, hi + self.zero_point, self.lo, self.hi)
        return IntType(self.dtype, (1, x.shape[1], *grid.shape[1:3]), lo, hi)

    def accumulator(self, *args: IntType) -> tuple[int, int]:
        x, full = args[0], 4**self.fraction
        lo, hi = min(x.lo - self.zero, 0) * full, max(x.hi - self.zero, 0) * full
        require_int32(lo, hi)
        return lo, hi

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x, grid = (t.to(torch.int64) for t in args)
        height, width = x.shape[-2:]
        before, after = centre(self.mode, self.fraction, self.place_shift)
        scale, base = (torch.tensor(v, device=x.device) for v in (self.scale, self.base))
        places = ((grid * scale + base + before) >> self.place_shift) + after
        flat = (x - self.zero).flatten(2)
        px, py = places[0, ..., 0], places[0, ..., 1]
        taps = cell_taps(TorchLib, self.mode, self.fraction, px, py, width, height)
        acc = torch.stack([flat[:, :, cell] * weight for cell, weight in taps]).sum(0)
        out = requantise(acc, self.multiplier, self.shift) + self.zero_point
        return saturate(out, self.dtype, self.lo, self.hi)

    def macs(self, *args: IntType) -> int:
        x, grid = args
        return x.shape[1] * (grid.size // 2) * (4 if self.mode == "bilinear" else 1)

    def wide_macs(self, *args: IntType) -> int:
        return self.macs(*args)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        height, width = types[0].shape[-2:]
        before, after = centre(self.mode, self.fraction, self.place_shift)

        def body(x: Any, grid: Any) -> Any:
            def place(i: Any, j: Any, axis: int) -> Any:
                scaled = te.i64(grid(0, i, j, axis)) * te.const64(self.scale[axis])
                scaled = scaled + te.const64(self.base[axis] + before)
                return te.i32((scaled >> te.const64(self.place_shift)) + te.const64(after))

            def acc(b: Any, c: Any, i: Any, j: Any) -> Any:
                px, py = place(i, j, 0), place(i, j, 1)
                taps = cell_taps(TeLib, self.mode, self.fraction, px, py, width, height)
                total = tirx.const(0, "int32")
                for cell, weight in taps:
                    row, column = tirx.truncdiv(cell, width), tirx.truncmod(cell, width)
                    value = te.i32(x(b, c, row, column)) - tirx.const(self.zero, "int32")
                    total = total + value * weight
                return total

            summed = tvm_te.compute(out.shape, acc, "acc")

            def finish(*i: Any) -> Any:
                value = te.requantise(summed(*i), te.const64(self.multiplier), self.shift)
                value = value + te.const64(self.zero_point)
                return te.saturate(value, self.dtype, self.lo, self.hi)

            return tvm_te.compute(out.shape, finish, "sampled")

        return bb.emit_te(body, *args, primfunc_name_hint="grid_sample")

    @classmethod
    def samples(cls) -> list[Sample]:
        cases = [
            # x, size, grid, its scale, mode, fraction, qx, qout, dtype
            ("int8", (5, 7), "int16", 2**-14, "bilinear", 8, QParams.of(0.02), 0.02, "int8"),
            ("uint8", (4, 4), "int32", 3e-10, "bilinear", 5, QParams.of(0.1, 9), 0.01, "int16"),
            ("int8", (6, 5), "int16", 2**-14, "nearest", 0, QParams.of(0.02, -3), 0.03, "int8"),
        ]
        samples = []
        for kind, size, kind_grid, step, mode, fraction, qx, scale, dtype in cases:
            qgrid, qout = QParams.of(step), QParams.of(scale)
            blur = 2 * 255 * 2.0 ** -(fraction + 1) if mode == "bilinear" else 0.0
            samples.append(
                Sample(
                    cls.of(size, qx, qgrid, qout, dtype, mode, fraction),
                    (
                        IntType(kind, (1, 3, *size), *LIMITS[kind]),
                        IntType(kind_grid, (1, 6, 4, 2), *LIMITS[kind_grid]),
                    ),
                    lambda x, grid, mode=mode: grid_sample(x, grid, mode),
                    (qx, qgrid),
                    qout,
                    error=0.501 + blur * float(qx.scale) / scale,
                    macs=3 * 24 * (4 if mode == "bilinear" else 1),
                )
            )
        return samples
