"""Sizes of an RT-DETRv2, and the named ones."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from iqvit.errors import ModelError
from iqvit.models.vit import ViTConfig

STRIDES = (8, 16, 32)
"""Pixels per cell of the three feature levels, finest first."""

PATCH = 16
"""Pixels of a side of a patch of the plain ViT, the middle stride."""

SAMPLINGS = ("default", "discrete")


def _require_positive(what: str, *sizes: int) -> None:
    if min(sizes) < 1:
        raise ModelError(f"{what} has no size below 1, but one is {min(sizes)}")


def _require_multiple(what: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor != 0:
        raise ModelError(f"{what}, {value}, is not a multiple of {divisor_name}, {divisor}")


@dataclass(frozen=True)
class ResNetConfig:
    """ResNet-D of basic blocks: channels of the stem and of each stage, blocks of each stage.

    The defaults are the ResNet-18 of RT-DETRv2-S.
    """

    stem: int = 64
    channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)

    def __post_init__(self) -> None:
        _require_positive("a ResNet", self.stem, *self.channels, *self.depths)
        if len(self.channels) != 4 or len(self.depths) != 4 or self.stem % 2 != 0:
            raise ModelError(f"a ResNet has an even stem and four stages: {self}")


@dataclass(frozen=True)
class PyramidConfig:
    """Plain ViT of 16x16 patches with a simple feature pyramid; the defaults are ViT-Tiny."""

    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: int = 4
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        _require_positive("a ViT", self.width, self.depth, self.heads, self.mlp_ratio)
        _require_multiple("the width of the ViT", self.width, "the levels that it halves", 2)
        _ = self.encoder((STRIDES[-1], STRIDES[-1]))  # Checks the rest.

    def encoder(self, image_size: tuple[int, int]) -> ViTConfig:
        """The sizes of the ViT for images of (height, width) pixels."""
        return ViTConfig(
            image_size=image_size,
            patch_size=PATCH,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            drop_path=self.drop_path,
        )

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of the three levels: the transposed convolution of stride 8 halves them."""
        return (self.width // 2, self.width, self.width)


BACKBONES: dict[str, type[ResNetConfig] | type[PyramidConfig]] = {
    "resnet": ResNetConfig,
    "vit": PyramidConfig,
}


@dataclass(frozen=True)
class RTDetrConfig:
    """What an RT-DETRv2 is made of; the defaults are RT-DETRv2-S for COCO.

    image_size is (height, width) in pixels. `width` is that of all tokens of encoder and decoder.
    `expansion` is the share of `width` inside the convolution blocks of the encoder, `points` the
    samples of a head on each level. `sampling` is "default" (bilinear, zeros outside) or
    "discrete" (the `dsp` models: one cell for each point, clamped to the border).
    """

    image_size: tuple[int, int] = (640, 640)
    classes: int = 80
    backbone: ResNetConfig | PyramidConfig = ResNetConfig()
    width: int = 256
    heads: int = 8
    encoder_layers: int = 1
    encoder_ffn: int = 1024
    expansion: float = 0.5
    rep_blocks: int = 3
    queries: int = 300
    decoder_layers: int = 3
    decoder_ffn: int = 1024
    points: int = 4
    sampling: str = "default"

    def __post_init__(self) -> None:
        sizes = (self.classes, self.width, self.heads, self.encoder_ffn, self.rep_blocks)
        others = (self.queries, self.decoder_layers, self.decoder_ffn, self.points)
        _require_positive("an RT-DETR", *self.image_size, *sizes, *others)
        for side, pixels in zip(("height", "width"), self.image_size, strict=True):
            _require_multiple(f"the {side} of the image", pixels, "the largest stride", STRIDES[-1])
        _require_multiple("the width", self.width, "the heads", self.heads)
        _require_multiple("the width", self.width, "the four parts of the position embedding", 4)
        if self.encoder_layers < 0 or int(self.width * self.expansion) < 1:
            raise ModelError(
                f"encoder_layers {self.encoder_layers} must be at least 0, and expansion "
                f"{self.expansion} must leave at least one of {self.width} channels"
            )
        if self.sampling not in SAMPLINGS:
            raise ModelError(f"sampling {self.sampling!r} is not one of {', '.join(SAMPLINGS)}")
        if self.queries > self.tokens:
            raise ModelError(
                f"{self.queries} queries are asked for, but an image of {self.image_size[0]}x"
                f"{self.image_size[1]} has only {self.tokens} tokens; use fewer queries or a "
                "larger image"
            )

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Height and width in cells of every feature level, finest first."""
        height, width = self.image_size
        return tuple((height // stride, width // stride) for stride in STRIDES)

    @property
    def tokens(self) -> int:
        """Cells of all levels together."""
        return sum(height * width for height, width in self.levels)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` takes them back."""
        kind = next(name for name, made in BACKBONES.items() if isinstance(self.backbone, made))
        return asdict(self) | {"backbone": {"kind": kind, **asdict(self.backbone)}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RTDetrConfig":
        """The config of `to_dict`; ModelError for unknown keys and backbones."""
        backbone = dict(values.get("backbone", {}))
        kind = backbone.pop("kind", None)
        if kind not in BACKBONES:
            raise ModelError(f"backbone kind {kind!r} is not one of {', '.join(BACKBONES)}")
        made = _from_dict(BACKBONES[kind], backbone)
        return _from_dict(cls, {**values, "backbone": made})


def rtdetrv2_s(**changes: Any) -> RTDetrConfig:
    """RT-DETRv2-S: ResNet-18-D, 3 decoder layers, 640x640; `changes` replace fields."""
    return replace(RTDetrConfig(), **changes)


def rtdetr_vit_tiny(**changes: Any) -> RTDetrConfig:
    """ViT-Tiny with a narrow head at 320x320, of a size that trains on two CPU cores."""
    small = RTDetrConfig(
        image_size=(320, 320),
        backbone=PyramidConfig(),
        width=128,
        heads=4,
        encoder_ffn=256,
        rep_blocks=1,
        queries=100,
        decoder_ffn=256,
    )
    return replace(small, **changes)


def rtdetr_resnet_tiny(**changes: Any) -> RTDetrConfig:
    """A narrow ResNet-D with the same head as `rtdetr_vit_tiny`, to be trained from scratch."""
    backbone = ResNetConfig(stem=32, channels=(32, 64, 128, 192), depths=(1, 1, 2, 1))
    return rtdetr_vit_tiny(**{"backbone": backbone, **changes})


def _from_dict(made: Any, values: Mapping[str, Any]) -> Any:
    unknown = sorted(values.keys() - {field.name for field in fields(made)})
    if unknown:
        raise ModelError(f"{made.__name__} has no field {', '.join(map(repr, unknown))}")
    return made(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
