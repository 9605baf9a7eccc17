"""The calibrated program of `iqvit report`: one that exists, or the images that make it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from iqvit.commands.quantize import calibration_images, names_hash
from iqvit.commands.subject import CLASSIFICATION
from iqvit.errors import DataError, ModelError

if TYPE_CHECKING:
    from iqvit.intgraph import IntGraph

TRAIN = "train"


@dataclass(frozen=True)
class Calibrating:
    """The images that calibrate, empty where they are not known; names is the SHA-256 of their
    names, told says what they are. graph: the program where it exists already."""

    paths: tuple[Path, ...]
    names: str
    told: str
    graph: "IntGraph | None" = None


def on_images(folder: Path, count: int | None, seed: int) -> Calibrating:
    """Images that are to calibrate; DataError where there are not so many."""
    paths = calibration_images(folder, count, seed)
    return Calibrating(tuple(paths), names_hash(folder, paths), _told(folder, paths))


def by_program(graph: "IntGraph", folder: Path | None) -> Calibrating:
    """A program that exists, with the images of the folder that calibrated it, as far as their
    number, seed and names tell."""
    meta = graph.meta
    count, names = meta.get("images"), str(meta.get("images_hash", ""))
    unknown = Calibrating((), names, f"{count} images, which ones is not known", graph)
    if folder is None or not isinstance(count, int):
        return unknown
    try:
        paths = calibration_images(folder, count, int(meta.get("seed", 0)))
    except DataError:
        return unknown
    if names_hash(folder, paths) != names:
        return unknown
    return Calibrating(tuple(paths), names, _told(folder, paths), graph)


def calibration_folder(data: Path, split: str, task: str, given: Path | None) -> Path | None:
    """Where the images to calibrate on lie: what was given; of classified images the folder itself,
    whose calibrating images are then not scored; otherwise the training split beside the scored,
    None without one. DataError for data that is not there."""
    if not data.is_dir():
        raise DataError(f"no folder {data}")
    if given is not None or task == CLASSIFICATION:
        return given or data
    splits = sorted(p for p in data.glob(f"{TRAIN}*") if p.is_dir())
    return None if split.startswith(TRAIN) else next(iter(splits), None)


def require_folder_of_images(folder: Path | None, data: Path) -> Path:
    """DataError where there is nothing to calibrate on."""
    if folder is None:
        raise DataError(f"{data} has no training split to calibrate on: name images with --calib")
    return folder


def require_made_of(graph: "IntGraph", model: str, weights: str, path: Path) -> None:
    """`ModelError` for a program that says it was made of other weights."""
    known = graph.meta.get("weights")
    if known is not None and known != Path(weights).name:
        raise ModelError(
            f"--calibrated {path} was made of {graph.meta.get('model')} with the weights {known}, "
            f"not of {model} with {Path(weights).name}"
        )


def _told(folder: Path, paths: list[Path]) -> str:
    names = names_hash(folder, paths)[:12]
    return f"{len(paths)} images of {folder}, SHA-256 of their names {names}"
