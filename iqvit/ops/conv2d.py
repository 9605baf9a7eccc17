"""`conv2d`: int8 kernels over 8-bit images, bias, requantise (the patch embedding)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional

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
from iqvit.ops.linear import check_epilogue, known, weighted_range


@dataclass(frozen=True)
class Conv2d(Op):
    """`out[n] = clamp(((sum x * w[n] + b[n]) * m[n] + 2**(shift-1) >> shift) + z)`.

    Inputs: x int8 or uint8 `[1, C, H, W]`, w int8 `[N, C/groups, KH, KW]`, b and m int32 `[N]`.
    The border is padded with `pad_values`, one integer for all channels or one a channel: the
    input's zero point, so that a padded pixel is a real 0. Output `[1, N, H', W']`.
    """

    NAME: ClassVar[str] = "conv2d"
    MADE: ClassVar[tuple[int, ...]] = (3,)
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    pad_values: tuple[int, ...]
    shift: int
    zero_point: int
    dtype: str
    lo: int
    hi: int

    def _window(self, kernel: tuple[int, ...]) -> tuple[int, int]:
        return tuple((k - 1) * d + 1 for k, d in zip(kernel, self.dilation, strict=True))  # type: ignore[return-value]

    def out_shape(self, x: tuple[int, ...], weight: tuple[int, ...]) -> tuple[int, ...]:
        """`[1, N, H', W']`."""
        spans = self._window(weight[2:])
        sizes = (
            (size + 2 * pad - span) // step + 1
            for size, pad, span, step in zip(x[2:], self.padding, spans, self.stride, strict=True)
        )
        return (x[0], weight[0], *sizes)

    def _padded(self, x: IntType) -> IntType:
        if self.padding == (0, 0):
            return x
        lo, hi = min(x.lo, *self.pad_values), max(x.hi, *self.pad_values)
        return IntType(x.dtype, x.shape, lo, hi)

    def infer(self, *args: IntType) -> IntType:
        x, weight, bias, multiplier = args
        want(x.dtype in ("int8", "uint8"), f"operands of products are 8-bit, x is {x.dtype}")
        want(len(x.shape) == 4 and len(weight.shape) == 4, "x is [1, C, H, W], w [N, C, KH, KW]")
        channels = x.shape[1]
        want(
            channels == weight.shape[1] * self.groups, f"{channels} channels, {weight.shape} weight"
        )
        want(weight.shape[0] % self.groups == 0, "groups divide the output channels")
        want(len(self.pad_values) in (1, channels), "one pad value, or one a channel")
        check_epilogue(weight, bias, multiplier)
        shape = self.out_shape(x.shape, weight.shape)
        want(min(shape) > 0, f"the image {x.shape} is smaller than the kernel {weight.shape}")
        lo, hi = self.accumulator(*args)
        lo, hi = requantise_range(lo, hi, [multiplier.lo, multiplier.hi], self.shift)
        lo, hi = clamp_range(lo + self.zero_point, hi + self.zero_point, self.lo, self.hi)
        return IntType(self.dtype, shape, lo, hi)

    def accumulator(self, *args: IntType) -> tuple[int, int]:
        x, weight, bias = args[:3]
        lo, hi = weighted_range(self._padded(x), known(weight), known(bias))
        require_int32(lo, hi)
        return lo, hi

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x, weight, bias, multiplier = args
        batch, channels = x.shape[:2]
        pads = torch.tensor(self.pad_values, dtype=torch.float32, device=x.device)
        pads = pads.expand(channels)[:, None, None]
        ph, pw = self.padding
        centred = functional.pad(x.to(torch.float32) - pads, (pw, pw, ph, ph)) + pads
        kernel = weight.shape[2:]
        columns = functional.unfold(centred, kernel, self.dilation, 0, self.stride)
        columns = columns.reshape(batch, self.groups, -1, columns.shape[-1])
        rows = weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        acc = exact_matmul(rows, columns, rows.shape[-1] * 255 * 127)
        acc = acc.reshape(self.out_shape(tuple(x.shape), tuple(weight.shape)))
        per_channel = (1, -1, 1, 1)
        out = requantise(
            acc + bias.to(torch.int64).reshape(per_channel),
            multiplier.to(torch.int64).reshape(per_channel),
            self.shift,
        )
        return saturate(out + self.zero_point, self.dtype, self.lo, self.hi)

    def macs(self, *args: IntType) -> int:
        x, weight = args[:2]
        shape = self.out_shape(x.shape, weight.shape)
        return weight.size * shape[0] * shape[2] * shape[3]

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te

        x, weight, bias, multiplier = args

        def pad(x: Any) -> Any:
            return self._te_pad(x, types[0])

        def accumulate(x: Any, weight: Any) -> Any:
            return self._te_acc(x, weight, types, out)

        def finish(acc: Any, bias: Any, multiplier: Any) -> Any:
            return te.epilogue(acc, bias, multiplier, 1, self, out)

        if self.padding != (0, 0):
            x = bb.emit_te(pad, x, primfunc_name_hint="pad")
        acc = bb.emit_te(accumulate, x, weight, primfunc_name_hint="conv2d_acc")
        return bb.emit_te(finish, acc, bias, multiplier, primfunc_name_hint="conv2d_requantise")

    def _te_pad(self, x: Any, kind: IntType) -> Any:
        from iqvit.ops.te import tirx, tvm_te

        (ph, pw), (_, channels, height, width) = self.padding, kind.shape

        def pad_value(c: Any) -> Any:
            value = tirx.const(self.pad_values[0], kind.dtype)
            if len(self.pad_values) == 1:
                return value
            for index in range(1, channels):
                chosen = tirx.const(self.pad_values[index], kind.dtype)
                value = tirx.Select(c == index, chosen, value)
            return value

        def element(b: Any, c: Any, i: Any, j: Any) -> Any:
            inside = tirx.all(i >= ph, i < height + ph, j >= pw, j < width + pw)
            return tirx.if_then_else(inside, x(b, c, i - ph, j - pw), pad_value(c))

        return tvm_te.compute((1, channels, height + 2 * ph, width + 2 * pw), element, "padded")

    def _te_acc(self, x: Any, weight: Any, types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tvm_te

        outputs, inputs, kh, kw = types[1].shape
        share = outputs // self.groups
        c = tvm_te.reduce_axis((0, inputs), "c")
        y = tvm_te.reduce_axis((0, kh), "y")
        z = tvm_te.reduce_axis((0, kw), "x")

        def element(b: Any, n: Any, i: Any, j: Any) -> Any:
            channel = c if self.groups == 1 else (n // share) * inputs + c
            row = i * self.stride[0] + y * self.dilation[0]
            column = j * self.stride[1] + z * self.dilation[1]
            terms = te.i32(x(b, channel, row, column)) * te.i32(weight(n, c, y, z))
            return tvm_te.sum(terms, axis=[c, y, z])

        return tvm_te.compute(out.shape, element, "acc")

    @classmethod
    def samples(cls) -> list[Sample]:
        rng = np.random.default_rng(1)
        return [
            _sample(rng, (1, 3, 8, 8), (5, 3, 4, 4), (4, 4), (0, 0), (1, 1), 1, 960),
            _sample(rng, (1, 4, 7, 9), (6, 2, 3, 3), (2, 1), (1, 2), (1, 1), 2, 4752),
            _sample(rng, (1, 2, 9, 9), (3, 2, 3, 3), (1, 1), (2, 0), (2, 2), 1, 2430),
            _sample(rng, (1, 16, 5, 7), (20, 16, 3, 3), (1, 2), (1, 0), (1, 1), 1, 43200),
            _sample(rng, (1, 8, 3, 3), (3, 8, 3, 3), (1, 1), (0, 0), (1, 1), 1, 216),
        ]


def _sample(rng, shape, kernel, stride, padding, dilation, groups, macs) -> Sample:
    weight = rng.integers(-127, 128, kernel).astype(np.int8)
    outputs, channels = kernel[0], shape[1]
    zeros = rng.integers(90, 160, channels)
    scale_w = rng.uniform(0.001, 0.01, outputs)
    qout = QParams.of(0.1, 2)
    m, shift = multipliers(0.02 * scale_w / qout.scale)
    bias = rng.integers(-999, 999, outputs).astype(np.int32)
    op = Conv2d(
        stride, padding, dilation, groups, tuple(zeros.tolist()), shift, 2, "int8", *LIMITS["int8"]
    )
    x = IntType("uint8", shape, 0, 255)
    per_output = weight.reshape(groups, outputs // groups, channels // groups, -1).astype(np.int64)
    folded = per_output.sum(axis=-1) * zeros.reshape(groups, 1, -1)
    bias = (bias - folded.sum(axis=-1).reshape(-1)).astype(np.int32)
    qin = (
        QParams.of(0.02, zeros, axis=1),
        QParams.of(scale_w, axis=0),
        QParams.of(0.02 * scale_w, -folded.sum(axis=-1).reshape(-1), axis=0),
        None,
    )

    def real(x, w, b, _m):
        return functional.conv2d(x, w, b, stride, padding, dilation, groups)

    inputs = (x, constant_type(weight), constant_type(bias), constant_type(m.astype(np.int32)))
    return Sample(op, inputs, real, qin, qout, error=0.501, macs=macs)
