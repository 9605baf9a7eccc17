"""A plain vision transformer with a simple feature pyramid as backbone.

Source: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection" (2022),
section 3: only the last feature map (stride 16) is used; a transposed convolution makes stride 8 of
it and max pooling stride 32. The norms and 1x1 convolutions that follow there are those of the
hybrid encoder here. Unlike there, the class token stays in the encoder, which is thus the one that
was trained before, and that a segmenter has.
"""

import math

from torch import Tensor, nn
from torch.nn import functional

from iqvit.errors import ModelError
from iqvit.models.rtdetr.config import PyramidConfig
from iqvit.models.vit import ViTEncoder, resample_positions
from iqvit.models.weights import Weights, load_weights

HEADS = ("head.", "head_dist.", "fc_norm.", "pre_logits.")
"""Weights of a classifier that a detector has no use for."""


class ViTPyramid(nn.Module):
    """Image float32 [N, 3, H, W] -> features of strides 8, 16 and 32.

    The transposed convolution of kernel 2 and stride 2 is written as the linear layer that it is:
    no two of its outputs overlap.
    """

    def __init__(self, config: PyramidConfig, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.vit = ViTEncoder(config.encoder(image_size))
        self.vit.initialise()
        self.grid = self.vit.config.grid
        self.channels = config.channels
        self.up = nn.Linear(config.width, 4 * self.channels[0])

    def forward(self, x: Tensor) -> list[Tensor]:
        tokens = self.vit(x)[:, 1:]
        middle = tokens.transpose(1, 2).unflatten(2, self.grid)
        return [self._upsample(tokens), middle, functional.max_pool2d(middle, 2)]

    def _upsample(self, tokens: Tensor) -> Tensor:
        rows, columns = self.grid
        cells = self.up(tokens).reshape(-1, rows, columns, 2, 2, self.channels[0])
        cells = cells.permute(0, 5, 1, 3, 2, 4)
        return cells.reshape(-1, self.channels[0], 2 * rows, 2 * columns)


def load_vit_encoder(backbone: ViTPyramid, weights: Weights) -> tuple[str, ...]:
    """Copies timm's ViT `weights` into `backbone.vit`; returns notes for the user.

    The classifier's head is left out, and the positions of a square image are resampled to the grid
    of this one. Raises ModelError for other missing, unexpected or wrongly shaped weights.
    """
    tensors = {k: t for k, t in weights.tensors.items() if not k.startswith(HEADS)}
    notes = ["the classifier's head is left out"] if len(tensors) < len(weights.tensors) else []
    position = tensors.get("pos_embed")
    wanted = backbone.vit.config
    if position is not None and position.dim() == 3 and position.shape[1] != wanted.tokens:
        side = math.isqrt(max(0, position.shape[1] - 1))
        if side * side != position.shape[1] - 1:
            raise ModelError(
                f"{weights.source}: a position embedding of {position.shape[1]} tokens is not a "
                "class token and a square of patches"
            )
        tensors["pos_embed"] = resample_positions(position.float(), (side, side), wanted.grid)
        rows, columns = wanted.grid
        notes.append(f"position embedding resampled from {side}x{side} to {rows}x{columns} patches")
    found = load_weights(backbone.vit, Weights(tensors, weights.source, weights.notes))
    return (*found, *notes)
