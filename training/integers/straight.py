"""Straight-through rounding: the program's value forward, the real function's gradient back.

Gradients stop where the integers saturated, and a step size learns as in LSQ (Esser et al.,
"Learned Step Size Quantization", 2020, equation 3).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

LEAST, MOST = 1 / 16, 16.0
"""Between these times the calibrated step a learned or moving one stays."""
SPEED = 20.0
"""How much faster step sizes learn than weights."""


def straight(
    real: Tensor,
    value: Tensor,
    inside: Tensor | None = None,
    factor: Tensor | None = None,
    levels: int = 1,
) -> Tensor:
    """`value`, whose gradient goes to `real` where `inside` (None: everywhere).

    real: what was rounded; value: what the integers stand for, of the same shape. factor: what the
    step size is multiplied by, broadcasting over `real`; its gradient is LSQ's, over the root of
    the numbers that share a step times `levels`, the integers on one side of zero.
    """
    if factor is None:
        found: Tensor = _Straight.apply(real, value, inside)
        return found
    gain = 1 / math.sqrt(real.numel() / factor.numel() * levels)
    stepped: Tensor = _StraightStep.apply(real, factor, value, inside, gain)
    return stepped


def bounded(factor: Tensor) -> Tensor:
    """A factor within LEAST..MOST."""
    return factor.clamp(LEAST, MOST)


def learned_factor(moved: Tensor) -> Tensor:
    """The factor of a step size for what learns, which starts at 0.

    An optimizer such as Adam moves all numbers alike, and weights are far smaller than 1.
    """
    return 1.0 + SPEED * moved


class _Straight(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(real: Tensor, value: Tensor, inside: Tensor | None) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        (grad,) = grads
        return _stopped(grad, inside), None, None


class _StraightStep(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        real: Tensor, factor: Tensor, value: Tensor, inside: Tensor | None, gain: float
    ) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        real, factor, value, inside, gain = inputs
        # The derivative by the factor, times it: the rounding error inside, the bound beyond.
        moved = value - (real if inside is None else real * inside)
        ctx.save_for_backward(factor, inside, moved)
        ctx.gain = gain

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        factor, inside, moved = ctx.saved_tensors
        (grad,) = grads
        by_factor = (grad * moved).sum_to_size(factor.shape) * ctx.gain / factor
        return _stopped(grad, inside), by_factor, None, None, None


def _stopped(grad: Tensor, inside: Tensor | None) -> Tensor:
    return grad if inside is None else torch.where(inside, grad, 0.0)


def within(real: Tensor, lo: Tensor | float, hi: Tensor | float, step: Tensor | float) -> Tensor:
    """Where values are not cut off: their nearest integer is within the limits lo and hi, bool."""
    return (real > lo - step / 2) & (real < hi + step / 2)


def real_limits(scale: Any, zero_point: Any, limits: tuple[int, int]) -> tuple[Any, Any]:
    """The reals where integers of a scale and zero point saturate."""
    lo, hi = limits
    return scale * (lo - zero_point), scale * (hi - zero_point)


def dequantised(q: Tensor, scale: Any, zero_point: Any) -> Tensor:
    """Integers of at most 24 bits as the reals that they stand for, float32."""
    value = q.to(torch.float32)
    if isinstance(zero_point, Tensor) or zero_point:
        value = value - zero_point
    return value * scale
