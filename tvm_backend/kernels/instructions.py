"""The instructions that differ between CPU families, as one expression each."""

from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Expr, T
from iqvit.tvm_backend.kernels.vector import clamp, element_of, lanes_of, limits, typed

CACHE_LINE = 64


def dot(isa: Isa, acc: Expr, x: Expr, weight: Expr) -> Expr:
    """int32 lanes: `acc` plus the products of each lane's group; `x` and `weight` have
    `isa.slots` lanes of the types `isa.stored` and `isa.weight`."""
    dtype = typed("int32", isa.lanes)
    if isa.dot_accumulates:
        return T.call_llvm_pure_intrin(dtype, isa.dot, acc, x, weight)
    if isa.widens:
        return _widening_dot(isa, acc, x, weight)
    return acc + T.call_llvm_pure_intrin(dtype, isa.dot, x, weight)


def matrix_product(isa: Isa, acc: Expr, x: Expr, weight: Expr) -> Expr:
    """int32 lanes `[row * 2 + column]`: `acc` plus the products of two rows of x with two columns
    of weights, each of them half of the `isa.slots` lanes."""
    return T.call_llvm_pure_intrin(typed("int32", isa.lanes), isa.matrix, acc, x, weight)


def _widening_dot(isa: Isa, acc: Expr, x: Expr, weight: Expr) -> Expr:
    # A product of int8 fits int16 and a pair of them int32. The pairs of a group are told apart by
    # moves that cost nothing for the operand that is broadcast.
    for pair in (0, 1):
        acc = acc + _sums_of_pairs(isa, _product(isa, *(_pairs(isa, v, pair) for v in (x, weight))))
    return acc


def weight_dot(isa: Isa, acc: Expr, x: Expr, weights: list[Expr]) -> Expr:
    """`dot` for weights as `packing.pack_weights` orders them, none of them -128: a vector, or for
    `isa.widens` its halves.

    Two products with such weights fit int16 together, so that they are widened once.
    """
    if not isa.widens:
        return dot(isa, acc, x, *weights)
    low, high = (_product(isa, _pairs(isa, x, pair), weights[pair]) for pair in (0, 1))
    return acc + _sums_of_pairs(isa, low + high)


def _pairs(isa: Isa, value: Expr, pair: int) -> Expr:
    """The first or the second two bytes of every group."""
    shorts = T.reinterpret(typed("int16", isa.slots // 2), value)
    picked = T.Shuffle([shorts], list(range(pair, isa.slots // 2, 2)))
    return T.reinterpret(typed("int8", isa.slots // 2), picked)


def _product(isa: Isa, a: Expr, b: Expr) -> Expr:
    return T.call_llvm_pure_intrin(typed("int16", isa.slots // 2), isa.dot, a, b)


def _sums_of_pairs(isa: Isa, products: Expr) -> Expr:
    name = "llvm.aarch64.neon.saddlp.v4i32.v8i16"
    return T.call_llvm_pure_intrin(typed("int32", isa.lanes), name, products)


def pack(isa: Isa, low: Expr, high: Expr, dtype: str) -> Expr:
    """Two vectors as one of lanes half as wide, saturated to `dtype`; on x86 the lanes come in the
    order of `packing.column_order`."""
    name = {"int16": isa.pack16, "int8": isa.pack_int8, "uint8": isa.pack_uint8}[dtype]
    lanes = 2 * lanes_of(low)
    if name:
        return T.call_llvm_pure_intrin(typed(dtype, lanes), name, low, high)
    lo, hi = limits(dtype)
    parts = [T.Cast(typed(dtype, lanes // 2), clamp(part, lo, hi)) for part in (low, high)]
    return T.Shuffle(parts, list(range(lanes)))


def high_product(a: Expr, b: Expr) -> Expr:
    """The upper halves of products of a vector of 16-bit lanes, both with or without a sign; for
    x86."""
    name = {32: "llvm.x86.avx512.pmulh{}.w.512", 16: "llvm.x86.avx2.pmulh{}.w"}[lanes_of(a)]
    dtype = element_of(a)
    name = name.format("u" if dtype == "uint16" else "")
    return T.call_llvm_pure_intrin(typed(dtype, lanes_of(a)), name, a, b)


def prefetch(isa: Isa, element: Expr) -> None:
    """Bring the cache line of a buffer's element near, if a vector of `isa` is a line; the element
    may lie behind the end."""
    if isa.lanes * 4 == CACHE_LINE:
        read, keep_near, data = T.int32(0), T.int32(3), T.int32(1)
        place = T.address_of(element)
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", place, read, keep_near, data))
