"""Sizes of a multi-task model, and the named ones."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from iqvit.errors import ModelError
from iqvit.models.rtdetr.config import PATCH, PyramidConfig, RTDetrConfig, rtdetr_vit_tiny
from iqvit.models.segmenter import SegmenterConfig


@dataclass(frozen=True)
class MultitaskConfig:
    """detector: encoder, pyramid and detection head; its backbone is a plain ViT.

    classes, decoder, decoder_depth, decoder_heads, normalise: of the segmentation head, as in
    `SegmenterConfig`. `detector.classes` counts the kinds of boxes, `classes` those of pixels.
    """

    detector: RTDetrConfig
    classes: int
    decoder: str = "linear"
    decoder_depth: int = 2
    decoder_heads: int = 3
    normalise: bool = True

    def __post_init__(self) -> None:
        _ = self.segmenter  # Checks the rest.

    @property
    def backbone(self) -> PyramidConfig:
        """The sizes of the encoder that both heads share."""
        backbone = self.detector.backbone
        if not isinstance(backbone, PyramidConfig):
            raise ModelError(
                "a multi-task model has a plain ViT as encoder, which both heads read; "
                f"this one has {type(backbone).__name__}"
            )
        return backbone

    @property
    def segmenter(self) -> SegmenterConfig:
        """The sizes of the Segmenter that is left without the detection head."""
        backbone = self.backbone
        return SegmenterConfig(
            image_size=self.detector.image_size,
            classes=self.classes,
            patch_size=PATCH,
            width=backbone.width,
            depth=backbone.depth,
            heads=backbone.heads,
            mlp_ratio=backbone.mlp_ratio,
            decoder=self.decoder,
            decoder_depth=self.decoder_depth,
            decoder_heads=self.decoder_heads,
            normalise=self.normalise,
            drop_path=backbone.drop_path,
        )

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels, multiples of 32."""
        return self.detector.image_size

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` takes them back."""
        return asdict(self) | {"detector": self.detector.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MultitaskConfig":
        """The config of `to_dict`; ModelError for unknown keys."""
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise ModelError(f"a multi-task model has no {', '.join(map(repr, unknown))}")
        return cls(**{**values, "detector": RTDetrConfig.from_dict(values["detector"])})


def multitask_vit_tiny(*, classes: int, box_classes: int, **changes: Any) -> MultitaskConfig:
    """ViT-Tiny with the heads of `rtdetr:vit_tiny` and of a linear Segmenter.

    `changes` replace fields of the detector (`image_size`, `queries`, ...).
    """
    return MultitaskConfig(rtdetr_vit_tiny(classes=box_classes, **changes), classes)


def multitask_small(*, classes: int, box_classes: int, **changes: Any) -> MultitaskConfig:
    """Half the depth of ViT-Tiny at two thirds of its width, for images of 128x160 pixels, so that
    two CPU cores can train it from random weights.

    `changes` replace fields of the detector.
    """
    small = {
        "image_size": (128, 160),
        "backbone": PyramidConfig(width=128, depth=6, heads=4),
        "width": 96,
        "heads": 3,
        "queries": 50,
        "decoder_layers": 2,
    }
    return MultitaskConfig(rtdetr_vit_tiny(classes=box_classes, **{**small, **changes}), classes)
