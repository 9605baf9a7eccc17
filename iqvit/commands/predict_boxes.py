"""`iqvit predict` for a detector: boxes on the images, and as JSON."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from iqvit.commands import screen
from iqvit.commands.detecting import detecting
from iqvit.commands.outputs import require_folder, require_own_names
from iqvit.commands.subject import Subject
from iqvit.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from iqvit.commands.detecting import Detecting

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
    if folder is None:
        raise DataError(f"{subject.name} gives boxes: say -o DIR for pictures and lists of them")
    require_own_names(images)
    require_folder(folder)
    applied = detecting(subject)
    skipped: list[DataError] = []
    rows: list[tuple[str, str, int, str]] = []
    metrics: dict[str, object] = {}
    with screen.progress() as report:
        for done, path in enumerate(images, 1):
            report("predicting", done, len(images))
            try:
                pixels = applied.read(path)
            except DataError as error:
                if not skip_bad:
                    raise
                skipped.append(error)
                continue
            threshold = DEFAULT_SCORE if least is None else least
            count, best = _write(subject, applied, path, pixels, folder, threshold)
            metrics[f"{path}.detections"] = count
            rows.append((str(path), str(folder / f"{path.stem}.boxes.png"), count, best))
    for error in skipped:
        screen.note(f"skipped: {error}")
    if not rows:
        raise DataError(f"none of {len(images)} images could be read")
    screen.table(("image", "picture", "detections", "best"), rows)
    return {"images": len(rows), "skipped": len(skipped), **metrics}


def _write(
    subject: Subject,
    applied: "Detecting",
    path: Path,
    pixels: "Tensor",
    folder: Path,
    least: float,
) -> tuple[int, str]:
    """Both files of one image; how many detections they hold, and the best in words."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    from iqvit.eval.boxes import as_json, in_pixels
    from iqvit.eval.boxes_overlay import draw_boxes, vivid_colours
    from iqvit.eval.overlay import png
    from iqvit.eval.preprocess import read_image
    from iqvit.files import write_atomically

    image = pil_to_tensor(read_image(path))
    size = (image.shape[1], image.shape[2])
    output = applied.predict(pixels[None])
    count = len(subject.labels) or max(output[2].flatten().tolist(), default=0) + 1
    names = [subject.label(index) or f"class {index}" for index in range(count)]
    found = in_pixels(output, size, applied.numbers, str(path), range(count)).at_least(least)
    listed = as_json(found, names)
    picture = draw_boxes(
        image, found.corners, found.labels, found.scores, names, vivid_colours(count)
    )
    content = {"image": str(path), "height": size[0], "width": size[1], "detections": listed}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{path.stem}.boxes.png", png(picture))
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / f"{path.stem}.boxes.json", text.encode())
    return len(listed), ", ".join(f"{row['label']} {row['score']:.2f}" for row in listed[:SHOWN])
