"""transformers' RT-DETR and RT-DETRv2, unmodified, ending in the best detections."""

import re
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from iqvit.errors import ModelError
from iqvit.models.detections import MOST_DETECTIONS, Detected, best_pairs
from iqvit.models.float_model import Request, shown
from iqvit.models.labels import coco_labels
from iqvit.models.rtdetr.names import OLDER_TRANSFORMERS, rename

DETECTORS = {"rt_detr": "RTDetrForObjectDetection", "rt_detr_v2": "RTDetrV2ForObjectDetection"}
"""By model type, what a configuration that names no architecture is made into."""
KNOWN = re.compile(r"rtdetr_(v2_)?r18vd")
PROCESSOR = {
    "image_mean": [0.0] * 3,
    "image_std": [1.0] * 3,
    "resample": 2,
    "size": {"height": 640, "width": 640},
}
"""What their image processor does when no file says otherwise."""


class BestDetections(nn.Module):
    """One of `DETECTORS` with its postprocessing: float32 [N, 3, H, W] -> `Detected`."""

    def __init__(self, detector: nn.Module, top: int) -> None:
        super().__init__()
        self.detector = detector
        self.top = top

    def forward(self, x: Tensor) -> Detected:
        found = self.detector(x)
        return best_pairs(found.pred_boxes, found.logits, self.top)


def known_settings(name: str) -> dict[str, Any] | None:
    """The configuration of COCO's ResNet-18 models, "rtdetr_r18vd" and "rtdetr_v2_r18vd"."""
    match = KNOWN.fullmatch(name.rpartition("/")[2])
    if match is None:
        return None
    backbone = {
        "model_type": "rt_detr_resnet",
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [2, 2, 2, 2],
        "layer_type": "basic",
        "out_features": ["stage2", "stage3", "stage4"],
    }
    kind = "rt_detr_v2" if match[1] else "rt_detr"
    return {
        "model_type": kind,
        "architectures": [DETECTORS[kind]],
        "backbone_config": backbone,
        "encoder_in_channels": [128, 256, 512],
        "hidden_expansion": 0.5,
        "decoder_layers": 3,
        "id2label": dict(enumerate(coco_labels())),
    }


def fit_to_size(
    config: Any, processor: dict[str, Any], request: Request, name: str
) -> tuple[int, int]:
    """(height, width) of the input: what is asked for, else the image processor's.

    Anchors and position embeddings that `config` fixes for another size are made for this one
    instead. Raises ModelError for a size that the strides do not divide, or with fewer tokens than
    queries.
    """
    stated = processor["size"]
    stated = {} if not isinstance(stated, dict) else stated
    size: Any = request.input_size or (stated.get("height"), stated.get("width"))
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise ModelError(
            f"transformers:{name}: preprocessing to the size {processor['size']} is not supported; "
            "a detector reads the whole image at one height and width"
        )
    stride = max(config.feat_strides)
    if any(side % stride for side in size):
        raise ModelError(
            f"transformers:{name}: the input {shown(size)} is not a multiple of {stride} on both "
            "sides"
        )
    tokens = sum((size[0] // s) * (size[1] // s) for s in config.feat_strides)
    if config.num_queries > tokens:
        raise ModelError(
            f"transformers:{name}: {config.num_queries} queries are asked for, but an image of "
            f"{shown(size)} has only {tokens} tokens; use a larger image"
        )
    config.eval_size = config.anchor_image_size = None
    return size


def with_postprocessing(module: nn.Module, config: Any) -> BestDetections:
    """The model as one that gives its best detections."""
    return BestDetections(module, min(MOST_DETECTIONS, config.num_queries * config.num_labels))


def renamed(request: Request) -> Request:
    """The request with weights named as by transformers before version 5 renamed to today's."""
    weights = request.weights
    if weights is None:
        return request
    tensors = rename(weights.tensors, OLDER_TRANSFORMERS, weights.source)
    return replace(request, weights=replace(weights, tensors=tensors))
