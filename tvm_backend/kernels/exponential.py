"""The integer exponential of `iqvit.ops.exp2` on int32 vectors."""

from dataclasses import dataclass

from iqvit.ops.exp2 import C1, C2, C3, OCTAVES, ONE
from iqvit.tvm_backend.kernels.integers import keep, madd
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Expr, T
from iqvit.tvm_backend.kernels.vector import HALVES, splat


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
