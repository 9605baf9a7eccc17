"""`iqvit eval`: how good a model is on labelled images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iqvit.commands import screen
from iqvit.commands.options import (
    MODEL_HELP,
    Classes,
    InputSize,
    Json,
    OneThreads,
    Seed,
    SkipBad,
    Weights,
)
from iqvit.commands.outputs import require_file, write_metrics
from iqvit.commands.quantize import calibration_images
from iqvit.commands.sharding import Resume, score
from iqvit.commands.subject import (
    CLASSIFICATION,
    Subject,
    float_subject,
    load_float,
    open_subject,
)
from iqvit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Collection

    from iqvit.commands.screen import Report
    from iqvit.eval.evaluate import ClassificationJob
    from iqvit.eval.imagenet import ImageSet

HELP = "Score a model on labelled images; one sub-command for each kind of data."

Reference = Annotated[
    str | None,
    typer.Option(
        "--reference", metavar="SPEC", help="Also run this float model, and compare with it."
    ),
]
ReferenceWeights = Annotated[
    Path | None,
    typer.Option("--reference-weights", metavar="FILE", help="Its weights."),
]


def imagenet(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="DIR",
            help="A folder per class, or files whose names begin with the class index.",
        ),
    ],
    weights: Weights = None,
    images: Annotated[
        int | None, typer.Option("--images", metavar="N", min=1, help="So many, evenly spaced.")
    ] = None,
    exclude_calib: Annotated[
        int | None,
        typer.Option(
            "--exclude-calib",
            metavar="N",
            min=1,
            help="Leave out the N images that `quantize --calib DIR --images N --seed S` took "
            "from the same folder.",
        ),
    ] = None,
    seed: Seed = 0,
    reference: Reference = None,
    reference_weights: ReferenceWeights = None,
    input_size: InputSize = None,
    classes: Classes = None,
    threads: OneThreads = None,
    skip_bad: SkipBad = False,
    resume: Resume = None,
    json: Json = None,
) -> None:
    """Top-1 and top-5 on classified images, and agreement with a float model.

    \b
    Examples:
      iqvit eval imagenet --data val/ timm:vit_tiny_patch16_224 --weights W.safetensors
      iqvit eval imagenet --data val/ artifact/ --exclude-calib 64 \\
          --reference timm:vit_tiny_patch16_224 --reference-weights W.safetensors

    MODEL and reference see the same bytes, preprocessed as MODEL was made for. Percentages are in
    0..100; agreement is the share of equal predictions; sqnr_db is of the scores.
    """
    require_file(json)
    from iqvit.eval.imagenet import read_imagenet

    found = read_imagenet(data)
    excluded = [] if exclude_calib is None else calibration_images(data, exclude_calib, seed)
    subject = open_subject(
        model, weights=weights, input_size=input_size, classes=classes, seed=seed
    )
    compared = open_reference(reference, reference_weights, subject, classes, seed)
    job = classification_job(
        subject, compared, found, limit=images, exclude=excluded, skip_bad=skip_bad
    )
    scored = score(job, subject, compared, threads=threads, resume=resume)
    if scored is None:
        return
    metrics: dict[str, Any] = {**job.finish(scored), **subject.facts}
    write_metrics(json, {**metrics, "model": model, "kind": subject.kind})
    screen.facts(metrics, f"{model} ({subject.kind}) on {data}")


def classification_job(
    subject: Subject,
    reference: Subject | None,
    data: "ImageSet",
    *,
    limit: int | None = None,
    exclude: "Collection[Path]" = (),
    skip_bad: bool = False,
) -> "ClassificationJob":
    """A classifier on data; ModelError for a model of another task."""
    from iqvit.eval.evaluate import ClassificationJob, Settings

    require_classifier(subject)
    return ClassificationJob(
        subject.scores,
        data.items,
        subject.preprocess,
        Settings(subject.scale, subject.zero_point, known_classes(data), skip_bad),
        reference=None if reference is None else reference.scores,
        limit=limit,
        exclude=exclude,
    )


def require_classifier(subject: Subject) -> None:
    """`ModelError` for a model of another task."""
    if subject.task != CLASSIFICATION:
        raise ModelError(
            f"{subject.name} is a model for {subject.task}; see `iqvit eval --help` for its data"
        )


def known_classes(images: "ImageSet") -> int | None:
    """The number of classes, where folders tell it."""
    return None if images.classes is None else len(images.classes)


def reading(report: "Report") -> Any:
    """The progress of `evaluate` as a stage."""
    return lambda done, total: report("scoring", done, total)


def open_reference(
    spec: str | None,
    weights: Path | None,
    subject: Subject,
    classes: int | None,
    seed: int,
    *,
    logits: bool = False,
    head: str | None = None,
) -> Subject | None:
    """The float model to compare with, at the input size of the subject.

    head: the task that is looked at, where it is a multi-task model.
    """
    if spec is None:
        if weights is not None:
            raise ModelError("--reference-weights needs --reference SPEC")
        return None
    height, width = subject.input_shape[2:]
    size = height if height == width else (height, width)
    reference = float_subject(load_float(spec, weights, size, classes, seed, logits=logits))
    if reference.input_shape != subject.input_shape:
        raise ModelError(
            f"{spec} takes images of {reference.input_shape[2:]}, {subject.name} of "
            f"{(height, width)}: they are not the same model"
        )
    return reference if head is None else reference.head(head)
