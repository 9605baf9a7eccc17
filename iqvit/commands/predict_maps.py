"""`iqvit predict` for a segmenter: class maps, and pictures of them."""

from pathlib import Path
from typing import TYPE_CHECKING

from iqvit.commands import screen
from iqvit.commands.outputs import require_folder, require_own_names
from iqvit.commands.segmenting import segmenting
from iqvit.commands.subject import Subject
from iqvit.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from iqvit.commands.segmenting import Segmenting

SHOWN = 3
"""Classes of an image in the table; the overlay's legend has all of them."""


def predict_maps(
    subject: Subject, images: list[Path], folder: Path | None, stride: int | None, skip_bad: bool
) -> dict[str, object]:
    """Write NAME.classes.png and NAME.overlay.png of every image to `folder`; returns metrics.

    Raises DataError without a folder, for two images of one name (the files would replace each
    other), and for an image that cannot be read, unless `skip_bad`.
    """
    if folder is None:
        raise DataError(f"{subject.name} gives every pixel a class: say -o DIR for the class maps")
    require_own_names(images)
    require_folder(folder)
    applied = segmenting(subject, stride)
    skipped: list[DataError] = []
    rows: list[tuple[str, str, str]] = []
    metrics: dict[str, object] = {}
    with screen.progress() as report:
        for done, path in enumerate(images, 1):
            try:
                pixels = applied.read(path)
            except DataError as error:
                if not skip_bad:
                    raise
                skipped.append(error)
                continue
            shares = _write(subject, applied, path, pixels, folder)
            metrics |= {f"{path}.{name}": share for name, share in shares.items()}
            largest = ", ".join(
                f"{name} {share:.1f} %" for name, share in list(shares.items())[:SHOWN]
            )
            rows.append((str(path), str(_overlay_path(folder, path)), largest))
            report("predicting", done, len(images))
    for error in skipped:
        screen.note(f"skipped: {error}")
    if not rows:
        raise DataError(f"none of {len(images)} images could be read")
    screen.table(("image", "overlay", "largest classes"), rows)
    return {"images": len(rows), "skipped": len(skipped), **metrics}


def _write(
    subject: Subject, applied: "Segmenting", path: Path, pixels: "Tensor", folder: Path
) -> dict[str, float]:
    """Both files of one image, at its own size; the percent of each class, largest first."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    from iqvit.eval.overlay import overlay, png, write_class_map
    from iqvit.eval.preprocess import read_image
    from iqvit.eval.segmentation import resize_nearest
    from iqvit.files import write_atomically

    image = pil_to_tensor(read_image(path))
    found = resize_nearest(applied.predict(pixels[None])[0], image.shape[1:])
    names, palette = names_and_colours(subject, int(found.max()) + 1)
    folder.mkdir(parents=True, exist_ok=True)
    write_class_map(folder / f"{path.stem}.classes.png", found)
    write_atomically(_overlay_path(folder, path), png(overlay(image, found, names, palette)))
    counts = found.flatten().long().bincount(minlength=len(names)).tolist()
    order = sorted(range(len(names)), key=lambda index: -counts[index])
    return {names[i]: 100.0 * counts[i] / found.numel() for i in order if counts[i] > 0}


def names_and_colours(
    subject: Subject, least: int
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """The model's class names and colours; made up for those of its `least` classes without."""
    from iqvit.eval.class_list import distinct_colours

    count = max(least, len(subject.labels), len(subject.palette))
    names = tuple(subject.label(i) or f"class {i}" for i in range(count))
    palette = (*subject.palette, *distinct_colours(count)[len(subject.palette) :])
    return names, palette


def _overlay_path(folder: Path, image: Path) -> Path:
    return folder / f"{image.stem}.overlay.png"
