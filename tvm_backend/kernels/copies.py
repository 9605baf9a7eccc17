"""Copies between layouts: permuted, sliced and joined tensors, and patches of an image."""

import math

from iqvit.intgraph import IntGraph
from iqvit.ops.concat import Concat
from iqvit.ops.take_rows import TakeRows
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Buffer, Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import function_attributes, pieces, span
from iqvit.tvm_backend.layout import view_of

WIDEST = 64
"""Elements of the widest vector that a copy moves at once."""
CHUNK = 2**15
"""Elements of one task where a tensor has too few rows to give every thread some."""
FEW = 16
"""So few rows."""


def strided_copy(graph: IntGraph, group: Group, _: Isa) -> Call | None:
    """The call of a `permute` or `slice` and the moves that follow it, from as far behind as
    strides reach; None where they do not reach behind it."""
    node = group.last
    view = view_of(graph, node.name)
    if view.root in {member.name for member in group.nodes}:
        return None
    shape, source = node.type.shape, graph[view.root].type
    key = (source.size, view.offset, view.strides, shape, source.dtype)
    return Call(
        "copy",
        key,
        lambda name: copy_kernel(
            name, source.size, (view.offset, view.strides), shape, source.dtype
        ),
        (As(view.root, (source.size,)),),
        shape,
        source.dtype,
    )


def copy_kernel(
    name: str,
    size: int,
    view: tuple[int, tuple[int, ...]],
    shape: tuple[int, ...],
    dtype: str,
) -> PrimFunc:
    """`name(x [size], out [*shape])`: out element i is x element `offset + sum(i * strides)`."""
    offset, strides = view
    axes = [(n, s) for n, s in zip(shape, strides, strict=True) if n > 1] or [(1, 1)]
    *outer, (length, step) = axes
    sizes = [n for n, _ in outer]
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer((size,), dtype))
        result = T.arg("out", T.buffer(shape, dtype))
        out = T.decl_buffer((math.prod(shape),), dtype, data=result.data)
        with T.parallel(math.prod(sizes)) as task:
            source, rest = T.int32(offset), task
            for n, s in reversed(outer):
                source, rest = source + rest % n * s, rest // n
            start = T.Bind(source)
            if step == 1:
                _emit_run(x, start, out, task * length, length)
            else:
                with T.serial(length) as i:
                    T.buffer_store(out, x[start + i * step], [task * length + i])
    return builder.get()


def _emit_run(x: Buffer, start: Expr | int, out: Buffer, to: Expr | int, length: int) -> None:
    """Copy `length` neighbouring elements."""
    whole = length // WIDEST
    if whole:
        with T.serial(whole) as i:
            value = x[span(start + i * WIDEST, WIDEST)]
            T.buffer_store(out, value, [span(to + i * WIDEST, WIDEST)])
    for offset, lanes in pieces(length - whole * WIDEST, WIDEST):
        at = whole * WIDEST + offset
        T.buffer_store(out, x[span(start + at, lanes)], [span(to + at, lanes)])


def concat(graph: IntGraph, group: Group, _: Isa) -> Call | None:
    """The call of a `concat`; None where it joins one value with itself."""
    node = group.head
    op = node.op
    if not isinstance(op, Concat) or len(set(node.inputs)) < len(node.inputs):
        return None
    outer = math.prod(node.type.shape[: op.axis])
    lengths = tuple(kind.size // outer for kind in graph.types_of(node))
    dtype = node.type.dtype
    return Call(
        "concat",
        (outer, lengths, dtype),
        lambda name: concat_kernel(name, outer, lengths, dtype),
        tuple(
            As(source, (outer, length)) for source, length in zip(node.inputs, lengths, strict=True)
        ),
        (outer * sum(lengths),),
        dtype,
    )


def concat_kernel(name: str, outer: int, lengths: tuple[int, ...], dtype: str) -> PrimFunc:
    """`name(*parts [outer, length], out [outer * sum of them])`, parallel over rows or chunks."""
    row = sum(lengths)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        parts = [
            T.arg(f"part{i}", T.buffer((outer, length), dtype)) for i, length in enumerate(lengths)
        ]
        out = T.arg("out", T.buffer((outer * row,), dtype))
        flat = [
            T.decl_buffer((outer * length,), dtype, data=part.data)
            for part, length in zip(parts, lengths, strict=True)
        ]
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        if outer > FEW:
            with T.parallel(outer) as task:
                for x, length, start in zip(flat, lengths, starts, strict=True):
                    _emit_run(x, task * length, out, task * row + start, length)
        else:
            for i in range(outer):
                for x, length, start in zip(flat, lengths, starts, strict=True):
                    _emit_chunks(x, i * length, out, i * row + start, length)
    return builder.get()


def _emit_chunks(x: Buffer, start: int, out: Buffer, to: int, length: int) -> None:
    """Copy `length` neighbouring elements, parallel over chunks."""
    whole, left = divmod(length, CHUNK)
    if whole:
        with T.parallel(whole) as chunk:
            _emit_run(x, start + chunk * CHUNK, out, to + chunk * CHUNK, CHUNK)
    _emit_run(x, T.int32(start + whole * CHUNK), out, to + whole * CHUNK, left)


def take_rows(graph: IntGraph, group: Group, _: Isa) -> Call | None:
    """The call of a `take_rows`."""
    node = group.head
    x, index = graph.types_of(node)
    if not isinstance(node.op, TakeRows):
        return None
    rows, length = x.shape[1:]
    taken = index.size
    return Call(
        "take_rows",
        (rows, length, taken, x.dtype, index.dtype),
        lambda name: take_rows_kernel(name, (rows, length), taken, (x.dtype, index.dtype)),
        (As(node.inputs[0], (x.size,)), As(node.inputs[1], (taken,))),
        (taken * length,),
        x.dtype,
    )


def take_rows_kernel(
    name: str, shape: tuple[int, int], taken: int, dtypes: tuple[str, str]
) -> PrimFunc:
    """`name(x [rows * length], index [taken], out [taken * length])`, parallel over `taken`."""
    rows, length = shape
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer((rows * length,), dtypes[0]))
        index = T.arg("index", T.buffer((taken,), dtypes[1]))
        out = T.arg("out", T.buffer((taken * length,), dtypes[0]))
        with T.parallel(taken) as task:
            start = T.Bind(T.Cast("int32", index[task]) * length)
            _emit_run(x, start, out, task * length, length)
    return builder.get()


def patches_kernel(
    name: str, image: tuple[int, int, int], patch: tuple[int, int], dtype: str
) -> PrimFunc:
    """`name(x [C, H, W], out [H/ph * W/pw, C*ph*pw])`: the patches of an image as rows."""
    channels, height, width = image
    ph, pw = patch
    down, across = height // ph, width // pw
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer((channels * height * width,), dtype))
        out = T.arg("out", T.buffer((down * across, channels * ph * pw), dtype))
        flat = T.decl_buffer((down * across * channels * ph * pw,), dtype, data=out.data)
        with T.parallel(down) as i, T.grid(across, channels, ph) as (j, c, y):
            start = T.Bind((c * height + i * ph + y) * width + j * pw)
            to = T.Bind((((i * across + j) * channels + c) * ph + y) * pw)
            _emit_run(x, start, flat, to, pw)
    return builder.get()
