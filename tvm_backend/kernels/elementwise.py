"""Element-wise operators as kernels of their own, where no product takes them in."""

import math
from collections.abc import Callable
from typing import TypeGuard

from iqvit.intgraph import IntGraph
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.integers import as_int32, as_type
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.stage_form import Stage, Value
from iqvit.tvm_backend.kernels.stages import emit_stage, stage_of
from iqvit.tvm_backend.kernels.vector import function_attributes, pieces, span

CHUNK = 4096
"""Elements of one task of a kernel that knows no channels."""


def elementwise(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of an element-wise node as a kernel of its own; None where it does not fit."""
    node = group.head
    place = next((i for i, t in enumerate(graph.types_of(node)) if t.size == node.type.size), None)
    if place is None or group.followers:
        return None
    found = stage_of(graph, node, place)
    if found is None:
        return None
    stage, values = found
    columns = node.type.shape[-1] if node.type.shape else 1
    rows = node.type.size // columns
    if not any(operand.kind in ("channel", "row") for operand in stage.operands):
        rows, columns = 1, node.type.size
        values = [As(v.name, (1, columns)) if _is_full(v, columns) else v for v in values]
    x = As(node.inputs[place], (rows, columns))
    dtype = graph[node.inputs[place]].type.dtype
    key = (stage, rows, columns, dtype, node.type.dtype)
    return Call(
        node.op.NAME,
        key,
        lambda name: elementwise_kernel(
            name, stage, (rows, columns), (dtype, node.type.dtype), isa
        ),
        (x, *values),
        (rows, columns),
        node.type.dtype,
    )


def _is_full(value: Value, size: int) -> TypeGuard[As]:
    return isinstance(value, As) and math.prod(value.shape) == size


def elementwise_kernel(
    name: str, stage: Stage, shape: tuple[int, int], dtypes: tuple[str, str], isa: Isa
) -> PrimFunc:
    """`name(x [rows, columns], *operands, out [rows, columns])`, parallel over rows or chunks."""
    rows, columns = shape
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer(shape, dtypes[0]))
        buffers = tuple(
            T.arg(e.name, T.buffer(e.shape, e.dtype)) for e in stage.extras(rows, columns, "b")
        )
        out = T.arg("out", T.buffer(shape, dtypes[1]))

        def piece(m: Expr | int, n: Expr | int, lanes: int) -> None:
            value = emit_stage(stage, as_int32(x[m, span(n, lanes)]), m, n, buffers, isa)
            T.buffer_store(out, as_type(value, dtypes[1]), [m, span(n, lanes)])

        if rows > 1 and columns <= CHUNK:
            with T.parallel(rows) as m:
                _row(m, 0, columns, isa.lanes, piece)
        else:
            _chunks(rows, columns, isa.lanes, piece)
    return builder.get()


Piece = Callable[[Expr | int, Expr | int, int], None]


def _row(m: Expr | int, start: Expr | int, length: int, lanes: int, piece: Piece) -> None:
    whole = length // lanes
    if whole:
        with T.serial(whole) as i:
            piece(m, start + i * lanes, lanes)
    for offset, width in pieces(length - whole * lanes, lanes):
        piece(m, start + whole * lanes + offset, width)


def _chunks(rows: int, columns: int, lanes: int, piece: Piece) -> None:
    full, left = divmod(columns, CHUNK)
    with T.parallel(rows * (full + (left > 0))) as task:
        m = task // (full + (left > 0))
        chunk = task % (full + (left > 0))
        if left == 0:
            _row(m, chunk * CHUNK, CHUNK, lanes, piece)
            return
        if full == 0:
            _row(m, 0, left, lanes, piece)
            return
        with T.If(chunk < full):
            with T.Then():
                _row(m, chunk * CHUNK, CHUNK, lanes, piece)
            with T.Else():
                _row(m, full * CHUNK, left, lanes, piece)
