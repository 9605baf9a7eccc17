"""Scores detections against boxes: average precision and recall as COCO defines them.

The numbers are those of pycocotools, which also matches boxes, ignores crowd regions and counts
small (area below 32^2 pixels), medium and large (from 96^2) objects.
"""

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from iqvit.errors import DataError
from iqvit.eval.boxes import BoxFormat, BoxPredictor, Detection, Found, in_pixels, same_detections
from iqvit.eval.coco_data import CocoItem, CocoSet
from iqvit.eval.evaluate import spread
from iqvit.eval.metrics import percent
from iqvit.eval.preprocess import Preprocess
from iqvit.eval.shards import Record, Scored, score_all
from iqvit.eval.traces import content, names_and_sizes

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
    """Records detections, of a model and perhaps of a reference, image by image, and scores all."""

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

    def facts(self, items: Sequence[CocoItem]) -> dict[str, Any]:
        """By which the boxes and the images of an evaluation are known."""
        return {
            "boxes": content(self.dataset.annotations),
            "images with boxes": names_and_sizes([item.path for item in items]),
            "classes of boxes": list(self.dataset.classes),
            "class of each label": list(self.class_of),
            "score of agreement": self.agreement_score,
        }

    def record(
        self, item: CocoItem, output: Detection, other: Detection | None
    ) -> tuple[Record, Found]:
        """What the model found in an image, and the reference; DataError as `in_pixels`.

        own and real: rows of a COCO results file. same, of total: detections of both that both
        make.
        """
        found = self._found(item, output, self.numbers[0])
        record: dict[str, Any] = {"own": coco_results(item, found, self.dataset.category_ids)}
        if other is not None:
            theirs = self._found(item, other, self.numbers[1])
            record["real"] = coco_results(item, theirs, self.dataset.category_ids)
            same, total = same_detections(found, theirs, self.agreement_score)
            record |= {"same": same, "total": total}
        return record, found

    def scores(
        self, items: Sequence[CocoItem], records: Sequence[Record], unread: int = 0
    ) -> DetectionScores:
        """Of the records of the images `items`; `unread` more count as skipped. DataError without
        any box."""
        results = [row for record in records for row in record["own"]]
        stats, by_class = coco_metrics(self.dataset, items, results)
        metrics: dict[str, Any] = {
            **stats,
            "images": len(items),
            "boxes": sum(int((~item.iscrowd).sum()) for item in items),
            "skipped": len(self.dataset.skipped) + unread,
        }
        if not any("real" in record for record in records):
            return DetectionScores(metrics, by_class, results)
        others = [row for record in records for row in record["real"]]
        real, float_ap = coco_metrics(self.dataset, items, others)
        metrics |= {f"float_{name}": real[name] for name in STATS[:6]}
        same, total = (sum(record[name] for record in records) for name in ("same", "total"))
        metrics["agreement"] = percent(2 * same, total) if total > 0 else None
        return DetectionScores(metrics, by_class, results, float_ap)

    def _found(self, item: CocoItem, output: Detection, numbers: BoxFormat) -> Found:
        return in_pixels(output, item.size, numbers, str(item.path), self.class_of)


class DetectionJob:
    """`evaluate_detection`, an image a unit; the record of one that cannot be read is None."""

    unit = 1

    def __init__(
        self,
        predict: BoxPredictor,
        dataset: CocoSet,
        read: Preprocess,
        scorer: BoxScorer,
        *,
        reference: BoxPredictor | None = None,
        limit: int | None = None,
        skip_bad: bool = False,
        on_found: Callable[[CocoItem, Found], None] | None = None,
    ) -> None:
        """The arguments are those of `evaluate_detection`."""
        require_squash(read)
        self.predict, self.reference, self.read = predict, reference, read
        self.scorer, self.skip_bad, self.on_found = scorer, skip_bad, on_found
        self.items = spread(dataset.items, limit)
        self.images = len(self.items)

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "task": "detection",
            **self.scorer.facts(self.items),
            "preprocessing": self.read.to_dict(),
            "--skip-bad": self.skip_bad,
        }

    def score(self, unit: int) -> Record:
        item = self.items[unit]
        try:
            item.check_size()
            pixels = self.read(item.path)[None]
        except DataError:
            if not self.skip_bad:
                raise
            return None
        other = None if self.reference is None else self.reference(pixels)
        record, found = self.scorer.record(item, self.predict(pixels), other)
        if self.on_found is not None:
            self.on_found(item, found)
        return record

    def finish(self, scored: Scored) -> DetectionScores:
        """The metrics; DataError without any box."""
        pairs = zip(self.items, scored.records, strict=True)
        read = [(item, record) for item, record in pairs if record is not None]
        items, records = [item for item, _ in read], [record for _, record in read]
        scores = self.scorer.scores(items, records, unread=self.images - len(read))
        scores.metrics["seconds"] = scored.seconds
        return scores


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
    scorer = BoxScorer(
        dataset,
        numbers=numbers,
        class_of=class_of,
        reference_numbers=reference_numbers,
        agreement_score=agreement_score,
    )
    job = DetectionJob(
        predict,
        dataset,
        read,
        scorer,
        reference=reference,
        limit=limit,
        skip_bad=skip_bad,
        on_found=on_found,
    )
    return job.finish(score_all(job, progress))


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
