"""The integer forms of activations while a model learns: calibrated scales, times factors."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, distributed, nn

from iqvit.calibrated import Point
from iqvit.inttype import QParams
from iqvit.training.integers.straight import bounded, learned_factor

SETTLING = 10
"""Steps of training whose largest values, on average, stand for the calibrated range."""


@dataclass(frozen=True)
class Form:
    """An integer form that values share: `point` as calibrated, and whether its scale is learned or
    moves with what is seen (at most one of the two)."""

    point: Point
    learned: bool = False
    moving: bool = False


class Forms(nn.Module):
    """All forms by key. A factor multiplies the scale and leaves the zero point where it is.

    A learned factor comes from a parameter. A moving one is the moving average of the largest share
    of the range that a batch used, over the average of the first `SETTLING` batches, and 1 until
    then.
    """

    scales: Tensor
    zero_points: Tensor
    reference: Tensor
    average: Tensor
    batches: Tensor

    def __init__(self, forms: Mapping[str, Form], momentum: float) -> None:
        super().__init__()
        self.forms, self.momentum = dict(forms), momentum
        qparams = [form.point.qparams for form in forms.values()]
        self.sizes = [q.scale.size for q in qparams]
        for name in ("scale", "zero_point"):
            vectors = [np.atleast_1d(getattr(q, name)) for q in qparams]
            self.register_buffer(f"{name}s", torch.from_numpy(np.concatenate(vectors)))
        learned = [key for key, form in forms.items() if form.learned]
        self.moving = [key for key, form in forms.items() if form.moving]
        self.places = {key: place for place, key in enumerate(learned)}
        self.moved = nn.Parameter(torch.zeros(len(learned))) if learned else None
        for name in ("reference", "average"):
            self.register_buffer(name, torch.zeros(len(self.moving), dtype=torch.float64))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def factor(self, key: str) -> Tensor | None:
        """The learned factor of a form, a scalar; None for others."""
        if self.moved is None or key not in self.places:
            return None
        return learned_factor(self.moved[self.places[key]])

    @torch.no_grad()
    def now(self) -> tuple[dict[str, Point], dict[str, float]]:
        """Every form with its present scale, and the factors."""
        factors = dict.fromkeys(self.forms, 1.0)
        if self.moved is not None:
            found = bounded(learned_factor(self.moved)).double().tolist()
            factors |= {key: found[place] for key, place in self.places.items()}
        if self.moving and int(self.batches) >= SETTLING:
            moved = torch.where(self.reference > 0, self.average / self.reference, 1.0)
            factors |= dict(zip(self.moving, bounded(moved).tolist(), strict=True))
        points: dict[str, Point] = {}
        scales = self.scales.cpu().split(self.sizes)
        zeros = self.zero_points.cpu().split(self.sizes)
        for (key, form), scale, zero in zip(self.forms.items(), scales, zeros, strict=True):
            old = form.point.qparams
            shape = old.scale.shape
            vector = scale.numpy().reshape(shape) * factors[key]
            qparams = QParams.of(vector, zero.numpy().reshape(shape).copy(), old.axis)
            points[key] = replace(form.point, qparams=qparams)
        return points, factors

    @torch.no_grad()
    def see(self, used: Mapping[str, Tensor]) -> None:
        """Take in the largest share of its calibrated range that a batch used of every moving form;
        of several processes, the largest of all."""
        if not self.moving:
            return
        largest = torch.stack([used[key].double().max() for key in self.moving])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        seen = int(self.batches) + 1
        self.batches += 1
        if seen <= SETTLING:
            self.reference += (largest - self.reference) / seen
            self.average.copy_(self.reference)
        else:
            self.average.lerp_(largest, 1 - self.momentum)
