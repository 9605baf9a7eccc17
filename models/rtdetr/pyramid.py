"""A plain vision transformer with a simple feature pyramid as backbone.

Source: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection" (2022),
section 3: only the last feature map (stride 16) is used; a transposed convolution makes stride 8 of
it and max pooling stride 32. The norms and 1x1 convolutions that follow there are those of the
hybrid encoder here. As there, the class token is left out.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from iqvit.errors import ModelError
from iqvit.models.rtdetr.config import PyramidConfig
from iqvit.models.vit import EPS, Block, PatchEmbed, ViTConfig
from iqvit.models.weights import Weights, load_weights

PATCH = 16


class PlainViT(nn.Module):
    """ViT encoder without class token, [N, 3, H, W] -> tokens [N, H/16 * W/16, width]."""

    def __init__(self, config: PyramidConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        sizes = ViTConfig(PATCH, PATCH, config.width, config.depth, config.heads, config.mlp_ratio)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1], config.width))
        self.patch_embed = PatchEmbed(sizes)
        self.blocks = nn.Sequential(*[Block(sizes) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.width, eps=EPS)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(self.patch_embed(x) + self.pos_embed))


class ViTPyramid(nn.Module):
    """Image float32 [N, 3, H, W] -> features of strides 8, 16 and 32.

    The transposed convolution of kernel 2 and stride 2 is written as the linear layer that it is:
    no two of its outputs overlap.
    """

    def __init__(self, config: PyramidConfig, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.grid = (image_size[0] // PATCH, image_size[1] // PATCH)
        self.channels = config.channels
        self.vit = PlainViT(config, self.grid)
        self.up = nn.Linear(config.width, 4 * self.channels[0])

    def forward(self, x: Tensor) -> list[Tensor]:
        tokens = self.vit(x)
        middle = tokens.transpose(1, 2).unflatten(2, self.grid)
        return [self._upsample(tokens), middle, functional.max_pool2d(middle, 2)]

    def _upsample(self, tokens: Tensor) -> Tensor:
        height, width = self.grid
        cells = self.up(tokens).reshape(-1, height, width, 2, 2, self.channels[0])
        rows = cells.permute(0, 5, 1, 3, 2, 4)
        return rows.reshape(-1, self.channels[0], 2 * height, 2 * width)


def load_vit_encoder(backbone: ViTPyramid, weights: Weights) -> tuple[str, ...]:
    """Copies timm's ViT weights into `backbone.vit`; returns notes for the user.

    Heads are dropped, so are the class token and its position; the square grid of positions is
    resampled (bicubic) to that of the image. ModelError where something else does not fit.
    """
    vit = backbone.vit
    tensors = {k: v for k, v in weights.tensors.items() if k.split(".")[0] not in DROPPED}
    notes = ["ViT encoder without its head and class token"]
    position = tensors.get("pos_embed")
    if position is not None and position.ndim == 3:
        tensors["pos_embed"], note = _resample(position, backbone.grid, weights.source)
        notes.append(note)
    return (*load_weights(vit, Weights(tensors, weights.source, weights.notes)), *notes)


DROPPED = ("head", "head_dist", "fc_norm", "cls_token", "dist_token")


def _resample(position: Tensor, grid: tuple[int, int], source: str) -> tuple[Tensor, str]:
    side = int((position.shape[1]) ** 0.5)
    extra = position.shape[1] - side * side
    if extra > 2:
        raise ModelError(
            f"{source}: {position.shape[1]} positions are not a square grid with a class token; "
            "take the weights of a ViT for square images"
        )
    cells = position[:, extra:].float().transpose(1, 2).unflatten(2, (side, side))
    cells = functional.interpolate(cells, grid, mode="bicubic", antialias=True)
    note = f"positions resampled from {side}x{side} to {grid[0]}x{grid[1]}"
    return cells.flatten(2).transpose(1, 2), note
