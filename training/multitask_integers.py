"""The multi-task task for a model that learns through its integers: both heads of one program."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from iqvit.canonical import shape
from iqvit.errors import DataError, IqvitError
from iqvit.eval.boxes import BoxFormat
from iqvit.eval.multitask_data import LabelledSet
from iqvit.models.multitask.model import Multitask
from iqvit.models.rtdetr.model import RTDetr
from iqvit.training.detection_integers import PREFIX, QueryHeads, detected, numbers
from iqvit.training.multitask import MultitaskOptions, MultitaskTask, Predictor
from iqvit.training.segmentation import cross_entropy
from iqvit.training.start import Start
from iqvit.training.task import Network
from iqvit.training.through_integers import ThroughIntegers
from iqvit.training.tuning import learning

MAP = "classes"


class IntegerMultitask(nn.Module):
    """uint8 images [N, 3, H, W], masks int64 [N, H, W] and objects -> both losses, each a scalar.

    The weight of each class in the cross entropy is float32 [classes], or None.
    """

    def __init__(self, learner: ThroughIntegers, detector: RTDetr) -> None:
        super().__init__()
        self.learner, self.queries = learner, QueryHeads(detector)

    def forward(
        self,
        images: Tensor,
        masks: Tensor,
        objects: Sequence[tuple[Tensor, Tensor]],
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        found = self.learner(images)
        return cross_entropy(found[MAP], masks, weight), self.queries.loss(found, objects)


class IntegerMultitaskTask(MultitaskTask):
    """`MultitaskTask` for the program of captured `JointOutputs`.

    start: the trained model that `learner` was captured from, with `decoder_taps`. What is scored
    and saved is the integer program. told: facts of the calibration.
    """

    def __init__(
        self,
        start: Start[Multitask],
        train: LabelledSet,
        val: LabelledSet,
        options: MultitaskOptions,
        learner: ThroughIntegers,
        told: Mapping[str, Any],
    ) -> None:
        if options.denoising or options.crop != options.size:
            raise IqvitError("a program has its own queries only, and one size")
        results = learner.frame.results
        known = shape(results[MAP])[1], shape(results[f"{PREFIX}logits"])[-1]
        given = len(train.masks.classes), len(train.boxes.classes)
        if known != given:
            raise DataError(
                f"the model knows {known[0]} classes and {known[1]} of boxes, the data {given[0]} "
                f"and {given[1]}"
            )
        super().__init__(start, train, val, options)
        self.model = IntegerMultitask(learner, start.model.detector)
        self.facts = {**self.facts, "through integers": dict(told)}

    def loss(self, network: Network, batch: Any) -> Tensor:
        images, masks, objects = batch
        class_map, boxes = network(images, masks.long(), objects, self.weight)
        return class_map + self.options.box_weight * boxes

    def learning_rate_scale(self, name: str) -> float:
        return self.options.encoder_lr_scale if "_backbone_" in name else 1.0

    def predictor(self, model: nn.Module) -> tuple[Predictor, BoxFormat]:
        learner = _learner(model)

        def predict(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            found = learner.integers(pixels)
            return found[MAP], *detected(found)

        return predict, numbers(learner.export())

    def save(self, folder: Path, model: nn.Module) -> None:
        _learner(model).save(folder)


def _learner(model: nn.Module) -> ThroughIntegers:
    if not isinstance(model, IntegerMultitask):
        raise TypeError(f"an IntegerMultitask is trained here, not a {type(model).__name__}")
    return learning(model.learner)
