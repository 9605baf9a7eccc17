"""What elementwise functions of 8- and 16-bit values share: a table where it is faster."""

from collections.abc import Callable
from typing import Protocol

import torch

from iqvit.arith import requantise, saturate, tabulated


class Scaled(Protocol):
    """How the function's value becomes the result."""

    @property
    def shift(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def lo(self) -> int: ...
    @property
    def hi(self) -> int: ...


def unary(
    value: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    multiplier: torch.Tensor,
    zero: torch.Tensor,
    op: Scaled,
) -> torch.Tensor:
    """`clamp((value(x) * m[c] + 2**(shift-1) >> shift) + z[c])`.

    value: elementwise, of int64. x of 8 or 16 bits `[..., C]`; multiplier and zero int32 `[C]` or
    `[1]`.
    """
    m, z = multiplier.to(torch.int64), zero.to(torch.int64)

    def scaled(v: torch.Tensor) -> torch.Tensor:
        return saturate(requantise(v, m, op.shift) + z, op.dtype, op.lo, op.hi)

    if m.numel() == z.numel() == 1:
        return tabulated(lambda x: scaled(value(x)), x)
    return scaled(tabulated(value, x))
