"""Scores a multi-task model: the class map and the boxes of one run on each image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from iqvit.errors import DataError
from iqvit.eval.boxes import BoxFormat, Detection
from iqvit.eval.coco_data import CocoItem
from iqvit.eval.detection import BoxScorer, DetectionScores, require_squash
from iqvit.eval.evaluate import spread
from iqvit.eval.multitask_data import MultitaskSet, Place
from iqvit.eval.preprocess import Preprocess
from iqvit.eval.segmentation import MapScorer, SegmentationScores, mask_facts
from iqvit.eval.shards import Record, Scored, score_all

JointPredictor = Callable[[Tensor], Mapping[str, Tensor]]
"""uint8 [1, 3, H, W] -> classes [1, h, w], boxes [1, K, 4], scores [1, K] and labels [1, K]."""


@dataclass(frozen=True)
class MultitaskScores:
    """What an evaluation found; None of a head for which the data has nothing.

    metrics is flat: those of both heads, images (scored in all), images_with_masks and
    images_with_boxes, skipped (boxes and images), seconds.
    """

    metrics: dict[str, Any]
    maps: SegmentationScores | None
    boxes: DetectionScores | None


class MultitaskJob:
    """`evaluate_multitask`, an image a unit; the record of one that cannot be read is None, others
    have those of `MapScorer` (map) and `BoxScorer` (boxes), None where the data has none."""

    unit = 1

    def __init__(
        self,
        predict: JointPredictor,
        dataset: MultitaskSet,
        read: Preprocess,
        *,
        numbers: BoxFormat | None = None,
        class_of: Sequence[int] | None = None,
        reference: JointPredictor | None = None,
        reference_numbers: BoxFormat | None = None,
        limit: int | None = None,
        skip_bad: bool = False,
    ) -> None:
        """The arguments are those of `evaluate_multitask`."""
        require_squash(read)
        self.predict, self.reference, self.read = predict, reference, read
        self.dataset, self.skip_bad = dataset, skip_bad
        self.places = spread(dataset.items, limit)
        self.images = len(self.places)
        self.maps = None if dataset.masks is None else MapScorer(dataset.masks)
        self.boxes = None
        if dataset.boxes is not None:
            self.boxes = BoxScorer(
                dataset.boxes,
                numbers=numbers,
                class_of=class_of,
                reference_numbers=reference_numbers,
            )

    @property
    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "task": "multitask",
            "preprocessing": self.read.to_dict(),
            "--skip-bad": self.skip_bad,
        }
        if self.dataset.masks is not None:
            masks = [place.mask for place in self.places if place.mask is not None]
            found |= mask_facts(self.dataset.masks, masks)
        if self.dataset.boxes is not None and self.boxes is not None:
            items = self.dataset.boxes.items
            found |= self.boxes.facts([items[p.boxes] for p in self.places if p.boxes is not None])
        return found

    def score(self, unit: int) -> Record:
        place = self.places[unit]
        item = self._item(place)
        try:
            if item is not None:
                item.check_size()
            pixels = self.read(place.path)[None]
        except DataError:
            if not self.skip_bad:
                raise
            return None
        found = self.predict(pixels)
        other = None if self.reference is None else self.reference(pixels)
        record: dict[str, Any] = {"map": None, "boxes": None}
        if self.maps is not None and self.dataset.masks is not None and place.mask is not None:
            truth = self.dataset.masks.mask(place.mask)
            theirs = None if other is None else other["classes"]
            record["map"], _ = self.maps.record(place.path, truth, found["classes"], theirs)
        if self.boxes is not None and item is not None:
            theirs = None if other is None else _detection(other)
            record["boxes"], _ = self.boxes.record(item, _detection(found), theirs)
        return record

    def finish(self, scored: Scored) -> MultitaskScores:
        """The metrics; DataError where nothing could be scored."""
        pairs = zip(self.places, scored.records, strict=True)
        read = [(place, record) for place, record in pairs if record is not None]
        unread = self.images - len(read)
        maps = [record["map"] for _, record in read if record["map"] is not None]
        boxed = [(self._item(place), r["boxes"]) for place, r in read if r["boxes"] is not None]
        items = [item for item, _ in boxed if item is not None]
        by_map = None if self.maps is None or not maps else self.maps.scores(maps)
        by_box = None
        if self.boxes is not None and boxed:
            by_box = self.boxes.scores(items, [record for _, record in boxed], unread)
        if by_map is None and by_box is None:
            raise DataError("none of the images could be scored")
        metrics: dict[str, Any] = {}
        for scores in (by_map, by_box):
            metrics |= {} if scores is None else scores.metrics
        metrics |= {"images": len(read), "skipped": metrics.get("skipped", unread)}
        if self.maps is not None:
            metrics["images_with_masks"] = len(maps)
        if self.boxes is not None:
            metrics["images_with_boxes"] = len(boxed)
        return MultitaskScores({**metrics, "seconds": scored.seconds}, by_map, by_box)

    def _item(self, place: Place) -> CocoItem | None:
        if self.dataset.boxes is None or place.boxes is None:
            return None
        return self.dataset.boxes.items[place.boxes]


def evaluate_multitask(
    predict: JointPredictor,
    dataset: MultitaskSet,
    read: Preprocess,
    *,
    numbers: BoxFormat | None = None,
    class_of: Sequence[int] | None = None,
    reference: JointPredictor | None = None,
    reference_numbers: BoxFormat | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> MultitaskScores:
    """Metrics of both heads, each image read and run once; percentages are in 0..100.

    Masks are scored as by `evaluate_segmentation`, boxes as by `evaluate_detection`, whose
    arguments these are; an image that has only one of them is scored on that. Raises DataError.
    """
    job = MultitaskJob(
        predict,
        dataset,
        read,
        numbers=numbers,
        class_of=class_of,
        reference=reference,
        reference_numbers=reference_numbers,
        limit=limit,
        skip_bad=skip_bad,
    )
    return job.finish(score_all(job, progress))


def _detection(outputs: Mapping[str, Tensor]) -> Detection:
    return outputs["boxes"], outputs["scores"], outputs["labels"]
