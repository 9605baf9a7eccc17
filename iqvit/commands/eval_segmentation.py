"""`iqvit eval segmentation`, `ade20k`, `cityscapes`: how good class maps are, in mIoU."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iqvit.commands import screen, sharding
from iqvit.commands.eval import Reference, ReferenceWeights, open_reference
from iqvit.commands.options import MODEL_HELP, InputSize, Json, OneThreads, Weights
from iqvit.commands.outputs import require_file, require_folder, write_metrics
from iqvit.commands.segmenting import WindowStride, segmenting
from iqvit.commands.sharding import Resume
from iqvit.commands.subject import SEGMENTATION, Size, Subject, open_subject
from iqvit.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from iqvit.eval.segmentation import SegmentationJob, SegmentationScores
    from iqvit.eval.segmentation_data import SegmentationSet

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Images = Annotated[
    int | None, typer.Option("--images", metavar="N", min=1, help="So many, evenly spaced.")
]
Maps = Annotated[
    Path | None,
    typer.Option("--maps", metavar="DIR", help="Also write every class map there, as a PNG."),
]
Split = Annotated[str, typer.Option("--split", metavar="NAME", help="train or val.")]


@dataclass(frozen=True)
class Settings:
    """The options that all data sets share; see their help texts."""

    weights: Path | None
    input_size: Size | None
    reference: str | None
    reference_weights: Path | None
    images: int | None
    window_stride: int | None
    threads: int | None
    maps: Path | None
    resume: Path | None
    json: Path | None


def segmentation(
    model: Model,
    data: Annotated[
        Path,
        typer.Option("--data", metavar="DIR", help="With SPLIT/images and SPLIT/annotations."),
    ],
    split: Annotated[
        str,
        typer.Option("--split", metavar="NAME", help="A folder in DIR; . where DIR has no splits."),
    ] = "val",
    class_file: Annotated[
        Path | None,
        typer.Option(
            "--class-file",
            metavar="FILE",
            help="One class a line, NAME or NAME R G B, where DIR has no classes.txt.",
        ),
    ] = None,
    class_names: Annotated[
        str | None,
        typer.Option("--class-names", metavar="A,B,...", help="The classes, instead of a file."),
    ] = None,
    ignore: Annotated[
        int | None,
        typer.Option(
            "--ignore", metavar="V", help="Mask value without a class; the class file's, or 255."
        ),
    ] = None,
    weights: Weights = None,
    input_size: InputSize = None,
    reference: Reference = None,
    reference_weights: ReferenceWeights = None,
    images: Images = None,
    window_stride: WindowStride = None,
    threads: OneThreads = None,
    maps: Maps = None,
    resume: Resume = None,
    json: Json = None,
) -> None:
    """mIoU on images with masks, and equality with a float model.

    \b
    Examples:
      iqvit eval segmentation --data DIR --split val artifact/
      iqvit eval segmentation --data DIR --class-file classes.txt artifact/ \\
          --reference segmenter:FOLDER

    A mask has its image's name and size; its values are class indices, in the order of the class
    list. mIoU is the mean over the classes that occur in the masks or in the class maps, of
    intersections and unions summed over all images, in percent, at the masks' resolution: class
    maps are resized to it by nearest neighbour. equal_pixels is the share of pixels that MODEL and
    reference give the same class.
    """
    from iqvit.eval.segmentation_data import read_folder

    names = None if class_names is None else class_names.split(",")
    settings = Settings(
        weights,
        input_size,
        reference,
        reference_weights,
        images,
        window_stride,
        threads,
        maps,
        resume,
        json,
    )
    score(
        model,
        lambda: read_folder(data, split, class_file, class_names=names, ignore=ignore),
        settings,
    )


def ade20k(
    model: Model,
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="ADEChallengeData2016, or around it.")
    ],
    split: Split = "val",
    weights: Weights = None,
    input_size: InputSize = None,
    reference: Reference = None,
    reference_weights: ReferenceWeights = None,
    images: Images = None,
    window_stride: WindowStride = None,
    threads: OneThreads = None,
    maps: Maps = None,
    resume: Resume = None,
    json: Json = None,
) -> None:
    """mIoU on ADE20K, the 150 classes of the 2016 scene parsing challenge.

    \b
    Example:
      iqvit eval ade20k --data ADEChallengeData2016/ artifact/ --images 200

    The mask value 0 is ignored, 1..150 are the classes 0..149 of MODEL. What is measured is told
    by `iqvit eval segmentation --help`.
    """
    from iqvit.eval.segmentation_data import read_ade20k

    settings = Settings(
        weights,
        input_size,
        reference,
        reference_weights,
        images,
        window_stride,
        threads,
        maps,
        resume,
        json,
    )
    score(model, lambda: read_ade20k(data, split), settings)


def cityscapes(
    model: Model,
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="With leftImg8bit/ and gtFine/.")
    ],
    split: Split = "val",
    weights: Weights = None,
    input_size: InputSize = None,
    reference: Reference = None,
    reference_weights: ReferenceWeights = None,
    images: Images = None,
    window_stride: WindowStride = None,
    threads: OneThreads = None,
    maps: Maps = None,
    resume: Resume = None,
    json: Json = None,
) -> None:
    """mIoU on Cityscapes, the 19 classes of its fine annotations.

    \b
    Example:
      iqvit eval cityscapes --data cityscapes/ logits-artifact/ --window-stride 512

    The `labelIds` are mapped to the 19 train ids, which are the classes of MODEL. What is measured
    is told by `iqvit eval segmentation --help`.
    """
    from iqvit.eval.segmentation_data import read_cityscapes

    settings = Settings(
        weights,
        input_size,
        reference,
        reference_weights,
        images,
        window_stride,
        threads,
        maps,
        resume,
        json,
    )
    score(model, lambda: read_cityscapes(data, split), settings)


def score(model: str, read: "Callable[[], SegmentationSet]", settings: Settings) -> None:
    """Open, evaluate, and tell."""
    require_file(settings.json)
    if settings.maps is not None:
        require_folder(settings.maps)
    found = read()
    subject, reference = open_both(model, settings)
    require_classes(subject, found)
    job = segmentation_job(
        subject,
        reference,
        found,
        stride=settings.window_stride,
        limit=settings.images,
        on_map=None if settings.maps is None else map_writer(settings.maps, found),
    )
    maps = None if settings.maps is None else str(settings.maps.resolve())
    scored = sharding.score(
        job,
        subject,
        reference,
        threads=settings.threads,
        resume=settings.resume,
        options={"--window-stride": settings.window_stride, "--maps": maps},
    )
    if scored is None:
        return
    scores = job.finish(scored)
    show(scores, subject, f"{model} ({subject.kind}) on {found.folder}", settings.json)


def segmentation_job(
    subject: Subject,
    reference: Subject | None,
    data: "SegmentationSet",
    *,
    stride: int | None = None,
    limit: int | None = None,
    on_map: "Callable[[Path, Tensor], None] | None" = None,
) -> "SegmentationJob":
    """A segmenter on data; ModelError for a model of another task."""
    from iqvit.eval.segmentation import SegmentationJob

    applied = segmenting(subject, stride)
    compared = None if reference is None else segmenting(reference, stride).predict
    return SegmentationJob(
        applied.predict, data, applied.read, reference=compared, limit=limit, on_map=on_map
    )


def open_both(model: str, settings: Settings) -> tuple[Subject, Subject | None]:
    """The model and its reference; float ones end in logits where windows are to be summed."""
    windows = settings.window_stride is not None
    subject = open_subject(
        model, weights=settings.weights, input_size=settings.input_size, logits=windows
    ).head(SEGMENTATION)
    reference = open_reference(
        settings.reference,
        settings.reference_weights,
        subject,
        None,
        0,
        logits=windows,
        head=SEGMENTATION,
    )
    return subject, reference


def require_classes(subject: Subject, data: "SegmentationSet") -> None:
    """`DataError` unless the model has the data's number of classes; a note on other names."""
    if not subject.labels:
        return
    if len(subject.labels) != len(data.classes):
        raise DataError(
            f"{subject.name} has {len(subject.labels)} classes, {data.folder} has "
            f"{len(data.classes)}: they were not made for each other"
        )
    differing = [
        (own, other)
        for own, other in zip(subject.labels, data.classes, strict=True)
        if own.casefold() != other.casefold()
    ]
    if differing:
        own, other = differing[0]
        screen.note(
            f"{len(differing)} classes have another name in the model than in the data, for "
            f"example {own!r} and {other!r}; they are compared by their index"
        )


def map_writer(folder: Path, data: "SegmentationSet") -> "Callable[[Path, Tensor], None]":
    """Writes class maps as `folder/NAME_OF_THE_IMAGE.png`, never over the data's own masks."""
    from iqvit.eval.overlay import write_class_map

    folder.mkdir(parents=True, exist_ok=True)
    place = folder.resolve()
    if any(place == mask.parent.resolve() for _, mask in data.items):
        raise DataError(f"--maps {folder} holds the masks of the data; name another folder")
    return lambda image, found: write_class_map(folder / f"{image.stem}.png", found)


def show(scores: "SegmentationScores", subject: Subject, title: str, json: Path | None) -> None:
    """The metrics, and below them the classes; in JSON `iou.NAME` and `float_iou.NAME`."""
    metrics: dict[str, Any] = {**scores.metrics, **subject.facts}
    by_class = {f"iou.{name}": value for name, value in scores.iou.items()}
    real = scores.float_iou or {}
    by_class |= {f"float_iou.{name}": value for name, value in real.items()}
    write_metrics(json, {**metrics, **by_class, "model": subject.name, "kind": subject.kind})
    screen.facts(metrics, title)
    print()
    columns = ("class", "iou", "float_iou") if real else ("class", "iou")
    rows = [(name, value, real.get(name))[: len(columns)] for name, value in scores.iou.items()]
    screen.table(columns, rows)
