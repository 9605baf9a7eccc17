"""Integer arithmetic on whole vectors that the kernels share: 64-bit products of 32-bit lanes,
exact quotients and roots without division, table look-ups. All build TIR; none computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iqvit.inttype import LIMITS
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.vector import HALVES, clamp, element_of, lanes_of, span, splat, typed

_MADD = {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd"}
QUOTIENT_BITS = 31
ROOT_BITS = 31


@dataclass(frozen=True)
class Wide:
    """A vector of int64: its even and its odd lanes; one lane alone is the whole of a scalar.

    That is how the 32 x 32 -> 64 bit multiplies of x86 read and write registers, so nothing has to
    move. A vector of `HALVES` lanes is its two halves instead, as ARM's instructions take it.
    """

    parts: tuple[Expr, ...]

    def map(self, function: Callable[[Expr], Expr]) -> "Wide":
        """The function of both halves."""
        return Wide(tuple(function(part) for part in self.parts))

    def with_(self, other: "Wide", function: Callable[[Expr, Expr], Expr]) -> "Wide":
        """The function of the halves of both."""
        pairs = zip(self.parts, other.parts, strict=True)
        return Wide(tuple(function(a, b) for a, b in pairs))

    def _each(self, other: "Wide | Expr | int", function: Callable[[Expr, Expr], Expr]) -> "Wide":
        if isinstance(other, Wide):
            return self.with_(other, function)
        return self.map(lambda part: function(part, splat(other, "int64", lanes_of(part))))

    def __mul__(self, other: "Wide | Expr | int") -> "Wide":
        return self._each(other, lambda a, b: a * b)

    def __add__(self, other: "Wide | Expr | int") -> "Wide":
        return self._each(other, lambda a, b: a + b)

    def __rshift__(self, shift: "Expr | int") -> "Wide":
        return self._each(shift, lambda a, b: a >> b)

    def rounded_shift(self, shift: int) -> "Wide":
        """`(self + 2**(shift-1)) >> shift`."""
        return self if shift == 0 else (self + T.int64(1 << (shift - 1))) >> shift


def widen(value: Expr) -> Wide:
    """An int32 vector as int64."""
    lanes = lanes_of(value)
    if lanes == 1:
        return Wide((T.Cast("int64", value),))
    if lanes == HALVES:
        value = keep(value)
        halves = (T.Shuffle([value], at) for at in ([0, 1], [2, 3]))
        return Wide(tuple(T.Cast("int64x2", half) for half in halves))
    pairs = T.reinterpret(typed("int64", lanes // 2), value)
    shift = splat(32, "int64", lanes // 2)
    return Wide(((pairs << shift) >> shift, pairs >> shift))


def products(values: Expr, factors: Sequence[Expr]) -> Wide:
    """int32 lanes times the factors: all in order, those of the even and those of the odd lanes,
    each in even lanes, as the 32 x 32 -> 64 bit multiply of x86 reads them."""
    natural, even, odd = factors
    lanes = lanes_of(values)
    if lanes == HALVES:
        return widen(values) * widen(natural)
    duplicated = T.Shuffle([values], [i | 1 for i in range(lanes)])
    return Wide((_multiply_even(values, even), _multiply_even(duplicated, odd)))


def uniform_products(values: Expr, factors: Expr) -> Wide:
    """int32 lanes times factors that many vectors share.

    What stays the same is moved out of blocks, and with it what tells LLVM that factors have 32
    bits; it then multiplies 64 by 64, three times as long. So the odd lanes, which no one
    reads, are those of the values.
    """
    lanes = lanes_of(values)
    values = keep(values)
    mixed = [i + (lanes if i % 2 else 0) for i in range(lanes)]
    odd = T.Shuffle([factors], [i | 1 for i in range(lanes)])
    return products(values, [factors, *(T.Shuffle([f, values], mixed) for f in (factors, odd))])


def _multiply_even(a: Expr, b: Expr) -> Expr:
    # Sign-extending the low halves in place is what LLVM matches to one vpmuldq.
    wide = lanes_of(a) // 2
    shift = splat(32, "int64", wide)
    a, b = (T.reinterpret(typed("int64", wide), x) for x in (a, b))
    return ((a << shift) >> shift) * ((b << shift) >> shift)


def wide_order(lanes: int) -> list[int]:
    """The lanes of an int32 vector in the order in which the parts of `widen` hold them."""
    if lanes == HALVES:
        return list(range(lanes))
    return [*range(0, lanes, 2), *range(1, lanes, 2)]


def wide_elements(buffer: Buffer, start: Expr | int, lanes: int, *, ordered: bool = False) -> Wide:
    """Neighbouring elements of an int64 buffer, in the order of `widen`, or of one whose vectors
    are `ordered` so."""
    if lanes == 1:
        return Wide((buffer[start],))
    if ordered:
        return Wide(tuple(buffer[span(start + i, lanes // 2)] for i in (0, lanes // 2)))
    value, order = keep(buffer[span(start, lanes)]), wide_order(lanes)
    halves = (order[: lanes // 2], order[lanes // 2 :])
    return Wide(tuple(T.Shuffle([value], half) for half in halves))


def narrow(value: Wide) -> Expr:
    """The int32 vector of int64 lanes that are known to fit."""
    if len(value.parts) == 1:
        return T.Cast("int32", value.parts[0])
    even, odd = value.parts
    lanes = lanes_of(even)
    if 2 * lanes == HALVES:
        return T.Shuffle([T.Cast("int32x2", part) for part in value.parts], list(range(4)))
    low = even & splat(T.int64(0xFFFFFFFF), "int64", lanes)
    return T.reinterpret(f"int32x{2 * lanes}", low | (odd << splat(32, "int64", lanes)))


def upper_halves(value: Wide) -> Expr:
    """The upper 32 bits of int64 lanes, as int32."""
    lanes = sum(lanes_of(part) for part in value.parts)
    if len(value.parts) == 1 or lanes == HALVES:
        return narrow(value >> 32)
    pairs = [T.reinterpret(typed("int32", lanes), part) for part in value.parts]
    return T.Shuffle(pairs, [(i | 1) + (lanes if i % 2 else 0) for i in range(lanes)])


def saturate(value: Wide, lo: int, hi: int, ends: tuple[int, int]) -> Expr:
    """An int64 vector limited to `lo..hi` as int32; `ends` is its range by proof."""
    return limited(value, lo, hi, fits32(*ends))


def fits32(lo: int, hi: int) -> bool:
    """Whether a proved range fits in int32."""
    least, most = LIMITS["int32"]
    return least <= lo and hi <= most


def limited(value: Wide, lo: int, hi: int, fits: bool) -> Expr:
    """An int64 vector limited to `lo..hi` as int32.

    The limits are applied to 32-bit lanes, which is faster, if the values `fit` them by proof.
    """
    if fits:
        return clamp(narrow(value), lo, hi)
    return narrow(value.map(lambda part: clamp(part, lo, hi)))


def madd(a: Expr, b: Expr, lanes: int) -> Expr:
    """`a[2i]*b[2i] + a[2i+1]*b[2i+1]` of 16-bit lanes, as `lanes` int32; a and b of any type."""
    pairs = typed("int16", 2 * lanes)
    operands = [T.reinterpret(pairs, x) for x in (a, b)]
    if lanes == HALVES:
        return _halves_madd(*operands)
    return T.call_llvm_pure_intrin(typed("int32", lanes), _MADD[lanes], *operands)


def _halves_madd(a: Expr, b: Expr) -> Expr:
    products = []
    for at in (range(4), range(4, 8)):
        halves = [T.Shuffle([x], list(at)) for x in (a, b)]
        products.append(
            T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.smull.v4i32", *halves)
        )
    # The instruction wraps, as x86's does; a sum of TIR would be undefined beyond int32.
    return T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.addp.v4i32", *products)


def gather(table: Buffer, index: Expr, isa: Isa) -> Expr:
    """`table[index]` of int32: one instruction for a whole vector, else element by element."""
    lanes = lanes_of(index)
    if lanes != isa.lanes or lanes == HALVES:
        return table[index]
    start = T.address_of(table[0])
    zero = splat(0, "int32", lanes)
    if lanes == 16:
        mask = T.broadcast(T.bool(True), lanes)
        name = "llvm.x86.avx512.mask.gather.dpi.512"
        return T.call_llvm_pure_intrin("int32x16", name, zero, start, index, mask, T.int32(4))
    name = "llvm.x86.avx2.gather.d.d.256"
    mask = splat(-1, "int32", lanes)
    return T.call_llvm_pure_intrin("int32x8", name, zero, start, index, mask, T.int8(4))


def keep(value: Expr) -> Expr:
    """The value, computed once however often it is used.

    Through a local buffer, which LLVM turns into a register: TVM's simplifier substitutes bound
    variables, so a chain of them, each used twice, would grow exponentially.
    """
    lanes = lanes_of(value)
    place = T.alloc_buffer((lanes,), element_of(value), scope="global")
    T.buffer_store(place, value, [span(0, lanes)])
    return place[span(0, lanes)]


def quotient(numerator: Expr, denominator: Expr) -> Expr:
    """`numerator // denominator`, an int64 in 0..2**62-1 by positive int32 lanes, for quotients
    below 2**31; int32.

    Restoring division, a bit a step: for a long vector it is faster than a division a lane.
    """
    lanes = lanes_of(denominator)
    if lanes <= HALVES:  # few, or ARM, whose divider is fast and has no vectors
        divisor = T.Cast(typed("int64", lanes), denominator)
        result = T.truncdiv(splat(numerator, "int64", lanes), divisor)
        return T.Cast(typed("int32", lanes), result)
    lane = span(0, lanes)
    divisor = keep(denominator)
    rest = T.alloc_buffer((lanes,), "int32", scope="global")
    result = T.alloc_buffer((lanes,), "int32", scope="global")
    first = T.Cast("int32", numerator >> T.int64(QUOTIENT_BITS))
    T.buffer_store(rest, splat(first, "int32", lanes), [lane])
    T.buffer_store(result, splat(0, "int32", lanes), [lane])
    with T.serial(QUOTIENT_BITS) as step:
        bit = (numerator >> T.Cast("int64", QUOTIENT_BITS - 1 - step)) & T.int64(1)
        bit = splat(T.Cast("int32", bit), "int32", lanes)
        # 2 * rest + bit - divisor, whose parts never leave int32 in this order.
        left = keep((rest[lane] - divisor) + (rest[lane] + bit))
        below = keep(left >> splat(31, "int32", lanes))  # all ones where it does not fit
        T.buffer_store(rest, left + (divisor & below), [lane])
        digit = below + splat(1, "int32", lanes)
        T.buffer_store(result, result[lane] + result[lane] + digit, [lane])
    return result[lane]


def square_root(value: Expr) -> Expr:
    """The exact floor of the square root of int64 lanes in 0..2**62-1, two bits of it a step."""
    lanes = lanes_of(value)
    lane = span(0, lanes)
    rest = T.alloc_buffer((lanes,), "int64", scope="global")
    root = T.alloc_buffer((lanes,), "int64", scope="global")
    T.buffer_store(rest, value, [lane])
    T.buffer_store(root, splat(0, "int64", lanes), [lane])
    one = splat(1, "int64", lanes)
    with T.serial(ROOT_BITS) as step:
        bit = keep(one << splat(T.Cast("int64", 2 * (ROOT_BITS - 1 - step)), "int64", lanes))
        digit = _subtract_if_fits(rest, root[lane] + bit, bit)
        T.buffer_store(root, (root[lane] >> one) + digit, [lane])
    return root[lane]


def _subtract_if_fits(rest: Buffer, trial: Expr, digit: Expr) -> Expr:
    """Take `trial` from the lanes of `rest` that are as large; `digit` in those, else 0."""
    lanes = lanes_of(trial)
    lane = span(0, lanes)
    trial = keep(trial)
    left = keep(rest[lane] - trial)
    below = keep(left >> splat(63, "int64", lanes))  # all ones where it does not fit
    T.buffer_store(rest, left + (trial & below), [lane])
    return digit & (below ^ splat(-1, "int64", lanes))


def total(value: Expr) -> Expr:
    """The sum of all lanes."""
    return _reduced(value, "add")


def largest(value: Expr) -> Expr:
    """The largest lane, as int32."""
    least = "umax" if element_of(value).startswith("u") else "smax"
    return keep(as_int32(_reduced(value, least)))


def _reduced(value: Expr, function: str) -> Expr:
    if lanes_of(value) == 1:
        return value
    name = f"llvm.vector.reduce.{function}"
    return keep(T.call_llvm_pure_intrin(element_of(value), name, value))


def parts_of(value: Expr, lanes: int) -> list[Expr]:
    """The vector in parts of at most `lanes` lanes."""
    whole = lanes_of(value)
    if whole <= lanes:
        return [value]
    value = keep(value)
    return [T.Shuffle([value], list(range(i, i + lanes))) for i in range(0, whole, lanes)]


def joined(parts: list[Expr]) -> Expr:
    """The parts as one vector."""
    if len(parts) == 1:
        return parts[0]
    return T.Shuffle(parts, list(range(sum(map(lanes_of, parts)))))


def filled(parts: list[Expr], lanes: int) -> Expr:
    """The parts as one vector of `lanes`, the rest of it 0; their lanes are powers of two, widest
    first."""
    value = parts[-1]
    for part in reversed(parts[:-1]):
        value = _lengthened(value, lanes_of(part))
        value = T.Shuffle([part, value], list(range(2 * lanes_of(part))))
    return _lengthened(value, lanes)


def _lengthened(value: Expr, lanes: int) -> Expr:
    dtype = element_of(value)
    while lanes_of(value) < lanes:
        here = lanes_of(value)
        value = T.Shuffle([value, splat(0, dtype, here)], list(range(2 * here)))
    return value


def as_int32(value: Expr) -> Expr:
    """The vector with int32 lanes."""
    if element_of(value) == "int32":
        return value
    return T.Cast(typed("int32", lanes_of(value)), value)


def as_type(value: Expr, dtype: str) -> Expr:
    """The vector with lanes of `dtype`, whose range its values keep."""
    return value if element_of(value) == dtype else T.Cast(typed(dtype, lanes_of(value)), value)


def transposed(rows: list[Expr]) -> list[Expr]:
    """The columns of a square of rows, as many vectors as they have lanes, a power of two."""
    count = len(rows)
    step = count // 2
    while step:
        upper = [bool(k & step) for k in range(count)]
        left = [count + k - step if up else k for k, up in enumerate(upper)]
        right = [count + k if up else k + step for k, up in enumerate(upper)]
        rows = [keep(row) for row in rows]
        for i in range(count):
            if not i & step:
                pair = [rows[i], rows[i + step]]
                rows[i], rows[i + step] = T.Shuffle(pair, left), T.Shuffle(pair, right)
        step //= 2
    return rows
