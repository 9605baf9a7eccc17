"""The numbers that the code of a `rectified` is given, and how it scales its results."""

from collections.abc import Sequence

from iqvit.inttype import IntType
from iqvit.ops.base import Op
from iqvit.ops.rectified import Rectified
from iqvit.tvm_backend.kernels.integers import fits32

Types = tuple[IntType, ...]
Scalars = tuple[tuple[int, ...], tuple[int, int]]
"""The attributes of a stage, and the range of its result before it saturates."""


def half_of(shift: int) -> int:
    """What a shift to the right rounds with."""
    return (1 << shift) >> 1


def rectified_scalars(op: Rectified, types: Types, _: int) -> Scalars:
    """The attributes as the code reads them, and the range of the result."""
    last, mask, one = types[1].shape[0] - 1, (1 << op.step) - 1, 1 << (op.step + 16)
    ends = _rectified_ends(op, types)
    positive = op.fraction + op.step if sums_up(op, types) else op.fraction
    head = (op.step, last, mask, one, half_of(op.step), positive)
    up = raised_by(op, types, ends)
    tail = (half_of(op.shift), op.shift) if up is None else (up, op.shift + up - 32)
    return (*head, *tail), (min(ends), max(ends))


def sums_up(op: Rectified, types: Types) -> bool:
    """Whether the rectifier is a product of the sum that interpolates, before its shift: a factor
    of 16 bits, and a sum of 32."""
    lo, hi = value_range(op, types)
    fits = fits32((lo << op.step) - 1, (hi + 1) << op.step)
    return op.fraction + op.step < 15 and fits


def _rectified_ends(op: Rectified, types: Types) -> list[int]:
    """The extreme results before they saturate."""
    half = half_of(op.shift)
    return [
        ((end * m + half) >> op.shift) + z
        for end in value_range(op, types)
        for m in (types[2].lo, types[2].hi)
        for z in (types[3].lo, types[3].hi)
    ]


def raised_by(op: Op, types: Types, ends: Sequence[int]) -> int | None:
    """By how much the values of a `rectified` are shifted to the left for the upper halves of their
    products to be enough; None where that does not fit.

    Rounding constant and zero point then have no bits below, and are one constant, as floors within
    floors are one floor.
    """
    if not isinstance(op, Rectified) or types[3].value is None:
        return None
    up = max(0, 33 - op.shift)
    down = op.shift + up - 32
    value = max(map(abs, value_range(op, types)))
    sums = [(end + sign) << down for end in ends for sign in (-1, 1)]
    zeros = [(z << down) + half_of(down) for z in (types[3].lo, types[3].hi)]
    return up if fits32(0, value << up) and all(fits32(x, x) for x in (*sums, *zeros)) else None


def value_range(op: Rectified, types: Types) -> tuple[int, int]:
    """What is requantised: the interpolated value with its fractional bits."""
    x, table = types[:2]
    lo = (max(x.lo, 0) << op.fraction) + min(table.lo, 0)
    return lo, (max(x.hi, 0) << op.fraction) + max(table.hi, 0)
