"""Classification metrics that integers and floats share. Percentages are in 0..100."""

import math

import torch
from torch import Tensor

from iqvit.errors import DataError


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """int64 [N]: how many classes come before the label when scores [N, C] fall.

    Equal scores are ordered by class index, the lowest first; integers tie often, and torch's own
    top-k promises no order. labels int64 [N] in 0..C-1.
    """
    _require_scores(scores)
    classes = scores.shape[1]
    if bool((labels < 0).any()) or bool((labels >= classes).any()):
        raise DataError(
            f"a label lies outside 0..{classes - 1}: labels {int(labels.min())}.."
            f"{int(labels.max())} for a model of {classes} classes"
        )
    own = scores.gather(1, labels[:, None])
    earlier = torch.arange(classes)[None, :] < labels[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(1)


def predictions(scores: Tensor) -> Tensor:
    """int64 [N]: the class of the highest score of [N, C], of equals the lowest index."""
    _require_scores(scores)
    best = scores == scores.max(dim=1, keepdim=True).values
    return torch.where(best, torch.arange(scores.shape[1]), scores.shape[1]).min(dim=1).values


def topk(scores: Tensor, labels: Tensor, k: int) -> float:
    """Percent of images whose label is among the `k` highest scores (ties as in `ranks`)."""
    return percent(int((ranks(scores, labels) < k).sum()), len(labels))


def top1(scores: Tensor, labels: Tensor) -> float:
    """Percent of images whose label has the highest score."""
    return topk(scores, labels, 1)


def top5(scores: Tensor, labels: Tensor) -> float:
    """Percent of images whose label is among the five highest scores."""
    return topk(scores, labels, 5)


def agreement(scores: Tensor, reference: Tensor) -> float:
    """Percent of images for which both [N, C] predict the same class."""
    same = predictions(scores) == predictions(reference)
    return percent(int(same.sum()), len(same))


def sqnr_db(values: Tensor, reference: Tensor) -> float:
    """10 log10(sum r^2 / sum (r - v)^2) in decibels, over all elements, in float64.

    Infinite where both are equal; DataError where the reference is all zero.
    """
    exact = reference.double()
    return decibels(float(exact.square().sum()), float((exact - values.double()).square().sum()))


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise); infinite without noise."""
    if signal == 0:
        raise DataError("the reference is zero everywhere, so a signal-to-noise ratio has no value")
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


def percent(part: int, whole: int) -> float:
    """100 part / whole; DataError for nothing at all."""
    if whole == 0:
        raise DataError("no images were scored")
    return 100.0 * part / whole


def _require_scores(scores: Tensor) -> None:
    if scores.dim() != 2 or scores.shape[1] == 0:
        raise DataError(f"scores of shape {tuple(scores.shape)} where [N, classes] is needed")
    # NaN is neither above nor below a score, so it would pass for a hit.
    if scores.is_floating_point() and not bool(torch.isfinite(scores).all()):
        raise DataError("scores are NaN or infinite")
