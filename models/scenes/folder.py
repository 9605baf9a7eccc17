"""Scenes as files: one folder that is segmentation data and COCO data at once."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from iqvit.errors import DataError
from iqvit.files import write_atomically
from iqvit.models.scenes.scene import CLASSES, STUFF, THINGS, Scene, split_scene

PALETTE = (
    *((176, 168, 160), (120, 96, 72), (150, 60, 90), (70, 70, 70)),
    *((230, 60, 50), (250, 160, 40), (245, 225, 70), (110, 190, 60)),
    *((50, 170, 160), (60, 120, 220), (150, 90, 210), (240, 120, 190)),
)
"""RGB of `CLASSES`: dull for stuff, bright for things."""


def write_scenes(
    folder: Path,
    split: str,
    count: int,
    seed: int = 0,
    size: int | tuple[int, int] = 192,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Scenes 0 .. count - 1 of a split (see `split_scene`) with their answers.

    Writes folder/SPLIT/images/NAME.png, folder/SPLIT/annotations/NAME.png (class indices),
    folder/annotations/instances_SPLIT.json (boxes, masks as run lengths; hidden things are crowd
    regions) and folder/classes.txt. progress(done, count) is called after each. Other splits may be
    in the folder already. Raises DataError for a split that is there, and where it cannot be
    written; then nothing of the split is left.
    """
    if count < 1:
        raise DataError(f"no {count} scenes can be written")
    listed = folder / "annotations" / f"instances_{split}.json"
    if (folder / split).exists() or listed.exists():
        raise DataError(f"{folder} holds a split {split!r} already; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_classes(folder / "classes.txt")
        partial = Path(tempfile.mkdtemp(prefix=f".{split}-", dir=folder))
        try:
            content = _write_split(partial, split, count, seed, size, progress)
            partial.chmod(0o755)
            os.replace(partial, folder / split)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        listed.parent.mkdir(exist_ok=True)
        write_atomically(listed, json.dumps(content).encode())
    except OSError as error:
        raise DataError(f"cannot write scenes to {folder}: {error.strerror or error}") from error


def _write_split(
    folder: Path,
    split: str,
    count: int,
    seed: int,
    size: int | tuple[int, int],
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """The images and masks; returns what the COCO file of the split holds."""
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        made = split_scene(seed, split, index, size)
        name = f"{split}_{index:06d}.png"
        Image.fromarray(made.image).save(folder / "images" / name)
        mask = Image.fromarray(made.class_map)
        mask.putpalette([value for colour in PALETTE for value in colour])
        mask.save(folder / "annotations" / name)
        height, width = made.class_map.shape
        place = {"id": index + 1, "file_name": f"images/{name}", "height": height, "width": width}
        images.append(place)
        annotations += _annotations(made, index + 1, len(annotations) + 1)
        if progress is not None:
            progress(index + 1, count)
    categories = [
        {"id": label + 1, "name": name, "supercategory": "thing"}
        for label, name in enumerate(THINGS)
    ]
    about = {"description": f"iqvit scenes, split {split}, seed {seed}"}
    return {
        "info": about,
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _annotations(made: Scene, image: int, first: int) -> list[dict[str, Any]]:
    things = zip(made.boxes.tolist(), made.labels.tolist(), made.hidden.tolist(), strict=True)
    return [
        {
            "id": first + position,
            "image_id": image,
            "category_id": label + 1,
            "bbox": [int(x1), int(y1), int(x2 - x1), int(y2 - y1)],
            "area": int((made.things == position).sum()),
            "iscrowd": int(hidden),
            "segmentation": run_lengths(made.things == position),
        }
        for position, ((x1, y1, x2, y2), label, hidden) in enumerate(things)
    ]


def run_lengths(mask: np.ndarray) -> dict[str, Sequence[int]]:
    """A mask [H, W] as COCO's uncompressed run lengths: down the columns, zeros first."""
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    ends = (flat[1:] != flat[:-1]).nonzero()[0]
    counts = np.diff(ends, prepend=0, append=mask.size).tolist()
    if counts[-1] == 0:
        counts.pop()
    return {"size": list(mask.shape), "counts": counts}


def _write_classes(path: Path) -> None:
    lines = [
        f"{name} {red} {green} {blue}"
        for name, (red, green, blue) in zip(CLASSES, PALETTE, strict=True)
    ]
    text = f"# {len(STUFF)} kinds of background, then the things\n" + "\n".join(lines) + "\n"
    if not path.exists():
        write_atomically(path, text.encode())
    elif path.read_text(encoding="utf-8", errors="replace") != text:
        raise DataError(f"{path} lists other classes than those of scenes; name another folder")
