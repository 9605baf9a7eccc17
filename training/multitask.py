"""The multi-task task: one ViT, images with masks and boxes, both losses, mIoU and mAP."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iqvit.errors import DataError, IqvitError
from iqvit.eval.boxes import BoxFormat
from iqvit.eval.detection import Result
from iqvit.eval.multitask_data import LabelledSet
from iqvit.eval.preprocess import Preprocess
from iqvit.eval.segmentation import ConfusionMatrix, resize_nearest
from iqvit.models.multitask.folder import MultitaskCard, changed, save_multitask
from iqvit.models.multitask.model import JointOutputs, Multitask, at_size, most_detections
from iqvit.models.rtdetr.training import (
    Denoising,
    Labels,
    decode_for_training,
    detection_loss,
    require_losses,
)
from iqvit.processes import World
from iqvit.training.detection import (
    BEST,
    average_precision,
    image_results,
    listed,
    require_boxes,
)
from iqvit.training.images import USUAL_CACHE, Cached, names_hash, normalise
from iqvit.training.joint_augment import JointAugment, JointAugmentation
from iqvit.training.segmentation import class_counts, cross_entropy, require_weighting, sqrt_inverse
from iqvit.training.start import Start
from iqvit.training.task import Network

Sample = tuple[Tensor, Tensor, Tensor, Tensor]
"""Image, mask, labels and boxes."""
Predictor = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
"""uint8 [1, 3, H, W] -> classes [1, H, W], boxes, scores and labels; see `MapAndBoxes`."""


@dataclass(frozen=True)
class MultitaskOptions:
    """size: (height, width) of the model's input, for validation and in what is saved. crop: that
    of training, no larger. box_weight: times the detection loss, which is then added to the cross
    entropy; with 0 the encoder and the segmentation head learn alone, in half the time.
    class_weights: of the cross entropy, "none" or "sqrt-inverse". denoising: noisy queries of an
    image. cache: bytes of decoded images that a process keeps in memory."""

    size: tuple[int, int]
    crop: tuple[int, int]
    augmentation: JointAugmentation = field(default_factory=JointAugmentation)
    box_weight: float = 0.1
    class_weights: str = "none"
    denoising: int = 100
    encoder_lr_scale: float = 1.0
    cache: int = USUAL_CACHE

    def __post_init__(self) -> None:
        require_weighting(self.class_weights)
        if self.crop[0] > self.size[0] or self.crop[1] > self.size[1]:
            crop, size = ("x".join(map(str, pair)) for pair in (self.crop, self.size))
            raise IqvitError(f"training crops of {crop} are larger than the input of {size}")
        if not 0 <= self.box_weight < math.inf:
            raise IqvitError(f"the weight of the detection loss cannot be {self.box_weight}")
        if not 0 < self.encoder_lr_scale < math.inf:
            raise IqvitError(
                f"the encoder's share of the learning rate cannot be {self.encoder_lr_scale}"
            )


class LearningMultitask(nn.Module):
    """Images float32 [N, 3, H, W], masks int64 [N, H, W] and objects -> both losses, each a scalar.

    The weight of each class in the cross entropy is float32 [classes], or None. Without `boxes`
    their loss is 0, and what only they need is left as it is.
    """

    def __init__(self, model: Multitask, denoising: int, boxes: bool = True) -> None:
        super().__init__()
        self.model, self.boxes = model, boxes
        if not boxes:
            model.detector.requires_grad_(False)
            model.vit.requires_grad_(True)
        self.denoising = Denoising(queries=denoising) if denoising else None

    def forward(
        self,
        images: Tensor,
        masks: Tensor,
        objects: Sequence[tuple[Tensor, Tensor]],
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if not self.boxes:
            class_map = self.model.class_map(self.model.vit(images))
            return cross_entropy(class_map.float(), masks, weight), class_map.new_zeros(())
        decoder = self.model.detector.decoder
        class_map, features = self.model.features(images)
        labels: list[Labels] = [{"class_labels": ids, "boxes": boxes} for ids, boxes in objects]
        outputs = decode_for_training(decoder, features, labels, self.denoising)
        boxes, _ = detection_loss(outputs, labels)
        # As in LearningDetector: what a batch without objects leaves out has a gradient, too.
        boxes = boxes + 0.0 * decoder.denoising_class_embed.weight.sum()
        return cross_entropy(class_map.float(), masks, weight), boxes


class MultitaskTask:
    """A `Task`: learn the masks and boxes of `train`, be scored on `val`.

    The loss is the cross entropy of the class map plus `box_weight` times RT-DETR's. Validation
    squashes whole images to `size`, runs the model once for both, and counts the class map at the
    resolution of the masks. The best epoch is that of the highest `score`, the mean of mIoU and
    mAP.
    """

    metric = "score"

    def __init__(
        self,
        start: Start[Multitask],
        train: LabelledSet,
        val: LabelledSet,
        options: MultitaskOptions,
    ) -> None:
        require_losses()
        if train.masks.classes != val.masks.classes or train.boxes.classes != val.boxes.classes:
            raise DataError("training and validation images have different classes")
        for data in (train, val):
            require_boxes(data.boxes)
        self.start, self.options, self.val = start, options, val
        self.model: nn.Module = LearningMultitask(
            start.model, options.denoising, boxes=options.box_weight > 0
        )
        self.samples = len(train)
        self.train = train
        self.pixels = Cached(lambda i: (train.image(i), train.mask(i)), options.cache)
        fill = tuple(round(255 * value) for value in start.mean)
        self.augment = JointAugment(
            options.size, options.crop, (fill[0], fill[1], fill[2]), options.augmentation
        )
        self.weight: Tensor | None = None
        self.facts: Mapping[str, Any] = {
            "model": start.name,
            "weights": start.weights,
            "classes": list(train.masks.classes),
            "box classes": list(train.boxes.classes),
            "model sizes": listed(start.model.config.to_dict()),
            "training images": self.samples,
            "validation images": len(val),
            "names of the images": names_hash(
                data.item(i).path for data in (train, val) for i in range(len(data))
            ),
            "input size": list(options.size),
            "crop": list(options.crop),
            "augmentation": listed(asdict(options.augmentation)),
            "weight of the detection loss": options.box_weight,
            "class weights": options.class_weights,
            "denoising queries": options.denoising,
            "encoder learning rate scale": options.encoder_lr_scale,
        }

    def prepare(self, world: World) -> None:
        """Count the classes where the loss weighs them; once, before training."""
        if self.options.class_weights == "sqrt-inverse":
            share = world.share(self.samples)
            counts = class_counts(self.pixels, share, len(self.val.masks.classes))
            self.weight = sqrt_inverse(world.sum(counts)).to(world.device)

    def sample(self, index: int) -> Sample:
        item = self.train.item(index)
        known = ~item.iscrowd
        image, mask = self.pixels(index)
        return self.augment(image, mask, item.boxes[known], item.area[known], item.labels[known])

    def collate(
        self, samples: Sequence[Sample]
    ) -> tuple[Tensor, Tensor, tuple[tuple[Tensor, Tensor], ...]]:
        images, masks, labels, boxes = zip(*samples, strict=True)
        return torch.stack(images), torch.stack(masks), tuple(zip(labels, boxes, strict=True))

    def loss(self, network: Network, batch: Any) -> Tensor:
        images, masks, objects = batch
        pixels = normalise(images, self.start.mean, self.start.std)
        class_map, boxes = network(pixels, masks.long(), objects, self.weight)
        return class_map + self.options.box_weight * boxes

    def learning_rate_scale(self, name: str) -> float:
        return self.options.encoder_lr_scale if ".backbone." in name else 1.0

    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        predict, numbers = self.predictor(model)
        val = self.val
        prepare = Preprocess(self.options.size, crop="squash", interpolation="bilinear")
        matrix = ConfusionMatrix(len(val.masks.classes))
        results: list[Result] = []
        for index in world.share(len(val)):
            item, mask = val.item(index), val.mask(index)
            pixels = prepare(item.path)[None].to(world.device)
            classes, boxes, scores, labels = predict(pixels)
            matrix.add(resize_nearest(classes[0].cpu(), mask.shape), mask)
            results += image_results(val.boxes, item, (boxes, scores, labels), numbers)
        matrix.counts = world.sum(matrix.counts).cpu()
        items = [val.item(index) for index in range(len(val))]
        ap = average_precision(val.boxes, items, world.gather(results))
        miou = matrix.miou()
        return {"score": (miou + ap["mAP"]) / 2, "mIoU": miou, **ap}

    def predictor(self, model: nn.Module) -> tuple[Predictor, BoxFormat]:
        """The model, of pixels on its device, and what the numbers of its boxes stand for."""
        whole = self._whole(model)
        joint = JointOutputs(whole, most_detections(whole.config, BEST)).eval()
        mean, std = self.start.mean, self.start.std
        return lambda pixels: joint(normalise(pixels, mean, std)), BoxFormat()

    def save(self, folder: Path, model: nn.Module) -> None:
        masks = self.val.masks
        card = MultitaskCard(
            masks.classes, self.val.boxes.classes, self.start.mean, self.start.std, masks.palette
        )
        save_multitask(folder, self._whole(model), card)

    def _whole(self, model: nn.Module) -> Multitask:
        """The model for the input size, whatever crops it is trained on."""
        if not isinstance(model, LearningMultitask):
            raise TypeError(f"a LearningMultitask is trained here, not a {type(model).__name__}")
        learnt = model.model
        return at_size(learnt, changed(learnt.config, image_size=self.options.size))
