"""A small vision transformer, written to be captured, with timm's names for its weights.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021); the layout of the weights is
that of timm's `vision_transformer.py`, so that either loads the other's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from iqvit.errors import ModelError

EPS = 1e-6
"""Epsilon of every LayerNorm, as in timm's ViT."""


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a ViT: pixels of the square image and of a patch, width, blocks, heads, classes."""

    image_size: int = 224
    patch_size: int = 16
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: int = 4
    classes: int = 1000

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1:
            raise ModelError(f"a ViT has no size below 1: {self}")
        if self.image_size % self.patch_size != 0:
            raise ModelError(
                f"an image of {self.image_size} pixels is not a whole number of patches of "
                f"{self.patch_size}"
            )
        if self.width % self.heads != 0:
            raise ModelError(f"a width of {self.width} does not divide into {self.heads} heads")

    @property
    def tokens(self) -> int:
        """Patches plus the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


class Attention(nn.Module):
    """Multi-head self-attention, [N, tokens, width] -> [N, tokens, width]."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Linear, GELU, linear over the last axis, [N, tokens, width] -> the same."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_ratio * config.width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(config.mlp_ratio * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block, [N, tokens, width] -> the same."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=EPS)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=EPS)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Patches as tokens, [N, 3, H, W] -> [N, patches, width], row by row."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """Vision transformer classifier, float32 [N, 3, H, W] -> logits [N, classes].

    The class token comes first; its row of the last LayerNorm goes to the head. Weights are drawn
    from torch's random state: truncated normal of 0.02 for linear layers and embeddings.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.width))
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.Sequential(*[Block(config) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.width, eps=EPS)
        self.head = nn.Linear(config.width, config.classes)
        self.apply(_initialise)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0])


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
