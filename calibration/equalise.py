"""Equalisation: a scale and zero point per channel for what only linears read.

The linears take the scales into the columns of their weights and the zero points into their biases,
so the integer program pays nothing for them. The balance between the spread of the activations and
that of the weights is SmoothQuant's (Xiao et al., arXiv 2211.10438, equation 4); zero points per
channel are RepQ-ViT's (Li et al., arXiv 2212.08254, section 3.3).
"""

from collections.abc import Callable

import torch

from iqvit.calibration.weights import round_nearest, weight_scale
from iqvit.inttype import QParams

ALPHAS = (0.0, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LEAST_SPREAD = 1e-4  # of the widest channel: a dead channel must not get a vanishing scale


def channel_qparams(
    least: torch.Tensor, most: torch.Tensor, weight: torch.Tensor, alpha: float, margin: float
) -> QParams:
    """Scales and zero points per channel, for 0..255, that cover `margin` times `least..most`.

    least, most: float64 `[C]`. weight: `[N, C]`, rows of all readers.
    """
    middle, spread = (least + most) / 2, (most - least) * margin
    spread = spread.clamp(min=float(spread.max()) * LEAST_SPREAD + 1e-12)
    pull = weight.abs().amax(0).double()
    pull = pull.clamp(min=float(pull.max()) * LEAST_SPREAD + 1e-12)
    scale = spread**alpha / pull ** (1 - alpha)
    scale = scale * (spread / scale).max() / 255
    zero = torch.floor(127.5 - middle / scale + 0.5)
    return QParams.of(scale.numpy(), zero.numpy(), axis=-1)


def snap(x: torch.Tensor, qparams: QParams, lo: int, hi: int) -> torch.Tensor:
    """x rounded to its integers and back, in float32."""
    scale = torch.from_numpy(qparams.scale.copy()).to(x.dtype)
    zero = torch.from_numpy(qparams.zero_point.copy()).to(x.dtype)
    if qparams.axis is not None and qparams.axis not in (-1, x.ndim - 1):
        shape = [1] * x.ndim
        shape[qparams.axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return (torch.floor(x / scale + zero + 0.5).clamp(lo, hi) - zero) * scale


def row_snap(x: torch.Tensor, offset: torch.Tensor | float, one_sided: bool) -> torch.Tensor:
    """x rounded as `row_quantise` does: every row of the last axis by its own peak, and back."""
    levels = 255 if one_sided else 127
    shifted = x - offset if one_sided else x
    step = shifted.abs().amax(-1, keepdim=True).clamp(min=1e-12) / levels
    rounded = torch.floor(shifted / step + 0.5) * step
    return rounded + offset if one_sided else rounded


def row_qparams(
    least: torch.Tensor, most: torch.Tensor, weight: torch.Tensor, alpha: float, headroom: float
) -> QParams:
    """16-bit scales per channel whose ratio to each other is that of `channel_qparams`."""
    largest = torch.maximum(-least, most)
    shape = torch.from_numpy(channel_qparams(least, most, weight, alpha, 1.0).scale.copy())
    scale = shape * (largest / shape).max() * headroom / 32767
    return QParams.of(scale.numpy(), 0.0, axis=-1)


def output_error(
    rows: torch.Tensor, weights: list[torch.Tensor], bits: list[int], qparams: QParams, by_row: bool
) -> float:
    """Squared error of the readers' outputs for sampled `rows` `[R, C]`, each over its power."""
    scale = torch.from_numpy(qparams.scale.copy()).to(rows.dtype)
    snapped = row_snap(rows / scale, 0.0, False) * scale if by_row else snap(rows, qparams, 0, 255)
    total = 0.0
    for weight, width in zip(weights, bits, strict=True):
        scaled = weight * scale
        step = weight_scale(scaled, width, "channel")
        rounded = round_nearest(scaled, step, width) * step / scale
        wanted = rows @ weight.T
        error = snapped @ rounded.T - wanted
        # The mean error goes into the bias.
        error = error - error.mean(0, keepdim=True)
        total += float((error**2).sum() / (wanted**2).sum().clamp(min=1e-20))
    return total


def search(
    rows: torch.Tensor,
    weights: list[torch.Tensor],
    bits: list[int],
    alpha: float,
    candidate: Callable[[float], QParams],
    by_row: bool,
) -> tuple[QParams, float]:
    """The per-channel form of an activation and its alpha: the given one, or (-1) the best."""
    if alpha >= 0:
        return candidate(alpha), alpha
    found = [(output_error(rows, weights, bits, candidate(a), by_row), a) for a in ALPHAS]
    _, best = min(found)
    return candidate(best), best
