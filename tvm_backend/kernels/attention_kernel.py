"""`attention` on vectors: one lane a query, so that maxima, exponentials and sums stay in lanes.

    s[j, i] = sum_d q[i, d] * k[j, d]          dot products, k broadcast, q packed by lanes
    p[j, i] = full * 2**-t(max_j s - s)        in int32 lanes, stored as the next operand
    a[e, i] = sum_j p[j, i] * v[j, e]          dot products, v broadcast
    out[i, e] = clamp((a * (numerator // sum_j p) + offset + half) >> shift)

q, k, v and the result are read and written where they lie: any strides of head and token.
"""

import math
from dataclasses import dataclass

from iqvit.ops.exp2 import full_scale
from iqvit.tvm_backend.kernels.exponential import Exp2Scalars, emit_exp2_packed
from iqvit.tvm_backend.kernels.instructions import dot
from iqvit.tvm_backend.kernels.integers import (
    as_int32,
    filled,
    keep,
    limited,
    quotient,
    total,
    transposed,
    uniform_products,
    upper_halves,
)
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Buffer, Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import (
    bits_of,
    clamp,
    function_attributes,
    pieces,
    span,
    splat,
    typed,
)

MIN_TASKS = 6
"""Tasks that an attention is cut into, so that threads share it evenly; each packs its keys."""


@dataclass(frozen=True)
class Place:
    """Where a tensor `[heads, tokens, depth]` lies: in which parameter, and how."""

    parameter: int
    offset: int
    head: int
    token: int

    def at(self, head: Expr, token: Expr | int) -> Expr:
        """The address of the first element of a token."""
        return head * self.head + token * self.token + self.offset


SCALARS = ("pre", "cap", "multiplier", "exp_shift", "numerator", "offset", "shift")
"""What the function is given as int64, so that all layers of a shape share it: the attributes of
the operator, with the rounding constant in the offset."""


@dataclass(frozen=True)
class Problem:
    """What the generated code depends on: types, sizes, and where everything lies."""

    bits: int
    dtype: str
    lo: int
    hi: int
    heads: int
    queries: int
    keys: int
    depth: int
    width: int
    """Depth of v and of the result."""
    shapes: tuple[tuple[int, int], ...]
    """Of every parameter, as rows."""
    out_shape: tuple[int, int]
    q: Place
    k: Place
    v: Place
    out: Place
    fits: bool
    """Whether the result fits int32 before it saturates."""
    upper: bool
    """Whether the offset and the shift are those of upper halves: `(high + offset) >> 1` of the
    products of accumulators that are raised by the shift."""


@dataclass(frozen=True)
class _Kernel:
    problem: Problem
    isa: Isa
    inputs: tuple[Buffer, ...]
    scalars: Buffer
    out: Buffer

    def scalar(self, name: str) -> Expr:
        """One of `SCALARS`."""
        return self.scalars[SCALARS.index(name)]

    @property
    def lanes(self) -> int:
        return self.isa.lanes

    @property
    def bits(self) -> int:
        """Bits of one of the `group` values that lie in an int32 lane."""
        return 32 // self.isa.group

    @property
    def signed(self) -> bool:
        """Whether `dot` takes both operands signed; else the left one is offset by 128."""
        return self.isa.operand != "uint8"

    @property
    def lowers(self) -> bool:
        """Whether `dot` takes bytes signed, so that 128 is taken off the probabilities."""
        return self.isa.operand == "int8"

    @property
    def groups(self) -> int:
        """Groups of keys."""
        return -(-self.problem.keys // self.isa.group)

    @property
    def block(self) -> int:
        """Accumulators of one register block."""
        return self.isa.lanes

    def dot(self, acc: Expr, left: Expr, right: Expr) -> Expr:
        """`acc` plus the dot products of lanes of packed int32."""
        isa = self.isa
        a, b = (T.reinterpret(typed(isa.stored, isa.slots), x) for x in (left, right))
        return dot(isa, acc, a, b)


def attention_kernel(name: str, problem: Problem, isa: Isa) -> PrimFunc:
    """`name(*roots int8 [rows, n], scalars int64, out [rows, n])`, parallel over heads, queries."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        shapes = problem.shapes
        roots = [T.arg(f"x{i}", T.buffer(shape, "int8")) for i, shape in enumerate(shapes)]
        scalars = T.arg("scalars", T.buffer((len(SCALARS),), "int64"))
        rows = T.arg("out", T.buffer(problem.out_shape, problem.dtype))
        inputs = tuple(
            T.decl_buffer((math.prod(shape),), "int8", data=root.data)
            for root, shape in zip(roots, shapes, strict=True)
        )
        out = T.decl_buffer((math.prod(problem.out_shape),), problem.dtype, data=rows.data)
        kernel = _Kernel(problem, isa, inputs, scalars, out)
        blocks = -(-problem.queries // isa.lanes)
        parts = min(blocks, -(-MIN_TASKS // problem.heads))
        share = -(-blocks // parts)
        with T.parallel(problem.heads * parts) as task:
            head = T.Bind(task // parts)
            first = T.Bind(task % parts * share)
            keys, fold = _emit_keys(kernel, head)
            values = _emit_values(kernel, head)
            with T.serial(T.min(share, blocks - first)) as step:
                query = T.Bind((first + step) * isa.lanes)
                _emit_block(kernel, head, query, (keys, fold), values)
    return builder.get()


def _operand(kernel: _Kernel, value: Expr) -> Expr:
    """int8 lanes as `dot` reads its right operand, as int32 lanes."""
    lanes = value.ty.dtype.lanes
    if kernel.isa.group == 2:
        value = T.Cast(typed("int16", lanes), value)
    return T.reinterpret(typed("int32", lanes // kernel.isa.group), value)


def _emit_keys(kernel: _Kernel, head: Expr) -> tuple[Buffer, Buffer]:
    """The head's keys as groups along depth, `[keys, depth / group]`, and what undoes the offset
    of the queries: `-128 * sum_d k`, int32 `[keys]`."""
    problem, isa = kernel.problem, kernel.isa
    source = kernel.inputs[problem.k.parameter]
    keys = T.alloc_buffer((problem.keys, problem.depth // isa.group), "int32", scope="global")
    fold = T.alloc_buffer((problem.keys,), "int32", scope="global")
    with T.serial(problem.keys) as j:
        start = T.Bind(problem.k.at(head, j))
        acc: Expr = T.int32(0)
        for offset, lanes in pieces(problem.depth, isa.slots):
            value = source[span(start + offset, lanes)]
            packed = keep(_operand(kernel, value))
            at = span(offset // isa.group, lanes // isa.group)
            T.buffer_store(keys, packed, [j, at])
            if not kernel.signed:
                acc = acc + _sum_of(kernel, value, packed)
        T.buffer_store(fold, acc * T.int32(-128), [j])
    return keys, fold


def _sum_of(kernel: _Kernel, value: Expr, packed: Expr) -> Expr:
    lanes = kernel.lanes
    if packed.ty.dtype.lanes != lanes:
        return total(keep(as_int32(value)))
    ones, zero = splat(0x01010101, "int32", lanes), splat(0, "int32", lanes)
    return total(keep(kernel.dot(zero, ones, packed)))


def _emit_values(kernel: _Kernel, head: Expr) -> tuple[Buffer, Buffer]:
    """The head's values as groups along keys, int32 `[ceil(keys / group), width]`, zero padded; and
    where the probabilities are lowered their sums over the keys, int32 `[width]`."""
    problem, isa = kernel.problem, kernel.isa
    source = kernel.inputs[problem.v.parameter]
    values = T.alloc_buffer((kernel.groups, problem.width), "int32", scope="global")
    mask = (1 << kernel.bits) - 1
    sums = T.alloc_buffer((problem.width,), "int32", scope="global")
    if kernel.lowers:
        with T.serial(problem.width) as e:
            T.buffer_store(sums, T.int32(0), [e])

    def pack(group: Expr | int, members: int) -> None:
        first = [
            T.Bind(problem.v.at(head, group * isa.group + member)) for member in range(members)
        ]
        for offset, lanes in pieces(problem.width, kernel.lanes):
            packed = splat(0, "int32", lanes)
            for member in range(members):
                value = as_int32(source[span(first[member] + offset, lanes)])
                if kernel.lowers:
                    at = span(offset, lanes)
                    T.buffer_store(sums, sums[at] + value, [at])
                value = value & splat(mask, "int32", lanes)
                packed = packed | (value << splat(member * kernel.bits, "int32", lanes))
            T.buffer_store(values, packed, [group, span(offset, lanes)])

    whole, left = divmod(problem.keys, isa.group)
    with T.serial(whole) as group:
        pack(group, isa.group)
    if left:
        pack(whole, left)
    return values, sums


def _emit_block(
    kernel: _Kernel,
    head: Expr,
    query: Expr,
    packed_keys: tuple[Buffer, Buffer],
    values: tuple[Buffer, Buffer],
) -> None:
    """The results of one vector of queries."""
    problem, lanes = kernel.problem, kernel.lanes
    keys, fold = packed_keys
    lane = span(0, lanes)
    packed = _emit_queries(kernel, head, query)
    scores = T.alloc_buffer((problem.keys, lanes), "int32", scope="global")
    top = T.alloc_buffer((lanes,), "int32", scope="global")
    T.buffer_store(top, splat(-(2**31), "int32", lanes), [lane])
    whole, left = divmod(problem.keys, kernel.block)
    with T.serial(whole) as step:
        _emit_scores(kernel, (step * kernel.block, kernel.block), packed, keys, fold, scores, top)
    if left:
        _emit_scores(kernel, (whole * kernel.block, left), packed, keys, fold, scores, top)
    weights, sums = _emit_weights(kernel, scores, top)
    inverse = keep(quotient(kernel.scalar("numerator"), sums))
    results = T.alloc_buffer((problem.width // _per_lane(problem), lanes), "int32", scope="global")
    for offset in range(0, problem.width, kernel.block):
        count = min(kernel.block, problem.width - offset)
        acc = _emit_weighted(kernel, offset, count, weights, values)
        _emit_results(kernel, offset, count, acc, inverse, results)
    _emit_out(kernel, head, query, results)


def _emit_queries(kernel: _Kernel, head: Expr, query: Expr) -> Buffer:
    """The queries of the lanes as groups along depth: int32 `[depth / group, lanes]`."""
    problem, isa, lanes = kernel.problem, kernel.isa, kernel.lanes
    source = kernel.inputs[problem.q.parameter]
    groups = problem.depth // isa.group
    packed = T.alloc_buffer((groups, lanes), "int32", scope="global")
    # Lanes past the last query repeat it; their results are not stored.
    tokens = [T.Bind(T.min(query + i, problem.queries - 1)) for i in range(lanes)]
    starts = [T.Bind(problem.q.at(head, token)) for token in tokens]
    for first in range(0, groups, lanes):
        count = min(lanes, groups - first)
        rows = []
        for start in starts:
            parts = [
                _operand(kernel, source[span(start + (first + at) * isa.group, wide * isa.group)])
                for at, wide in pieces(count, lanes)
            ]
            rows.append(filled(parts, lanes))
        columns = transposed(rows)[:count]
        if not kernel.signed:
            flip = splat(T.int32(-0x7F7F7F80), "int32", lanes)
            columns = [column ^ flip for column in columns]
        for g, column in enumerate(columns):
            T.buffer_store(packed, column, [first + g, span(0, lanes)])
    return packed


def _emit_scores(
    kernel: _Kernel,
    block: tuple[Expr | int, int],
    packed: Buffer,
    keys: Buffer,
    fold: Buffer,
    scores: Buffer,
    top: Buffer,
) -> None:
    """The products of the queries with `count` keys from `start`, and the largest so far."""
    start, count = block
    lanes = kernel.lanes
    lane = span(0, lanes)
    acc = T.alloc_buffer((count, lanes), "int32", scope="global")
    for j in range(count):
        begin = fold[start + j] if not kernel.signed else 0
        T.buffer_store(acc, splat(begin, "int32", lanes), [j, lane])
    with T.serial(kernel.problem.depth // kernel.isa.group) as g:
        left = keep(packed[g, lane])
        for j in range(count):
            right = T.broadcast(keys[start + j, g], lanes)
            T.buffer_store(acc, kernel.dot(acc[j, lane], left, right), [j, lane])
    for j in range(count):
        T.buffer_store(scores, acc[j, lane], [start + j, lane])
        T.buffer_store(top, T.max(top[lane], acc[j, lane]), [lane])


def _emit_weights(kernel: _Kernel, scores: Buffer, top: Buffer) -> tuple[Buffer, Expr]:
    """The unnormalised probabilities as groups along keys, and their sums."""
    problem, isa, lanes = kernel.problem, kernel.isa, kernel.lanes
    lane = span(0, lanes)
    full = full_scale(problem.bits)
    exp = Exp2Scalars(*(keep(T.Cast("int32", kernel.scalars[i])) for i in range(4)))
    weights = T.alloc_buffer((kernel.groups, lanes), "int32", scope="global")
    sums = T.alloc_buffer((lanes,), "int32", scope="global")
    # Where 128 is taken off every probability, the sums begin with what that takes off them.
    begin = 128 * isa.group * kernel.groups if kernel.lowers else 0
    T.buffer_store(sums, splat(begin, "int32", lanes), [lane])
    ones = splat(sum(1 << i * kernel.bits for i in range(isa.group)), "int32", lanes)

    def pack(group: Expr | int, members: int) -> None:
        differences = [
            top[lane] - scores[group * isa.group + member, lane] for member in range(members)
        ]
        packed = emit_exp2_packed(exp, differences, full, kernel.bits, isa)
        if kernel.lowers:
            packed = packed ^ splat(T.int32(-0x7F7F7F80), "int32", lanes)
        packed = keep(packed)
        T.buffer_store(weights, packed, [group, lane])
        T.buffer_store(sums, kernel.dot(sums[lane], packed, ones), [lane])

    whole, left = divmod(problem.keys, isa.group)
    with T.serial(whole) as group:
        pack(group, isa.group)
    if left:
        pack(whole, left)
    return weights, sums[lane]


def _emit_weighted(
    kernel: _Kernel,
    offset: int,
    count: int,
    weights: Buffer,
    packed: tuple[Buffer, Buffer],
) -> Buffer:
    """Sums of values weighted by probabilities: `count` columns from `offset`, `[count, lanes]`."""
    values, sums = packed
    lanes = kernel.lanes
    lane = span(0, lanes)
    acc = T.alloc_buffer((count, lanes), "int32", scope="global")
    for e in range(count):
        begin = sums[offset + e] * 128 if kernel.lowers else 0
        T.buffer_store(acc, splat(begin, "int32", lanes), [e, lane])
    with T.serial(kernel.groups) as g:
        left = keep(weights[g, lane])
        for e in range(count):
            right = T.broadcast(values[g, offset + e], lanes)
            T.buffer_store(acc, kernel.dot(acc[e, lane], left, right), [e, lane])
    return acc


def _per_lane(problem: Problem) -> int:
    """Results that fit in an int32."""
    return 32 // bits_of(problem.dtype)


def _emit_results(
    kernel: _Kernel, offset: int, count: int, acc: Buffer, inverse: Expr, results: Buffer
) -> None:
    """Normalise, requantise and pack the results of some columns, neighbours in one int32."""
    problem, lanes = kernel.problem, kernel.lanes
    lane = span(0, lanes)
    together = _per_lane(problem)
    bits = 32 // together
    for start in range(0, count, together):
        packed = splat(0, "int32", lanes)
        for member in range(together):
            value = _result(kernel, keep(acc[start + member, lane]), inverse)
            if bits < 32:
                value = value & splat((1 << bits) - 1, "int32", lanes)
            packed = packed | (value << splat(member * bits, "int32", lanes))
        T.buffer_store(results, packed, [(offset + start) // together, lane])


def _result(kernel: _Kernel, acc: Expr, inverse: Expr) -> Expr:
    """`clamp((acc * inverse + offset) >> shift)` as int32 lanes."""
    problem = kernel.problem
    if not problem.upper:
        product = uniform_products(acc, inverse) + kernel.scalar("offset")
        return limited(product >> kernel.scalar("shift"), problem.lo, problem.hi, problem.fits)
    raised = acc << splat(T.Cast("int32", kernel.scalar("shift")), "int32", kernel.lanes)
    high = upper_halves(uniform_products(raised, inverse))
    rounded = high + splat(T.Cast("int32", kernel.scalar("offset")), "int32", kernel.lanes)
    return clamp(rounded >> splat(1, "int32", kernel.lanes), problem.lo, problem.hi)


def _emit_out(kernel: _Kernel, head: Expr, query: Expr, results: Buffer) -> None:
    problem, lanes = kernel.problem, kernel.lanes
    together = _per_lane(problem)
    groups = problem.width // together
    zero = splat(0, "int32", lanes)
    for first in range(0, groups, lanes):
        count = min(lanes, groups - first)
        columns = [results[first + g, span(0, lanes)] for g in range(count)]
        rows = [keep(row) for row in transposed([*columns, *[zero] * (lanes - count)])]
        for i, row in enumerate(rows):
            start = problem.out.at(head, query + i) + first * together
            with T.If(query + i < problem.queries), T.Then():
                for at, wide in pieces(count, lanes):
                    value = T.Shuffle([row], list(range(at, at + wide)))
                    value = T.reinterpret(typed(problem.dtype, wide * together), value)
                    T.buffer_store(
                        kernel.out, value, [span(start + at * together, wide * together)]
                    )
