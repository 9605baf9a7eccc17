"""The segmentation task for a Segmenter that learns through its integers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from iqvit.canonical import shape
from iqvit.errors import DataError, IqvitError
from iqvit.eval.segmentation_data import SegmentationSet
from iqvit.models.segmenter import Segmenter
from iqvit.training.segmentation import Options, SegmentationTask, cross_entropy
from iqvit.training.start import Start
from iqvit.training.task import Network
from iqvit.training.through_integers import ThroughIntegers
from iqvit.training.tuning import learning


class IntegerSegmentationTask(SegmentationTask):
    """`SegmentationTask` for the program of a captured `ClassMap`.

    start: the trained Segmenter that `learner` was captured from. The loss is that of the logits,
    upsampled in the program, that the class map is chosen from; what is scored and saved is the
    integer program. told: facts of the calibration.
    """

    def __init__(
        self,
        start: Start[Segmenter],
        train: SegmentationSet,
        val: SegmentationSet,
        options: Options,
        learner: ThroughIntegers,
        told: Mapping[str, Any],
    ) -> None:
        if options.crop != options.size:
            raise IqvitError("a program has one size: training crops have that of the input")
        (logits,) = learner.frame.results.values()
        classes = shape(logits)[1]
        if classes != len(train.classes):
            raise DataError(f"the segmenter knows {classes} classes, the data {len(train.classes)}")
        super().__init__(start, train, val, options)
        self.model = learner
        self.facts = {**self.facts, "through integers": dict(told)}

    def loss(self, network: Network, batch: Any) -> Tensor:
        images, masks = batch
        (logits,) = network(images).values()
        return cross_entropy(logits, masks.long(), self.weight)

    def learning_rate_scale(self, name: str) -> float:
        return self.options.encoder_lr_scale if "segmenter_encoder_" in name else 1.0

    def class_maps(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        learner = learning(model)
        (name,) = learner.export().outputs
        return lambda pixels: learner.integers(pixels)[name]

    def save(self, folder: Path, model: nn.Module) -> None:
        learning(model).save(folder)
