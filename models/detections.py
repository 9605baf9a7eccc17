"""From the boxes and scores of all queries of a detector to its best detections."""

from typing import NamedTuple

from torch import Tensor

MOST_DETECTIONS = 300
"""Detections of an image, as in the authors' evaluation; fewer where a model has fewer pairs."""


class Detected(NamedTuple):
    """The K best pairs of query and class of each image, best first.

    boxes: float32 [N, K, 4], (cx, cy, w, h) as fractions of the image; scores: float32 [N, K] in
    0..1; labels: int64 [N, K], class indices.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def best_pairs(boxes: Tensor, logits: Tensor, top: int) -> Detected:
    """The `top` best of boxes [N, Q, 4] and class logits [N, Q, classes]; boxes stay what they are.

    A query can appear under several labels, as the focal loss means it: Zhao et al., "DETRs Beat
    YOLOs on Real-time Object Detection" (2024). Of equal integers the lowest index query *
    classes + class comes first; torch leaves the order of equal floats open.
    """
    best = logits.flatten(1).topk(top, dim=1)
    classes = logits.shape[2]
    query = best.indices // classes
    chosen = boxes.gather(1, query.unsqueeze(-1).expand(-1, -1, 4))
    return Detected(chosen, best.values.sigmoid(), best.indices % classes)
