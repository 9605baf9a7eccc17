"""`avg_pool`: the average of every window of an image."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional

from iqvit.arith import clamp_range, multipliers, require_int32, saturate
from iqvit.errors import OverflowProofError
from iqvit.inttype import LIMITS, IntType, QParams
from iqvit.ops.base import Op, Sample, want

RATIO_BITS = 24


@dataclass(frozen=True)
class AvgPool(Op):
    """`out = clamp(floor(sum(x - zero_in) * m / (count * 2**shift) + 1/2) + zero_point)`.

    x 8- or 16-bit `[1, C, H, W]`, windows as `torch.nn.functional.avg_pool2d` (`ceil_mode=False`).
    Padded pixels are real zeros; `count` is the size of the window, or with `count_include_pad` 0
    the number of its pixels inside the image. The division is exact in int64, so there is one
    rounding, half up. Error: half an output step, plus that of the 24-bit `m`.
    """

    NAME: ClassVar[str] = "avg_pool"
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    count_include_pad: int
    zero_in: int
    multiplier: int
    shift: int
    zero_point: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        count_include_pad: bool,
        qin: QParams,
        qout: QParams,
        dtype: str,
    ) -> "AvgPool":
        """The operator for per-tensor scales and integer zero points."""
        m, shift = multipliers(float(qin.scale / qout.scale), RATIO_BITS)
        zeros = int(qin.zero_point), int(qout.zero_point)
        window = kernel, stride, padding, int(count_include_pad)
        return AvgPool(*window, zeros[0], int(m), shift, zeros[1], dtype, *LIMITS[dtype])

    def inside(self, shape: tuple[int, ...], axis: int) -> list[int]:
        """Pixels of each window inside the image, along axis 0 (rows) or 1 (columns)."""
        size, k = shape[2 + axis], self.kernel[axis]
        steps = (size + 2 * self.padding[axis] - k) // self.stride[axis] + 1
        starts = [i * self.stride[axis] - self.padding[axis] for i in range(steps)]
        return [min(start + k, size) - max(start, 0) for start in starts]

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        want(len(x.shape) == 4, f"images are [1, C, H, W], not {x.shape}")
        want(x.dtype != "int32", "pixels are 8- or 16-bit, x is int32")
        halves = all(0 <= 2 * p <= k for p, k in zip(self.padding, self.kernel, strict=True))
        want(halves, f"padding {self.padding} is more than half of the kernel {self.kernel}")
        shape = (*x.shape[:2], len(self.inside(x.shape, 0)), len(self.inside(x.shape, 1)))
        want(min(shape) > 0, f"the image {x.shape} is smaller than the window {self.kernel}")
        want(self.multiplier >= 0, "the multiplier is negative")
        window = self.kernel[0] * self.kernel[1]
        bound = max(map(abs, self.accumulator(x)))
        if 2 * bound * self.multiplier + (window << (self.shift + 1)) >= 1 << 63:
            raise OverflowProofError(f"a window sum up to {bound} times m leaves int64")
        few = min(self.inside(x.shape, 0)) * min(self.inside(x.shape, 1))
        many = max(self.inside(x.shape, 0)) * max(self.inside(x.shape, 1))
        averages = [
            self._average((end - self.zero_in) * count, window if self.count_include_pad else count)
            for end in (x.lo, x.hi)
            for count in (few, many)
        ]
        lo, hi = (end + self.zero_point for end in (min(averages), max(averages)))
        return IntType(self.dtype, shape, *clamp_range(lo, hi, self.lo, self.hi))

    def accumulator(self, *args: IntType) -> tuple[int, int]:
        (x,) = args
        window = self.kernel[0] * self.kernel[1]
        lo = min(0, x.lo - self.zero_in) * window
        hi = max(0, x.hi - self.zero_in) * window
        require_int32(lo, hi, "sum")
        return lo, hi

    def _average(self, acc: Any, count: Any) -> Any:
        """The rounded quotient, of Python integers or int64 tensors."""
        return (2 * acc * self.multiplier + count * 2**self.shift) // (
            count * 2 ** (self.shift + 1)
        )

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        (x,) = args
        (kh, kw), (ph, pw) = self.kernel, self.padding
        centred = functional.pad(x.to(torch.int64) - self.zero_in, (pw, pw, ph, ph))
        windows = centred.unfold(2, kh, self.stride[0]).unfold(3, kw, self.stride[1])
        rows, columns = (
            torch.tensor(self.inside(tuple(x.shape), axis), device=x.device) for axis in (0, 1)
        )
        count = torch.full_like(rows[:, None] * columns, kh * kw)
        if not self.count_include_pad:
            count = rows[:, None] * columns
        out = self._average(windows.sum((-1, -2)), count) + self.zero_point
        return saturate(out, self.dtype, self.lo, self.hi)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        sizes = types[0].shape[2:]

        def start(i: Any, axis: int) -> Any:
            return i * self.stride[axis] - self.padding[axis]

        def inside(i: Any, axis: int) -> Any:
            first = tirx.max(start(i, axis), 0)
            return te.i64(tirx.min(start(i, axis) + self.kernel[axis], sizes[axis]) - first)

        def body(x: Any) -> Any:
            dy, dx = (tvm_te.reduce_axis((0, k), d) for k, d in zip(self.kernel, "yx", strict=True))

            def total(b: Any, c: Any, i: Any, j: Any) -> Any:
                row, column = start(i, 0) + dy, start(j, 1) + dx
                within = tirx.all(row >= 0, row < sizes[0], column >= 0, column < sizes[1])
                value = te.i32(x(b, c, row, column)) - tirx.const(self.zero_in, "int32")
                zero = tirx.const(0, "int32")
                return tvm_te.sum(tirx.if_then_else(within, value, zero), axis=[dy, dx])

            acc = tvm_te.compute(out.shape, total, "acc")

            def element(b: Any, c: Any, i: Any, j: Any) -> Any:
                count = te.const64(self.kernel[0] * self.kernel[1])
                if not self.count_include_pad:
                    count = inside(i, 0) * inside(j, 1)
                scaled = te.i64(acc(b, c, i, j)) * te.const64(2 * self.multiplier)
                scaled += count * te.const64(1 << self.shift)
                value = tirx.floordiv(scaled, count * te.const64(2 << self.shift))
                return te.saturate(
                    value + te.const64(self.zero_point), self.dtype, self.lo, self.hi
                )

            return tvm_te.compute(out.shape, element, "averaged")

        return bb.emit_te(body, *args, primfunc_name_hint="avg_pool")

    @classmethod
    def samples(cls) -> list[Sample]:
        x = IntType("uint8", (1, 3, 7, 8), *LIMITS["uint8"])
        qin, qout = QParams.of(0.02, 128), QParams.of(0.0003, 5)
        cases = [
            ((2, 2), (2, 2), (0, 0), True),
            ((3, 3), (2, 1), (1, 1), True),
            ((3, 4), (2, 3), (1, 2), False),
        ]
        return [
            Sample(
                cls.of(*window, qin, qout, "int16"),
                (x,),
                lambda x, w=window: functional.avg_pool2d(x, *w[:3], count_include_pad=w[3]),
                (qin,),
                qout,
                error=0.51,
            )
            for window in cases
        ]
