"""The integer arithmetic that all operators share, defined once, in int64 torch tensors."""

import math
from collections.abc import Callable

import numpy as np
import torch

from iqvit.errors import GraphError, OverflowProofError
from iqvit.inttype import LIMITS, TORCH_DTYPES

__all__ = [
    "clamp_range",
    "exact_matmul",
    "isqrt",
    "multipliers",
    "requantise",
    "requantise_range",
    "require_int32",
    "saturate",
]

MULTIPLIER_BITS = 31


def requantise(acc: torch.Tensor, multiplier: torch.Tensor | int, shift: int) -> torch.Tensor:
    """`(acc * multiplier + 2**(shift-1)) >> shift` in int64, rounded half up, not saturated.

    In the type of `acc`, where that is another one and proved to hold the intermediate.
    """
    if shift == 0:
        return acc * multiplier
    half = 1 << (shift - 1)
    if isinstance(multiplier, int) and multiplier == 1:
        return (acc + half).bitwise_right_shift_(shift)
    # The product is a new tensor, so the rest may overwrite it.
    return (acc * multiplier).add_(half).bitwise_right_shift_(shift)


def requantise_range(lo: int, hi: int, multipliers: list[int], shift: int) -> tuple[int, int]:
    """The exact range of `requantise` over `lo..hi` (Python integers, so nothing can wrap).

    Raises `OverflowProofError` when the 64-bit intermediate could wrap.
    """
    half = (1 << shift) >> 1
    ends = [v * m + half for m in {min(multipliers), max(multipliers)} for v in (lo, hi)]
    if max(map(abs, ends)) >= 1 << 63:
        raise OverflowProofError(
            f"the requantised product of {lo}..{hi} and a multiplier up to "
            f"{max(map(abs, multipliers))} leaves int64"
        )
    return min(ends) >> shift, max(ends) >> shift


def clamp_range(lo: int, hi: int, least: int, most: int) -> tuple[int, int]:
    """The range after saturation to `least..most`."""
    return min(max(lo, least), most), min(max(hi, least), most)


def saturate(x: torch.Tensor, dtype: str, lo: int, hi: int) -> torch.Tensor:
    """Clamp to `lo..hi` and store as `dtype`."""
    return x.clamp(lo, hi).to(TORCH_DTYPES[dtype])


def multipliers(ratio: float | np.ndarray, bits: int = MULTIPLIER_BITS) -> tuple[np.ndarray, int]:
    """Real factors as `m * 2**-shift` with one shift: the largest |m| has `bits` bits.

    Returns int64 multipliers of the shape of `ratio` and the shift (1..62). Only for building.
    Raises `GraphError` for a factor that is not finite or too large.
    """
    factors = np.asarray(ratio, dtype=np.float64)
    largest = float(np.max(np.abs(factors)))
    if not math.isfinite(largest):
        raise GraphError(f"a scale ratio is not finite: {largest}")
    if largest == 0.0:
        return np.zeros(factors.shape, dtype=np.int64), 1
    shift = bits - 1 - math.floor(math.log2(largest))
    shift = min(shift, 62)
    if shift < 1:
        raise GraphError(f"a scale ratio of {largest:g} is too large for a {bits}-bit multiplier")
    rounded = np.floor(factors * 2.0**shift + 0.5)
    if np.max(np.abs(rounded)) > 2**bits - 1:
        shift -= 1
        rounded = np.floor(factors * 2.0**shift + 0.5)
    return rounded.astype(np.int64), shift


def require_int32(lo: int, hi: int, what: str = "accumulator") -> None:
    """Prove that a range fits in int32, or raise `OverflowProofError`."""
    least, most = LIMITS["int32"]
    if lo < least or hi > most:
        raise OverflowProofError(f"the {what} range {lo}..{hi} leaves int32 ({least}..{most})")


def exact_matmul(
    a: torch.Tensor, b: torch.Tensor, bound: int, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """`a @ b` over integers, exact: `bound` is the proved largest sum of |a|*|b|, and the result's
    type holds it.

    A float32 product is exact while every partial sum stays below 2**24, a float64 one below 2**53;
    BLAS makes them far faster than an integer loop. A GPU that is allowed TF32 has no float32.
    Raises `OverflowProofError` for a larger bound.
    """
    if bound < 2**24 and (not a.is_cuda or torch.get_float32_matmul_precision() == "highest"):
        return (a.to(torch.float32) @ b.to(torch.float32)).to(dtype)
    if bound < 2**53:
        return (a.to(torch.float64) @ b.to(torch.float64)).to(dtype)
    raise OverflowProofError(
        f"a matrix product with sums up to {bound} cannot be evaluated exactly"
    )


def tabulated(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """`function(x)`, elementwise and of int64, for integers x of 8 or 16 bits.

    Where x has more numbers than its type has values, the function is evaluated once for each of
    the values, and looked up.
    """
    limits = torch.iinfo(x.dtype)
    if x.numel() <= limits.max - limits.min:
        return function(x.to(torch.int64))
    table = function(torch.arange(limits.min, limits.max + 1, device=x.device))
    return looked_up(table, x.to(torch.int32) - limits.min)


def looked_up(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`table[index]` for a table `[entries]`: `index_select` is several times faster on a CPU."""
    return table.index_select(0, index.reshape(-1)).reshape(index.shape)


def isqrt(n: torch.Tensor) -> torch.Tensor:
    """Exact floor of the square root of non-negative int64 values below 2**62.

    The float64 root is a first guess only (off by at most one there); two integer corrections make
    it exact, so the result does not depend on the floating-point unit.
    """
    root = n.to(torch.float64).sqrt().to(torch.int64)
    root = torch.where(root * root > n, root - 1, root)
    return torch.where((root + 1) * (root + 1) <= n, root + 1, root)
