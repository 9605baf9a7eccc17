"""RT-DETRv2 from image to boxes."""

from torch import Tensor, nn

from iqvit.errors import ModelError
from iqvit.models.detections import Detected, best_pairs
from iqvit.models.rtdetr.config import PyramidConfig, RTDetrConfig
from iqvit.models.rtdetr.decoder import Decoder
from iqvit.models.rtdetr.encoder import HybridEncoder
from iqvit.models.rtdetr.pyramid import ViTPyramid
from iqvit.models.rtdetr.resnet import ResNet


class RTDetr(nn.Module):
    """Image float32 [N, 3, H, W] -> (box logits [N, Q, 4], class logits [N, Q, classes]).

    Boxes are (cx, cy, w, h) as fractions of the image, before the sigmoid. Anchors and position
    embeddings are buffers of the configured size, no part of the state dict. The authors' weights
    expect pixels / 255 without mean and std. Weights are drawn from torch's random state.
    """

    def __init__(self, config: RTDetrConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = _backbone(config)
        self.encoder = HybridEncoder(config, self.backbone.channels)
        self.decoder = Decoder(config)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.decoder(self.features(x))

    def features(self, x: Tensor) -> list[Tensor]:
        """What the decoder reads: three maps [N, width, H/s, W/s] of strides 8, 16 and 32."""
        return self.encoder(self.backbone(x))


class Detections(nn.Module):
    """The detector with its postprocessing: float32 [N, 3, H, W] -> boxes, scores and labels.

    The `top` best pairs of query and class: see `Detected`.
    """

    def __init__(self, detector: nn.Module, top: int) -> None:
        super().__init__()
        config = getattr(detector, "config", None)
        if isinstance(config, RTDetrConfig) and not 1 <= top <= config.queries * config.classes:
            raise ModelError(
                f"the best {top} detections are asked for, of {config.queries} queries and "
                f"{config.classes} classes; take 1 to {config.queries * config.classes}"
            )
        self.detector = detector
        self.top = top

    def forward(self, x: Tensor) -> Detected:
        boxes, logits = self.detector(x)
        best = best_pairs(boxes, logits, self.top)
        return Detected(best.boxes.sigmoid(), best.scores, best.labels)


def _backbone(config: RTDetrConfig) -> ResNet | ViTPyramid:
    if isinstance(config.backbone, PyramidConfig):
        return ViTPyramid(config.backbone, config.image_size)
    return ResNet(config.backbone)
