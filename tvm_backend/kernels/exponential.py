"""The integer exponential of `iqvit.ops.exp2` on int32 vectors."""

from dataclasses import dataclass

from iqvit.ops.exp2 import C1, C2, C3, OCTAVES, ONE, Exp2
from iqvit.tvm_backend.kernels.instructions import high_product
from iqvit.tvm_backend.kernels.integers import keep, madd
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Expr, T
from iqvit.tvm_backend.kernels.vector import HALVES, lanes_of, splat, typed

BYTES = 4
"""Vectors that `emit_exp2_bytes` takes, one for each byte of an int32."""
_SHIFT_LEFT = "llvm.x86.avx512.psllv.w.512"
_SHIFT_RIGHT = "llvm.x86.avx512.psrlv.w.512"


@dataclass(frozen=True)
class Exp2Scalars:
    """The attributes of an `Exp2` as int32 expressions."""

    pre: Expr
    cap: Expr
    multiplier: Expr
    shift: Expr


def emit_exp2(exp: Exp2Scalars, d: Expr, full: int, isa: Isa) -> Expr:
    """`Exp2.run(d, full)` for a whole vector of int32 d >= 0; full at most 32767.

    Products of numbers below 2**15 take the 16-bit multiply of x86, which is the faster one.
    """
    lanes = isa.lanes

    def const(value: Expr | int) -> Expr:
        return splat(value, "int32", lanes)

    def times(a: Expr, b: Expr) -> Expr:
        return a * b if lanes == HALVES else madd(a, b, lanes)

    steps = T.min(d >> const(exp.pre), const(exp.cap))
    t = (steps * const(exp.multiplier)) >> const(exp.shift)
    t = keep(T.min(t, const(OCTAVES * ONE - 1)))
    f = keep(t & const(ONE - 1))
    inner = const(C2) - (times(f, const(C3)) >> const(15))
    middle = const(C1) - (times(f, inner) >> const(15))
    fall = times(f, middle) >> const(15)
    # part = 2**15 - fall may be 2**15 itself, which 16 bits do not hold; fall always fits.
    scaled = const(full << 15) - times(fall, const(full))
    octave = keep(t >> const(15))
    half = const(1 << 14) << octave
    return (scaled + half) >> (octave + const(15))


def emit_exp2_packed(
    exp: Exp2Scalars, differences: list[Expr], full: int, bits: int, isa: Isa, *, words: bool
) -> Expr:
    """`Exp2.run(d, full)` of vectors of int32 d >= 0, side by side in `bits` of a lane each.

    words: what `takes_words` says of the attributes.
    """
    if len(differences) == BYTES and words:
        return emit_exp2_bytes(exp, differences, isa)
    packed = splat(0, "int32", isa.lanes)
    for member, difference in enumerate(differences):
        p = emit_exp2(exp, difference, full, isa)
        packed = packed | (p << splat(member * bits, "int32", isa.lanes))
    return packed


def takes_words(exp: Exp2, isa: Isa) -> bool:
    """Whether `emit_exp2_bytes` has its instructions, 16-bit lanes that are shifted one by one, and
    its attributes fit them."""
    fits = exp.cap < 1 << 16 and exp.multiplier < 1 << 16 and 2 <= exp.shift <= 16
    return isa.lanes == 16 and fits


def emit_exp2_bytes(exp: Exp2Scalars, differences: list[Expr], isa: Isa) -> Expr:
    """`Exp2.run(d, 255)` of four vectors of int32 d >= 0, as the bytes of lanes, in their order.

    Two vectors at a time are 16-bit lanes, where one instruction is product and shift: of a product
    `high * 2**16 + low`, `t >> 15` is the upper half of `high * 2**(17-shift)`, and the fraction
    twice is in the lower half of that and the upper one of `low * 2**(17-shift)`. With `g = 2f`,
    `f*c >> 15` is the upper half of `g*c`. From 9 octaves on the result is 0, so that t need not be
    limited. The end is exact, too: with `b = part*255 >> 7`, the rounded shift by `15 + octave` is
    `((b >> 7+octave) + 1) >> 1`. Needs `takes_words`.
    """
    return emit_bytes_of_words(emit_words(exp, differences, isa))


@dataclass(frozen=True)
class Words:
    """The steps of two vectors of differences, in the lower and upper halves of lanes."""

    exp: Exp2Scalars
    steps: Expr
    shifts: bool
    """Whether shifts are cheaper than products by powers of two."""


def emit_bytes_of_words(begun: list[Words]) -> Expr:
    """What `emit_words` has begun."""
    even, odd = (_doubled(words) for words in begun)
    lanes = lanes_of(even)
    low = (even >> splat(1, "int32", lanes)) & splat(0x00FF00FF, "int32", lanes)
    high = (odd << splat(7, "int32", lanes)) & splat(T.int32(-0x00FF0100), "int32", lanes)
    return low | high


def emit_words(exp: Exp2Scalars, differences: list[Expr], isa: Isa) -> list[Words]:
    """The part of `emit_exp2_bytes` that reads the differences: of the first and the third, and of
    the second and the fourth."""
    lanes = lanes_of(differences[0])

    def const(value: Expr | int) -> Expr:
        return splat(value, "int32", lanes)

    steps = [T.min(d >> const(exp.pre), const(exp.cap)) for d in differences]
    pairs = (keep(steps[i] | (steps[i + 2] << const(16))) for i in (0, 1))
    return [Words(exp, pair, isa.woven > 0) for pair in pairs]


def _doubled(words: Words) -> Expr:
    """Twice the results and one more, in the lower and upper halves of lanes."""
    exp, lanes = words.exp, lanes_of(words.steps)
    kind = typed("uint16", 2 * lanes)

    def word(value: int) -> Expr:
        return T.broadcast(T.uint16(value), 2 * lanes)

    def right(a: Expr, shift: Expr) -> Expr:
        return T.call_llvm_pure_intrin(kind, _SHIFT_RIGHT, a, shift)

    both = T.reinterpret(kind, words.steps)
    multiplier = T.broadcast(T.Cast("uint16", exp.multiplier), 2 * lanes)
    upper, lower = keep(high_product(both, multiplier)), keep(both * multiplier)

    def count(value: Expr) -> Expr:
        return T.broadcast(T.Cast("uint16", value), 2 * lanes)

    if words.shifts:
        down = count(exp.shift - T.int32(1))
        octave, rest = (keep(right(product, down)) for product in (upper, lower))
        raised = keep(
            T.call_llvm_pure_intrin(kind, _SHIFT_LEFT, upper, count(T.int32(17) - exp.shift))
        )
    else:
        scale = count(T.int32(1) << (T.int32(17) - exp.shift))
        octave, rest, raised = high_product(upper, scale), high_product(lower, scale), upper * scale
    g = keep((raised | rest) & word(0xFFFE))
    inner = keep(word(C2) - high_product(g, word(C3)))
    middle = keep(word(C1) - high_product(g, inner))
    part = keep(word(ONE) - high_product(g, middle))
    above = keep(part + word(127))
    b = keep(part + part - (above >> word(7) if words.shifts else high_product(above, word(512))))
    shifted = keep(right(b, keep(octave + word(7))))
    return keep(T.reinterpret(typed("int32", lanes), shifted + word(1)))
