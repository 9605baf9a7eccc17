"""What a detector returns, as boxes in pixels of the image that was given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from iqvit.errors import DataError

Detection = tuple[Tensor, Tensor, Tensor]
"""Boxes [1, K, 4], scores [1, K] and labels [1, K] of one image; see `BoxFormat`."""
BoxPredictor = Callable[[Tensor], Detection]
"""uint8 [1, 3, H, W] -> what was found."""
SAME_IOU = 0.9
"""Of two detections that are taken for the same one."""


@dataclass(frozen=True)
class BoxFormat:
    """What a detector's numbers stand for: real = scale * (number - zero_point).

    Real boxes are (cx, cy, w, h) as fractions of the image, real scores lie in 0..1. The defaults
    are those of a float model.
    """

    box_scale: float = 1.0
    box_zero_point: float = 0.0
    score_scale: float = 1.0
    score_zero_point: float = 0.0


@dataclass(frozen=True, eq=False)
class Found:
    """K detections in one image, in the detector's order, which is best first.

    xywh: float64 [K, 4], (x, y, width, height) in pixels; not cut to the image, as pycocotools'
    and the authors' scores are not. scores: float64 [K]. labels: int64 [K], class indices.
    """

    xywh: Tensor
    scores: Tensor
    labels: Tensor

    @property
    def corners(self) -> Tensor:
        """float64 [K, 4], (x1, y1, x2, y2) in pixels."""
        return box_convert(self.xywh, "xywh", "xyxy")

    def at_least(self, score: float) -> "Found":
        """Those of that score or a higher one, best first, equal ones in the detector's order."""
        order = self.scores.argsort(descending=True, stable=True)
        chosen = order[self.scores[order] >= score]
        return Found(self.xywh[chosen], self.scores[chosen], self.labels[chosen])


def in_pixels(
    output: Detection,
    size: tuple[int, int],
    numbers: BoxFormat,
    source: str,
    class_of: Sequence[int],
) -> Found:
    """A detector's answer to one image, in pixels of that image, of (height, width) `size`.

    class_of: the class index for each label of the model, -1 for a label that the data does not
    have, whose detections are dropped. `source` names the image. Raises DataError for other shapes,
    values that are not finite and labels that the model should not know.
    """
    boxes, scores, labels = output
    count = labels.shape[-1] if labels.dim() == 2 else -1
    shapes = [tuple(part.shape) for part in output]
    if shapes != [(1, count, 4), (1, count), (1, count)] or labels.is_floating_point():
        raise DataError(
            f"the model returned {labels.dtype} labels and shapes {shapes} for {source}, where "
            "boxes [1, K, 4], scores [1, K] and integer labels [1, K] are needed"
        )
    for name, part in (("box", boxes), ("score", scores)):
        if not bool(torch.isfinite(part).all()):
            raise DataError(f"the model returned a {name} that is NaN or infinite for {source}")
    known = labels[0].long()
    wrong = known[(known < 0) | (known >= len(class_of))]
    if len(wrong) > 0:
        raise DataError(
            f"the model returned the label {int(wrong[0])} for {source}; it has {len(class_of)} "
            "classes"
        )
    height, width = size
    sides = torch.tensor([width, height, width, height], dtype=torch.float64)
    fractions = numbers.box_scale * (boxes[0].double() - numbers.box_zero_point)
    classes = torch.tensor(list(class_of), dtype=torch.int64)[known]
    kept = classes >= 0
    return Found(
        box_convert(fractions * sides, "cxcywh", "xywh")[kept],
        (numbers.score_scale * (scores[0].double() - numbers.score_zero_point))[kept],
        classes[kept],
    )


def same_detections(found: Found, other: Found, score: float) -> tuple[int, int]:
    """(pairs of the same detection, detections of both sides together), of `score` or higher.

    In the order of `other`'s scores, each detection of `other` is paired with the one of `found`
    that has the same label, is not paired yet, and has the largest IoU, of at least `SAME_IOU`.
    """
    own, theirs = found.at_least(score), other.at_least(score)
    total = len(own.labels) + len(theirs.labels)
    if len(own.labels) == 0 or len(theirs.labels) == 0:
        return 0, total
    overlaps = box_iou(theirs.corners, own.corners)
    overlaps[theirs.labels[:, None] != own.labels[None, :]] = 0
    pairs = 0
    for row in range(len(overlaps)):
        best = int(overlaps[row].argmax())
        if overlaps[row, best] >= SAME_IOU:
            overlaps[:, best] = 0
            pairs += 1
    return pairs, total


def as_json(found: Found, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Plain values, best first: box [x, y, width, height] in pixels, score, class and its name."""
    rows = zip(found.labels.tolist(), found.scores.tolist(), found.xywh.tolist(), strict=True)
    return [
        {"class": label, "label": classes[label], "score": score, "box": box}
        for label, score, box in rows
    ]
