"""`iqvit predict` for a detector: boxes on the images, and as JSON."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from iqvit.commands import screen
from iqvit.commands.detecting import detecting
from iqvit.commands.predicting import each_image, require_place
from iqvit.commands.subject import Subject

if TYPE_CHECKING:
    from torch import Tensor

    from iqvit.eval.boxes import BoxFormat, Detection

DEFAULT_SCORE = 0.5
SHOWN = 3
"""Detections of an image in the table; the files have all of them."""


def predict_boxes(
    subject: Subject, images: list[Path], folder: Path | None, least: float | None, skip_bad: bool
) -> dict[str, object]:
    """Write NAME.boxes.png and NAME.boxes.json of every image to `folder`; returns metrics.

    Only detections with a score of at least `least` (None: `DEFAULT_SCORE`). Raises DataError
    without a folder, for two images of one name (the files would replace each other), and for an
    image that cannot be read, unless `skip_bad`.
    """
    place = require_place(
        folder, images, f"{subject.name} gives boxes: say -o DIR for pictures and lists of them"
    )
    applied = detecting(subject)
    threshold = DEFAULT_SCORE if least is None else least
    metrics: dict[str, object] = {}

    def write(path: Path, pixels: "Tensor") -> tuple[str, str, int, str]:
        output = applied.predict(pixels[None])
        count, best = write_boxes(subject, applied.numbers, output, path, place, threshold)
        metrics[f"{path}.detections"] = count
        return str(path), str(boxes_path(place, path)), count, best

    rows, skipped = each_image(images, applied.read, skip_bad, write)
    screen.table(("image", "picture", "detections", "best"), rows)
    return {"images": len(rows), "skipped": skipped, **metrics}


def write_boxes(
    subject: Subject,
    numbers: "BoxFormat",
    output: "Detection",
    path: Path,
    folder: Path,
    least: float,
) -> tuple[int, str]:
    """Both files of the image `path`; how many detections they hold, and the best in words."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    from iqvit.eval.boxes import as_json, in_pixels
    from iqvit.eval.boxes_overlay import draw_boxes, vivid_colours
    from iqvit.eval.overlay import png
    from iqvit.eval.preprocess import read_image
    from iqvit.files import write_atomically

    image = pil_to_tensor(read_image(path))
    size = (image.shape[1], image.shape[2])
    count = len(subject.labels) or max(output[2].flatten().tolist(), default=0) + 1
    names = [subject.label(index) or f"class {index}" for index in range(count)]
    found = in_pixels(output, size, numbers, str(path), range(count)).at_least(least)
    listed = as_json(found, names)
    picture = draw_boxes(
        image, found.corners, found.labels, found.scores, names, vivid_colours(count)
    )
    content = {"image": str(path), "height": size[0], "width": size[1], "detections": listed}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(boxes_path(folder, path), png(picture))
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / f"{path.stem}.boxes.json", text.encode())
    return len(listed), ", ".join(f"{row['label']} {row['score']:.2f}" for row in listed[:SHOWN])


def boxes_path(folder: Path, image: Path) -> Path:
    """Where the picture with the boxes goes."""
    return folder / f"{image.stem}.boxes.png"
