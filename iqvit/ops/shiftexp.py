"""I-ViT's ShiftExp (Li and Gu, arXiv 2207.01405, eq. 11 to 15), of Shiftmax and ShiftGELU."""

from typing import Any

import torch

INT31 = 2**31 - 1


def shift_exp(x: torch.Tensor, x0: int, octaves: int) -> torch.Tensor:
    """`exp(x * s) * (scale)` for int64 x <= 0, with `x0 = floor(-1/s)`.

    `x*log2(e)` is `x + (x >> 1) - (x >> 4)`; the fraction of the power of two is linear. Relative
    error up to 9.8 %.
    """
    p = (x + (x >> 1) - (x >> 4)).clamp(min=octaves * x0)
    q = p // x0
    r = p - q * x0
    return ((r >> 1) - x0) << (octaves - q)


def shift_exp_te(x: Any, x0: int, octaves: int) -> Any:
    """`shift_exp` of an int64 expression."""
    from iqvit.ops.te import const64, tirx

    p = tirx.max(x + (x >> const64(1)) - (x >> const64(4)), const64(octaves * x0))
    q = tirx.truncdiv(p, const64(x0))
    r = p - q * const64(x0)
    return tirx.shift_left((r >> const64(1)) - const64(x0), const64(octaves) - q)
