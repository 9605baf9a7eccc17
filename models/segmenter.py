"""Segmenter: a plain ViT encoder with a linear or a mask-transformer decoder, made for capture.

Source: Strudel et al., "Segmenter: Transformer for Semantic Segmentation" (ICCV 2021), section 3.
The names of the weights are those of the authors' public repository, so that either loads the
other's checkpoints.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from iqvit.errors import ModelError
from iqvit.models.float_model import FloatModel
from iqvit.models.vit import (
    EPS,
    ViTConfig,
    ViTEncoder,
    initialise_linear,
    make_blocks,
    require_heads,
    resample_positions,
)
from iqvit.models.vit_loading import load_vit_encoder
from iqvit.models.weights import Weights

DECODERS = ("linear", "mask")
MOST_CLASSES = 255
"""A class map is uint8, and 255 marks pixels to ignore in annotations."""
POSITIONS = "encoder.pos_embed"


@dataclass(frozen=True)
class SegmenterConfig:
    """Sizes of a Segmenter.

    image_size: (height, width) in pixels, multiples of patch_size. width, depth, heads, mlp_ratio:
    of the encoder; the decoder has its width and mlp_ratio. decoder: "linear" or "mask", which has
    decoder_depth blocks of decoder_heads heads. normalise: whether patch and class vectors are
    L2-normalised before their product. drop_path: stochastic depth of the encoder in training, 0
    in the first block to this rate in the last. eps: of every LayerNorm (timm's 1e-6; the public
    checkpoints have torch's 1e-5).
    """

    image_size: tuple[int, int]
    classes: int
    patch_size: int = 16
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: int = 4
    decoder: str = "linear"
    decoder_depth: int = 2
    decoder_heads: int = 3
    normalise: bool = True
    drop_path: float = 0.0
    eps: float = EPS

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= MOST_CLASSES:
            raise ModelError(f"a class map has 2 to {MOST_CLASSES} classes, not {self.classes}")
        if self.decoder not in DECODERS:
            raise ModelError(f"no decoder {self.decoder!r}; it is one of {', '.join(DECODERS)}")
        if self.patch_size >= 1 and min(self.image_size) < self.patch_size:
            height, width = self.image_size
            raise ModelError(
                f"an image of {height}x{width} pixels is smaller than a patch of {self.patch_size}"
            )
        if min(self.decoder_depth, self.decoder_heads) < 1:
            raise ModelError(f"a decoder has no size below 1: {self}")
        if self.decoder == "mask":
            require_heads(self.width, self.decoder_heads)
        # Checks what encoder and decoder share.
        _ = self.encoder

    @property
    def encoder(self) -> ViTConfig:
        """The sizes of the encoder alone."""
        return ViTConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            eps=self.eps,
            drop_path=self.drop_path,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches, the resolution of the logits."""
        return self.encoder.grid


class LinearDecoder(nn.Module):
    """One linear layer for every patch, [N, patches, width] -> [N, patches, classes]."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.head = nn.Linear(config.width, config.classes)
        self.apply(initialise_linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


class MaskDecoder(nn.Module):
    """Class embeddings through a transformer with the patches, then their scalar products.

    [N, patches, width] -> [N, patches, classes]; equation 3 of the paper, followed by the
    LayerNorm over the classes.
    """

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        width = config.width
        self.classes = config.classes
        self.normalise = config.normalise
        self.proj_dec = nn.Linear(width, width)
        self.cls_emb = nn.Parameter(torch.zeros(1, config.classes, width))
        self.proj_patch = nn.Parameter(torch.randn(width, width) / math.sqrt(width))
        self.proj_classes = nn.Parameter(torch.randn(width, width) / math.sqrt(width))
        self.blocks = make_blocks(
            config.decoder_depth,
            width,
            config.decoder_heads,
            config.mlp_ratio,
            eps=config.eps,
            drop_path=0.0,
        )
        self.decoder_norm = nn.LayerNorm(width, eps=config.eps)
        self.mask_norm = nn.LayerNorm(config.classes, eps=config.eps)
        self.apply(initialise_linear)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[1]
        x = torch.cat([self.proj_dec(x), self.cls_emb.expand(x.shape[0], -1, -1)], dim=1)
        x = self.decoder_norm(self.blocks(x))
        patches = x[:, :count] @ self.proj_patch
        classes = x[:, count:] @ self.proj_classes
        if self.normalise:
            patches = functional.normalize(patches, dim=-1)
            classes = functional.normalize(classes, dim=-1)
        return self.mask_norm(patches @ classes.transpose(1, 2))


def make_decoder(config: SegmenterConfig) -> LinearDecoder | MaskDecoder:
    """The decoder that `config` names."""
    return (LinearDecoder if config.decoder == "linear" else MaskDecoder)(config)


def decode(decoder: nn.Module, tokens: Tensor, config: SegmenterConfig) -> Tensor:
    """The encoder's tokens [N, 1 + patches, width] -> logits [N, classes, H / patch, W / patch]."""
    # The class token has done its work in attention; only patches are decoded.
    scores = decoder(tokens[:, 1:])
    return scores.transpose(1, 2).reshape(-1, config.classes, *config.grid)


def upsample(logits: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Logits [N, classes, h, w] resized bilinearly to (height, width) of the image."""
    return functional.interpolate(logits, size=image_size, mode="bilinear", align_corners=False)


class Segmenter(nn.Module):
    """Normalised images float32 [N, 3, H, W] -> logits [N, classes, H / patch, W / patch].

    H and W are those of `config.image_size`. Weights are drawn from torch's random state.
    """

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ViTEncoder(config.encoder)
        self.encoder.initialise()
        self.decoder = make_decoder(config)

    def forward(self, x: Tensor) -> Tensor:
        return decode(self.decoder, self.encoder(x), self.config)


class Logits(nn.Module):
    """Normalised images float32 [N, 3, H, W] -> logits [N, classes, H, W], resized bilinearly.

    For sliding windows, whose logits are summed before the largest is chosen.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, x: Tensor) -> Tensor:
        return upsample(self.segmenter(x), self.segmenter.config.image_size)


class ClassMap(Logits):
    """Normalised images float32 [N, 3, H, W] -> class indices int64 [N, H, W].

    The class of the largest of `Logits`; of equal ones the lowest index.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(dim=1)


def with_logits(model: FloatModel) -> FloatModel:
    """The same segmenter, ending in `Logits` instead of in `ClassMap`; ModelError for others."""
    if not isinstance(model.module, Logits):
        raise ModelError(f"{model.name} is no segmenter, so that it has no logits of every pixel")
    return replace(model, module=Logits(model.module.segmenter).eval())


def at_size(
    segmenter: Segmenter, image_size: tuple[int, int], *, drop_path: float | None = None
) -> Segmenter:
    """`segmenter` itself, or a copy of it for images of `image_size` (height, width).

    The position embedding of the copy is resampled to its grid; mode and device are kept, and
    torch's random state is left as it was. drop_path: the copy's, where not the same. Raises
    ModelError for sizes that are no whole patches.
    """
    config = segmenter.config
    rate = config.drop_path if drop_path is None else drop_path
    wanted = replace(config, image_size=image_size, drop_path=rate)
    if wanted == config:
        return segmenter
    with torch.random.fork_rng(devices=[]):
        made = Segmenter(wanted)
    tensors = segmenter.state_dict()
    positions = tensors[POSITIONS].float()
    made.load_state_dict(
        {**tensors, POSITIONS: resample_positions(positions, config.grid, wanted.grid)}
    )
    return made.to(positions.device).train(segmenter.training)


def load_encoder(segmenter: Segmenter, weights: Weights) -> tuple[str, ...]:
    """Copies timm's ViT `weights` into the encoder; returns notes for the user.

    The classifier's head is left out, and the position embedding of a square image is resampled to
    the segmenter's grid. Raises ModelError for other missing, unexpected or wrongly shaped weights.
    """
    return load_vit_encoder(segmenter.encoder, weights)
