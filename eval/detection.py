"""Scores detections against boxes: average precision and recall as COCO defines them.

The numbers are those of pycocotools, which also matches boxes, ignores crowd regions and counts
small (area below 32^2 pixels), medium and large (from 96^2) objects.
"""

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from iqvit.errors import DataError
from iqvit.eval.boxes import BoxFormat, BoxPredictor, Detection, Found, in_pixels, same_detections
from iqvit.eval.coco_data import CocoItem, CocoSet
from iqvit.eval.evaluate import spread
from iqvit.eval.metrics import percent
from iqvit.eval.preprocess import Preprocess

STATS = (
    *("mAP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)
"""pycocotools' summary, in its order."""
AGREEMENT_SCORE = 0.5

Result = dict[str, Any]
"""One detection of a COCO results file: image_id, category_id, bbox, score."""


@dataclass(frozen=True)
class DetectionScores:
    """What an evaluation found. metrics is flat; ap is by class name, None for a class without any
    box; results is the content of a COCO results file."""

    metrics: dict[str, Any]
    ap: dict[str, float | None]
    results: list[Result]
    float_ap: dict[str, float | None] | None = None


class BoxScorer:
    """Collects detections, of a model and perhaps of a reference, image after image."""

    def __init__(
        self,
        dataset: CocoSet,
        *,
        numbers: BoxFormat | None = None,
        class_of: Sequence[int] | None = None,
        reference_numbers: BoxFormat | None = None,
        agreement_score: float = AGREEMENT_SCORE,
    ) -> None:
        """The arguments are those of `evaluate_detection`."""
        self.dataset = dataset
        self.class_of = range(len(dataset.classes)) if class_of is None else class_of
        self.numbers = numbers or BoxFormat(), reference_numbers or BoxFormat()
        self.agreement_score = agreement_score
        self.scored: list[CocoItem] = []
        self.results: list[Result] = []
        self.others: list[Result] | None = None
        self.pairs = self.compared = 0

    def add(self, item: CocoItem, output: Detection, other: Detection | None) -> Found:
        """Take in what the model found in an image, and the reference; DataError as `in_pixels`."""
        found = self._found(item, output, self.numbers[0])
        self.scored.append(item)
        self.results += coco_results(item, found, self.dataset.category_ids)
        if other is not None:
            theirs = self._found(item, other, self.numbers[1])
            rows = coco_results(item, theirs, self.dataset.category_ids)
            self.others = rows if self.others is None else self.others + rows
            same, total = same_detections(found, theirs, self.agreement_score)
            self.pairs, self.compared = self.pairs + same, self.compared + total
        return found

    def scores(self, unread: int = 0) -> DetectionScores:
        """Of all that was added; `unread` images count as skipped. DataError without any box."""
        stats, by_class = coco_metrics(self.dataset, self.scored, self.results)
        metrics: dict[str, Any] = {
            **stats,
            "images": len(self.scored),
            "boxes": sum(int((~item.iscrowd).sum()) for item in self.scored),
            "skipped": len(self.dataset.skipped) + unread,
        }
        if self.others is None:
            return DetectionScores(metrics, by_class, self.results)
        real, float_ap = coco_metrics(self.dataset, self.scored, self.others)
        metrics |= {f"float_{name}": real[name] for name in STATS[:6]}
        metrics["agreement"] = percent(2 * self.pairs, self.compared) if self.compared > 0 else None
        return DetectionScores(metrics, by_class, self.results, float_ap)

    def _found(self, item: CocoItem, output: Detection, numbers: BoxFormat) -> Found:
        return in_pixels(output, item.size, numbers, str(item.path), self.class_of)


def evaluate_detection(
    predict: BoxPredictor,
    dataset: CocoSet,
    read: Preprocess,
    *,
    numbers: BoxFormat | None = None,
    class_of: Sequence[int] | None = None,
    reference: BoxPredictor | None = None,
    reference_numbers: BoxFormat | None = None,
    agreement_score: float = AGREEMENT_SCORE,
    limit: int | None = None,
    skip_bad: bool = False,
    on_found: Callable[[CocoItem, Found], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DetectionScores:
    """Metrics of `predict` on a data set; percentages are in 0..100.

    `read` makes the model's input and must squash, so that fractions of it are fractions of the
    image. `numbers` says what the detector's numbers stand for, `class_of` which class of the data
    each label of the model is (-1: none), by default the label itself. Always: `STATS` (None where
    there is nothing of that size), images, boxes, skipped, seconds. With `reference`: the first six
    of `STATS` as float_NAME, and agreement: of all detections of both with a score of at least
    `agreement_score`, the percent that are `same_detections` (None without any detection).
    `limit` takes so many images, evenly spaced; the others do not count as missed, nor do those
    that cannot be read, which `skip_bad` leaves out. on_found is given every image's detections.
    Raises DataError.
    """
    require_squash(read)
    scorer = BoxScorer(
        dataset,
        numbers=numbers,
        class_of=class_of,
        reference_numbers=reference_numbers,
        agreement_score=agreement_score,
    )
    chosen = spread(dataset.items, limit)
    start = time.perf_counter()
    for done, item in enumerate(chosen, 1):
        if progress is not None:
            progress(done, len(chosen))
        try:
            item.check_size()
            pixels = read(item.path)[None]
        except DataError:
            if not skip_bad:
                raise
            continue
        found = scorer.add(item, predict(pixels), None if reference is None else reference(pixels))
        if on_found is not None:
            on_found(item, found)
    scores = scorer.scores(unread=len(chosen) - len(scorer.scored))
    scores.metrics["seconds"] = time.perf_counter() - start
    return scores


def coco_results(item: CocoItem, found: Found, category_ids: Sequence[int]) -> list[Result]:
    """The detections in one image as a COCO results file holds them."""
    rows = zip(found.labels.tolist(), found.xywh.tolist(), found.scores.tolist(), strict=True)
    return [
        {
            "image_id": item.image_id,
            "category_id": category_ids[label],
            "bbox": bbox,
            "score": score,
        }
        for label, bbox, score in rows
    ]


def coco_metrics(
    dataset: CocoSet, items: Sequence[CocoItem], results: Sequence[Result]
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """`STATS` in 0..100, and the AP (IoU .50:.95) of each class by name, of `items` alone.

    None where there is no box of that size or class. Raises DataError if there is no box at all;
    crowd regions are none.
    """
    COCO, COCOeval = _pycocotools()
    if all(bool(item.iscrowd.all()) for item in items):
        raise DataError(
            f"there is nothing to score: none of {len(items)} images of {dataset.annotations} has "
            "a box"
        )
    truth = _ground_truth(dataset, items)
    with contextlib.redirect_stdout(io.StringIO()):
        sides = [COCO(), COCO()]
        sides[0].dataset, sides[1].dataset = truth, {**truth, "annotations": _found(results)}
        for side in sides:
            side.createIndex()
        scored = COCOeval(*sides, "bbox")
        scored.params.imgIds = [item.image_id for item in items]
        scored.params.catIds = list(dataset.category_ids)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    stats = {name: _share(value) for name, value in zip(STATS, scored.stats, strict=True)}
    # [IoU thresholds, recalls, categories by id, area ranges (0: all), detections (2: 100)]
    precision = scored.eval["precision"][:, :, :, 0, 2]
    order = sorted(range(len(dataset.classes)), key=lambda label: dataset.category_ids[label])
    by_class: dict[str, float | None] = dict.fromkeys(dataset.classes)
    for column, label in enumerate(order):
        by_class[dataset.classes[label]] = _share(precision[:, :, column].flatten().mean())
    return stats, by_class


def _ground_truth(dataset: CocoSet, items: Sequence[CocoItem]) -> dict[str, Any]:
    """A COCO data set; annotations count from 1, as pycocotools takes the id 0 for no match."""
    rows = [
        (item.image_id, label, bbox, crowd, area)
        for item in items
        for label, bbox, crowd, area in zip(
            item.labels.tolist(),
            item.xywh.tolist(),
            item.iscrowd.tolist(),
            item.area.tolist(),
            strict=True,
        )
    ]
    return {
        "images": [{"id": item.image_id} for item in items],
        "categories": [{"id": number} for number in dataset.category_ids],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": dataset.category_ids[label],
                "bbox": bbox,
                "iscrowd": int(crowd),
                "area": area,
            }
            for number, (image, label, bbox, crowd, area) in enumerate(rows, 1)
        ],
    }


def _found(results: Sequence[Result]) -> list[Result]:
    """What pycocotools' `loadRes` adds to results; itself it fails where there are none."""
    return [
        {**row, "id": number, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]}
        for number, row in enumerate(results, 1)
    ]


def _pycocotools() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise DataError(
            f"average precision needs pycocotools ({error}): pip install 'iqvit[coco]'"
        ) from error
    return COCO, COCOeval


def _share(value: float) -> float | None:
    """In percent; pycocotools says -1 where there is nothing to find."""
    return None if value < 0 else 100.0 * float(value)


def require_squash(read: Preprocess) -> None:
    if read.crop != "squash" or read.target != read.size:
        raise DataError(
            f"the preprocessing (crop {read.crop!r}, from {read.target} to {read.size}) cuts parts "
            "off, so that boxes are not fractions of the whole image; a detector's must squash"
        )
