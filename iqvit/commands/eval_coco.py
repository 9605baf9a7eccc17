"""`iqvit eval coco`: how good boxes are, in average precision."""

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iqvit.commands import screen
from iqvit.commands.detecting import detecting, match_classes, require_same_labels
from iqvit.commands.eval import Reference, ReferenceWeights, open_reference
from iqvit.commands.options import MODEL_HELP, InputSize, Json, OneThreads, SkipBad, Weights
from iqvit.commands.outputs import require_file, write_metrics
from iqvit.commands.sharding import Resume, score
from iqvit.commands.subject import DETECTION, Subject, open_subject
from iqvit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iqvit.eval.coco_data import CocoSet
    from iqvit.eval.detection import DetectionJob, DetectionScores


def coco(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="With annotations/instances_SPLIT*.json and the images in SPLIT*/.",
        ),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", metavar="NAME", help="train, val, val2017, ...")
    ] = "val",
    annotations: Annotated[
        Path | None,
        typer.Option("--annotations", metavar="FILE", help="Instead of --data, with --image-dir."),
    ] = None,
    image_dir: Annotated[
        Path | None,
        typer.Option("--image-dir", metavar="DIR", help="Where the files of --annotations lie."),
    ] = None,
    supercategories: Annotated[
        bool,
        typer.Option("--supercategories", help="The classes are the groups of COCO's categories."),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "--images", metavar="N", min=1, help="So many, evenly spaced."),
    ] = None,
    weights: Weights = None,
    input_size: InputSize = None,
    reference: Reference = None,
    reference_weights: ReferenceWeights = None,
    threads: OneThreads = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="FILE", help="Write all detections as COCO results."),
    ] = None,
    skip_bad: SkipBad = False,
    resume: Resume = None,
    json: Json = None,
) -> None:
    """Average precision of boxes on COCO or data in its format, and agreement with a float model.

    \b
    Examples:
      iqvit eval coco --data coco/ --split val2017 artifact/ --results found.json
      iqvit eval coco --data cells/ artifact/ --reference FLOAT_MODEL

    The metrics are pycocotools', in 0..100: mAP is the mean over IoU .50 to .95 and over the
    classes, AP50 and AP75 that at one IoU, small is below 32x32 pixels, large from 96x96, AR10 the
    recall of 10 detections an image. Metrics of what the data does not have are left out.
    agreement: of all detections of MODEL and reference with a score of at least 0.5, the share that
    the other one makes too, with the same label and an IoU of at least 0.9. --skip-bad also leaves
    out annotations that cannot be used.
    """
    require_file(json)
    require_file(results)
    found = read_data(data, split, annotations, image_dir, supercategories, skip_bad)
    for fault in found.skipped:
        screen.note(f"left out: {fault}")
    subject = open_subject(model, weights=weights, input_size=input_size).head(DETECTION)
    class_of = match_classes(subject, found.classes, str(found.annotations))
    compared = open_reference(reference, reference_weights, subject, None, 0, head=DETECTION)
    job = detection_job(subject, compared, found, class_of, limit=limit, skip_bad=skip_bad)
    scored = score(job, subject, compared, threads=threads, resume=resume)
    if scored is None:
        return
    scores = job.finish(scored)
    show(scores, subject, f"{model} ({subject.kind}) on {found.annotations}", json)
    if results is not None:
        write_results(results, scores)


def detection_job(
    subject: Subject,
    reference: Subject | None,
    data: "CocoSet",
    class_of: "Sequence[int]",
    *,
    limit: int | None = None,
    skip_bad: bool = False,
) -> "DetectionJob":
    """A detector on data, whose class of each label is `class_of`; ModelError for a model of
    another task, DataError for a reference with other labels."""
    from iqvit.eval.detection import BoxScorer, DetectionJob

    applied = detecting(subject)
    other = None if reference is None else detecting(reference)
    if reference is not None:
        require_same_labels(subject, reference)
    scorer = BoxScorer(
        data,
        numbers=applied.numbers,
        class_of=class_of,
        reference_numbers=None if other is None else other.numbers,
    )
    return DetectionJob(
        applied.predict,
        data,
        applied.read,
        scorer,
        reference=None if other is None else other.predict,
        limit=limit,
        skip_bad=skip_bad,
    )


def read_data(
    data: Path | None,
    split: str,
    annotations: Path | None,
    images: Path | None,
    supercategories: bool,
    skip_bad: bool,
) -> "CocoSet":
    """The data that the options name; DataError where they name none or two."""
    from iqvit.eval.coco_data import read_coco, read_coco_file

    if data is not None and annotations is None and images is None:
        return read_coco(data, split, supercategories=supercategories, skip_bad=skip_bad)
    if data is None and annotations is not None and images is not None:
        return read_coco_file(
            annotations, images, supercategories=supercategories, skip_bad=skip_bad
        )
    raise DataError("say where the data is: --data DIR, or --annotations FILE and --image-dir DIR")


def show(scores: "DetectionScores", subject: Subject, title: str, json: Path | None) -> None:
    """The metrics, and below them the classes; in JSON `ap.NAME` and `float_ap.NAME`."""
    metrics: dict[str, Any] = {**scores.metrics, **subject.facts}
    real = scores.float_ap or {}
    by_class = {f"ap.{name}": value for name, value in scores.ap.items()}
    by_class |= {f"float_ap.{name}": value for name, value in real.items()}
    write_metrics(json, {**metrics, **by_class, "model": subject.name, "kind": subject.kind})
    screen.facts(metrics, title)
    print()
    columns = ("class", "ap", "float_ap") if real else ("class", "ap")
    rows = [(name, value, real.get(name))[: len(columns)] for name, value in scores.ap.items()]
    screen.table(columns, rows)


def write_results(path: Path, scores: "DetectionScores") -> None:
    """All detections as a COCO results file."""
    from iqvit.files import write_atomically

    write_atomically(path, (json_format.dumps(scores.results) + "\n").encode())
