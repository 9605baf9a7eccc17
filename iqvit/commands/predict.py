"""`iqvit predict`: the best classes of images, the class of every pixel, or boxes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iqvit.commands import screen
from iqvit.commands.options import MODEL_HELP, Json, SkipBad, Weights
from iqvit.commands.outputs import require_file, write_metrics
from iqvit.commands.predict_boxes import DEFAULT_SCORE, predict_boxes
from iqvit.commands.predict_joint import predict_joint
from iqvit.commands.predict_maps import predict_maps
from iqvit.commands.segmenting import WindowStride
from iqvit.commands.subject import DETECTION, MULTITASK, SEGMENTATION, Subject, open_subject
from iqvit.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_TOP = 5


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    top: Annotated[
        int | None,
        typer.Option(
            "--top", metavar="K", min=1, help=f"Classes of an image to show; {DEFAULT_TOP}."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Where class maps go, or pictures of boxes."
        ),
    ] = None,
    score: Annotated[
        float | None,
        typer.Option(
            "--score",
            metavar="S",
            min=0,
            max=1,
            help=f"Least score of a box that is shown; {DEFAULT_SCORE}.",
        ),
    ] = None,
    window_stride: WindowStride = None,
    weights: Weights = None,
    skip_bad: SkipBad = False,
    json: Json = None,
) -> None:
    """Show the best classes of each image, the class of each of its pixels, or boxes.

    \b
    Examples:
      iqvit predict artifact/ cat.jpg dog.jpg --top 3
      iqvit predict segmentation-artifact/ street.png -o maps/
      iqvit predict detection-artifact/ street.png -o boxes/ --score 0.3

    A classifier: `score` is the integer that the program computed, `value` the real number it
    stands for. Equal scores are ordered by class. A segmenter: DIR/NAME.classes.png holds the class
    indices at the image's own size (grey, 8 bits), DIR/NAME.overlay.png shows them over the image
    with a legend. A detector: DIR/NAME.boxes.png shows boxes with class and score, and
    DIR/NAME.boxes.json lists them, [x, y, width, height] in pixels of the image. A multi-task model
    has all four. Next: `iqvit eval` for many images with known classes.
    """
    require_file(json)
    # Of float models only segmenters can slide, so that others refuse it when they are opened.
    subject = open_subject(model, weights=weights, logits=window_stride is not None)
    if subject.task == SEGMENTATION:
        _refuse({"--top": top, "--score": score}, subject)
        metrics = predict_maps(subject, images, output, window_stride, skip_bad)
    elif subject.task == DETECTION:
        _refuse({"--top": top, "--window-stride": window_stride}, subject)
        metrics = predict_boxes(subject, images, output, score, skip_bad)
    elif subject.task == MULTITASK:
        _refuse({"--top": top, "--window-stride": window_stride}, subject)
        metrics = predict_joint(subject, images, output, score, skip_bad)
    else:
        _refuse({"--output": output, "--window-stride": window_stride, "--score": score}, subject)
        metrics = predict_classes(subject, images, top or DEFAULT_TOP, skip_bad)
    write_metrics(json, metrics)


def _refuse(options: dict[str, object], subject: Subject) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise DataError(f"{given[0]} says nothing about {subject.name}, a {subject.task} model")


def predict_classes(
    subject: Subject, images: list[Path], top: int, skip_bad: bool
) -> dict[str, object]:
    """Print the best classes of every image; returns the metrics."""
    from iqvit.eval.preprocess import batches

    preprocess = subject.preprocess
    skipped: list[DataError] = []
    rows = []
    metrics: dict[str, object] = {}
    with screen.progress() as report:
        for done, batch in enumerate(
            batches(images, preprocess, skip_bad=skip_bad, skipped=skipped)
        ):
            path = images[batch.indices[0]]
            scores = subject.scores(batch.images)[0]
            best = best_classes(scores, top)
            for rank, index in enumerate(best, 1):
                score = scores[index].item()
                value = subject.scale * (score - subject.zero_point)
                rows.append((str(path), rank, index, subject.label(index), score, value))
            metrics[f"{path}.class"] = best[0]
            metrics[f"{path}.score"] = scores[best[0]].item()
            report("predicting", done + 1, len(images))
    for error in skipped:
        screen.note(f"skipped: {error}")
    if not rows:
        raise DataError(f"none of {len(images)} images could be read")
    screen.table(("image", "rank", "class", "label", "score", "value"), rows)
    return {"images": len(images) - len(skipped), "skipped": len(skipped), **metrics}


def best_classes(scores: "Tensor", count: int) -> list[int]:
    """Indices of the highest of [classes], best first, of equals the lowest index."""
    return scores.argsort(descending=True, stable=True)[:count].tolist()
