"""The operands of `attention` as its dot products read them: queries by lanes, keys and values in
groups along what is summed up."""

from iqvit.tvm_backend.kernels.attention_form import NOTHING, Kernel
from iqvit.tvm_backend.kernels.integers import as_int32, filled, keep, total, transposed
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.vector import pieces, span, splat, typed


def _operand(kernel: Kernel, value: Expr) -> Expr:
    """int8 lanes as `dot` reads its right operand, as int32 lanes."""
    lanes = value.ty.dtype.lanes
    if kernel.isa.group == 2:
        value = T.Cast(typed("int16", lanes), value)
    return T.reinterpret(typed("int32", lanes // kernel.isa.group), value)


def emit_keys(kernel: Kernel, head: Expr) -> tuple[Buffer, Buffer]:
    """The head's keys as groups along depth, `[keys, depth / group]`, and what undoes the offset
    of the queries: `-128 * sum_d k`, int32 `[keys]`. Keys that are none are zero, and with that
    their products `NOTHING`."""
    problem, isa = kernel.problem, kernel.isa
    source = kernel.inputs[problem.k.parameter]
    keys = T.alloc_buffer((kernel.keys, problem.depth // isa.group), "int32", scope="global")
    fold = T.alloc_buffer((kernel.keys,), "int32", scope="global")
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
    for none in range(problem.keys, kernel.keys):
        for at, lanes in pieces(problem.depth // isa.group, isa.lanes):
            T.buffer_store(keys, splat(0, "int32", lanes), [none, span(at, lanes)])
        T.buffer_store(fold, NOTHING, [none])
    return keys, fold


def _sum_of(kernel: Kernel, value: Expr, packed: Expr) -> Expr:
    lanes = kernel.lanes
    if packed.ty.dtype.lanes != lanes:
        return total(keep(as_int32(value)))
    ones, zero = splat(0x01010101, "int32", lanes), splat(0, "int32", lanes)
    return total(keep(kernel.dot(zero, ones, packed)))


def emit_values(kernel: Kernel, head: Expr) -> tuple[Buffer, Buffer]:
    """The head's values as groups along keys, int32 `[ceil(width / lanes), ceil(keys / group),
    lanes]`, zero padded; and where the probabilities are lowered their sums over the keys, int32
    `[width]`."""
    problem, isa = kernel.problem, kernel.isa
    source = kernel.inputs[problem.v.parameter]
    shape = (-(-problem.width // kernel.lanes), kernel.groups, kernel.lanes)
    values = T.alloc_buffer(shape, "int32", scope="global")
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
            block, column = divmod(offset, kernel.lanes)
            T.buffer_store(values, packed, [block, group, span(column, lanes)])

    whole, left = divmod(problem.keys, isa.group)
    with T.serial(whole) as group:
        pack(group, isa.group)
    if left:
        pack(whole, left)
    return values, sums


def emit_queries(kernel: Kernel, head: Expr, query: Expr) -> Buffer:
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
