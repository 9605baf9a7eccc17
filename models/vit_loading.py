"""timm's ViT weights into the encoder of a segmenter or a detector."""

import math

from torch import Tensor

from iqvit.errors import ModelError
from iqvit.models.vit import ViTEncoder, resample_positions
from iqvit.models.weights import Weights, load_weights

HEADS = ("head.", "head_dist.", "fc_norm.", "pre_logits.")
"""Weights of a classifier that other tasks have no use for."""


def load_vit_encoder(encoder: ViTEncoder, weights: Weights) -> tuple[str, ...]:
    """Copies timm's ViT `weights` into `encoder`; returns notes for the user.

    The classifier's head is left out, and the position embedding of a square image is resampled to
    the encoder's grid. Raises ModelError for other missing, unexpected or wrongly shaped weights.
    """
    tensors = {k: t for k, t in weights.tensors.items() if not k.startswith(HEADS)}
    notes: list[str] = []
    if len(tensors) < len(weights.tensors):
        notes.append("the classifier's head is left out")
    position = tensors.get("pos_embed")
    if position is not None and position.dim() == 3:
        grid, wanted = _grid_of(position, encoder, weights.source), encoder.config.grid
        if grid != wanted:
            tensors["pos_embed"] = resample_positions(position.float(), grid, wanted)
            sizes = " to ".join(f"{rows}x{columns}" for rows, columns in (grid, wanted))
            notes.append(f"position embedding resampled from {sizes} patches")
    found = load_weights(encoder, Weights(tensors, weights.source, weights.notes))
    return (*found, *notes)


def _grid_of(position: Tensor, encoder: ViTEncoder, source: str) -> tuple[int, int]:
    """A square where the count allows one, for so are pretrained ViTs; else the encoder's own."""
    patches = position.shape[1] - 1
    side = math.isqrt(max(0, patches))
    if side * side == patches:
        return side, side
    if position.shape[1] == encoder.config.tokens:
        return encoder.config.grid
    raise ModelError(
        f"{source}: a position embedding of {position.shape[1]} tokens is not a class token and a "
        "square of patches"
    )
