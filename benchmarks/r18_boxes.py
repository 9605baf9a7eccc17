"""transformers' RT-DETRv2-R18 as a model by name: `benchmarks/r18_boxes.py:detector`.

Its weights are random, so it is for latency: there is nothing that it detects.
"""

from typing import Any

import torch
from rtdetr_r18 import SIZE, rtdetr_r18
from torch import Tensor, nn

from iqvit.models.detections import Detected, best_pairs
from iqvit.models.labels import coco_labels

TOP = 300
"""Detections of an image."""


class Boxes(nn.Module):
    """transformers' detector and what its image processor does with the answer, here in one.

    Pixels / 255, float32 [N, 3, H, W] -> the TOP best boxes, scores and labels: see `Detected`.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> Detected:
        found = self.detector(x)
        return best_pairs(found.pred_boxes, found.logits, TOP)


def detector(input_size: int | tuple[int, int] = SIZE) -> tuple[nn.Module, dict[str, Any]]:
    """The detector for COCO's 80 classes, its weights scaled on noise; and its preprocessing."""
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    noise = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    card = {
        "input_size": input_size,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "crop": "squash",
        "interpolation": "bilinear",
        "labels": coco_labels(),
        "task": "detection",
    }
    return Boxes(rtdetr_r18(noise)), card
