"""The training form of RT-DETR: every layer's output, denoising queries, transformers' losses.

Sources: Zhao et al. (2024), section 4; the denoising queries are those of Zhang et al., "DINO"
(2023). Losses and denoising are transformers' own (the extra `train`), not written again here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, TypedDict

import torch
from torch import Tensor

from iqvit.errors import ModelError
from iqvit.models.rtdetr.decoder import Decoder
from iqvit.models.rtdetr.model import RTDetr


class Labels(TypedDict):
    """The objects of one image: classes int64 [n] and boxes float32 [n, 4], (cx, cy, w, h) in 0..1.

    Without objects the tensors have the shapes [0] and [0, 4].
    """

    class_labels: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Denoising:
    """How objects become noisy queries: how many, the share of wrong labels, the noise of boxes."""

    queries: int = 100
    label_noise: float = 0.5
    box_noise: float = 1.0


@dataclass(frozen=True)
class TrainingOutputs:
    """What the losses read; boxes are fractions of the image, after the sigmoid.

    logits [N, layers, D + Q, classes] and boxes [N, layers, D + Q, 4]: of every decoder layer, the
    D denoising queries first. selected_logits [N, Q, classes] and selected_boxes [N, Q, 4]: of the
    chosen tokens. denoising: transformers' bookkeeping of the D queries, None if there are none.
    """

    logits: Tensor
    boxes: Tensor
    selected_logits: Tensor
    selected_boxes: Tensor
    denoising: dict[str, Any] | None


@dataclass(frozen=True)
class _Noisy:
    """Noisy queries [N, D, width], their box logits [N, D, 4] and the mask [D + Q, D + Q]."""

    queries: Tensor
    boxes: Tensor
    mask: Tensor
    bookkeeping: dict[str, Any]


def require_losses() -> None:
    """ModelError where the libraries that hold losses and matching are not installed."""
    missing = [name for name in ("transformers", "scipy") if find_spec(name) is None]
    if missing:
        raise ModelError(
            f"training a detector needs {' and '.join(missing)}: pip install 'iqvit[train]'"
        )


def training_forward(
    model: RTDetr, images: Tensor, labels: Sequence[Labels], denoising: Denoising | None = None
) -> TrainingOutputs:
    """`images` float32 [N, 3, H, W] through every layer: see `decode_for_training`."""
    return decode_for_training(model.decoder, model.features(images), labels, denoising)


def decode_for_training(
    decoder: Decoder,
    features: list[Tensor],
    labels: Sequence[Labels],
    denoising: Denoising | None = None,
) -> TrainingOutputs:
    """The maps that the decoder reads through every layer, with denoising queries if asked for.

    As published, gradients do not flow from a layer into the boxes and queries that it starts from.
    The noise comes from torch's random state. A batch without any object has no denoising queries.
    """
    memory = decoder.flatten(features)
    x, selected, selected_logits = decoder.select(memory)
    noisy = None if denoising is None else _noisy_queries(decoder, labels, denoising)
    x, boxes, mask = x.detach(), selected.detach(), None
    if noisy is not None:
        x = torch.cat([noisy.queries, x], dim=1)
        boxes = torch.cat([noisy.boxes, boxes], dim=1)
        mask = noisy.mask
    logits, refined = [], []
    for place, head in enumerate(decoder.dec_score_head):
        x, boxes = decoder.refine(place, x, boxes.detach(), memory, mask)
        logits.append(head(x))
        refined.append(boxes.sigmoid())
    return TrainingOutputs(
        torch.stack(logits, dim=1),
        torch.stack(refined, dim=1),
        selected_logits,
        selected.sigmoid(),
        None if noisy is None else noisy.bookkeeping,
    )


def detection_loss(
    outputs: TrainingOutputs, labels: Sequence[Labels]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of varifocal, L1 and GIoU losses, and its parts by transformers' names.

    Every layer's outputs and the selected tokens are matched to the objects by the Hungarian
    algorithm; denoising queries know theirs.
    """
    from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

    # It is annotated to return numbers, and its configuration to take no keyword.
    losses: Any = RTDetrForObjectDetectionLoss
    loss, parts, _ = losses(
        outputs.logits[:, -1],
        list(labels),
        outputs.logits.device,
        outputs.boxes[:, -1],
        _loss_config(outputs.logits.shape[-1]),
        outputs.logits,
        outputs.boxes,
        enc_topk_logits=outputs.selected_logits,
        enc_topk_bboxes=outputs.selected_boxes,
        denoising_meta_values=outputs.denoising,
    )
    return loss, parts


@lru_cache(maxsize=8)
def _loss_config(classes: int) -> Any:
    """transformers' configuration, whose weights of the losses are the published ones."""
    from transformers import RTDetrV2Config

    config: Any = RTDetrV2Config
    return config(num_labels=classes)


def _noisy_queries(
    decoder: Decoder, labels: Sequence[Labels], denoising: Denoising
) -> _Noisy | None:
    from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import (
        get_contrastive_denoising_training_group,
    )

    # Four values or, without any object, four times None.
    group: Any = get_contrastive_denoising_training_group(
        targets=list(labels),
        num_classes=decoder.enc_score_head.out_features,
        num_queries=decoder.queries,
        class_embed=decoder.denoising_class_embed,
        num_denoising_queries=denoising.queries,
        label_noise_ratio=denoising.label_noise,
        box_noise_scale=denoising.box_noise,
    )
    return None if group[0] is None else _Noisy(*group)
