"""Pooling and upsampling of channels-last images: vectors along the channels."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from iqvit.intgraph import IntGraph
from iqvit.ops.avg_pool import AvgPool
from iqvit.ops.base import Op
from iqvit.ops.max_pool import MaxPool
from iqvit.ops.upsample_nearest import UpsampleNearest
from iqvit.tvm_backend.channels_last import ChannelsLast
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.integers import as_int32, as_type, fits32, keep, limited, widen
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Buffer, Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import function_attributes, pieces, span, splat

Body = Callable[["Place"], Expr]
"""The output's elements at a place, of the output's type."""


@dataclass(frozen=True)
class Place:
    """Neighbouring channels of one pixel of the output, and the image that it is computed from."""

    x: Buffer
    image: tuple[int, int, int]
    y: Expr
    column: Expr
    channel: Expr | int
    lanes: int

    def read(self, row: Expr, column: Expr) -> Expr:
        """The same channels of a pixel of the image."""
        _, width, channels = self.image
        start = (row * width + column) * channels + self.channel
        return self.x[span(start, self.lanes)]


def max_pool(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of a `max_pool`."""
    op = _inner(group)
    if not isinstance(op, MaxPool):
        return None
    (kh, kw), (sh, sw), (ph, pw) = op.kernel, op.stride, op.padding

    def body(at: Place) -> Expr:
        # A pixel beyond the border stands for the nearest inside, which every window has as well.
        height, width, _ = at.image
        best: Expr | None = None
        for dy in range(kh):
            row = _inside(at.y * sh + (dy - ph), height, ph > 0)
            for dx in range(kw):
                value = at.read(row, _inside(at.column * sw + (dx - pw), width, pw > 0))
                best = value if best is None else keep(T.max(best, value))
        if best is None:
            raise ValueError("the window has no pixels")
        return best

    kind = graph.types_of(group.head)[0]
    return _call(graph, group, (op, kind.shape), body, isa.slots)


def avg_pool(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of an `avg_pool` of windows of a power of two of pixels and without a border."""
    op = _inner(group)
    if not isinstance(op, AvgPool) or op.padding != (0, 0):
        return None
    pixels = math.prod(op.kernel)
    shift = op.shift + pixels.bit_length() - 1
    if pixels & (pixels - 1) or not 1 <= shift <= 62 or op.multiplier >= 2**31:
        return None
    (kh, kw), (sh, sw) = op.kernel, op.stride
    (kind,) = graph.types_of(group.head)
    # floor(sum * m / (pixels * 2**s) + 1/2): a rounded shift, with the zero point outside it.
    ends = [(pixels * (e - op.zero_in) * op.multiplier >> shift) for e in (kind.lo, kind.hi)]
    fits = fits32(min(ends) + op.zero_point, max(ends) + 1 + op.zero_point)

    def body(at: Place) -> Expr:
        total: Expr = splat(-pixels * op.zero_in, "int32", at.lanes)
        for dy in range(kh):
            for dx in range(kw):
                value = at.read(at.y * sh + dy, at.column * sw + dx)
                total = keep(total + as_int32(value))
        scaled = (widen(total) * T.int64(op.multiplier)).rounded_shift(shift)
        value = limited(scaled + T.int64(op.zero_point), op.lo, op.hi, fits)
        return as_type(value, op.dtype)

    return _call(graph, group, (op, kind), body, isa.lanes)


def upsample_nearest(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of an `upsample_nearest`."""
    op = _inner(group)
    if not isinstance(op, UpsampleNearest):
        return None
    kind = graph.types_of(group.head)[0]

    def body(at: Place) -> Expr:
        height, width, _ = at.image
        return at.read(at.y * height // op.height, at.column * width // op.width)

    return _call(graph, group, (op, kind.shape), body, isa.slots)


def _inner(group: Group) -> Op | None:
    op = group.head.op
    return op.inner if isinstance(op, ChannelsLast) and not group.followers else None


def _inside(index: Expr, size: int, bordered: bool) -> Expr:
    return T.min(T.max(index, 0), size - 1) if bordered else index


def _call(graph: IntGraph, group: Group, key: tuple, body: Body, lanes: int) -> Call:
    node = group.head
    (kind,) = graph.types_of(node)
    out = node.type
    image = (kind.shape[1], kind.shape[2], kind.shape[3])
    size = (out.shape[1], out.shape[2], out.shape[3])
    dtypes = (kind.dtype, out.dtype)
    return Call(
        node.op.NAME,
        (*key, dtypes),
        lambda name: image_kernel(name, image, size, dtypes, body, lanes),
        (As(node.inputs[0], (kind.size,)),),
        (out.size,),
        out.dtype,
    )


def image_kernel(
    name: str,
    image: tuple[int, int, int],
    size: tuple[int, int, int],
    dtypes: tuple[str, str],
    body: Body,
    lanes: int,
) -> PrimFunc:
    """`name(x [H * W * C], out [H' * W' * C])`: `body` of every place, parallel over rows."""
    height, width, channels = size
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer((math.prod(image),), dtypes[0]))
        out = T.arg("out", T.buffer((math.prod(size),), dtypes[1]))
        with T.parallel(height) as y, T.serial(width) as column:

            def move(channel: Expr | int, count: int) -> None:
                at = Place(x, image, y, column, channel, count)
                to = (y * width + column) * channels + channel
                T.buffer_store(out, body(at), [span(to, count)])

            whole = channels // lanes
            if whole:
                with T.serial(whole) as chunk:
                    move(chunk * lanes, lanes)
            for offset, count in pieces(channels - whole * lanes, lanes):
                move(whole * lanes + offset, count)
    return builder.get()
