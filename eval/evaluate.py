"""Scores a predictor on labelled images, and against a reference predictor on the same bytes."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from iqvit.errors import DataError
from iqvit.eval.imagenet import Item
from iqvit.eval.metrics import decibels, percent, predictions, ranks
from iqvit.eval.preprocess import Preprocess, batches

T = TypeVar("T")
Predictor = Callable[[Tensor], Tensor]
"""uint8 [N, 3, H, W] -> scores [N, classes], integer or float."""


@dataclass
class _Sums:
    """What a pass over the images adds up; the reference's part stays zero without one."""

    images: int = 0
    top1: int = 0
    top5: int = 0
    equal: int = 0
    float_top1: int = 0
    float_top5: int = 0
    signal: float = 0.0
    noise: float = 0.0


def evaluate(
    predict: Predictor,
    items: Sequence[Item],
    preprocess: Preprocess,
    *,
    reference: Predictor | None = None,
    scale: float = 1.0,
    zero_point: float = 0.0,
    classes: int | None = None,
    limit: int | None = None,
    exclude: Collection[Path] = (),
    batch: int = 8,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float | int]:
    """Metrics of `predict` on `items`, as one flat dict.

    Always: top1, top5 (percent; equal scores count in class order), images (scored), skipped
    (unreadable, with `skip_bad`), excluded, seconds (all of it, reading included). With
    `reference`: agreement (percent of equal predictions), float_top1, float_top5, and sqnr_db
    (of scale * (scores - zero_point) against the reference's scores, over all images together).

    `classes` is the number of classes that the labels were made for, where known; a predictor of
    another number is refused, as its labels would mean nothing. `exclude` leaves images out, for
    example those of the calibration; of the rest `limit` takes so many, evenly spaced.
    progress(done, total) is called after every batch. Raises DataError.
    """
    allowed = without(items, exclude)
    kept = spread(allowed, limit)
    paths = [path for path, _ in kept]
    labels = torch.tensor([label for _, label in kept])
    skipped: list[DataError] = []
    sums = _Sums()
    start = time.perf_counter()
    for group in batches(paths, preprocess, batch=batch, skip_bad=skip_bad, skipped=skipped):
        scores = predict(group.images)
        _require_classes(scores, len(group.indices), classes)
        wanted = labels[list(group.indices)]
        position = ranks(scores, wanted)
        sums.images += len(wanted)
        sums.top1 += int((position < 1).sum())
        sums.top5 += int((position < 5).sum())
        if reference is not None:
            real = scale * (scores.double() - zero_point)
            _add_reference(sums, scores, real, reference(group.images), wanted)
        if progress is not None:
            progress(group.indices[-1] + 1, len(paths))
    if progress is not None:
        progress(len(paths), len(paths))
    if sums.images == 0:
        raise DataError(f"none of {len(paths)} images could be read; the first: {skipped[0]}")

    found: dict[str, float | int] = {
        "top1": percent(sums.top1, sums.images),
        "top5": percent(sums.top5, sums.images),
        "images": sums.images,
        "skipped": len(skipped),
        "excluded": len(items) - len(allowed),
        "seconds": time.perf_counter() - start,
    }
    if reference is not None:
        found |= {
            "agreement": percent(sums.equal, sums.images),
            "sqnr_db": decibels(sums.signal, sums.noise),
            "float_top1": percent(sums.float_top1, sums.images),
            "float_top5": percent(sums.float_top5, sums.images),
        }
    return found


def without(items: Sequence[Item], exclude: Collection[Path]) -> list[Item]:
    """The items whose file (resolved) is not among `exclude`; DataError if none is left."""
    out = {path.resolve() for path in exclude}
    kept = [item for item in items if item[0].resolve() not in out] if out else list(items)
    if not kept:
        raise DataError(f"no images left to score: {len(items)} given, {len(out)} excluded")
    return kept


def spread(items: Sequence[T], limit: int | None) -> list[T]:
    """`limit` of the items, evenly spaced in their order; all of them for None or too many."""
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise DataError(f"the number of images to score cannot be {limit}")
    return [items[i * len(items) // limit] for i in range(limit)]


def _require_classes(scores: Tensor, count: int, classes: int | None) -> None:
    if scores.dim() != 2 or scores.shape[0] != count:
        raise DataError(
            f"the model returned scores of shape {tuple(scores.shape)} for {count} images; "
            "[N, classes] is needed"
        )
    if classes is not None and scores.shape[1] != classes:
        raise DataError(
            f"the data has {classes} classes (folders) and the model {scores.shape[1]}; for a part "
            "of the classes name each file by its class index, for example 0017_name.jpg"
        )


def _add_reference(
    sums: _Sums, scores: Tensor, real: Tensor, floats: Tensor, labels: Tensor
) -> None:
    if floats.shape != scores.shape:
        raise DataError(
            f"the float model returned {tuple(floats.shape)} scores, the other model "
            f"{tuple(scores.shape)}; they are not the same model"
        )
    position = ranks(floats, labels)
    exact = floats.double()
    sums.float_top1 += int((position < 1).sum())
    sums.float_top5 += int((position < 5).sum())
    sums.equal += int((predictions(scores) == predictions(floats)).sum())
    sums.signal += float(exact.square().sum())
    sums.noise += float((exact - real).square().sum())
