"""`add`, `multiply`, `requantise`, `rectified` and `lookup` on vectors: as kernels of their own,
and as what follows a matrix product in its epilogue."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Buffer, PrimFunc
from tvm.tirx.script import builder as T

from iqvit.intgraph import IntGraph, Node
from iqvit.inttype import LIMITS, IntType
from iqvit.ops.add import Add
from iqvit.ops.base import Op
from iqvit.ops.lookup import Lookup
from iqvit.ops.multiply import Multiply
from iqvit.ops.rectified import Rectified
from iqvit.ops.requantise import Requantise
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.gemm import Extra
from iqvit.tvm_backend.kernels.integers import (
    as_int32,
    as_type,
    gather,
    joined,
    keep,
    madd,
    parts_of,
    saturate,
    widen,
)
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.vector import (
    clamp,
    function_attributes,
    lanes_of,
    pieces,
    span,
    splat,
)

CHUNK = 4096
"""Elements of one task of a kernel that knows no channels."""


@dataclass(frozen=True)
class Operand:
    """An operand of a stage besides its running value."""

    kind: str
    """`full` (one element for each result), `channel` (one a column), `single` or `table`."""
    dtype: str
    size: int

    def read(self, buffer: Buffer, m: Expr | int, n: Expr | int, lanes: int) -> Expr:
        """The elements that belong to row m, columns n.. as int32."""
        if self.kind == "full":
            return as_int32(buffer[m, span(n, lanes)])
        if self.kind == "channel":
            return as_int32(buffer[span(n, lanes)])
        return splat(as_int32(buffer[0]), "int32", lanes)


@dataclass(frozen=True)
class Stage:
    """One element-wise operator: its attributes, proved types and operands, but no values."""

    op: Op
    types: tuple[IntType, ...]
    """Of the operator's inputs."""
    place: int
    """Which input is the running value."""
    operands: tuple[Operand, ...]

    def extras(self, rows: int, columns: int, prefix: str) -> tuple[Extra, ...]:
        """The parameters for the operands."""
        shapes = {"full": (rows, columns)}
        return tuple(
            Extra(f"{prefix}{i}", shapes.get(operand.kind, (operand.size,)), operand.dtype)
            for i, operand in enumerate(self.operands)
        )

    def emit(
        self, value: Expr, m: Expr | int, n: Expr | int, buffers: tuple[Buffer, ...], isa: Isa
    ) -> Expr:
        """The operator of int32 lanes `value` at row m, columns n.., as int32 in its bounds."""
        lanes = lanes_of(value)

        def read(i: int) -> Expr:
            return self.operands[i].read(buffers[i], m, n, lanes)

        return _EMIT[type(self.op)](self, keep(value), read, buffers, isa)


Read = Callable[[int], Expr]


def _add(stage: Stage, value: Expr, read: Read, _: tuple[Buffer, ...], isa: Isa) -> Expr:
    op = stage.op
    factors = (op.multiplier_a, op.multiplier_b)
    mine, other = factors if stage.place == 0 else factors[::-1]
    acc = widen(value) * mine + widen(keep(read(0))) * other + op.offset
    a, b = stage.types
    ends = _ends(a, op.multiplier_a), _ends(b, op.multiplier_b)
    half = op.offset + ((1 << op.shift) >> 1)
    shifted = tuple((x + y + half) >> op.shift for x, y in zip(*ends, strict=True))
    return saturate(acc.rounded_shift(op.shift), op.lo, op.hi, shifted)


def _ends(kind: IntType, factor: int) -> tuple[int, int]:
    lo, hi = sorted((kind.lo * factor, kind.hi * factor))
    return lo, hi


def _requantise(stage: Stage, value: Expr, _: Read, __: tuple[Buffer, ...], isa: Isa) -> Expr:
    op = stage.op
    acc = widen(value) * op.multiplier + op.offset
    half = op.offset + ((1 << op.shift) >> 1)
    lo, hi = ((end + half) >> op.shift for end in _ends(stage.types[0], op.multiplier))
    return saturate(acc.rounded_shift(op.shift), op.lo, op.hi, (lo, hi))


def _multiply(stage: Stage, value: Expr, read: Read, _: tuple[Buffer, ...], isa: Isa) -> Expr:
    op = stage.op
    lanes = lanes_of(value)
    zeros = (op.zero_a, op.zero_b)
    mine, other = zeros if stage.place == 0 else zeros[::-1]
    left = value - splat(mine, "int32", lanes)
    product = keep(left * (read(0) - splat(other, "int32", lanes)))
    half = (1 << op.shift) >> 1
    ends = [(end * op.multiplier + half) >> op.shift for end in _corners(stage)]
    scaled = (widen(product) * op.multiplier).rounded_shift(op.shift) + op.zero_point
    bounds = (min(ends) + op.zero_point, max(ends) + op.zero_point)
    return saturate(scaled, op.lo, op.hi, bounds)


def _corners(stage: Stage) -> list[int]:
    """The extreme products of a multiplication's centred operands."""
    a, b = stage.types
    zero_a, zero_b = stage.op.zero_a, stage.op.zero_b
    return [(x - zero_a) * (y - zero_b) for x in (a.lo, a.hi) for y in (b.lo, b.hi)]


def _rectified(
    stage: Stage, value: Expr, read: Read, buffers: tuple[Buffer, ...], isa: Isa
) -> Expr:
    op, lanes = stage.op, lanes_of(value)

    def const(number: int) -> Expr:
        return splat(number, "int32", lanes)

    last = stage.types[1].shape[0] - 1
    u = keep(T.max(value, const(0) - value))
    index = T.min(u >> const(op.step), const(last))
    entry = keep(gather(buffers[0], index, isa))
    part = u & const((1 << op.step) - 1)
    half = (1 << op.step) >> 1
    if lanes == isa.lanes:
        # (rise, left) . (part, 2**step) is both terms of the interpolation at once.
        weighted = madd(entry, part | const(1 << (op.step + 16)), lanes)
    else:
        rise = (entry << const(16)) >> const(16)
        weighted = rise * part + ((entry >> const(16)) << const(op.step))
    bump = (weighted + const(half)) >> const(op.step)
    v = keep((T.max(value, const(0)) << const(op.fraction)) + bump)
    x, multiplier = stage.types[0], stage.types[2]
    ends = [
        (end * m + ((1 << op.shift) >> 1)) >> op.shift
        for end in _value_range(op, x, stage.types[1])
        for m in (multiplier.lo, multiplier.hi)
    ]
    scaled = (widen(v) * widen(keep(read(1)))).rounded_shift(op.shift)
    # The zero point is added in 32 bits, which saturation at twice the result's range allows.
    room = 1 << 20
    moved = saturate(scaled, -room, room, (min(ends), max(ends))) + read(2)
    return clamp(moved, op.lo, op.hi)


def _value_range(op: Rectified, x: IntType, table: IntType) -> tuple[int, int]:
    lo = (max(x.lo, 0) << op.fraction) + min(table.lo, 0)
    return lo, (max(x.hi, 0) << op.fraction) + max(table.hi, 0)


def _lookup(stage: Stage, value: Expr, _: Read, buffers: tuple[Buffer, ...], isa: Isa) -> Expr:
    least = LIMITS[stage.types[0].dtype][0]
    return gather(buffers[0], value - splat(least, "int32", lanes_of(value)), isa)


_EMIT = {
    Add: _add,
    Requantise: _requantise,
    Multiply: _multiply,
    Rectified: _rectified,
    Lookup: _lookup,
}


def stage_of(
    graph: IntGraph, node: Node, place: int
) -> tuple[Stage, list[str | np.ndarray | As]] | None:
    """The stage that computes `node` from its input number `place`, and its operands' values.

    None where the vector form does not cover the node.
    """
    types = tuple(graph.types_of(node))
    op = node.op
    if type(op) not in _EMIT or types[place].size != node.type.size or not _covered(op, types):
        return None
    if isinstance(op, (Rectified, Lookup)) and place != 0:
        return None
    operands: list[Operand] = []
    values: list[str | np.ndarray | As] = []
    for i, name in enumerate(node.inputs):
        if i == place:
            continue
        table = isinstance(op, (Rectified, Lookup)) and i == 1
        found = _table(op, types[1]) if table else _operand(name, types[i], node.type)
        if found is None:
            return None
        operands.append(found[0])
        values.append(found[1])
    return Stage(op, types, place, tuple(operands)), values


def _operand(
    name: str, kind: IntType, out: IntType
) -> tuple[Operand, str | np.ndarray | As] | None:
    columns = out.shape[-1] if out.shape else 1
    if kind.size == out.size:
        rows = out.size // columns
        return Operand("full", kind.dtype, kind.size), As(name, (rows, columns))
    if kind.size == 1:
        return Operand("single", kind.dtype, 1), As(name, (1,))
    if kind.size == columns and kind.shape[-1] == columns:
        return Operand("channel", kind.dtype, columns), As(name, (columns,))
    return None


def _table(op: Op, kind: IntType) -> tuple[Operand, np.ndarray] | None:
    table = np.asarray(kind.value).astype(np.int64)
    if isinstance(op, Rectified):
        rise = np.append(table[1:], table[-1]) - table
        if np.abs(rise).max() > 2**15 - 1:
            return None
        table = (table << 16) | (rise & 0xFFFF)
    return Operand("table", "int32", table.size), table.astype(np.int32)


def _covered(op: Op, types: tuple[IntType, ...]) -> bool:
    """Whether everything that the vector form computes in 32 bits fits them."""
    least, most = LIMITS["int32"]
    if isinstance(op, Add):
        return max(abs(op.multiplier_a), abs(op.multiplier_b)) <= most
    if isinstance(op, Requantise):
        return abs(op.multiplier) <= most
    if isinstance(op, Multiply):
        corners = _corners(Stage(op, types, 0, ()))
        return least <= min(corners) and max(corners) <= most and abs(op.multiplier) <= most
    if isinstance(op, Rectified):
        lo, hi = _value_range(op, types[0], types[1])
        zero = types[3]
        fits = least <= lo and hi <= most and max(abs(zero.lo), abs(zero.hi)) < 1 << 19
        return fits and op.step <= 14 and types[1].value is not None
    return types[1].value is not None


def elementwise(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of an element-wise node as a kernel of its own; None where it does not fit."""
    node = group.head
    place = next(
        (i for i, t in enumerate(graph.types_of(node)) if t.size == node.type.size), None
    )
    if place is None or group.followers:
        return None
    found = stage_of(graph, node, place)
    if found is None:
        return None
    stage, values = found
    columns = node.type.shape[-1] if node.type.shape else 1
    rows = node.type.size // columns
    if not any(operand.kind == "channel" for operand in stage.operands):
        rows, columns = 1, node.type.size
        values = [As(v.name, (1, columns)) if _is_full(v, columns) else v for v in values]
    x = As(node.inputs[place], (rows, columns))
    dtype = graph[node.inputs[place]].type.dtype
    key = (stage, rows, columns, dtype, node.type.dtype)
    return Call(
        node.op.NAME,
        key,
        lambda name: elementwise_kernel(name, stage, (rows, columns), (dtype, node.type.dtype), isa),
        (x, *values),
        (rows, columns),
        node.type.dtype,
    )


def _is_full(value: str | np.ndarray | As, size: int) -> bool:
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
            value = stage.emit(as_int32(x[m, span(n, lanes)]), m, n, buffers, isa)
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


def follow(stages: list[Stage], isa: Isa, dtype: str) -> Callable[..., Expr]:
    """The GEMM epilogue that applies the stages one after the other and stores `dtype`."""

    def epilogue(value: Expr, m: Expr, n: Expr, extras: tuple[Buffer, ...]) -> Expr:
        results: list[Expr] = []
        for i, part in enumerate(parts_of(value, isa.lanes)):
            at = n + i * isa.lanes
            current = as_int32(part)
            used = 0
            for stage in stages:
                count = len(stage.operands)
                current = stage.emit(current, m, at, extras[used : used + count], isa)
                used += count
            results.append(keep(as_type(current, dtype)))
        return joined(results)

    return epilogue

