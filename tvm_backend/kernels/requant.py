"""The requantisation rule on vectors: `((acc * m) + 2**(s-1) >> s) + zero_point`, then clamp."""

from dataclasses import dataclass, replace

import numpy as np

from iqvit.errors import GraphError
from iqvit.tvm_backend.kernels.instructions import pack
from iqvit.tvm_backend.kernels.integers import products, upper_halves
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Expr, T
from iqvit.tvm_backend.kernels.vector import clamp, lanes_of, limits, splat, typed

RESULTS = ("int8", "uint8", "int16", "int32")


@dataclass(frozen=True)
class Requant:
    """Attributes of one requantisation; the multipliers `m` (0 <= m < 2**31) are an operand.

    Raises `GraphError` for a shift outside 1..62 or bounds that the result type cannot hold.
    """

    shift: int
    """1..62."""
    zero_point: int
    dtype: str
    """Type of the result: int8, uint8, int16 or int32."""
    lo: int
    hi: int

    def __post_init__(self) -> None:
        if not 1 <= self.shift <= 62:
            raise GraphError(f"requantisation by a shift of {self.shift}: it must be in 1..62")
        if self.dtype not in RESULTS:
            raise GraphError(f"requantisation to {self.dtype}: it must be one of {RESULTS}")
        least, greatest = limits(self.dtype)
        if not least <= self.lo <= self.hi <= greatest:
            raise GraphError(f"requantisation to {self.lo}..{self.hi} does not fit {self.dtype}")


@dataclass(frozen=True)
class Scalars:
    """The numbers of a `Requant` in generated code: constants, or what the function is given."""

    shift: Expr | int
    """Of the rule, or of its upper half (32 less) for `high_half`."""
    rounding: Expr | int
    zero_point: Expr | int


def scalars_of(requant: Requant) -> np.ndarray:
    """The numbers as int64 `[3]`: shift, rounding constant and zero point of the form that is used.

    In the upper-half form the zero point is in the rounding constant.
    """
    t = requant.shift - 32
    if fits_high_half(requant):
        values = (t, 2 ** (t - 1) + (requant.zero_point << t), 0)
    else:
        values = (requant.shift, 2 ** (requant.shift - 1), requant.zero_point)
    return np.array(values, np.int64)


def constants_of(requant: Requant) -> Scalars:
    """The numbers as constants."""
    return Scalars(*(int(value) for value in scalars_of(requant)))


def form_of(requant: Requant) -> Requant:
    """One requantisation for all that differ only in the numbers that a function can be given."""
    shift = 33 if fits_high_half(requant) else 32
    return replace(requant, shift=shift, zero_point=0)


def exact_int64(acc: Expr, mult: Expr, requant: Requant, scalars: Scalars | None = None) -> Expr:
    """The rule as it is written, in int64, clamped, as int32; `acc` and `mult` int32, any lanes."""
    lanes = lanes_of(acc)
    wide = typed("int64", lanes)
    numbers = scalars or Scalars(requant.shift, 2 ** (requant.shift - 1), requant.zero_point)
    product = T.Cast(wide, acc) * T.Cast(wide, mult)
    rounded = product + splat(numbers.rounding, "int64", lanes)
    shifted = rounded >> splat(numbers.shift, "int64", lanes)
    shifted = shifted + splat(numbers.zero_point, "int64", lanes)
    return T.Cast(typed("int32", lanes), clamp(shifted, requant.lo, requant.hi))


def fits_high_half(requant: Requant) -> bool:
    """Whether `high_half` equals the rule for every int32 accumulator and every multiplier."""
    t = requant.shift - 32
    # |high half| <= 2**30 since the multiplier is below 2**31.
    return t >= 1 and 2**30 + 2 ** (t - 1) + (abs(requant.zero_point) << t) < 2**31


def high_half(acc: Expr, mult: list[Expr], scalars: Scalars) -> Expr:
    """The rule without its clamp, from the upper halves of the 64-bit products, as int32.

    With `s >= 33` the rounding constant has no bits below 2**32, so the lower halves never matter:
    `(acc*m + 2**(s-1)) >> s == ((acc*m >> 32) + 2**(s-33)) >> (s-32)`. The zero point joins the
    rounding constant. Needs `fits_high_half`.

    `mult` are int32 vectors with the multipliers: all in order, those of the even and those of the
    odd lanes, each in even lanes, as the 32 x 32 -> 64 bit multiply of x86 reads them.
    """
    return _rounded(upper_halves(products(acc, mult)), scalars, lanes_of(acc))


def _rounded(high: Expr, scalars: Scalars, lanes: int) -> Expr:
    rounded = high + splat(_int32(scalars.rounding), "int32", lanes)
    return rounded >> splat(_int32(scalars.shift), "int32", lanes)


def _int32(number: Expr | int) -> Expr | int:
    return number if isinstance(number, int) else T.Cast("int32", number)


def narrow(values: list[Expr], dtype: str, lo: int, hi: int, isa: Isa) -> list[Expr]:
    """int32 vectors in packed column order -> vectors of `dtype` in natural order, clamped.

    The saturating packs work per 128-bit lane; `packing.column_order` places the columns so that
    what comes out is contiguous. Saturating to the type first and then to `lo..hi` is the same
    as clamping to `lo..hi`.
    """
    if dtype == "int32":
        return [clamp(v, lo, hi) for v in values]
    pairs = [pack(isa, values[i], values[i + 1], "int16") for i in range(0, len(values), 2)]
    if dtype == "int16":
        return [clamp(v, lo, hi) for v in pairs]
    if len(pairs) % 2:
        return [T.Cast(typed(dtype, 2 * isa.lanes), clamp(v, lo, hi)) for v in pairs]
    packed = [pack(isa, pairs[i], pairs[i + 1], dtype) for i in range(0, len(pairs), 2)]
    return [clamp(v, lo, hi) for v in packed]
