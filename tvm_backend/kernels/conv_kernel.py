"""`conv2d` over channels-last images as an implicit int8 GEMM: rows are output pixels, K runs over
the window and the channels, and the windows' pixels are read where they lie in the image.

A task computes some rows of the output for some panels of channels. Where the image needs a border,
signed bytes made unsigned or its channels filled up to whole groups, the task first copies the rows
that it reads; that costs one pass over the image for every stretch of panels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from iqvit.tvm_backend.kernels.balance import parts_of, slowness
from iqvit.tvm_backend.kernels.gemm_form import (
    PANEL_BYTES,
    Epilogue,
    Extra,
    Gemm,
    Kernel,
    scalars_arg,
)
from iqvit.tvm_backend.kernels.gemm_operands import operand
from iqvit.tvm_backend.kernels.gemm_stores import Stash, emit_stores
from iqvit.tvm_backend.kernels.integers import keep
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.products import Products
from iqvit.tvm_backend.kernels.script import Buffer, Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import function_attributes, pieces, span, splat

Pair = tuple[int, int]

STAGE_BYTES = 192 * 1024
"""The most that a task copies of the image: it should stay in L2 beside the weights."""
COPY_BYTES = 4
"""Bytes a cycle that copies are taken to move when tasks are sized: the image comes from L3."""
L2_BYTES = 14
"""Bytes a cycle that weights are taken to come with from a busy L2."""
L1_SHARE = 16 * 1024
"""Weights of a panel that are taken to stay in L1 beside the image."""
LATENCY = 5
"""Cycles of a dot product, and so of a group of K in a small block."""


@dataclass(frozen=True)
class Window:
    """The geometry of one convolution without groups: what its code depends on besides a GEMM."""

    image: tuple[int, int, int]
    """Height, width and channels of x."""
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    planes: bool = False
    """Whether x is [C, H, W]: one channel after the other."""

    @property
    def out(self) -> Pair:
        """Height and width of the output."""
        height, width = (
            (size + 2 * p - (k - 1) * d - 1) // s + 1
            for size, p, k, d, s in zip(
                self.image, self.padding, self.kernel, self.dilation, self.stride, strict=False
            )
        )
        return height, width

    def channels(self, isa: Isa) -> int:
        """The channels, filled up to whole groups."""
        return -(-self.image[2] // isa.k_group) * isa.k_group

    def depth(self, isa: Isa) -> int:
        """K of the GEMM."""
        return math.prod(self.kernel) * self.channels(isa)

    def staged_rows(self, rows: int) -> int:
        """Rows of the image that `rows` rows of the output read."""
        return (rows - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1

    def staged_width(self) -> int:
        """Columns of a row of the image with its border."""
        return self.image[1] + 2 * self.padding[1]


def block_of(isa: Isa, window: Window, n: int) -> Isa:
    """The description with the register block for a convolution to `n` channels.

    A block lies in one row of the output, so that its pixels are a constant distance apart, and
    the last of a row is moved back to be a full one. Fewer columns and more pixels load fewer
    weights, which come from L2 unless they are few. By cycles of one group of K for a whole row.
    Matrix instructions need pairs of pixels.
    """
    isa = isa if window.out[1] >= isa.tile else isa.rowwise
    width, accumulators = window.out[1], isa.rows * isa.vectors
    vector = 4 * isa.lanes * isa.tile
    column = window.depth(isa) // isa.k_group * vector

    def cost(block: Pair) -> float:
        rows, vectors = block
        panels = -(-n // (vectors * isa.lanes))
        dots, loads = rows * vectors / 2, (rows + vectors * isa.tile) / 2
        misses = 0 if column * vectors <= L1_SHARE else vectors * vector / L2_BYTES
        return panels * -(-width // rows) * (max(dots, loads, misses, LATENCY) + 1)

    shapes = (isa.vectors, isa.vectors // 2) if isa.vectors >= 4 else (isa.vectors,)
    blocks = [
        (rows, vectors)
        for vectors in shapes
        for rows in range(isa.tile, min(width, accumulators // vectors) + 1, isa.tile)
    ]
    rows, vectors = min(blocks, key=cost)
    return replace(isa, rows=rows, vectors=vectors)


def window_weights(weight: np.ndarray, isa: Isa) -> np.ndarray:
    """int8 `[N, C, KH, KW]` as the rows `[N, K]` of the GEMM: channels innermost, filled with 0."""
    last = weight.transpose(0, 2, 3, 1)
    fill = -last.shape[3] % isa.k_group
    return np.pad(last, ((0, 0), (0, 0), (0, 0), (0, fill))).reshape(weight.shape[0], -1)


def border_row(window: Window, values: tuple[int, ...], x_dtype: str, isa: Isa) -> np.ndarray:
    """A row of the border as it is staged: `[staged width * channels]`."""
    channels = window.image[2]
    pixel = np.zeros(window.channels(isa), np.int64)
    pixel[:channels] = values
    if isa.operand == "int16":
        return np.tile(pixel, window.staged_width()).astype(np.int16)
    pixel[:channels] += isa.offset(x_dtype)
    return np.tile(pixel, window.staged_width()).astype(np.uint8).view(np.int8)


def conv_kernel(
    window: Window,
    gemm: Gemm,
    isa: Isa,
    name: str,
    extras: tuple[Extra, ...] = (),
    epilogue: Epilogue | None = None,
) -> PrimFunc:
    """The convolution as a TIR function
    `name(x, weight, bias, mult, scalars, border, *extras, out)`.

    x `gemm.x_dtype` [H * W * C]; weight, bias, mult and scalars as `gemm_kernel` takes them for
    the rows of `window_weights`; border of `border_row`; out `gemm.out_dtype` [H' * W', N].
    """
    groups, panels = -(-gemm.k // isa.k_group), -(-gemm.n // isa.panel)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer((math.prod(window.image),), gemm.x_dtype))
        weight = T.arg(
            "weight", T.buffer((panels, groups, isa.vectors, isa.group_weights), isa.weight)
        )
        bias = T.arg("bias", T.buffer((panels, isa.vectors, isa.lanes), "int32"))
        mult = scalars = None
        if gemm.requant is not None:
            mult = T.arg("mult", T.buffer((panels, isa.vectors, 3, isa.lanes), "int32"))
            scalars = scalars_arg(gemm, gemm.requant)
        length = window.staged_width() * window.channels(isa)
        border = T.arg("border", T.buffer((length,), isa.stored))
        buffers = tuple(T.arg(e.name, T.buffer(e.shape, e.dtype)) for e in extras)
        out = T.arg("out", T.buffer((gemm.m, gemm.n), gemm.out_dtype))
        kernel = Kernel(gemm, isa, x, weight, bias, mult, scalars, buffers, out, epilogue)
        _emit_tasks(_Convolution(window, kernel, border))
    return builder.get()


@dataclass(frozen=True)
class _Convolution:
    window: Window
    kernel: Kernel
    border: Buffer

    @property
    def stages(self) -> bool:
        """Whether the image is copied before it is read."""
        window, isa = self.window, self.kernel.isa
        fits = self.kernel.gemm.x_dtype == isa.operand and window.image[2] % isa.k_group == 0
        return window.planes or window.padding != (0, 0) or not fits

    @property
    def line(self) -> int:
        """Elements of a row of what is read."""
        return self.border.shape[0] if self.stages else self.window.image[1] * self.window.image[2]


def task_of(window: Window, isa: Isa, n: int) -> Pair:
    """How many rows of the output and how many panels of channels a task computes.

    At most as many panels as L2 holds; what costs threads least, copies included.
    """
    height = window.out[0]
    panels = -(-n // isa.panel)
    panel = window.depth(isa) * isa.panel * (1 if isa.weight == "int8" else 2)
    most = min(panels, max(1, PANEL_BYTES // panel))
    line = window.staged_width() * window.channels(isa)
    block = window.out[1] * window.depth(isa) / isa.k_group * isa.vectors / 2

    def cost(cut: Pair) -> float:
        rows, stretch = cut
        copied = window.staged_rows(rows) * line / COPY_BYTES
        blocks, counts = parts_of(height, rows), parts_of(panels, stretch)
        return slowness([copied + n * count * block for count in counts for n in blocks])

    fitting = [n for n in range(1, height + 1) if window.staged_rows(n) * line <= STAGE_BYTES]
    cuts = [(rows, stretch) for rows in fitting or [1] for stretch in range(most, 0, -1)]
    return min(cuts, key=cost)


def _emit_tasks(conv: _Convolution) -> None:
    window, kernel = conv.window, conv.kernel
    height = window.out[0]
    rows, stretch = task_of(window, kernel.isa, kernel.gemm.n)
    tasks = -(-height // rows)
    with T.parallel(tasks * -(-kernel.panels // stretch)) as task:
        stash = Stash.of_block(kernel, kernel.isa.rows)
        y0 = T.Bind(task % tasks * rows)
        first = T.Bind(task // tasks * stretch)
        count = T.min(stretch, kernel.panels - first)
        source, top = kernel.x, y0 * window.stride[0]
        if conv.stages:
            source, top = _emit_stage(conv, rows, y0), 0
        with T.serial(count) as step, T.serial(T.min(rows, height - y0)) as row:
            line = T.Bind((top + row * window.stride[0]) * conv.line)
            _emit_row(conv, stash, (source, line), T.Bind(first + step), y0 + row)


def _emit_stage(conv: _Convolution, rows: int, y0: Expr) -> Buffer:
    """The rows of the image that a task reads, with their border, as `dot` reads them."""
    window, line = conv.window, conv.line
    height, width, _ = window.image
    (down, across), channels = window.padding, window.channels(conv.kernel.isa)
    count = window.staged_rows(rows)
    scratch = T.alloc_buffer((count * line,), conv.border.dtype, scope="global")
    copy = _emit_pixels if window.image[2] == channels else _emit_filled
    step = width * window.image[2]
    if window.planes:
        copy, step = _emit_planes, width
    side = across * channels
    with T.serial(count) as row:
        y = T.Bind(y0 * window.stride[0] + row - down)
        to = T.Bind(row * line)
        with T.If(T.And(y >= 0, y < height)):
            with T.Then():
                _emit_border(conv, scratch, to, side)
                copy(conv, scratch, to + side, y * step, width)
                _emit_border(conv, scratch, to + line - side, side)
            with T.Else():
                _emit_border(conv, scratch, to, line)
    return scratch


def _emit_border(conv: _Convolution, scratch: Buffer, to: Expr, length: int) -> None:
    def move(at: Expr | int, lanes: int) -> None:
        T.buffer_store(scratch, conv.border[span(at, lanes)], [span(to + at, lanes)])

    _in_pieces(length, conv.kernel.isa.slots, move)


def _emit_pixels(conv: _Convolution, scratch: Buffer, to: Expr, start: Expr, width: int) -> None:
    kernel = conv.kernel

    def move(at: Expr | int, lanes: int) -> None:
        value = operand(kernel.x[span(start + at, lanes)], kernel, lanes)
        T.buffer_store(scratch, value, [span(to + at, lanes)])

    _in_pieces(width * conv.window.image[2], kernel.isa.slots, move)


def _emit_filled(conv: _Convolution, scratch: Buffer, to: Expr, start: Expr, width: int) -> None:
    """Pixel by pixel: their channels are no whole number of groups."""
    kernel, group = conv.kernel, conv.kernel.isa.k_group
    channels, filled = conv.window.image[2], conv.window.channels(conv.kernel.isa)
    with T.serial(width) as pixel:
        target = T.Bind(to + pixel * filled)
        zeros = splat(0, kernel.isa.stored, group)
        T.buffer_store(scratch, zeros, [span(target + filled - group, group)])
        source = T.Bind(start + pixel * channels)

        def move(at: Expr | int, lanes: int) -> None:
            value = operand(kernel.x[span(source + at, lanes)], kernel, lanes)
            T.buffer_store(scratch, value, [span(target + at, lanes)])

        _in_pieces(channels, kernel.isa.slots, move)


def _emit_planes(conv: _Convolution, scratch: Buffer, to: Expr, start: Expr, width: int) -> None:
    """The pixels of a row from the planes of their channels."""
    window, kernel, lanes = conv.window, conv.kernel, conv.kernel.isa.lanes
    filled, plane = window.channels(kernel.isa), window.image[0] * window.image[1]

    def channel(c: int, at: Expr | int, count: int) -> Expr:
        if c >= window.image[2]:
            return splat(0, kernel.isa.stored, count)
        return operand(kernel.x[span(start + c * plane + at, count)], kernel, count)

    def move(at: Expr | int, count: int) -> None:
        pixels = T.Shuffle(
            [channel(c, at, count) for c in range(filled)],
            [c * count + i for i in range(count) for c in range(filled)],
        )
        T.buffer_store(scratch, pixels, [span(to + at * filled, count * filled)])

    _in_pieces(width, lanes, move)


def _in_pieces(length: int, widest: int, move: Callable[[Expr | int, int], None]) -> None:
    """`move(start, lanes)` for vectors that cover `0..length`."""
    whole = length // widest
    if whole:
        with T.serial(whole) as chunk:
            move(chunk * widest, widest)
    for offset, lanes in pieces(length - whole * widest, widest):
        move(whole * widest + offset, lanes)


def _emit_row(
    conv: _Convolution, stash: Stash, source: tuple[Buffer, Expr], panel: Expr, y: Expr
) -> None:
    """A row of the output for one panel, from where its windows' first row begins."""
    window, isa = conv.window, conv.kernel.isa
    rows, width = isa.rows, window.out[1]
    step = window.stride[1] * window.channels(isa)
    with T.serial(-(-width // rows)) as block:
        start = keep(T.min(block * rows, width - rows))
        products = conv.kernel.products(panel, rows)
        products.begin()
        _emit_window(conv, products, source[0], source[1] + start * step)
        emit_stores(conv.kernel, stash, products, y * width + start)


def _emit_window(conv: _Convolution, products: Products, source: Buffer, start: Expr) -> None:
    """A run of K is what lies together: a row of the window, or a pixel of a dilated one."""
    window, isa = conv.window, conv.kernel.isa
    channels, (tall, wide) = window.channels(isa), window.kernel
    together = wide if window.dilation[1] == 1 else 1
    runs = wide // together
    groups = together * channels // isa.k_group
    with T.grid(tall, runs) as (i, j):
        across = j * (window.dilation[1] * channels)
        base = keep(start + i * (window.dilation[0] * conv.line) + across)
        first = keep((i * runs + j) * groups)

        def read(row: int, k: Expr) -> Expr:
            at = base + (k * isa.k_group + row * window.stride[1] * channels)
            return source[span(at, isa.k_group)]

        products.add(first, groups, read)
