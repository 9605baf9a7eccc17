"""`upsample_bilinear` and `argmax` over the classes in one pass: no full-size tensor of logits."""

from dataclasses import dataclass

import numpy as np

from iqvit.intgraph import IntGraph
from iqvit.ops.argmax import Argmax
from iqvit.ops.upsample_bilinear import Taps, UpsampleBilinear
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.integers import as_type, fits32, keep
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Buffer, Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import function_attributes, lanes_of, span, splat, typed
from iqvit.tvm_backend.layout import view_of

_PERMUTE = {16: "llvm.x86.avx512.permvar.si.512", 8: "llvm.x86.avx2.permd"}


@dataclass(frozen=True)
class Form:
    """What the generated code depends on: sizes, where the logits lie, types."""

    classes: int
    before: tuple[int, int]
    after: tuple[int, int]
    source: int
    """Elements of the value that the logits are read from."""
    offset: int
    strides: tuple[int, int, int]
    """Of class, row and column in it."""
    denominators: tuple[int, int]
    x_dtype: str
    dtype: str

    def padded(self, lanes: int) -> int:
        """Columns of a row of logits, in whole vectors."""
        return -(-self.before[1] // lanes) * lanes


def class_map(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call for an upsampling by 2 or more and the argmax over its channels; else None."""
    node = group.head
    op = node.op
    if not isinstance(op, UpsampleBilinear) or len(group.followers) != 1:
        return None
    last = group.followers[0]
    (x,) = graph.types_of(node)
    if not isinstance(last.op, Argmax) or last.op.axis != 1 or len(x.shape) != 4:
        return None
    batch, classes, height, width = x.shape
    # Neighbouring outputs then read fewer inputs than a vector has lanes.
    grows = op.height >= height and op.width >= max(2 * width, isa.lanes)
    if batch != 1 or not grows or not fits32(0, (x.hi - x.lo) * op.denominator(x.shape)):
        return None
    view = view_of(graph, node.inputs[0])
    rows, columns = op.taps(x.shape)
    form = Form(
        classes,
        (height, width),
        (op.height, op.width),
        graph[view.root].type.size,
        view.offset,
        (view.strides[1], view.strides[2], view.strides[3]),
        (rows.denominator, columns.denominator),
        x.dtype,
        last.op.dtype,
    )
    tables = _row_tables(rows, height) + _column_tables(columns, op.width, isa.lanes)
    return Call(
        "class_map",
        form,
        lambda name: class_map_kernel(name, form, isa),
        (As(view.root, (form.source,)), *tables),
        form.after,
        form.dtype,
    )


def _row_tables(rows: Taps, height: int) -> tuple[np.ndarray, ...]:
    """The first output row of every input row (and the end), the weights of the output rows."""
    first = np.searchsorted(rows.low, np.arange(height + 1)).astype(np.int32)
    return first, rows.weight.astype(np.int32)


def _column_tables(columns: Taps, width: int, lanes: int) -> tuple[np.ndarray, ...]:
    """For every vector of outputs: where it begins, the first input that it reads, which input
    after that each lane reads, and the lanes' weights."""
    starts = np.minimum(np.arange(-(-width // lanes)) * lanes, width - lanes)
    at = starts[:, None] + np.arange(lanes)
    low = columns.low[at]
    tables = (starts, low[:, 0], low - low[:, :1], columns.weight[at])
    return tuple(np.ascontiguousarray(table.astype(np.int32)) for table in tables)


@dataclass(frozen=True)
class _Kernel:
    form: Form
    isa: Isa
    buffers: dict[str, Buffer]

    def planes(self, count: int) -> list[Buffer]:
        """Scratch of a row of logits for all classes; vectors may be read beyond its end."""
        size = self.form.classes * self.form.padded(self.isa.lanes) + self.isa.lanes
        return [T.alloc_buffer((size,), "int32", scope="global") for _ in range(count)]


def class_map_kernel(name: str, form: Form, isa: Isa) -> PrimFunc:
    """`name(x [source], first int32 [h+1], row_weight int32 [H], start, base int32 [vectors],
    lane, weight int32 [vectors, lanes], out [H, W])`, parallel over rows of the input.

    Between the centres of two input rows and columns a logit is
    `(a + b*v) + (c + d*v) * u`, v and u the weights of the row and the column. a to d are made once
    for a pair of input rows, the two sums once for an output row.
    """
    height, lanes = form.before[0], isa.lanes
    vectors = -(-form.after[1] // lanes)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        shapes = {
            "first": (height + 1,),
            "row_weight": (form.after[0],),
            "start": (vectors,),
            "base": (vectors,),
            "lane": (vectors, lanes),
            "weight": (vectors, lanes),
        }
        buffers = {"x": T.arg("x", T.buffer((form.source,), form.x_dtype))}
        for key, shape in shapes.items():
            buffers[key] = T.arg(key, T.buffer(shape, "int32"))
        buffers["out"] = T.arg("out", T.buffer(form.after, form.dtype))
        kernel = _Kernel(form, isa, buffers)
        with T.parallel(height) as low:
            coefficients = kernel.planes(4)
            sums = kernel.planes(2)
            _emit_coefficients(kernel, low, coefficients)
            begin = T.Bind(buffers["first"][low])
            with T.serial(buffers["first"][low + 1] - begin) as i:
                _emit_sums(kernel, buffers["row_weight"][begin + i], coefficients, sums)
                with T.serial(vectors) as v:
                    _emit_vector(kernel, begin + i, v, sums)
    return builder.get()


def _emit_coefficients(kernel: _Kernel, low: Expr, planes: list[Buffer]) -> None:
    form = kernel.form
    height, width = form.before
    tall, wide = form.denominators
    by_class, by_row, by_column = form.strides
    columns = form.padded(kernel.isa.lanes)
    high = T.Bind(T.min(low + 1, T.int32(height - 1)))
    with T.serial(form.classes) as c, T.serial(columns) as j:
        near = T.Bind(T.min(j, T.int32(width - 1)))
        far = T.Bind(T.min(j + 1, T.int32(width - 1)))

        def read(row: Expr, column: Expr) -> Expr:
            place = form.offset + c * by_class + row * by_row + column * by_column
            return keep(T.Cast("int32", kernel.buffers["x"][place]))

        top, bottom = read(low, near), read(high, near)
        top_step = keep(read(low, far) - top)
        bottom_step = keep(read(high, far) - bottom)
        values = (
            top * (tall * wide),
            (bottom - top) * wide,
            top_step * tall,
            bottom_step - top_step,
        )
        for plane, value in zip(planes, values, strict=True):
            T.buffer_store(plane, value, [c * columns + j])


def _emit_sums(kernel: _Kernel, weight: Expr, planes: list[Buffer], sums: list[Buffer]) -> None:
    lanes = kernel.isa.lanes
    weight = keep(weight)
    with T.serial(kernel.form.classes * kernel.form.padded(lanes) // lanes) as i:
        at = span(i * lanes, lanes)
        for k, result in enumerate(sums):
            value = planes[2 * k][at] + planes[2 * k + 1][at] * splat(weight, "int32", lanes)
            T.buffer_store(result, value, [at])


def _emit_vector(kernel: _Kernel, row: Expr, v: Expr, sums: list[Buffer]) -> None:
    """The classes of one vector of pixels; a later class wins only where it is larger."""
    lanes, columns = kernel.isa.lanes, kernel.form.padded(kernel.isa.lanes)
    tables = kernel.buffers
    all_lanes = span(0, lanes)
    base, lane = keep(tables["base"][v]), keep(tables["lane"][v, all_lanes])
    weight = keep(tables["weight"][v, all_lanes])

    def logit(c: Expr | int) -> Expr:
        value, step = (_picked(s, c * columns + base, lane) for s in sums)
        return keep(value + step * weight)

    best = T.alloc_buffer((lanes,), "int32", scope="global")
    index = T.alloc_buffer((lanes,), "int32", scope="global")
    T.buffer_store(best, logit(0), [all_lanes])
    T.buffer_store(index, splat(0, "int32", lanes), [all_lanes])
    with T.serial(kernel.form.classes - 1) as c:
        value = logit(c + 1)
        larger = value > best[all_lanes]
        chosen = T.Select(larger, splat(c + 1, "int32", lanes), index[all_lanes])
        T.buffer_store(index, chosen, [all_lanes])
        T.buffer_store(best, T.max(best[all_lanes], value), [all_lanes])
    result = as_type(index[all_lanes], kernel.form.dtype)
    T.buffer_store(kernel.buffers["out"], result, [row, span(tables["start"][v], lanes)])


def _picked(sums: Buffer, start: Expr, lane: Expr) -> Expr:
    """The elements `lane` of the vector that begins at `start`."""
    lanes = lanes_of(lane)
    if lanes not in _PERMUTE:
        return sums[splat(start, "int32", lanes) + lane]
    vector = sums[span(start, lanes)]
    return T.call_llvm_pure_intrin(typed("int32", lanes), _PERMUTE[lanes], vector, lane)
