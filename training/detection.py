"""The detection task: an RT-DETR, images with boxes, the losses of DETR, mAP."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.transforms.v2.functional import resize

from iqvit.errors import DataError, IqvitError
from iqvit.eval.boxes import BoxFormat, BoxPredictor, in_pixels
from iqvit.eval.coco_data import CocoItem, CocoSet
from iqvit.eval.detection import Result, coco_metrics, coco_results
from iqvit.eval.preprocess import Preprocess
from iqvit.models.rtdetr.config import PATCH, STRIDES
from iqvit.models.rtdetr.folder import POSITIONS, DetectorCard, save_detector
from iqvit.models.rtdetr.model import Detections, RTDetr
from iqvit.models.rtdetr.training import (
    Denoising,
    Labels,
    detection_loss,
    require_losses,
    training_forward,
)
from iqvit.models.vit import resample_positions
from iqvit.processes import World
from iqvit.training.box_augment import BoxAugment, BoxAugmentation
from iqvit.training.images import USUAL_CACHE, Cached, names_hash, normalise, plain
from iqvit.training.start import Start
from iqvit.training.task import Network

Sample = tuple[Tensor, Tensor, Tensor, Tensor]
"""Image, labels, boxes, and the drawn index of the batch's size."""

RATIOS = (0.75, 0.875, 1.0, 1.125, 1.25)
POSITIONS_HERE = f"detector.{POSITIONS}"
BEST = 100
"""Detections of an image that are scored: as many as COCO's metric looks at."""


@dataclass(frozen=True)
class DetectionOptions:
    """denoising: noisy queries of an image, 0 for none. cache: bytes of decoded images that a
    process keeps in memory. backbone_lr_scale: times the learning rate, for the backbone.
    multi_scale: a batch has one of the sizes that `scales` gives, otherwise the model's."""

    augmentation: BoxAugmentation = field(default_factory=BoxAugmentation)
    denoising: int = 100
    backbone_lr_scale: float = 1.0
    multi_scale: bool = False
    cache: int = USUAL_CACHE

    def __post_init__(self) -> None:
        if not 0 < self.backbone_lr_scale < math.inf:
            raise IqvitError(
                f"the backbone's learning rate cannot be {self.backbone_lr_scale} times the other"
            )


class LearningDetector(nn.Module):
    """Images float32 [N, 3, H, W] and their objects -> the loss, a scalar."""

    def __init__(self, detector: RTDetr, denoising: int) -> None:
        super().__init__()
        self.detector = detector
        self.denoising = Denoising(queries=denoising) if denoising else None
        self.others: dict[tuple[int, int], LearningDetector] = {}

    def forward(self, images: Tensor, objects: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        size = (images.shape[2], images.shape[3])
        if size != self.detector.config.image_size:
            return functional_call(self._at(size), self._weights_at(size), (images, objects))
        labels: list[Labels] = [{"class_labels": ids, "boxes": boxes} for ids, boxes in objects]
        outputs = training_forward(self.detector, images, labels, self.denoising)
        loss, _ = detection_loss(outputs, labels)
        # Nothing else reads it where a batch has no object; several processes average gradients of
        # all parameters.
        return loss + 0.0 * self.detector.decoder.denoising_class_embed.weight.sum()

    def _at(self, size: tuple[int, int]) -> "LearningDetector":
        """The same with the anchors and positions of another size; its weights are never read."""
        if size not in self.others:
            config = replace(self.detector.config, image_size=size)
            queries = self.denoising.queries if self.denoising else 0
            self.others[size] = LearningDetector(RTDetr(config), queries).train()
        return self.others[size]

    def _weights_at(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """This one's parameters and statistics, the learned positions of a ViT resampled."""
        weights = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        named = {name: weights[name] for name in self.state_dict()}
        if POSITIONS_HERE in named:
            config = self.detector.config
            named[POSITIONS_HERE] = resample_positions(
                named[POSITIONS_HERE], patches(config.image_size), patches(size)
            )
        return named


class DetectionTask:
    """A `Task`: learn `train`, be scored on `val`.

    The loss is that of RT-DETR (`iqvit.models.rtdetr.training`). Crowd regions are not learnt.
    Validation squashes whole images to the model's size, as the other commands do.
    """

    metric = "mAP"

    def __init__(
        self, start: Start[RTDetr], train: CocoSet, val: CocoSet, options: DetectionOptions
    ) -> None:
        require_losses()
        if train.classes != val.classes:
            raise DataError("training and validation images have different classes")
        for data in (train, val):
            require_boxes(data)
        config = start.model.config
        self.start, self.options, self.val = start, options, val
        self.model: nn.Module = LearningDetector(start.model, options.denoising)
        self.samples = len(train)
        self.train, self.pixels = train, Cached(lambda i: (train.image(i),), options.cache)
        fill = tuple(round(255 * value) for value in start.mean)
        self.augment = BoxAugment(
            config.image_size, (fill[0], fill[1], fill[2]), options.augmentation
        )
        self.sizes = scales(config.image_size) if options.multi_scale else (config.image_size,)
        self.facts: Mapping[str, Any] = {
            "model": start.name,
            "weights": start.weights,
            "classes": list(train.classes),
            "model sizes": listed(config.to_dict()),
            "training images": self.samples,
            "validation images": len(val),
            "names of the images": names_hash(i.path for data in (train, val) for i in data.items),
            "augmentation": asdict(options.augmentation),
            "denoising queries": options.denoising,
            "sizes of batches": [list(size) for size in self.sizes],
            "backbone learning rate scale": options.backbone_lr_scale,
        }

    def prepare(self, world: World) -> None:
        """Nothing has to be counted."""

    def sample(self, index: int) -> Sample:
        item = self.train.items[index]
        known = ~item.iscrowd
        (image,) = self.pixels(index)
        made = self.augment(image, item.boxes[known], item.labels[known])
        return (*made, torch.randint(len(self.sizes), ()))

    def collate(
        self, samples: Sequence[Sample]
    ) -> tuple[Tensor, tuple[tuple[Tensor, Tensor], ...]]:
        """The batch has the size that its first sample drew."""
        images, labels, boxes, drawn = zip(*samples, strict=True)
        size = list(self.sizes[int(drawn[0])])
        batch = resize(torch.stack(images), size, antialias=True)
        return batch, tuple(zip(labels, boxes, strict=True))

    def loss(self, network: Network, batch: Any) -> Tensor:
        images, objects = batch
        return network(normalise(images, self.start.mean, self.start.std), objects)

    def learning_rate_scale(self, name: str) -> float:
        return self.options.backbone_lr_scale if ".backbone." in name else 1.0

    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        predict, numbers = self.predictor(model)
        config = self.start.model.config
        prepare = Preprocess(config.image_size, crop="squash", interpolation="bilinear")
        results: list[Result] = []
        for index in world.share(len(self.val)):
            item = self.val.items[index]
            pixels = prepare(item.path)[None].to(world.device)
            results += image_results(self.val, item, predict(pixels), numbers)
        return average_precision(self.val, self.val.items, world.gather(results))

    def predictor(self, model: nn.Module) -> tuple[BoxPredictor, BoxFormat]:
        """The model, of pixels on its device, and what its numbers stand for."""
        detector = _detector(model)
        config = detector.config
        detections = Detections(detector, min(BEST, config.queries * config.classes)).eval()
        mean, std = self.start.mean, self.start.std
        return lambda pixels: detections(normalise(pixels, mean, std)), BoxFormat()

    def save(self, folder: Path, model: nn.Module) -> None:
        card = DetectorCard(self.val.classes, self.start.mean, self.start.std)
        save_detector(folder, _detector(model), card)


def image_results(
    data: CocoSet,
    item: CocoItem,
    detected: tuple[Tensor, Tensor, Tensor],
    numbers: BoxFormat | None = None,
) -> list[Result]:
    """Boxes, scores and labels of an image as a COCO results file has them.

    numbers: what they stand for, where it is not what those of a float model do.
    """
    boxes, scores, labels = (part.cpu() for part in detected)
    classes = range(len(data.classes))
    given = numbers or BoxFormat()
    found = in_pixels((boxes, scores, labels), item.size, given, str(item.path), classes)
    return coco_results(item, found, data.category_ids)


def average_precision(
    data: CocoSet, items: Sequence[CocoItem], results: list[Result]
) -> dict[str, float]:
    """mAP and AP50 in 0..100."""
    stats, _ = coco_metrics(data, items, results)
    return {name: value for name in ("mAP", "AP50") if (value := stats[name]) is not None}


def require_boxes(data: CocoSet) -> None:
    """Before an epoch of learning nothing, or of a score that is not defined."""
    if all(bool(item.iscrowd.all()) for item in data.items):
        raise DataError(f"{data.annotations} has no box (crowd regions are none)")


def scales(size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Sizes (height, width) of 3/4 to 5/4 of `size` whose sides are multiples of 32."""
    sides = [
        [max(1, round(side * ratio / STRIDES[-1])) * STRIDES[-1] for ratio in RATIOS]
        for side in size
    ]
    return tuple(dict.fromkeys(zip(*sides, strict=True)))


def patches(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the ViT's patches."""
    return size[0] // PATCH, size[1] // PATCH


def _detector(model: nn.Module) -> RTDetr:
    if not isinstance(model, LearningDetector):
        raise TypeError(f"a LearningDetector is trained here, not a {type(model).__name__}")
    return model.detector


def listed(values: Mapping[str, Any]) -> dict[str, Any]:
    """`plain` for a mapping with mappings in it."""
    return plain({k: listed(v) if isinstance(v, Mapping) else v for k, v in values.items()})
