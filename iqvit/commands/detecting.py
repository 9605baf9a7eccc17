"""What `eval` and `predict` share for models that give boxes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iqvit.commands import screen
from iqvit.commands.subject import BOXES, DETECTION, FLOAT, LABELS, SCORES, Subject
from iqvit.errors import DataError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from iqvit.eval.boxes import BoxFormat, BoxPredictor, Found
    from iqvit.eval.preprocess import Preprocess

SHOWN = 3
"""Class names that a message gives as examples."""


@dataclass(frozen=True)
class Detecting:
    """A model of boxes: the program, what its numbers stand for, and its input from a file."""

    predict: "BoxPredictor"
    numbers: "BoxFormat"
    read: "Preprocess"


def detecting(subject: Subject) -> Detecting:
    """How a subject is applied; ModelError for one without boxes, or with boxes without a scale."""
    from iqvit.eval.boxes import BoxFormat

    run = subject.outputs
    if subject.task != DETECTION or run is None:
        raise ModelError(
            f"{subject.name} is a model for {subject.task}, where one for detection is needed"
        )

    def predict(images: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
        found = run(images)
        return found[BOXES], found[SCORES], found[LABELS]

    if subject.kind == FLOAT:
        return Detecting(predict, BoxFormat(), subject.preprocess)
    missing = [name for name in (BOXES, SCORES, LABELS) if name not in subject.qparams]
    if missing:
        raise ModelError(
            f"{subject.name} has the outputs {', '.join(subject.qparams)}; a detector also needs "
            f"{', '.join(missing)}"
        )
    boxes, scores = (_scalars(subject, name) for name in (BOXES, SCORES))
    return Detecting(predict, BoxFormat(*boxes, *scores), subject.preprocess)


def match_classes(subject: Subject, classes: Sequence[str], data: str) -> list[int]:
    """The class of the data for each label of the model, -1 for one that the data does not have.

    By name where the model knows all names of the data; otherwise by index if there are equally
    many, which is said to the user. ModelError for another number of classes.
    """
    own = list(subject.labels)
    if not own:
        return list(range(len(classes)))
    if set(classes) <= set(own) and len(set(own)) == len(own):
        index = {name: i for i, name in enumerate(classes)}
        return [index.get(name, -1) for name in own]
    if len(own) != len(classes):
        unknown = [name for name in classes if name not in own]
        raise ModelError(
            f"{subject.name} has {len(own)} classes and {data} has {len(classes)}, of which the "
            f"model does not know {len(unknown)}: {', '.join(unknown[:SHOWN])}"
        )
    pairs = [f"{a} / {b}" for a, b in zip(own, classes, strict=True) if a != b]
    screen.note(
        f"{len(pairs)} classes have another name in the model than in {data} "
        f"({', '.join(pairs[:SHOWN])}); they are matched by their order"
    )
    return list(range(len(own)))


def require_same_labels(subject: Subject, reference: Subject) -> None:
    """`DataError` for a reference whose labels mean something else."""
    if subject.labels and reference.labels and subject.labels != reference.labels:
        raise DataError(
            f"{reference.name} has other classes than {subject.name}: they are not the same model"
        )


def box_agreement(subject: Subject, reference: Subject, images: "Tensor") -> float | None:
    """The percentage of the detections of two models that both make: see `same_detections`.

    images: uint8 [N, 3, H, W]. Of those with a score of at least `AGREEMENT_SCORE`; None where
    there are none.
    """
    from iqvit.eval.boxes import in_pixels, same_detections
    from iqvit.eval.detection import AGREEMENT_SCORE
    from iqvit.eval.metrics import percent

    size = (images.shape[2], images.shape[3])
    own, theirs = detecting(subject), detecting(reference)

    def found(side: Subject, applied: Detecting, image: "Tensor") -> "Found":
        output = applied.predict(image)
        classes = range(len(side.labels) or int(output[2].max()) + 1)
        return in_pixels(output, size, applied.numbers, side.name, classes)

    pairs = total = 0
    for image in images.split(1):
        one, other = found(subject, own, image), found(reference, theirs, image)
        both, all_ = same_detections(one, other, AGREEMENT_SCORE)
        pairs, total = pairs + both, total + all_
    return percent(2 * pairs, total) if total > 0 else None


def _scalars(subject: Subject, name: str) -> tuple[float, float]:
    known = subject.qparams[name]
    scale = None if known is None else known.get("scale")
    if known is None or not isinstance(scale, float | int):
        raise ModelError(f"{subject.name}: its output {name!r} has no one scale")
    return float(scale), float(known["zero_point"])
