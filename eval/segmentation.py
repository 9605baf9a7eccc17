"""Scores class maps against masks: mIoU and accuracies, as the field computes them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iqvit.errors import DataError
from iqvit.eval.evaluate import spread
from iqvit.eval.metrics import percent
from iqvit.eval.segmentation_data import IGNORE, SegmentationSet
from iqvit.eval.shards import Record, Scored, score_all
from iqvit.eval.traces import names_and_sizes

MapPredictor = Callable[[Tensor], Tensor]
"""uint8 [1, 3, H, W] -> class indices [1, h, w], any integer type."""


Entries = list[list[int]]
"""Of a `ConfusionMatrix`."""


class ConfusionMatrix:
    """Counts of pixels, int64 [classes, classes]: rows are the truth, columns the prediction.

    Everything is summed over all images first and divided once; an average over images of each
    image's IoU is another number. Metrics are percentages in 0..100.
    """

    def __init__(self, classes: int) -> None:
        """All zero; `classes` in 1..255."""
        if not 1 <= classes <= IGNORE:
            raise DataError(f"a confusion matrix of {classes} classes; 1..{IGNORE} are possible")
        self.classes = classes
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """Count the pixels of integer maps of one shape, except those where truth is `IGNORE`.

        Raises DataError for shapes that differ and for a class that is not in the list.
        """
        if predicted.shape != truth.shape:
            raise DataError(
                f"a class map of {tuple(predicted.shape)} is scored on a mask of "
                f"{tuple(truth.shape)}: they must be of one size"
            )
        scored = truth != IGNORE
        wanted, found = truth[scored].long(), predicted[scored].long()
        for values, what in ((wanted, "the mask"), (found, "the class map")):
            wrong = values[(values < 0) | (values >= self.classes)]
            if len(wrong) > 0:
                raise DataError(
                    f"{what} holds class {int(wrong[0])}, but there are {self.classes} classes "
                    f"(0..{self.classes - 1})"
                )
        pairs = torch.bincount(wanted * self.classes + found, minlength=self.classes**2)
        self.counts += pairs.view(self.classes, self.classes)

    @classmethod
    def of(cls, classes: int, parts: Iterable[Entries]) -> "ConfusionMatrix":
        """The sum of the `entries` of others."""
        matrix = cls(classes)
        for entries in parts:
            for truth, found, count in entries:
                matrix.counts[truth, found] += count
        return matrix

    def entries(self) -> Entries:
        """[class in truth, class predicted, pixels] of what is not zero, as JSON has it."""
        places = self.counts.nonzero().tolist()
        return [[truth, found, int(self.counts[truth, found])] for truth, found in places]

    def iou(self) -> list[float | None]:
        """For each class 100 * intersection / union; None where both maps lack it everywhere."""
        hits = self.counts.diagonal()
        unions = self.counts.sum(0) + self.counts.sum(1) - hits
        return _shares(hits, unions)

    def accuracies(self) -> list[float | None]:
        """For each class the percent of its true pixels that were found; None without any."""
        return _shares(self.counts.diagonal(), self.counts.sum(1))

    def miou(self) -> float:
        """The mean of `iou` over the classes that occur in truth or prediction.

        A class that is predicted somewhere and never true counts with 0; one that is neither is
        left out. Pixels with the truth `IGNORE` count for nothing, whatever is predicted there.
        """
        return _mean(self.iou())

    def mean_accuracy(self) -> float:
        """The mean of `accuracies` over the classes that occur in the truth."""
        return _mean(self.accuracies())

    def pixel_accuracy(self) -> float:
        """Percent of the scored pixels whose class is right."""
        self._require_pixels()
        return percent(int(self.counts.diagonal().sum()), int(self.counts.sum()))

    def metrics(self) -> dict[str, float | int]:
        """mIoU, pixel_accuracy, mean_accuracy; how many pixels and classes were scored."""
        self._require_pixels()
        return {
            "mIoU": self.miou(),
            "pixel_accuracy": self.pixel_accuracy(),
            "mean_accuracy": self.mean_accuracy(),
            "classes": sum(value is not None for value in self.iou()),
            "pixels": int(self.counts.sum()),
        }

    def _require_pixels(self) -> None:
        if int(self.counts.sum()) == 0:
            raise DataError("no pixels were scored: every one of them is to be ignored")


@dataclass(frozen=True)
class SegmentationScores:
    """What an evaluation found. metrics is flat; iou is by class name, None where it is absent."""

    metrics: dict[str, Any]
    iou: dict[str, float | None]
    float_iou: dict[str, float | None] | None = None


class MapScorer:
    """Counts class maps, of a model and perhaps of a reference, image by image and then all."""

    def __init__(self, dataset: SegmentationSet) -> None:
        self.classes = dataset.classes

    def record(
        self, image: Path, truth: Tensor, found: Tensor, other: Tensor | None
    ) -> tuple[Record, Tensor]:
        """The class map `found` [1, h, w], and `other` of the reference, counted on `truth` [H, W].

        A record of counts of pixels: own and real are those of `ConfusionMatrix`, equal of all
        pixels of the maps. Also the map at the size of the mask, uint8 [H, W]. Raises DataError.
        """
        found = _class_map(found, image)
        resized = resize_nearest(found, truth.shape)
        counted: dict[str, Any] = {"own": self._counts(resized, truth)}
        if other is not None:
            other = _class_map(other, image)
            counted["equal"] = _equal_pixels(found, other)
            counted["pixels"] = found.numel()
            counted["real"] = self._counts(resize_nearest(other, truth.shape), truth)
        return counted, resized.to(torch.uint8)

    def scores(self, records: Sequence[Record]) -> SegmentationScores:
        """Of all records; DataError where there is no pixel."""
        own, real = (
            ConfusionMatrix.of(len(self.classes), (r[side] for r in records if side in r))
            for side in ("own", "real")
        )
        metrics: dict[str, Any] = {**own.metrics(), "images": len(records)}
        named = dict(zip(self.classes, own.iou(), strict=True))
        pixels, equal = (sum(r.get(name, 0) for r in records) for name in ("pixels", "equal"))
        if pixels == 0:
            return SegmentationScores(metrics, named)
        metrics |= {"float_mIoU": real.miou(), "equal_pixels": percent(equal, pixels)}
        return SegmentationScores(metrics, named, dict(zip(self.classes, real.iou(), strict=True)))

    def _counts(self, found: Tensor, truth: Tensor) -> Entries:
        matrix = ConfusionMatrix(len(self.classes))
        matrix.add(found, truth)
        return matrix.entries()


class SegmentationJob:
    """`evaluate_segmentation`, an image a unit."""

    unit = 1

    def __init__(
        self,
        predict: MapPredictor,
        dataset: SegmentationSet,
        read: Callable[[Path], Tensor],
        *,
        reference: MapPredictor | None = None,
        limit: int | None = None,
        on_map: Callable[[Path, Tensor], None] | None = None,
    ) -> None:
        """The arguments are those of `evaluate_segmentation`."""
        self.predict, self.reference, self.read, self.on_map = predict, reference, read, on_map
        self.dataset, self.scorer = dataset, MapScorer(dataset)
        self.chosen = spread(range(len(dataset)), limit)
        self.images = len(self.chosen)

    @property
    def facts(self) -> dict[str, Any]:
        return {"task": "segmentation", **mask_facts(self.dataset, self.chosen)}

    def score(self, unit: int) -> Record:
        index = self.chosen[unit]
        image = self.dataset.items[index][0]
        truth = self.dataset.mask(index)
        pixels = self.read(image)[None]
        other = None if self.reference is None else self.reference(pixels)
        record, resized = self.scorer.record(image, truth, self.predict(pixels), other)
        if self.on_map is not None:
            self.on_map(image, resized)
        return record

    def finish(self, scored: Scored) -> SegmentationScores:
        """The metrics; DataError where there is no pixel."""
        scores = self.scorer.scores(scored.records)
        scores.metrics["seconds"] = scored.seconds
        return scores


def mask_facts(dataset: SegmentationSet, chosen: Sequence[int]) -> dict[str, Any]:
    """By which the masks and the images of an evaluation are known."""
    pairs = [dataset.items[index] for index in chosen]
    return {
        "images": names_and_sizes([image for image, _ in pairs]),
        "masks": names_and_sizes([mask for _, mask in pairs]),
        "classes": list(dataset.classes),
        "mask values": list(dataset.to_train_ids),
    }


def evaluate_segmentation(
    predict: MapPredictor,
    dataset: SegmentationSet,
    read: Callable[[Path], Tensor],
    *,
    reference: MapPredictor | None = None,
    limit: int | None = None,
    on_map: Callable[[Path, Tensor], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SegmentationScores:
    """Metrics of `predict` on a data set, at the resolution of its masks.

    `read` turns an image file into the model's input, uint8 [3, H, W]; a `Preprocess` is one. The
    class map is brought to the mask's size with `resize_nearest`: all that is scored is integers.
    Always: `ConfusionMatrix.metrics`, images, seconds. With `reference`: float_mIoU, and
    equal_pixels, the percent of all pixels (ignored ones too, and before any resizing) to which
    both give the same class. `limit` takes so many images, evenly spaced; `on_map(image, map)` is
    given every class map at the mask's size, uint8 [H, W]. Raises DataError.
    """
    job = SegmentationJob(predict, dataset, read, reference=reference, limit=limit, on_map=on_map)
    return job.finish(score_all(job, progress))


def resize_nearest(values: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """[h, w] -> [H, W] without blending: the value whose pixel holds the centre of the new one.

    Row y is row floor((2 y + 1) h / (2 H)), columns alike: integers only, the rule that torch names
    "nearest-exact".
    """
    rows, columns = (
        (2 * torch.arange(new) + 1) * old // (2 * new)
        for new, old in zip(size, values.shape, strict=True)
    )
    return values[rows][:, columns]


def _class_map(found: Tensor, image: Path) -> Tensor:
    if found.dim() != 3 or found.shape[0] != 1 or found.is_floating_point():
        raise DataError(
            f"the model returned {found.dtype} of shape {tuple(found.shape)} for {image}, where "
            "integer class indices [1, height, width] are needed"
        )
    return found[0]


def _equal_pixels(found: Tensor, other: Tensor) -> int:
    if found.shape != other.shape:
        raise DataError(
            f"the reference gives class maps of {tuple(other.shape)}, the model of "
            f"{tuple(found.shape)}; they are not the same model"
        )
    return int((found == other).sum())


def _shares(part: Tensor, whole: Tensor) -> list[float | None]:
    pairs = zip(part.tolist(), whole.tolist(), strict=True)
    return [100.0 * p / w if w > 0 else None for p, w in pairs]


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    if not known:
        raise DataError("no pixels were scored: every one of them is to be ignored")
    return sum(known) / len(known)
