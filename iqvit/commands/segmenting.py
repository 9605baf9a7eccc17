"""What `eval` and `predict` share for models that give every pixel a class."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iqvit.commands.subject import SEGMENTATION, Subject
from iqvit.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

WindowStride = Annotated[
    int | None,
    typer.Option(
        "--window-stride",
        metavar="N",
        min=1,
        help="Slide the model's input over images larger than it, every N pixels; for a program "
        "made with `quantize --logits`, or a float model.",
    ),
]


@dataclass(frozen=True)
class Segmenting:
    """A model of class maps. predict: uint8 [1, 3, H, W] -> indices [1, H, W]; read: its input
    from an image file, uint8 [3, H, W]."""

    predict: "Callable[[Tensor], Tensor]"
    read: "Callable[[Path], Tensor]"


def require_segmenter(subject: Subject) -> None:
    """`ModelError` for a model that does not give every pixel a class."""
    if subject.task != SEGMENTATION:
        raise ModelError(
            f"{subject.name} is a model for {subject.task}, where one for segmentation is needed"
        )


def segmenting(subject: Subject, stride: int | None) -> Segmenting:
    """How a subject is applied: to whole images resized to its input, or in windows."""
    from iqvit.eval.sliding import class_map, read_covering, sliding_class_map

    require_segmenter(subject)
    height, width = subject.input_shape[2:]
    if stride is not None:
        window = (height, width)
        return Segmenting(
            lambda image: sliding_class_map(subject.scores, image, window, stride),
            lambda path: read_covering(path, window),
        )

    def predict(images: "Tensor") -> "Tensor":
        found = subject.scores(images)
        return class_map(found) if found.dim() == 4 else found

    return Segmenting(predict, subject.preprocess)
