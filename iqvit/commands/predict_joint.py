"""`iqvit predict` for a multi-task model: class maps and boxes of one run on each image."""

from pathlib import Path
from typing import TYPE_CHECKING

from iqvit.commands import screen
from iqvit.commands.detecting import detecting
from iqvit.commands.predict_boxes import DEFAULT_SCORE, boxes_path, write_boxes
from iqvit.commands.predict_maps import largest, overlay_path, write_map
from iqvit.commands.predicting import each_image, require_place
from iqvit.commands.subject import (
    BOXES,
    CLASSES,
    DETECTION,
    LABELS,
    SCORES,
    SEGMENTATION,
    Subject,
)
from iqvit.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def predict_joint(
    subject: Subject, images: list[Path], folder: Path | None, least: float | None, skip_bad: bool
) -> dict[str, object]:
    """Write the files of `predict_maps` and of `predict_boxes` of every image; returns metrics.

    Raises DataError as these do.
    """
    place = require_place(
        folder, images, f"{subject.name} gives class maps and boxes: say -o DIR for them"
    )
    run = subject.outputs
    if run is None:
        raise ModelError(f"{subject.name} has no outputs for both tasks")
    maps, boxes = subject.head(SEGMENTATION), subject.head(DETECTION)
    applied = detecting(boxes)
    threshold = DEFAULT_SCORE if least is None else least
    metrics: dict[str, object] = {}

    def write(path: Path, pixels: "Tensor") -> tuple[str, str, str, str, int, str]:
        found = run(pixels[None])
        shares = write_map(maps, found[CLASSES][0], path, place)
        output = found[BOXES], found[SCORES], found[LABELS]
        count, best = write_boxes(boxes, applied.numbers, output, path, place, threshold)
        metrics.update({f"{path}.{name}": share for name, share in shares.items()})
        metrics[f"{path}.detections"] = count
        pictures = str(overlay_path(place, path)), str(boxes_path(place, path))
        return str(path), pictures[0], largest(shares), pictures[1], count, best

    rows, skipped = each_image(images, applied.read, skip_bad, write)
    columns = ("image", "overlay", "largest classes", "picture", "detections", "best")
    screen.table(columns, rows)
    return {"images": len(rows), "skipped": skipped, **metrics}
