"""`iqvit predict`: the best classes of images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iqvit.commands import screen
from iqvit.commands.options import MODEL_HELP, Json, SkipBad, Weights
from iqvit.commands.outputs import require_file, write_metrics
from iqvit.commands.subject import open_subject
from iqvit.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    top: Annotated[int, typer.Option("--top", metavar="K", min=1, help="Classes to show.")] = 5,
    weights: Weights = None,
    skip_bad: SkipBad = False,
    json: Json = None,
) -> None:
    """Show the best classes of each image, with the integer scores that ranked them.

    \b
    Example:
      iqvit predict artifact/ cat.jpg dog.jpg --top 3

    `score` is the integer that the program computed, `value` the real number it stands for. Equal
    scores are ordered by class. Next: `iqvit eval imagenet` for many images with known classes.
    """
    require_file(json)
    subject = open_subject(model, weights=weights)
    preprocess = subject.preprocess
    from iqvit.eval.preprocess import batches

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
    counts = {"images": len(images) - len(skipped), "skipped": len(skipped)}
    write_metrics(json, {**counts, **metrics})
    screen.table(("image", "rank", "class", "label", "score", "value"), rows)


def best_classes(scores: "Tensor", count: int) -> list[int]:
    """Indices of the highest of [classes], best first, of equals the lowest index."""
    return scores.argsort(descending=True, stable=True)[:count].tolist()
