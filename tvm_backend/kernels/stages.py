"""`add`, `multiply`, `requantise`, `rectified` and `lookup` on vectors: what a kernel of their
own computes, and what follows a matrix product in its epilogue."""

from collections.abc import Callable

import numpy as np
import torch

from iqvit.intgraph import IntGraph, Node
from iqvit.inttype import LIMITS, IntType
from iqvit.ops.add import Add
from iqvit.ops.base import Op
from iqvit.ops.lambda_shiftgelu import LambdaShiftGelu
from iqvit.ops.lookup import Lookup
from iqvit.ops.multiply import Multiply
from iqvit.ops.rectified import Rectified
from iqvit.ops.requantise import Requantise
from iqvit.tvm_backend.kernels.call import As
from iqvit.tvm_backend.kernels.gemm_form import Epilogue
from iqvit.tvm_backend.kernels.integers import (
    as_int32,
    as_type,
    fits32,
    gather,
    joined,
    keep,
    parts_of,
    widen,
)
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.rectified import (
    PLANES,
    emit_rectified,
    emit_rectified_together,
    planes_kind,
)
from iqvit.tvm_backend.kernels.rectified_form import (
    Scalars,
    Types,
    half_of,
    raised_by,
    rectified_scalars,
    sums_up,
    value_range,
)
from iqvit.tvm_backend.kernels.script import Buffer, Expr
from iqvit.tvm_backend.kernels.stage_form import Operand, Place, Stage, Value
from iqvit.tvm_backend.kernels.tables import (
    ENTRIES,
    TOGETHER,
    byte_entry,
    padded,
    planes_of,
)


def _ends(kind: IntType, factor: int) -> tuple[int, int]:
    lo, hi = sorted((kind.lo * factor, kind.hi * factor))
    return lo, hi


def _add_scalars(op: Add, types: Types, place: int) -> Scalars:
    factors = (op.multiplier_a, op.multiplier_b)
    constant = op.offset + half_of(op.shift)
    ends = [_ends(kind, factor) for kind, factor in zip(types, factors, strict=True)]
    lo, hi = ((a + b + constant) >> op.shift for a, b in zip(*ends, strict=True))
    return (factors[place], factors[1 - place], constant, op.shift), (lo, hi)


def _add(at: Place) -> Expr:
    acc = widen(at.value) * at.factor(0) + widen(at.read(0)) * at.factor(1) + at.scalar(2)
    return at.limited(acc >> at.scalar(3))


def _requantise_scalars(op: Requantise, types: Types, _: int) -> Scalars:
    constant = op.offset + half_of(op.shift)
    lo, hi = ((end + constant) >> op.shift for end in _ends(types[0], op.multiplier))
    return (op.multiplier, constant, op.shift), (lo, hi)


def _requantise(at: Place) -> Expr:
    return at.limited((widen(at.value) * at.factor(0) + at.scalar(1)) >> at.scalar(2))


def _multiply_scalars(op: Multiply, types: Types, place: int) -> Scalars:
    zeros = (op.zero_a, op.zero_b)
    half = half_of(op.shift)
    ends = [(end * op.multiplier + half >> op.shift) + op.zero_point for end in _corners(op, types)]
    scalars = (zeros[place], zeros[1 - place], op.multiplier, half, op.shift, op.zero_point)
    return scalars, (min(ends), max(ends))


def _corners(op: Multiply, types: Types) -> list[int]:
    """The extreme products of a multiplication's centred operands."""
    a, b = types
    return [(x - op.zero_a) * (y - op.zero_b) for x in (a.lo, a.hi) for y in (b.lo, b.hi)]


def _multiply(at: Place) -> Expr:
    product = keep((at.value - at.lane(0)) * (at.read(0) - at.lane(1)))
    scaled = (widen(product) * at.factor(2) + at.scalar(3)) >> at.scalar(4)
    return at.limited(scaled + at.scalar(5))


def _lookup_scalars(op: Lookup, types: Types, _: int) -> Scalars:
    return (0,), (types[1].lo, types[1].hi)


def _lookup(at: Place) -> Expr:
    if at.stage.operands[0].kind == "bytes":
        index = keep(at.value - at.const(at.stage.least))
        return byte_entry(at.buffers[0], index, at.stage.dtype, at.isa)
    return gather(at.buffers[0], at.value - at.const(at.stage.least), at.isa)


_EMIT: dict[type[Op], Callable[[Place], Expr]] = {
    Add: _add,
    Requantise: _requantise,
    Multiply: _multiply,
    Rectified: emit_rectified,
    Lookup: _lookup,
}
_SCALARS: dict[type[Op], Callable[..., Scalars]] = {
    Add: _add_scalars,
    Requantise: _requantise_scalars,
    Multiply: _multiply_scalars,
    Rectified: rectified_scalars,
    Lookup: _lookup_scalars,
}
TABLED = (Rectified, Lookup)
LIMITED = (Add, Requantise, Multiply, Rectified)


def stage_of(
    graph: IntGraph, node: Node, place: int, *, by_bytes: bool = False
) -> tuple[Stage, list[Value]] | None:
    """The stage that computes `node` from its input number `place`, and its operands' values.

    by_bytes: whether a table in registers is given by bytes as well, for whole rows.

    None where the vector form does not cover the node.
    """
    types, op = tuple(graph.types_of(node)), node.op
    if isinstance(op, LambdaShiftGelu):
        return _tabulated(op, types, node.type)
    fits_here = type(op) in _EMIT and types[place].size == node.type.size
    if not fits_here or not _covered(op, types) or (isinstance(op, TABLED) and place != 0):
        return None
    operands: list[Operand] = []
    values: list[Value] = []
    for i, name in enumerate(node.inputs):
        if i == place:
            continue
        table = isinstance(op, TABLED) and i == 1
        found = _table(op, types[1]) if table else _operand(name, types[i], node.type)
        if found is None:
            return None
        operands.append(found[0])
        values.append(found[1])
    scalars, ends = _SCALARS[type(op)](op, types, place)
    up = raised_by(op, types, ends)
    if up is not None:
        zero, down, last = np.asarray(types[3].value), scalars[-1], values[-1]
        shape = last.shape if isinstance(last, As) else zero.shape
        values[-1] = ((zero << down) + np.int32(half_of(down))).reshape(shape)
    if by_bytes and isinstance(op, Rectified) and operands[0].kind == "segments":
        kind = planes_kind(op, np.asarray(values[0]))
        if kind is not None:
            planes = planes_of(np.asarray(values[0]))
            operands.append(Operand(kind, "int8", planes.size))
            values.append(planes)
    operands.append(Operand("scalars", "int64", len(scalars)))
    values.append(np.array(scalars, np.int64))
    lo, hi = (op.lo, op.hi) if isinstance(op, LIMITED) else (node.type.lo, node.type.hi)
    least = LIMITS[types[0].dtype][0] if isinstance(op, Lookup) else 0
    forms = {"upper": up is not None, "raised": bool(up)}
    forms["summed"] = isinstance(op, Rectified) and sums_up(op, types)
    fits = fits32(*ends)
    stage = Stage(type(op), node.type.dtype, lo, hi, fits, tuple(operands), least, **forms)
    return stage, values


def _tabulated(op: LambdaShiftGelu, types: Types, out: IntType) -> tuple[Stage, list[Value]] | None:
    """A function of 8-bit values as the table of what it gives; None if it differs by channel."""
    if types[1].value is None or types[2].value is None or types[1].size > 1 or types[2].size > 1:
        return None
    least, most = LIMITS[types[0].dtype]
    constants = [
        torch.from_numpy(kind.value.copy()) for kind in types[1:] if kind.value is not None
    ]
    table = op.run(torch.arange(least, most + 1)[:, None], *constants)[:, 0].to(torch.int32)
    operands = (Operand("table", "int32", table.numel()), Operand("scalars", "int64", 1))
    stage = Stage(Lookup, out.dtype, out.lo, out.hi, True, operands, least)
    return stage, [table.numpy(), np.zeros(1, np.int64)]


def _operand(name: str, kind: IntType, out: IntType) -> tuple[Operand, Value] | None:
    columns = out.shape[-1] if out.shape else 1
    if kind.size == out.size:
        rows = out.size // columns
        return Operand("full", kind.dtype, kind.size), As(name, (rows, columns))
    if kind.size == 1:
        return Operand("single", kind.dtype, 1), As(name, (1,))
    if kind.size == columns and kind.shape[-1] == columns:
        return Operand("channel", kind.dtype, columns), As(name, (columns,))
    if kind.shape == (*out.shape[:-1], 1):
        return Operand("row", kind.dtype, kind.size), As(name, (kind.size,))
    return None


def _table(op: Op, kind: IntType) -> tuple[Operand, Value] | None:
    """The table as int32, or its bytes; that of a `rectified` holds entries and rises."""
    if kind.dtype in ("int8", "uint8"):
        packed = np.ascontiguousarray(kind.value).view(np.int32)
        return Operand("bytes", "int32", packed.size), packed
    table = np.asarray(kind.value).astype(np.int64)
    if isinstance(op, Rectified):
        rise = np.append(table[1:], table[-1]) - table
        if np.abs(rise).max() > LIMITS["int16"][1]:
            return None
        packed = ((table << 16) | (rise & 0xFFFF)).astype(np.int32)
        used = np.trim_zeros(packed, "b")
        if used.size > min(ENTRIES, packed.size - 1):  # without a 0 at its end the last one repeats
            return Operand("table", "int32", packed.size), packed
        segments = np.pad(used, (0, padded(max(1, used.size)) - used.size))
        return Operand("segments", "int32", segments.size), segments
    return Operand("table", "int32", table.size), table.astype(np.int32)


def _covered(op: Op, types: Types) -> bool:
    """Whether everything that the vector form computes in 32 bits fits them."""
    most = LIMITS["int32"][1]
    if isinstance(op, Add):
        return max(abs(op.multiplier_a), abs(op.multiplier_b)) <= most
    if isinstance(op, Requantise):
        return abs(op.multiplier) <= most
    if isinstance(op, Multiply):
        corners = _corners(op, types)
        return fits32(min(corners), max(corners)) and abs(op.multiplier) <= most
    if isinstance(op, Rectified) and not (op.step <= 14 and fits32(*value_range(op, types))):
        return False
    return types[1].value is not None


def emit_stage(
    stage: Stage,
    value: Expr,
    m: Expr | int,
    n: Expr | int,
    buffers: tuple[Buffer, ...],
    isa: Isa,
) -> Expr:
    """The operator of int32 lanes `value` at row m, columns n.., as int32 in its bounds."""
    return _EMIT[stage.op](Place(stage, keep(value), m, n, buffers, isa))


def emit_stages(
    stages: list[Stage],
    values: list[Expr],
    m: Expr,
    n: Expr,
    extras: tuple[Buffer, ...],
    isa: Isa,
) -> list[Expr]:
    """The stages one after the other, of int32 vectors that follow each other from column n on;
    `extras` are the operands of all."""
    for stage in stages:
        count = len(stage.operands)
        buffers, extras = extras[:count], extras[count:]
        places = [
            Place(stage, keep(value), m, n + i * isa.lanes, buffers, isa)
            for i, value in enumerate(values)
        ]
        lanes = [at.lanes for at in places]
        if not stage.kinds.isdisjoint(PLANES) and lanes == [isa.lanes] * TOGETHER:
            values = emit_rectified_together(places)
        else:
            values = [_EMIT[stage.op](place) for place in places]
    return values


def follow(stages: list[Stage], isa: Isa, dtype: str) -> Epilogue:
    """The GEMM epilogue that applies the stages one after the other and stores `dtype`."""

    def epilogue(values: list[Expr], m: Expr, n: Expr, extras: tuple[Buffer, ...]) -> list[Expr]:
        parts = [as_int32(part) for value in values for part in parts_of(value, isa.lanes)]
        results = emit_stages(stages, parts, m, n, extras, isa)
        results = [keep(as_type(result, dtype)) for result in results]
        count = len(parts) // len(values)
        return [joined(results[i : i + count]) for i in range(0, len(parts), count)]

    return epilogue
