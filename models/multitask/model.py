"""A multi-task model from image to class map and boxes."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from iqvit.errors import ModelError
from iqvit.models.detections import MOST_DETECTIONS, best_pairs
from iqvit.models.multitask.config import MultitaskConfig
from iqvit.models.rtdetr.model import RTDetr
from iqvit.models.rtdetr.pyramid import ViTPyramid
from iqvit.models.segmenter import Segmenter, decode, make_decoder, upsample
from iqvit.models.vit import ViTEncoder, resample_positions

POSITIONS = "detector.backbone.vit.pos_embed"


class MapAndBoxes(NamedTuple):
    """What a multi-task model finds.

    classes: int64 [N, H, W], the class of each pixel; the others are the K best boxes as in
    `iqvit.models.detections.Detected`.
    """

    classes: Tensor
    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Multitask(nn.Module):
    """Image float32 [N, 3, H, W] -> logits of the class map [N, classes, H / 16, W / 16], box
    logits [N, Q, 4] and their class logits [N, Q, box classes].

    The encoder runs once. `detector` is a whole RT-DETRv2; its ViT is the Segmenter's encoder as
    well. Weights are drawn from torch's random state.
    """

    def __init__(self, config: MultitaskConfig) -> None:
        super().__init__()
        self.config = config
        self.detector = RTDetr(config.detector)
        self.segmentation = make_decoder(config.segmenter)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        class_map, features = self.features(x)
        return (class_map, *self.detector.decoder(features))

    def features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits of the class map, and the three maps that the box decoder reads."""
        tokens = self.vit(x)
        return self.class_map(tokens), self.detector.encoder(self.pyramid.levels(tokens))

    def class_map(self, tokens: Tensor) -> Tensor:
        """The logits of the class map, from what the ViT gives."""
        return decode(self.segmentation, tokens, self.config.segmenter)

    @property
    def pyramid(self) -> ViTPyramid:
        """The ViT and what makes three levels of its tokens."""
        backbone = self.detector.backbone
        if not isinstance(backbone, ViTPyramid):
            raise TypeError(f"the backbone is a {type(backbone).__name__}")
        return backbone

    @property
    def vit(self) -> ViTEncoder:
        """The encoder that both heads share."""
        return self.pyramid.vit

    def segmenter(self) -> Segmenter:
        """The same weights without the detection head; what is left out is not copied either."""
        with torch.device("meta"):
            made = Segmenter(self.config.segmenter)
        made.encoder, made.decoder = self.vit, self.segmentation
        return made.train(self.training)


class JointOutputs(nn.Module):
    """A multi-task model with its postprocessing: float32 [N, 3, H, W] -> `MapAndBoxes`.

    The class of the largest of the logits resized bilinearly, of equal ones the lowest index; the
    `top` best pairs of query and class.
    """

    def __init__(self, model: Multitask, top: int) -> None:
        super().__init__()
        most = model.config.detector.queries * model.config.detector.classes
        if not 1 <= top <= most:
            raise ModelError(f"the best {top} detections are asked for; take 1 to {most}")
        self.model, self.top = model, top

    def forward(self, x: Tensor) -> MapAndBoxes:
        class_map, boxes, logits = self.model(x)
        classes = upsample(class_map, self.model.config.image_size).argmax(dim=1)
        best = best_pairs(boxes, logits, self.top)
        return MapAndBoxes(classes, best.boxes.sigmoid(), best.scores, best.labels)


def most_detections(config: MultitaskConfig, most: int = MOST_DETECTIONS) -> int:
    """`most`, or fewer where the detection head has fewer pairs of query and class."""
    return min(most, config.detector.queries * config.detector.classes)


def resampled(tensors: dict[str, Tensor], old: MultitaskConfig, new: MultitaskConfig) -> None:
    """Puts the learned positions of the image size of `old` in place of those of `new`."""
    grids = old.segmenter.grid, new.segmenter.grid
    tensors[POSITIONS] = resample_positions(tensors[POSITIONS].float(), *grids)


def at_size(model: Multitask, config: MultitaskConfig) -> Multitask:
    """`model` itself, or a copy of it with another image size or stochastic depth.

    The position embedding of the copy is resampled to its grid; mode and device are kept, and
    torch's random state is left as it was. Raises ModelError for impossible sizes.
    """
    if config == model.config:
        return model
    with torch.random.fork_rng(devices=[]):
        made = Multitask(config)
    tensors = dict(model.state_dict())
    resampled(tensors, model.config, config)
    made.load_state_dict(tensors)
    return made.to(model.vit.pos_embed.device).train(model.training)
