"""The segmentation task: a Segmenter, images with masks, cross entropy, mIoU."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from iqvit.errors import DataError, IqvitError
from iqvit.eval.preprocess import Preprocess
from iqvit.eval.segmentation import ConfusionMatrix, resize_nearest
from iqvit.eval.segmentation_data import IGNORE, SegmentationSet
from iqvit.models.segmenter import ClassMap, Segmenter, at_size, upsample
from iqvit.models.segmenter_folder import SegmenterMeta, save_segmenter
from iqvit.processes import World
from iqvit.training.augment import Augment
from iqvit.training.images import USUAL_CACHE, Cached, names_hash, normalise, plain
from iqvit.training.start import Start
from iqvit.training.task import Network

WEIGHTINGS = ("none", "sqrt-inverse")


@dataclass(frozen=True)
class Options:
    """size: (height, width) of the model's input, for validation and in what is saved. crop: that
    of training, no larger. cache: bytes of decoded images that a process keeps in memory."""

    size: tuple[int, int]
    crop: tuple[int, int]
    class_weights: str = "none"
    encoder_lr_scale: float = 1.0
    cache: int = USUAL_CACHE

    def __post_init__(self) -> None:
        require_weighting(self.class_weights)
        if self.crop[0] > self.size[0] or self.crop[1] > self.size[1]:
            crop, size = ("x".join(map(str, pair)) for pair in (self.crop, self.size))
            raise IqvitError(f"training crops of {crop} are larger than the input of {size}")
        if not 0 < self.encoder_lr_scale < math.inf:
            raise IqvitError(
                f"the encoder's learning rate cannot be {self.encoder_lr_scale} times the other"
            )


class SegmentationTask:
    """A `Task`: learn `train`, be scored on `val`.

    The loss is the cross entropy over the pixels that have a class, of logits upsampled bilinearly
    to the crop. Validation squashes whole images to `size`, as the other commands do, and counts
    at the resolution of the masks.
    """

    metric = "mIoU"

    def __init__(
        self,
        start: Start[Segmenter],
        train: SegmentationSet,
        val: SegmentationSet,
        options: Options,
    ) -> None:
        if train.classes != val.classes:
            raise DataError("training and validation images have different classes")
        self.start, self.options, self.val = start, options, val
        self.model: nn.Module = start.model
        self.samples = len(train)
        self.train = Cached(lambda i: (train.image(i), train.mask(i)), options.cache)
        fill = tuple(round(255 * value) for value in start.mean)
        self.augment = Augment(options.size, options.crop, (fill[0], fill[1], fill[2]))
        self.weight: Tensor | None = None
        self.facts: Mapping[str, Any] = {
            "model": start.name,
            "weights": start.weights,
            "classes": list(train.classes),
            "model sizes": plain(asdict(start.model.config)),
            "training images": self.samples,
            "validation images": len(val),
            "names of the images": names_hash(
                image for data in (train, val) for image, _ in data.items
            ),
            "input size": list(options.size),
            "crop": list(options.crop),
            "drop path": start.model.config.drop_path,
            "class weights": options.class_weights,
            "encoder learning rate scale": options.encoder_lr_scale,
        }

    def prepare(self, world: World) -> None:
        """Count the classes where the loss weighs them; once, before training."""
        if self.options.class_weights == "sqrt-inverse":
            share = world.share(self.samples)
            counts = world.sum(class_counts(self.train, share, len(self.val.classes)))
            self.weight = sqrt_inverse(counts).to(world.device)

    def sample(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.train(index)
        return self.augment(image, mask)

    def collate(self, samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        images, masks = zip(*samples, strict=True)
        return torch.stack(images), torch.stack(masks)

    def loss(self, network: Network, batch: Any) -> Tensor:
        images, masks = batch
        logits = network(normalise(images, self.start.mean, self.start.std))
        return cross_entropy(logits.float(), masks.long(), self.weight)

    def learning_rate_scale(self, name: str) -> float:
        return self.options.encoder_lr_scale if name.startswith("encoder.") else 1.0

    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        class_map = self.class_maps(model)
        prepare = Preprocess(self.options.size, crop="squash", interpolation="bilinear")
        matrix = ConfusionMatrix(len(self.val.classes))
        for index in world.share(len(self.val)):
            image = prepare(self.val.items[index][0])[None].to(world.device)
            found = class_map(image)[0].cpu()
            mask = self.val.mask(index)
            matrix.add(resize_nearest(found, mask.shape), mask)
        matrix.counts = world.sum(matrix.counts).cpu()
        return {"mIoU": matrix.miou(), "pixel_accuracy": matrix.pixel_accuracy()}

    def class_maps(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """From pixels uint8 [1, 3, H, W] on the model's device to classes [1, H, W]."""
        class_map = ClassMap(self._whole(model)).eval()
        return lambda pixels: class_map(normalise(pixels, self.start.mean, self.start.std))

    def save(self, folder: Path, model: nn.Module) -> None:
        meta = SegmenterMeta(self.val.classes, self.start.mean, self.start.std, self.val.palette)
        save_segmenter(folder, self._whole(model), meta)

    def _whole(self, model: nn.Module) -> Segmenter:
        """The model for the input size, whatever crops it is trained on."""
        if not isinstance(model, Segmenter):
            raise TypeError(f"a Segmenter is trained here, not a {type(model).__name__}")
        return at_size(model, self.options.size)


def require_weighting(name: str) -> None:
    """IqvitError for a name of no weighting of the classes."""
    if name not in WEIGHTINGS:
        raise IqvitError(f"class weights {name!r} are none of {', '.join(WEIGHTINGS)}")


def class_counts(read: Cached, indices: Sequence[int], classes: int) -> Tensor:
    """float64 [classes]: pixels of each class in the masks of `indices`."""
    total = torch.zeros(IGNORE + 1, dtype=torch.int64)
    for index in indices:
        total += torch.bincount(read(index)[1].flatten().long(), minlength=IGNORE + 1)
    return total[:classes].double()


def cross_entropy(logits: Tensor, masks: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over the pixels with a class; logits [N, C, h, w] are upsampled to masks [N, H, W].

    0, with a gradient of 0, where no pixel has a class, as in a crop of padding alone.
    """
    full = upsample(logits, (masks.shape[1], masks.shape[2]))
    total = functional.cross_entropy(
        full, masks, weight=weight, ignore_index=IGNORE, reduction="sum"
    )
    labelled = masks != IGNORE
    if weight is None:
        return total / labelled.sum().clamp(min=1)
    return total / weight[masks[labelled]].sum().clamp(min=1e-12)


def sqrt_inverse(counts: Tensor) -> Tensor:
    """float32 [C] in proportion to 1 / sqrt(pixels), mean 1; classes without pixels weigh 0."""
    weight = torch.where(counts > 0, counts.clamp(min=1).rsqrt(), 0.0)
    return (weight / weight.sum() * len(counts)).float()
