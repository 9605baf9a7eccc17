"""`layernorm` on vectors: exact sums, roots and reciprocals of several rows at once."""

from dataclasses import dataclass

import numpy as np

from iqvit.intgraph import IntGraph
from iqvit.inttype import LIMITS
from iqvit.ops.layernorm import LayerNorm
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.balance import even_tasks
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
    uniform_products,
    upper_halves,
    widen,
)
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.row_scale import (
    Read,
    Rows,
    Scale,
    Write,
    batch_of,
    emit_pieces,
    emit_scaled,
    offset_of,
    scale_of,
)
from iqvit.tvm_backend.kernels.script import Buffer, Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import (
    clamp,
    function_attributes,
    pieces,
    span,
    splat,
    typed,
)

SCALARS = ("epsilon", "scale", "one", "lift", "half", "norm_shift", "shift", "offset")
"""What the function is given as int64, so that all layers of a shape share it: epsilon, how far
the spread is scaled up, the numerator of the reciprocal, how far centred values are scaled up, the
shifts, and what is taken off before a row is scaled."""


@dataclass(frozen=True)
class Form:
    """What the generated code depends on."""

    rows: int
    count: int
    x_dtype: str
    dtype: str
    lo: int
    hi: int
    upper: bool
    """Whether the upper halves of the products of centred values are enough."""
    scale: Scale | None
    """How the rows are stored at their own scales, beside their peaks; None: as they are."""

    @property
    def stored(self) -> str:
        """The type of the output."""
        return self.dtype if self.scale is None else self.scale.dtype


@dataclass(frozen=True)
class _Kernel:
    form: Form
    isa: Isa
    x: Buffer
    gain: Buffer
    bias: Buffer
    scalars: Buffer
    out: Buffer
    peak: Buffer | None

    def scalar(self, name: str) -> Expr:
        """One of `SCALARS`."""
        return self.scalars[SCALARS.index(name)]

    @property
    def group(self) -> int:
        """Rows whose roots are taken together, and the most of a task.

        Two vectors of int64: each step of a root waits for the one before.
        """
        return self.isa.lanes


def layernorm(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of a `layernorm`, and of what scales its rows; None where it does not fit."""
    node, scale = group.head, scale_of(group)
    op = node.op
    if group.followers and scale is None:
        return None
    x, _gain, bias = graph.types_of(node)
    if not isinstance(op, LayerNorm):
        return None
    half = (1 << op.shift) >> 1
    # The rounding constant joins the bias; the range proof covers their sum.
    rounded = np.asarray(bias.value).astype(np.int64) + half
    if bias.value is None or rounded.max() > LIMITS["int32"][1]:
        return None
    count = x.shape[-1]
    rows = x.size // count
    lift = _lift(op, count * max(x.hi - x.lo, -x.lo, x.hi))
    form = Form(rows, count, x.dtype, op.dtype, op.lo, op.hi, lift is not None, scale)
    shift = op.norm_shift if lift is None else op.norm_shift + lift - 32
    scalars = np.array(
        [
            op.epsilon,
            2 * op.extra,
            1 << op.reciprocal,
            lift or 0,
            1 << (op.norm_shift + (lift or 0) - 1),
            shift,
            op.shift,
            offset_of(group.last.op),
        ],
        np.int64,
    )
    return Call(
        "layernorm" if scale is None else "layernorm_scale",
        form,
        lambda name: layernorm_kernel(name, form, isa),
        (As(node.inputs[0], (rows, count)), node.inputs[1], rounded.astype(np.int32), scalars),
        (rows, count),
        form.stored,
        () if scale is None else (((rows,), "int32"),),
    )


def _lift(op: LayerNorm, most: int) -> int | None:
    """By how much centred values are shifted to the left so that normalised ones lie in the upper
    halves of products; None where 32 bits do not hold them, and what they come of: at most `most`.
    """
    lift = max(0, 32 - op.norm_shift)
    return lift if most << lift <= LIMITS["int32"][1] else None


def layernorm_kernel(name: str, form: Form, isa: Isa) -> PrimFunc:
    """`name(x [rows, n], gain int32 [n], bias int32 [n], scalars int64, out [rows, n])`, parallel
    over rows. `bias` holds the rounding constant of the last shift; `scalars` are `SCALARS`. Rows
    at their own scale have a further output, `peak int32 [rows]`.
    """
    shape = (form.rows, form.count)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer(shape, form.x_dtype))
        gain = T.arg("gain", T.buffer((form.count,), "int32"))
        bias = T.arg("bias", T.buffer((form.count,), "int32"))
        scalars = T.arg("scalars", T.buffer((len(SCALARS),), "int64"))
        out = T.arg("out", T.buffer(shape, form.stored))
        peak = None if form.scale is None else T.arg("peak", T.buffer((form.rows,), "int32"))
        kernel = _Kernel(form, isa, x, gain, bias, scalars, out, peak)
        tasks = even_tasks(form.rows, kernel.group)
        with T.parallel(tasks) as task:
            first, end = (T.Bind((task + i) * form.rows // tasks) for i in (0, 1))
            _emit_rows(kernel, first, end - first)
    return builder.get()


def _emit_rows(kernel: _Kernel, first: Expr, here: Expr | int) -> None:
    lanes = kernel.group
    sums = T.alloc_buffer((lanes,), "int32", scope="global")
    spreads = T.alloc_buffer((lanes,), "int64", scope="global")
    T.buffer_store(spreads, splat(1, "int64", lanes), [span(0, lanes)])
    with T.serial(here) as r:
        _emit_sums(kernel, first + r, r, sums, spreads)
    scaled = keep(spreads[span(0, lanes)] << splat(kernel.scalar("scale"), "int64", lanes))
    root = T.Cast(typed("int32", lanes), square_root(scaled))
    inverse = quotient(kernel.scalar("one"), root)
    T.buffer_store(spreads, T.Cast(typed("int64", lanes), inverse), [span(0, lanes)])
    _emit_results(kernel, first, here, sums, spreads)


def _emit_sums(kernel: _Kernel, row: Expr, r: Expr, sums: Buffer, spreads: Buffer) -> None:
    """The sum of a row and `n * (sum of squares) - sum**2 + epsilon`, exactly."""
    isa, count = kernel.isa, kernel.form.count
    short = kernel.form.x_dtype != "int32"
    dtype, width = ("int16", 2 * isa.lanes) if short else ("int32", isa.lanes)
    acc = T.alloc_buffer((isa.lanes,), "int32", scope="global")
    squares = T.alloc_buffer((isa.lanes // 2,), "int64", scope="global")
    lane, half = span(0, isa.lanes), span(0, isa.lanes // 2)
    T.buffer_store(acc, splat(0, "int32", isa.lanes), [lane])
    T.buffer_store(squares, splat(0, "int64", isa.lanes // 2), [half])

    def add(values: Expr) -> None:
        values = keep(values)
        total_of, squares_of = (short_sums if short else long_sums)(values, isa)
        T.buffer_store(acc, acc[lane] + total_of, [lane])
        T.buffer_store(squares, squares[half] + squares_of, [half])

    def read(start: Expr | int, lanes: int) -> Expr:
        return as_type(kernel.x[row, span(start, lanes)], dtype)

    whole = count // width
    if whole:
        with T.serial(whole) as i:
            add(read(i * width, width))
    if count % width:
        rest = T.alloc_buffer((width,), dtype, scope="global")
        T.buffer_store(rest, splat(0, dtype, width), [span(0, width)])
        for offset, lanes in pieces(count - whole * width, width):
            T.buffer_store(rest, read(whole * width + offset, lanes), [span(offset, lanes)])
        add(rest[span(0, width)])
    row_sum = keep(total(acc[lane]))
    T.buffer_store(sums, row_sum, [r])
    wide_sum = keep(T.Cast("int64", row_sum))
    spread = T.int64(count) * total(squares[half]) - wide_sum * wide_sum
    T.buffer_store(spreads, spread + kernel.scalar("epsilon"), [r])


def short_sums(values: Expr, isa: Isa) -> tuple[Expr, Expr]:
    """Sums of int16 lanes, as int32, and of their squares, as int64."""
    lanes = isa.lanes // 2
    sums = madd(values, splat(1, "int16", 2 * isa.lanes), isa.lanes)
    # Two squares reach 2**31, which is right as an unsigned number.
    pairs = keep(T.reinterpret(typed("uint64", lanes), madd(values, values, isa.lanes)))
    low = pairs & splat(T.uint64(0xFFFFFFFF), "uint64", lanes)
    high = pairs >> splat(T.uint64(32), "uint64", lanes)
    return sums, T.reinterpret(typed("int64", lanes), low + high)


def long_sums(values: Expr, _: Isa) -> tuple[Expr, Expr]:
    """Sums of int32 lanes (themselves), and of their squares, as int64."""
    wide = widen(values)
    even, odd = (wide * wide).parts
    return values, even + odd


def _emit_results(kernel: _Kernel, first: Expr, here: Expr, sums: Buffer, inverses: Buffer) -> None:
    """Store rows, at their own scales where they are to have such."""
    form = kernel.form

    def write(r: Expr) -> Write:
        return lambda value, start, lanes: T.buffer_store(
            kernel.out, value, [first + r, span(start, lanes)]
        )

    if form.scale is None or kernel.peak is None:
        with T.serial(here) as r:
            _emit_normalised(kernel, first + r, sums[r], inverses[r], write(r))
        return
    batch = min(batch_of(form.count), kernel.group)
    whole = T.alloc_buffer((batch, form.count), form.dtype, scope="global")
    offset, peak = keep(T.Cast("int32", kernel.scalar("offset"))), kernel.peak
    with T.serial(-(-kernel.group // batch)) as i:
        begin = T.Bind(i * batch)
        count = T.Bind(T.max(T.min(batch, here - begin), 0))

        def keep_back(r: Expr) -> Write:
            return lambda value, start, lanes: T.buffer_store(whole, value, [r, span(start, lanes)])

        def read(r: Expr) -> Read:
            return lambda start, lanes: whole[r, span(start, lanes)]

        def result(r: Expr) -> Write:
            return write(begin + r)

        with T.serial(count) as r:
            at = begin + r
            _emit_normalised(kernel, first + at, sums[at], inverses[at], keep_back(r))
        rows = Rows(form.count, offset, read, result)
        emit_scaled(
            form.scale,
            rows,
            count,
            lambda r, found: T.buffer_store(peak, found, [first + begin + r]),
            kernel.isa,
        )


def _emit_normalised(
    kernel: _Kernel, row: Expr, row_sum: Expr, inverse: Expr, write: Write
) -> None:
    form, isa, count = kernel.form, kernel.isa, kernel.form.count
    shift, lift, norm_shift = (
        keep(T.Cast("int32", kernel.scalar(name))) for name in ("shift", "lift", "norm_shift")
    )
    inverse = keep(inverse)
    row_sum, times = keep(row_sum << lift), keep(T.int32(count) << lift)

    def piece(start: Expr | int, lanes: int) -> None:
        x = as_int32(kernel.x[row, span(start, lanes)])
        centred = keep(x * splat(times, "int32", lanes) - splat(row_sum, "int32", lanes))
        if lanes == isa.lanes:
            factor = splat(T.Cast("int32", inverse), "int32", lanes)
            product = uniform_products(centred, factor)
        else:
            product = widen(centred) * inverse
        scaled = product + kernel.scalar("half")
        if form.upper:
            t = upper_halves(scaled) >> splat(norm_shift, "int32", lanes)
        else:
            t = narrow(scaled >> kernel.scalar("norm_shift"))
        acc = t * kernel.gain[span(start, lanes)] + kernel.bias[span(start, lanes)]
        value = clamp(acc >> splat(shift, "int32", lanes), form.lo, form.hi)
        write(as_type(value, form.dtype), start, lanes)

    emit_pieces(count, isa.lanes, piece)
