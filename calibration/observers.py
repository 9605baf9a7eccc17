"""Observers: what range of a float value the integers should cover."""

import math
from dataclasses import dataclass

import torch

from iqvit.errors import DataError

BINS = 4096
BOUNDS, BOUND_RATIO = 64, 0.95  # candidates of lambda: the largest value seen, down to 1/25 of it
LEAST_BOUND = 0.01  # of lambda: finer steps leave the 13 bits of `lambda_shiftgelu`'s exponential


class Observer:
    """Sees every batch of a value; `range()` is what 8-bit integers should cover.

    One pass: a histogram over `-limit..limit` whose limit doubles (neighbouring bins merge) when a
    larger value comes, so the result does not depend on guessed ranges. Per-channel extremes of the
    last axis are kept beside it.
    """

    def __init__(self, histogram: bool, what: str = "a value") -> None:
        self.what = what
        self.least = math.inf
        self.most = -math.inf
        self.channel_least: torch.Tensor | None = None
        self.channel_most: torch.Tensor | None = None
        self.counts = torch.zeros(BINS, dtype=torch.float64) if histogram else None
        self.limit = 0.0
        self.zeros = 0  # seen before anything else, when there were no bins yet

    def update(self, x: torch.Tensor) -> None:
        """Take in one batch, float `[..., C]`; `DataError` for NaN and infinities."""
        rows = x.detach().reshape(-1, x.shape[-1]) if x.ndim else x.detach().reshape(1, 1)
        least, most = rows.amin(0).double(), rows.amax(0).double()
        if not bool(torch.isfinite(least).all() and torch.isfinite(most).all()):
            raise DataError(f"the float model computes NaN or an infinite value at {self.what}")
        if self.channel_least is None or self.channel_most is None:
            self.channel_least, self.channel_most = least, most
        elif self.channel_least.shape == least.shape:
            self.channel_least = torch.minimum(self.channel_least, least)
            self.channel_most = torch.maximum(self.channel_most, most)
        self.least = min(self.least, float(least.min()))
        self.most = max(self.most, float(most.max()))
        if self.counts is not None:
            self._count(rows)

    def _count(self, rows: torch.Tensor) -> None:
        largest = float(rows.abs().max())
        if self.counts is None:
            return
        if self.limit == 0.0 and largest == 0.0:
            self.zeros += rows.numel()
            return
        if self.limit == 0.0:
            self.limit = math.ldexp(1.0, math.frexp(largest)[1])  # the next power of two above
            self.counts[BINS // 2] += self.zeros
        while largest >= self.limit:
            merged = torch.zeros_like(self.counts)
            quarter = BINS // 4
            merged[quarter : 3 * quarter] = self.counts.reshape(-1, 2).sum(1)
            self.counts, self.limit = merged, self.limit * 2
        self.counts += torch.histc(rows.float(), BINS, -self.limit, self.limit).double()

    def centres(self) -> torch.Tensor:
        """Bin centres, float64 `[BINS]`."""
        width = 2 * self.limit / BINS
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * width - self.limit


@dataclass(frozen=True)
class Span:
    """A real range."""

    lo: float
    hi: float


def span(observer: Observer, kind: str, percentile: float, symmetric: bool) -> Span:
    """The range of an observed value by one of the four rules, 0 included.

    minmax: everything seen. percentile: all but the outermost values. mse: the clipping that
    minimises the squared error of 255 steps. entropy: the clipping whose 255-step distribution has
    the smallest Kullback-Leibler divergence from the seen one (TensorRT's rule).
    """
    lo, hi = min(observer.least, 0.0), max(observer.most, 0.0)
    if kind == "minmax" or observer.counts is None or observer.limit == 0.0:
        return Span(lo, hi)
    if kind == "percentile":
        return _percentile(observer, percentile, lo, hi)
    loss = _squared_error if kind == "mse" else _divergence
    best, best_loss = Span(lo, hi), math.inf
    for ratio in torch.linspace(0.1, 1.0, 91).tolist():
        # One ratio for both sides, so an asymmetric range keeps its shape.
        top = ratio * max(-lo, hi)
        candidate = Span(-top, top) if symmetric else Span(max(lo, -top), min(hi, top))
        value = loss(observer, candidate)
        if value < best_loss:
            best, best_loss = candidate, value
    return best


def gelu_bound(observer: Observer) -> float:
    """The clipping bound lambda of 8-bit GELU inputs: the one whose 127 steps either side of 0 give
    GELU's output the smallest squared error over everything seen."""
    largest = max(-observer.least, observer.most, LEAST_BOUND)
    if observer.counts is None or observer.limit == 0.0:
        return largest
    centres = observer.centres()
    wanted = torch.nn.functional.gelu(centres)
    best, best_loss = largest, math.inf
    for power in range(BOUNDS):
        bound = max(largest * BOUND_RATIO**power, LEAST_BOUND)
        rounded = torch.round(centres / bound * 127).clamp(-127, 127) * bound / 127
        error = torch.nn.functional.gelu(rounded) - wanted
        loss = float((observer.counts * error**2).sum())
        if loss < best_loss:
            best, best_loss = bound, loss
    return best


def _percentile(observer: Observer, percentile: float, lo: float, hi: float) -> Span:
    counts = observer.counts
    if counts is None:
        return Span(lo, hi)
    share = counts.cumsum(0) / counts.sum()
    tail = (100.0 - percentile) / 100.0
    centres = observer.centres()
    first = int((share > tail).nonzero()[0, 0])
    last = int((share >= 1.0 - tail).nonzero()[0, 0])
    return Span(min(max(float(centres[first]), lo), 0.0), max(min(float(centres[last]), hi), 0.0))


def _squared_error(observer: Observer, span_: Span) -> float:
    centres, counts = observer.centres(), observer.counts
    step = (span_.hi - span_.lo) / 255
    if counts is None or step <= 0:
        return math.inf
    rounded = torch.round((centres - span_.lo) / step).clamp(0, 255) * step + span_.lo
    return float((counts * (rounded - centres) ** 2).sum())


def _divergence(observer: Observer, span_: Span) -> float:
    centres, counts = observer.centres(), observer.counts
    step = (span_.hi - span_.lo) / 255
    if counts is None or step <= 0:
        return math.inf
    inside = (centres >= span_.lo) & (centres <= span_.hi)
    p = counts.clone()
    p[~inside] = 0
    if p.sum() == 0:
        return math.inf
    index = torch.nonzero(inside).flatten()
    p[index[0]] += counts[: index[0]].sum()
    p[index[-1]] += counts[index[-1] + 1 :].sum()
    level = torch.round((centres - span_.lo) / step).clamp(0, 255).long()
    filled = (counts > 0) & inside
    mass = torch.zeros(256, dtype=torch.float64).index_add_(0, level[inside], counts[inside])
    width = torch.zeros(256, dtype=torch.float64).index_add_(
        0, level[filled], filled[filled].double()
    )
    q = torch.where(filled, mass[level] / width[level].clamp(min=1), torch.zeros_like(counts))
    p, q = p / p.sum(), q / q.sum()
    keep = p > 0
    return float((p[keep] * torch.log(p[keep] / q[keep].clamp(min=1e-12))).sum())
