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
    """Sizes of a ViT: pixels of the image and of a patch, width, blocks, heads, classes.

    image_size: a side, or (height, width). eps: of every LayerNorm; timm's by default. drop_path:
    the rate of the last block (see `DropPath`).
    """

    image_size: int | tuple[int, int] = 224
    patch_size: int = 16
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: int = 4
    classes: int = 1000
    eps: float = EPS
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        sizes = (self.patch_size, self.width, self.depth, self.heads, self.mlp_ratio, self.classes)
        if min(*sizes, *self.pixels) < 1:
            raise ModelError(f"a ViT has no size below 1: {self}")
        if any(side % self.patch_size != 0 for side in self.pixels):
            shown = self.image_size
            if isinstance(shown, tuple):
                shown = f"{shown[0]}x{shown[1]}"
            raise ModelError(
                f"an image of {shown} pixels is not a whole number of patches of {self.patch_size}"
            )
        require_heads(self.width, self.heads)
        if not 0 <= self.drop_path < 1 or not self.eps > 0:
            raise ModelError(f"drop_path lies in 0..1 (1 excluded) and eps above 0: {self}")

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the image."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.pixels
        return height // self.patch_size, width // self.patch_size

    @property
    def tokens(self) -> int:
        """Patches plus the class token."""
        return self.grid[0] * self.grid[1] + 1


def require_heads(width: int, heads: int) -> None:
    """ModelError for a width that attention heads cannot share equally."""
    if width % heads != 0:
        raise ModelError(f"a width of {width} does not divide into {heads} heads")


class Attention(nn.Module):
    """Multi-head self-attention, [N, tokens, width] -> [N, tokens, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Linear, GELU, linear over the last axis, [N, tokens, width] -> the same."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class DropPath(nn.Module):
    """Stochastic depth: in training, leaves a residual branch out for a share of the samples.

    What stays is scaled by 1 / (1 - rate), so that its expectation does not change; in eval mode,
    or at rate 0, the input itself. Source: Huang et al., "Deep Networks with Stochastic Depth"
    (2016), per sample as in timm.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1 - self.rate)


class Block(nn.Module):
    """Pre-norm transformer block, [N, tokens, width] -> the same."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: int, *, eps: float = EPS, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, mlp_ratio * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def make_blocks(
    count: int, width: int, heads: int, mlp_ratio: int, *, eps: float, drop_path: float
) -> nn.Sequential:
    """`count` blocks whose rates of stochastic depth rise linearly from 0 to `drop_path`."""
    rates = [drop_path * i / max(1, count - 1) for i in range(count)]
    return nn.Sequential(
        *[Block(width, heads, mlp_ratio, eps=eps, drop_path=rate) for rate in rates]
    )


class PatchEmbed(nn.Module):
    """Patches as tokens, [N, 3, H, W] -> [N, patches, width], row by row."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class ViTEncoder(nn.Module):
    """A ViT without its head, float32 [N, 3, H, W] -> tokens [N, 1 + patches, width].

    The class token comes first; the last LayerNorm is included. `config.classes` is not used.
    `initialise` draws the weights.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.width))
        self.patch_embed = PatchEmbed(config.width, config.patch_size)
        self.blocks = make_blocks(
            config.depth,
            config.width,
            config.heads,
            config.mlp_ratio,
            eps=config.eps,
            drop_path=config.drop_path,
        )
        self.norm = nn.LayerNorm(config.width, eps=config.eps)

    def initialise(self) -> None:
        """Truncated normal of 0.02 for linear layers and embeddings, from torch's random state."""
        self.apply(initialise_linear)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def encode(self, x: Tensor) -> Tensor:
        """The tokens of normalised images, [N, 3, H, W] -> [N, 1 + patches, width]."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.norm(self.blocks(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)


class ViT(ViTEncoder):
    """Vision transformer classifier, float32 [N, 3, H, W] -> logits [N, classes].

    The class token's row of the last LayerNorm goes to the head.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.head = nn.Linear(config.width, config.classes)
        self.initialise()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encode(x)[:, 0])


def initialise_linear(module: nn.Module) -> None:
    """For `nn.Module.apply`: truncated normal of 0.02 for a linear layer, zero for its bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def resample_positions(
    embedding: Tensor, grid: tuple[int, int], to: tuple[int, int], *, extra: int = 1
) -> Tensor:
    """Position embeddings [1, extra + rows * columns, width] of `grid`, for the grid `to`.

    The first `extra` rows (the class token's) stay; the others are scaled as an image, bicubic and
    antialiased, as timm's `resample_abs_pos_embed` does.
    """
    if grid == to:
        return embedding
    first, patches = embedding[:, :extra], embedding[:, extra:]
    image = patches.reshape(1, *grid, -1).permute(0, 3, 1, 2)
    image = functional.interpolate(
        image, size=to, mode="bicubic", antialias=True, align_corners=False
    )
    return torch.cat([first, image.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
