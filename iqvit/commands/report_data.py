"""The labelled images of `iqvit report`: one form of them for every task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iqvit.commands.detecting import match_classes
from iqvit.commands.eval import classification_job, require_classifier
from iqvit.commands.eval_coco import detection_job
from iqvit.commands.eval_multitask import multitask_job, require_labels
from iqvit.commands.eval_segmentation import require_classes, segmentation_job
from iqvit.commands.subject import (
    CLASSIFICATION,
    DETECTION,
    MULTITASK,
    SEGMENTATION,
    Subject,
)

if TYPE_CHECKING:
    from iqvit.eval.report_pictures import Seen
    from iqvit.eval.shards import Scored

EQUAL = {"agreement": "equal_detections", "sqnr_db": "sqnr_db", "equal_pixels": "equal_pixels"}
"""What a report calls the metrics of other commands; the rest has the same name."""

MakeJob = Callable[[Subject, Subject | None], Any]
"""The evaluation of a model, compared with another; a `Job` with a `finish`."""


@dataclass(frozen=True)
class Item:
    """An image that is scored; truth reads what is true of it, label is its class in words."""

    path: Path
    truth: "Callable[[], Seen]"
    label: str = ""


@dataclass(frozen=True)
class Material:
    """Labelled images, `available` in all, of which `items` are scored.

    files: what is read to score them, annotations included. job: see `MakeJob`. class_of: the class
    of the data for each label of a box. box_names: the classes that those are.
    """

    place: str
    items: tuple[Item, ...]
    files: tuple[Path, ...]
    available: int
    job: MakeJob
    notes: tuple[str, ...] = ()
    class_of: Sequence[int] | None = None
    box_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """The options that say which images; exclude are those that calibrate."""

    data: Path
    split: str
    class_file: Path | None
    images: int | None
    exclude: tuple[Path, ...] = ()


def read_material(subject: Subject, asked: Asked) -> Material:
    """The data that fits the model's task; DataError or ModelError where it does not."""
    readers: Mapping[str, Callable[[Subject, Asked], Material]] = {
        CLASSIFICATION: _classified,
        SEGMENTATION: _masked,
        DETECTION: _boxed,
        MULTITASK: _both,
    }
    return readers[subject.task](subject, asked)


def outcome(job: Any, scored: "Scored") -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The metrics of a report, and those of each class by kind ("iou", "ap")."""
    from iqvit.eval.report import TITLES

    found = job.finish(scored)
    if isinstance(found, Mapping):
        own: dict[str, Any] = dict(found)
        return _known({**own, "equal_classes": own.get("agreement")}, TITLES), {}
    parts = [getattr(found, name, None) for name in ("maps", "boxes")]
    classes: dict[str, dict[str, Any]] = {}
    for part in (found, *parts):
        for kind in ("iou", "ap"):
            if hasattr(part, kind):
                classes[kind] = dict(getattr(part, kind))
    metrics: dict[str, Any] = found.metrics
    renamed = {EQUAL.get(name, name): value for name, value in metrics.items()}
    return _known(renamed, TITLES), classes


def _known(metrics: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, Any]:
    return {key: metrics[key] for key in titles if metrics.get(key) is not None}


def _classified(subject: Subject, asked: Asked) -> Material:
    from iqvit.eval.imagenet import read_imagenet
    from iqvit.eval.report_pictures import Seen

    require_classifier(subject)
    found = read_imagenet(asked.data)

    def job(model: Subject, reference: Subject | None) -> Any:
        return classification_job(
            model, reference, found, limit=asked.images, exclude=asked.exclude
        )

    chosen = job(subject, None)
    names = found.classes or ()
    items = tuple(
        Item(path, Seen, subject.label(label) or (names[label] if names else f"class {label}"))
        for path, label in chosen.items
    )
    files = tuple(item.path for item in items)
    notes = []
    if chosen.excluded:
        notes.append(f"{chosen.excluded} images of {asked.data} calibrated and are not scored.")
    place, available = str(asked.data), len(found.items) - chosen.excluded
    return Material(place, items, files, available, job, tuple(notes))


def _masked(subject: Subject, asked: Asked) -> Material:
    from iqvit.eval.report_pictures import Seen
    from iqvit.eval.segmentation_data import read_folder

    found = read_folder(asked.data, asked.split, asked.class_file)
    require_classes(subject, found)

    def job(model: Subject, reference: Subject | None) -> Any:
        return segmentation_job(model, reference, found, limit=asked.images)

    chosen = [found.items[index] for index in job(subject, None).chosen]
    places = {image: index for index, (image, _) in enumerate(found.items)}
    items = tuple(
        Item(image, lambda image=image: Seen(found.mask(places[image]))) for image, _ in chosen
    )
    files = tuple(path for pair in chosen for path in pair)
    return Material(str(found.folder), items, files, len(found), job)


def _boxed(subject: Subject, asked: Asked) -> Material:
    from iqvit.eval.coco_data import read_coco
    from iqvit.eval.report_pictures import Seen

    found = read_coco(asked.data, asked.split)
    class_of = match_classes(subject, found.classes, str(found.annotations))

    def job(model: Subject, reference: Subject | None) -> Any:
        return detection_job(model, reference, found, class_of, limit=asked.images)

    chosen = job(subject, None).items
    items = tuple(
        Item(item.path, lambda item=item: Seen(None, item.boxes, item.labels)) for item in chosen
    )
    files = (found.annotations, *(item.path for item in chosen))
    place = str(found.annotations)
    return Material(place, items, files, len(found), job, (), class_of, found.classes)


def _both(subject: Subject, asked: Asked) -> Material:
    from iqvit.eval.multitask_data import read_multitask
    from iqvit.eval.report_pictures import Seen

    found = read_multitask(asked.data, asked.split, asked.class_file)
    place = asked.data / asked.split
    class_of = require_labels(subject, found, place)

    def job(model: Subject, reference: Subject | None) -> Any:
        return multitask_job(model, reference, found, class_of, limit=asked.images)

    def truth(mask: int | None, boxes: int | None) -> Seen:
        class_map = None if found.masks is None or mask is None else found.masks.mask(mask)
        if found.boxes is None or boxes is None:
            return Seen(class_map)
        item = found.boxes.items[boxes]
        return Seen(class_map, item.boxes, item.labels)

    chosen = job(subject, None).places
    items = tuple(Item(one.path, lambda one=one: truth(one.mask, one.boxes)) for one in chosen)
    files = [one.path for one in chosen]
    notes = []
    if found.masks is None:
        notes.append(f"{place} has no masks: the class maps are not scored.")
    else:
        files += [found.masks.items[one.mask][1] for one in chosen if one.mask is not None]
    if found.boxes is None:
        notes.append(f"{place} has no boxes: the detections are not scored.")
    else:
        files.append(found.boxes.annotations)
    names = subject.box_labels if found.boxes is None else found.boxes.classes
    own = range(len(subject.box_labels)) if class_of is None else class_of
    return Material(
        str(place), items, tuple(files), len(found), job, tuple(notes), own, tuple(names)
    )
