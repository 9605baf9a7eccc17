"""`grid_sample`: vectors across the places, whose cells and weights serve all channels."""

from dataclasses import dataclass

from iqvit.intgraph import IntGraph
from iqvit.inttype import LIMITS
from iqvit.ops.grid_sample import GridSample
from iqvit.ops.taps import cell_taps, centre
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.integers import (
    as_int32,
    as_type,
    fits32,
    keep,
    limited,
    narrow,
    widen,
)
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.sampling import VectorLib
from iqvit.tvm_backend.kernels.script import Buffer, Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import function_attributes, pieces, span, splat


@dataclass(frozen=True)
class Form:
    """The operator, and the sizes and types of what it reads."""

    op: GridSample
    image: tuple[int, int, int]
    """Channels, height and width."""
    grid: tuple[int, int]
    """Rows and columns of places."""
    dtypes: tuple[str, str]
    """Of the image and of the grid."""
    fits: bool
    """Whether the result fits int32 before it saturates."""


def grid_sample(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of a `grid_sample`; None where its factors leave int32."""
    node = group.head
    op = node.op
    if not isinstance(op, GridSample) or op.shift < 1:
        return None
    if max(map(abs, (*op.scale, op.multiplier))) > LIMITS["int32"][1]:
        return None
    x, grid = graph.types_of(node)
    half = (1 << op.shift) >> 1
    ends = [((e * op.multiplier + half) >> op.shift) + op.zero_point for e in op.accumulator(x)]
    form = Form(
        op,
        (x.shape[1], x.shape[2], x.shape[3]),
        (grid.shape[1], grid.shape[2]),
        (x.dtype, grid.dtype),
        fits32(min(ends), max(ends)),
    )
    return Call(
        "grid_sample",
        form,
        lambda name: grid_sample_kernel(name, form, isa.lanes),
        tuple(As(s, (k.size,)) for s, k in zip(node.inputs, (x, grid), strict=True)),
        node.type.shape,
        op.dtype,
    )


def grid_sample_kernel(name: str, form: Form, widest: int) -> PrimFunc:
    """`name(x [C*H*W], grid [I*J*2], out [1, C, I, J])`, parallel over rows of the grid."""
    channels, height, width = form.image
    rows, columns = form.grid
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer((channels * height * width,), form.dtypes[0]))
        grid = T.arg("grid", T.buffer((rows * columns * 2,), form.dtypes[1]))
        out = T.arg("out", T.buffer((1, channels, rows, columns), form.op.dtype))
        with T.parallel(rows) as i:
            whole = columns // widest
            if whole:
                with T.serial(whole) as chunk:
                    _emit_vector(form, (x, grid, out), i, chunk * widest, widest)
            for offset, lanes in pieces(columns - whole * widest, widest):
                _emit_vector(form, (x, grid, out), i, whole * widest + offset, lanes)
    return builder.get()


def _emit_vector(
    form: Form, buffers: tuple[Buffer, Buffer, Buffer], i: Expr, j: Expr | int, lanes: int
) -> None:
    """The outputs of `lanes` neighbouring places of a row, in all channels."""
    x, grid, out = buffers
    op, (channels, height, width) = form.op, form.image
    px, py = (_place(form, grid, i, j, lanes, axis) for axis in range(2))
    taps = [
        (keep(cell), weight if isinstance(weight, int) else keep(weight))
        for cell, weight in cell_taps(VectorLib, op.mode, op.fraction, px, py, width, height)
    ]
    with T.serial(channels) as c:
        total: Expr = splat(0, "int32", lanes)
        for cell, weight in taps:
            value = as_int32(x[cell + splat(c * (height * width), "int32", lanes)])
            total = total + (value - splat(op.zero, "int32", lanes)) * weight
        scaled = (widen(keep(total)) * T.int64(op.multiplier)).rounded_shift(op.shift)
        result = limited(scaled + T.int64(op.zero_point), op.lo, op.hi, form.fits)
        T.buffer_store(out, as_type(result, op.dtype), [0, c, i, span(j, lanes)])


def _place(form: Form, grid: Buffer, i: Expr, j: Expr | int, lanes: int, axis: int) -> Expr:
    """Where places read along an axis, in cells with the operator's fractional bits."""
    op = form.op
    before, after = centre(op.mode, op.fraction, op.place_shift)
    start = (i * form.grid[1] + j) * 2 + axis
    at = start if lanes == 1 else T.ramp(start, 2, lanes)
    scaled = widen(keep(as_int32(grid[at]))) * T.int64(op.scale[axis])
    moved = (scaled + T.int64(op.base[axis] + before)) >> op.place_shift
    return keep(narrow(moved) + splat(after, "int32", lanes))
