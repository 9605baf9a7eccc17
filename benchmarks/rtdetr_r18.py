"""transformers' RT-DETRv2 with ResNet-18, unmodified, its random weights scaled on images."""

from typing import Any

import torch
from torch import Tensor, nn

from iqvit.models.initialise import normalise_layers

SIZE = (640, 640)
PREPROCESSING = {
    "size": list(SIZE),
    "resize": list(SIZE),
    "crop": "squash",
    "interpolation": "bilinear",
}
OUTPUTS = ("logits", "pred_boxes")
# Standard deviations of a trained detector's order: scores that tell queries apart, boxes that move
# less from layer to layer than they differ, samples a few steps around their box.
SPREAD = {
    "*enc_score_head": 2.0,
    "*class_embed*": 2.0,
    "*bbox_embed.*.layers.2": 0.3,
    "*enc_bbox_head.layers.2": 0.5,
}
# The share of a kernel that is smooth, and the mean of what a batch norm gives. With independent
# taps and no mean the network is chaotic: 1 % of noise in the image leaves 0 dB of signal behind
# the encoder, in float, and so does any rounding. With these it leaves 30 dB.
SMOOTH, MEAN = 0.8, 1.0


def rtdetr_r18(images: Tensor, method: str = "default", seed: int = 0, **changes: Any) -> nn.Module:
    """`RTDetrV2ForObjectDetection` of RT-DETRv2-S for COCO, in eval mode.

    images: uint8 [N, 3, H, W], which the weights are scaled on. method: "default" (bilinear
    sampling) or "discrete". changes: other values of the configuration.
    """
    from transformers import RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection

    backbone = RTDetrResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    settings: dict[str, Any] = {
        "backbone_config": backbone,
        "encoder_in_channels": [128, 256, 512],
        "hidden_expansion": 0.5,
        "decoder_layers": 3,
        "decoder_method": method,
        "num_labels": 80,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RTDetrV2ForObjectDetection(RTDetrV2Config(**settings | changes)).eval()
        _draw(model)
        normalise_layers(model, images.float() / 255, SPREAD)
    return model


def _draw(model: nn.Module) -> None:
    """Random kernels that are mostly smooth, batch norms with a mean."""
    binomial = torch.tensor([1.0, 2.0, 1.0]) / 4
    for part in model.modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3):
            size = torch.randn(*part.weight.shape[:2], 1, 1)
            taps = torch.randn(part.weight.shape) / 9
            smooth = size * binomial[:, None] * binomial
            part.weight.data.copy_(SMOOTH * smooth + (1 - SMOOTH) * taps)
        elif isinstance(getattr(part, "running_var", None), Tensor):
            nn.init.constant_(part.bias, MEAN)  # type: ignore[arg-type]
