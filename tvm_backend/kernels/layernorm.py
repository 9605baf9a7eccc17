"""`layernorm` on vectors: exact sums, roots and reciprocals of several rows at once."""

from dataclasses import dataclass

import numpy as np
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Buffer, PrimFunc
from tvm.tirx.script import builder as T

from iqvit.intgraph import IntGraph
from iqvit.inttype import LIMITS
from iqvit.ops.layernorm import LayerNorm
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.integers import (
    as_int32,
    as_type,
    keep,
    madd,
    narrow,
    quotient,
    square_root,
    total,
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
    typed,
)


@dataclass(frozen=True)
class _Kernel:
    op: LayerNorm
    isa: Isa
    rows: int
    count: int
    x: Buffer
    gain: Buffer
    bias: Buffer
    out: Buffer

    @property
    def group(self) -> int:
        """Rows whose roots are taken together: the int64 lanes of a vector."""
        return self.isa.lanes // 2


def layernorm(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of a `layernorm`; None where it does not fit."""
    node = group.head
    op = node.op
    x, gain, bias = graph.types_of(node)
    if not isinstance(op, LayerNorm) or x.dtype not in ("int8", "uint8", "int16"):
        return None
    half = (1 << op.shift) >> 1
    # The rounding constant joins the bias; the range proof covers their sum.
    rounded = np.asarray(bias.value).astype(np.int64) + half
    if bias.value is None or rounded.max() > LIMITS["int32"][1]:
        return None
    count = x.shape[-1]
    rows = x.size // count
    key = (op, rows, count, x.dtype)
    return Call(
        "layernorm",
        key,
        lambda name: layernorm_kernel(name, op, (rows, count), x.dtype, isa),
        (As(node.inputs[0], (rows, count)), node.inputs[1], rounded.astype(np.int32)),
        (rows, count),
        op.dtype,
    )


def layernorm_kernel(
    name: str, op: LayerNorm, shape: tuple[int, int], dtype: str, isa: Isa
) -> PrimFunc:
    """`name(x [rows, n], gain int32 [n], bias int32 [n], out [rows, n])`, parallel over rows.

    `bias` holds the rounding constant of the last shift.
    """
    rows, count = shape
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer(shape, dtype))
        gain = T.arg("gain", T.buffer((count,), "int32"))
        bias = T.arg("bias", T.buffer((count,), "int32"))
        out = T.arg("out", T.buffer(shape, op.dtype))
        kernel = _Kernel(op, isa, rows, count, x, gain, bias, out)
        full, left = divmod(rows, kernel.group)
        with T.parallel(full + (left > 0)) as block:
            first = T.Bind(block * kernel.group)
            here = kernel.group if left == 0 else T.Bind(T.min(kernel.group, rows - first))
            _emit_rows(kernel, first, here)
    return builder.get()


def _emit_rows(kernel: _Kernel, first: Expr, here: Expr | int) -> None:
    lanes = kernel.group
    sums = T.alloc_buffer((lanes,), "int32", scope="local")
    spreads = T.alloc_buffer((lanes,), "int64", scope="local")
    T.buffer_store(spreads, splat(1, "int64", lanes), [span(0, lanes)])
    with T.serial(here) as r:
        _emit_sums(kernel, first + r, r, sums, spreads)
    scaled = keep(spreads[span(0, lanes)] << splat(2 * kernel.op.extra, "int64", lanes))
    inverse = quotient(1 << kernel.op.reciprocal, square_root(scaled))
    T.buffer_store(spreads, inverse, [span(0, lanes)])
    with T.serial(here) as r:
        _emit_normalised(kernel, first + r, sums[r], spreads[r])


def _emit_sums(kernel: _Kernel, row: Expr, r: Expr, sums: Buffer, spreads: Buffer) -> None:
    """The sum of a row and `n * (sum of squares) - sum**2 + epsilon`, exactly."""
    isa, count = kernel.isa, kernel.count
    width = 2 * isa.lanes
    acc = T.alloc_buffer((isa.lanes,), "int32", scope="local")
    squares = T.alloc_buffer((isa.lanes // 2,), "int64", scope="local")
    lane, half = span(0, isa.lanes), span(0, isa.lanes // 2)
    T.buffer_store(acc, splat(0, "int32", isa.lanes), [lane])
    T.buffer_store(squares, splat(0, "int64", isa.lanes // 2), [half])

    def add(values: Expr) -> None:
        values = keep(values)
        ones = splat(1, "int16", width)
        T.buffer_store(acc, acc[lane] + madd(values, ones, isa.lanes), [lane])
        # Two squares reach 2**31, which is right as an unsigned number.
        pairs = keep(
            T.reinterpret(typed("uint64", isa.lanes // 2), madd(values, values, isa.lanes))
        )
        low = pairs & splat(T.uint64(0xFFFFFFFF), "uint64", isa.lanes // 2)
        high = pairs >> splat(T.uint64(32), "uint64", isa.lanes // 2)
        both = T.reinterpret(typed("int64", isa.lanes // 2), low + high)
        T.buffer_store(squares, squares[half] + both, [half])

    def wide(start: Expr | int, lanes: int) -> Expr:
        return as_type(kernel.x[row, span(start, lanes)], "int16")

    whole = count // width
    if whole:
        with T.serial(whole) as i:
            add(wide(i * width, width))
    if count % width:
        rest = T.alloc_buffer((width,), "int16", scope="local")
        T.buffer_store(rest, splat(0, "int16", width), [span(0, width)])
        for offset, lanes in pieces(count - whole * width, width):
            T.buffer_store(rest, wide(whole * width + offset, lanes), [span(offset, lanes)])
        add(rest[span(0, width)])
    row_sum = keep(total(acc[lane]))
    T.buffer_store(sums, row_sum, [r])
    wide_sum = keep(T.Cast("int64", row_sum))
    spread = T.int64(count) * total(squares[half]) - wide_sum * wide_sum
    T.buffer_store(spreads, spread + T.int64(kernel.op.epsilon), [r])


def _emit_normalised(kernel: _Kernel, row: Expr, row_sum: Expr, inverse: Expr) -> None:
    op, isa, count = kernel.op, kernel.isa, kernel.count
    row_sum, inverse = keep(row_sum), keep(inverse)

    def piece(start: Expr | int, lanes: int) -> None:
        x = as_int32(kernel.x[row, span(start, lanes)])
        centred = keep(x * splat(count, "int32", lanes) - splat(row_sum, "int32", lanes))
        scaled = widen(centred).map(lambda part: part * splat(inverse, "int64", lanes_of(part)))
        t = narrow(scaled.rounded_shift(op.norm_shift))
        acc = t * kernel.gain[span(start, lanes)] + kernel.bias[span(start, lanes)]
        value = clamp(acc >> splat(op.shift, "int32", lanes), op.lo, op.hi)
        T.buffer_store(kernel.out, as_type(value, op.dtype), [row, span(start, lanes)])

    whole = count // isa.lanes
    if whole:
        with T.serial(whole) as i:
            piece(i * isa.lanes, isa.lanes)
    for offset, lanes in pieces(count - whole * isa.lanes, isa.lanes):
        piece(whole * isa.lanes + offset, lanes)

