"""Scores a predictor on labelled images, and against a reference predictor on the same bytes."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from iqvit.errors import DataError
from iqvit.eval.imagenet import Item
from iqvit.eval.metrics import decibels, percent, predictions, ranks
from iqvit.eval.preprocess import Preprocess, batches
from iqvit.eval.shards import Record, Scored, score_all
from iqvit.eval.traces import names_and_sizes

__all__ = [
    "ClassificationJob",
    "Predictor",
    "Settings",
    "evaluate",
    "spread",
    "without",
]

T = TypeVar("T")
Predictor = Callable[[Tensor], Tensor]
"""uint8 [N, 3, H, W] -> scores [N, classes], integer or float."""
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Settings:
    """What a classification is scored with besides its images; see `evaluate`."""

    scale: float = 1.0
    zero_point: float = 0.0
    classes: int | None = None
    skip_bad: bool = False


class ClassificationJob:
    """`evaluate` in batches of images, a record of each: a list with, for each image, its rank (how
    many classes come before the label) and, of a reference, float_rank, whether both predict the
    same, and the sums of squares of its scores (signal) and of the difference (noise)."""

    def __init__(
        self,
        predict: Predictor,
        items: Sequence[Item],
        preprocess: Preprocess,
        settings: Settings,
        *,
        reference: Predictor | None = None,
        limit: int | None = None,
        exclude: Collection[Path] = (),
        batch: int = 8,
    ) -> None:
        """The arguments are those of `evaluate`."""
        if batch < 1:
            raise DataError(f"a batch cannot hold {batch} images")
        allowed = without(items, exclude)
        self.items = spread(allowed, limit)
        self.excluded = len(items) - len(allowed)
        self.predict, self.reference = predict, reference
        self.preprocess, self.settings = preprocess, settings
        self.images, self.unit = len(self.items), batch

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "task": "classification",
            "images": names_and_sizes([path for path, _ in self.items]),
            "labels": [label for _, label in self.items],
            "preprocessing": self.preprocess.to_dict(),
            "images in a batch": self.unit,
            "--skip-bad": self.settings.skip_bad,
        }

    def score(self, unit: int) -> Record:
        """The records of one batch, by its number; `DataError` for a label that no score has."""
        items = self.items[unit * self.unit : (unit + 1) * self.unit]
        skipped: list[DataError] = []
        groups = batches(
            [path for path, _ in items],
            self.preprocess,
            batch=self.unit,
            skip_bad=self.settings.skip_bad,
            skipped=skipped,
        )
        rows: list[dict[str, Any]] = []
        for group in groups:
            labels = torch.tensor([items[index][1] for index in group.indices])
            rows += self._rows(group.images, labels)
        return rows + [{UNREADABLE: str(error)} for error in skipped]

    def finish(self, scored: Scored) -> dict[str, float | int]:
        """The metrics; DataError if no image could be read."""
        everything = [row for record in scored.records for row in record]
        unread = [row[UNREADABLE] for row in everything if UNREADABLE in row]
        rows = [row for row in everything if UNREADABLE not in row]
        if not rows:
            raise DataError(f"none of {self.images} images could be read; the first: {unread[0]}")
        found: dict[str, float | int] = {
            **_topk(rows, "rank", "top"),
            "images": len(rows),
            "skipped": len(unread),
            "excluded": self.excluded,
            "seconds": scored.seconds,
        }
        if self.reference is None:
            return found
        signal, noise = (math.fsum(row[name] for row in rows) for name in ("signal", "noise"))
        return found | {
            "agreement": percent(sum(row["same"] for row in rows), len(rows)),
            "sqnr_db": decibels(signal, noise),
            **_topk(rows, "float_rank", "float_top"),
        }

    def _rows(self, images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
        scores = self.predict(images)
        _require_classes(scores, len(labels), self.settings.classes)
        rows: list[dict[str, Any]] = [{"rank": rank} for rank in ranks(scores, labels).tolist()]
        if self.reference is None:
            return rows
        floats = self.reference(images)
        if floats.shape != scores.shape:
            raise DataError(
                f"the float model returned {tuple(floats.shape)} scores, the other model "
                f"{tuple(scores.shape)}; they are not the same model"
            )
        exact = floats.double()
        real = self.settings.scale * (scores.double() - self.settings.zero_point)
        columns = {
            "float_rank": ranks(floats, labels),
            "same": (predictions(scores) == predictions(floats)).int(),
            "signal": _sums(exact.square()),
            "noise": _sums((exact - real).square()),
        }
        for name, values in columns.items():
            for row, value in zip(rows, values.tolist(), strict=True):
                row[name] = value
        return rows


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
    settings = Settings(scale, zero_point, classes, skip_bad)
    job = ClassificationJob(
        predict,
        items,
        preprocess,
        settings,
        reference=reference,
        limit=limit,
        exclude=exclude,
        batch=batch,
    )
    return job.finish(score_all(job, progress))


def without(items: Sequence[Item], exclude: Collection[Path]) -> list[Item]:
    """The items whose file (resolved) is not among `exclude`; DataError if none is left."""
    out = {path.resolve() for path in exclude}
    kept = [item for item in items if item[0].resolve() not in out] if out else list(items)
    if not kept:
        raise DataError(f"no images left to score: {len(items)} given, {len(out)} excluded")
    return kept


def spread(items: Sequence[T], limit: int | None) -> list[T]:
    """`limit` of the items, evenly spaced in their order; all of them for None or too many.

    Raises `DataError` for a limit below 1.
    """
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise DataError(f"the number of images to score cannot be {limit}")
    return [items[i * len(items) // limit] for i in range(limit)]


def _topk(rows: Sequence[dict[str, Any]], name: str, metric: str) -> dict[str, float]:
    return {f"{metric}{k}": percent(sum(row[name] < k for row in rows), len(rows)) for k in (1, 5)}


def _sums(values: Tensor) -> Tensor:
    """float64 [N] of [N, C]: exact sums, rounded once, whatever order a machine would add in."""
    return torch.tensor([math.fsum(row) for row in values.tolist()], dtype=torch.float64)


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
