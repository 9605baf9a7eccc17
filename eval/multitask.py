"""Scores a multi-task model: the class map and the boxes of one run on each image."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from iqvit.errors import DataError
from iqvit.eval.boxes import BoxFormat, Detection
from iqvit.eval.detection import BoxScorer, DetectionScores, require_squash
from iqvit.eval.evaluate import spread
from iqvit.eval.multitask_data import MultitaskSet, Place
from iqvit.eval.preprocess import Preprocess
from iqvit.eval.segmentation import MapScorer, SegmentationScores

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
    require_squash(read)
    chosen = spread(dataset.items, limit)
    maps = None if dataset.masks is None else MapScorer(dataset.masks)
    boxes = None
    if dataset.boxes is not None:
        boxes = BoxScorer(
            dataset.boxes,
            numbers=numbers,
            class_of=class_of,
            reference_numbers=reference_numbers,
        )
    scored = 0
    start = time.perf_counter()
    for done, place in enumerate(chosen, 1):
        if progress is not None:
            progress(done, len(chosen))
        try:
            _check_size(dataset, place)
            pixels = read(place.path)[None]
        except DataError:
            if not skip_bad:
                raise
            continue
        scored += 1
        found, other = predict(pixels), None if reference is None else reference(pixels)
        _add_map(maps, dataset, place, found, other)
        _add_boxes(boxes, dataset, place, found, other)
    return _gathered(maps, boxes, scored, len(chosen) - scored, seconds=time.perf_counter() - start)


def _check_size(dataset: MultitaskSet, place: Place) -> None:
    if dataset.boxes is not None and place.boxes is not None:
        dataset.boxes.items[place.boxes].check_size()


def _add_map(
    scorer: MapScorer | None,
    dataset: MultitaskSet,
    place: Place,
    found: Mapping[str, Tensor],
    other: Mapping[str, Tensor] | None,
) -> None:
    if scorer is None or dataset.masks is None or place.mask is None:
        return
    theirs = None if other is None else other["classes"]
    scorer.add(place.path, dataset.masks.mask(place.mask), found["classes"], theirs)


def _add_boxes(
    scorer: BoxScorer | None,
    dataset: MultitaskSet,
    place: Place,
    found: Mapping[str, Tensor],
    other: Mapping[str, Tensor] | None,
) -> None:
    if scorer is None or dataset.boxes is None or place.boxes is None:
        return
    item = dataset.boxes.items[place.boxes]
    scorer.add(item, _detection(found), None if other is None else _detection(other))


def _detection(outputs: Mapping[str, Tensor]) -> Detection:
    return outputs["boxes"], outputs["scores"], outputs["labels"]


def _gathered(
    maps: MapScorer | None, boxes: BoxScorer | None, scored: int, unread: int, seconds: float
) -> MultitaskScores:
    by_map = None if maps is None or maps.images == 0 else maps.scores()
    by_box = None if boxes is None or not boxes.scored else boxes.scores(unread)
    if by_map is None and by_box is None:
        raise DataError("none of the images could be scored")
    metrics: dict[str, Any] = {}
    for scores in (by_map, by_box):
        metrics |= {} if scores is None else scores.metrics
    metrics |= {"images": scored, "skipped": metrics.get("skipped", unread)}
    if maps is not None:
        metrics["images_with_masks"] = maps.images
    if boxes is not None:
        metrics["images_with_boxes"] = len(boxes.scored)
    return MultitaskScores({**metrics, "seconds": seconds}, by_map, by_box)
