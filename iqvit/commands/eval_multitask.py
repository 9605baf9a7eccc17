"""`iqvit eval multitask`: how good class maps and boxes of one model are, from one run each."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iqvit.commands import screen
from iqvit.commands.detecting import detecting, match_classes, require_same_labels
from iqvit.commands.eval import Reference, ReferenceWeights, open_reference
from iqvit.commands.eval_coco import write_results
from iqvit.commands.eval_segmentation import require_classes
from iqvit.commands.options import MODEL_HELP, InputSize, Json, OneThreads, SkipBad, Weights
from iqvit.commands.outputs import require_file, write_metrics
from iqvit.commands.sharding import Resume, score
from iqvit.commands.subject import DETECTION, MULTITASK, SEGMENTATION, Subject, open_subject
from iqvit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iqvit.eval.multitask import JointPredictor, MultitaskJob, MultitaskScores
    from iqvit.eval.multitask_data import MultitaskSet


def multitask(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="DIR",
            help="With SPLIT/images, masks in SPLIT/annotations, and boxes in "
            "annotations/instances_SPLIT.json.",
        ),
    ],
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="train or val.")] = "val",
    class_file: Annotated[
        Path | None,
        typer.Option("--class-file", metavar="FILE", help="Of the masks, where not in DIR."),
    ] = None,
    weights: Weights = None,
    input_size: InputSize = None,
    reference: Reference = None,
    reference_weights: ReferenceWeights = None,
    images: Annotated[
        int | None, typer.Option("--images", metavar="N", min=1, help="So many, evenly spaced.")
    ] = None,
    threads: OneThreads = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="FILE", help="Write all detections as COCO results."),
    ] = None,
    skip_bad: SkipBad = False,
    resume: Resume = None,
    json: Json = None,
) -> None:
    """mIoU and average precision of a multi-task model, each image run once for both.

    \b
    Example:
      iqvit eval multitask --data street/ artifact/ --reference multitask:FOLDER

    The metrics are those of `iqvit eval segmentation` and `iqvit eval coco`, which also take a
    multi-task model. Where the data has only masks or only boxes, the other head is not scored, and
    that is said.
    """
    require_file(json)
    require_file(results)
    from iqvit.eval.multitask_data import read_multitask

    found = read_multitask(data, split, class_file, skip_bad=skip_bad)
    subject = open_subject(model, weights=weights, input_size=input_size)
    joint(subject)
    class_of = require_labels(subject, found, data / split)
    compared = open_reference(reference, reference_weights, subject, None, 0)
    job = multitask_job(subject, compared, found, class_of, limit=images, skip_bad=skip_bad)
    scored = score(job, subject, compared, threads=threads, resume=resume)
    if scored is None:
        return
    scores = job.finish(scored)
    show(scores, subject, f"{model} ({subject.kind}) on {data / split}", json)
    if results is not None and scores.boxes is not None:
        write_results(results, scores.boxes)


def multitask_job(
    subject: Subject,
    reference: Subject | None,
    data: "MultitaskSet",
    class_of: "Sequence[int] | None",
    *,
    limit: int | None = None,
    skip_bad: bool = False,
) -> "MultitaskJob":
    """A multi-task model on data, whose class of each label of a box is `class_of`; ModelError for
    a model of another task, DataError for a reference with other labels."""
    from iqvit.eval.multitask import MultitaskJob

    run = joint(subject)
    other = None if reference is None else joint(reference)
    boxes = detecting(subject.head(DETECTION))
    theirs = None if reference is None else detecting(reference.head(DETECTION))
    if reference is not None:
        for task in (SEGMENTATION, DETECTION):
            require_same_labels(subject.head(task), reference.head(task))
    return MultitaskJob(
        run,
        data,
        boxes.read,
        numbers=boxes.numbers,
        class_of=class_of,
        reference=other,
        reference_numbers=None if theirs is None else theirs.numbers,
        limit=limit,
        skip_bad=skip_bad,
    )


def joint(subject: Subject) -> "JointPredictor":
    """How a subject is applied; ModelError for one without both heads."""
    if subject.task != MULTITASK or subject.outputs is None:
        raise ModelError(
            f"{subject.name} is a model for {subject.task}, where a multi-task one is needed; see "
            "`iqvit eval segmentation` and `iqvit eval coco`"
        )
    return subject.outputs


def require_labels(subject: Subject, data: "MultitaskSet", place: Path) -> "Sequence[int] | None":
    """The class of the data for each label of a box; says what cannot be scored, and is not.

    Raises DataError or ModelError where the classes do not fit.
    """
    if data.masks is None:
        screen.note(f"{place} has no masks: the class maps are not scored")
    else:
        require_classes(subject.head(SEGMENTATION), data.masks)
    if data.boxes is None:
        screen.note(f"{place} has no boxes: the detections are not scored")
        return None
    for fault in data.boxes.skipped:
        screen.note(f"left out: {fault}")
    annotations = str(data.boxes.annotations)
    return match_classes(subject.head(DETECTION), data.boxes.classes, annotations)


def show(scores: "MultitaskScores", subject: Subject, title: str, json: Path | None) -> None:
    """The metrics, below them the classes; in JSON `iou.NAME`, `ap.NAME`, `float_iou.NAME`, ..."""
    metrics: dict[str, Any] = {**scores.metrics, **subject.facts}
    tables: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    if scores.maps is not None:
        tables.append(("iou", scores.maps.iou, scores.maps.float_iou or {}))
    if scores.boxes is not None:
        tables.append(("ap", scores.boxes.ap, scores.boxes.float_ap or {}))
    by_class = {f"{what}.{name}": value for what, own, _ in tables for name, value in own.items()}
    by_class |= {
        f"float_{what}.{name}": value for what, _, real in tables for name, value in real.items()
    }
    write_metrics(json, {**metrics, **by_class, "model": subject.name, "kind": subject.kind})
    screen.facts(metrics, title)
    for what, own, real in tables:
        print()
        columns = ("class", what, f"float_{what}") if real else ("class", what)
        rows = [(name, value, real.get(name))[: len(columns)] for name, value in own.items()]
        screen.table(columns, rows)
