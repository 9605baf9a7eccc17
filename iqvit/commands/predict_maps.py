"""`iqvit predict` for a segmenter: class maps, and pictures of them."""

from pathlib import Path
from typing import TYPE_CHECKING

from iqvit.commands import screen
from iqvit.commands.predicting import each_image, require_place
from iqvit.commands.segmenting import segmenting
from iqvit.commands.subject import Subject

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 3
"""Classes of an image in the table; the overlay's legend has all of them."""


def predict_maps(
    subject: Subject, images: list[Path], folder: Path | None, stride: int | None, skip_bad: bool
) -> dict[str, object]:
    """Write NAME.classes.png and NAME.overlay.png of every image to `folder`; returns metrics.

    Raises DataError without a folder, for two images of one name (the files would replace each
    other), and for an image that cannot be read, unless `skip_bad`.
    """
    place = require_place(
        folder, images, f"{subject.name} gives every pixel a class: say -o DIR for the class maps"
    )
    applied = segmenting(subject, stride)
    metrics: dict[str, object] = {}

    def write(path: Path, pixels: "Tensor") -> tuple[str, str, str]:
        shares = write_map(subject, applied.predict(pixels[None])[0], path, place)
        metrics.update({f"{path}.{name}": share for name, share in shares.items()})
        return str(path), str(overlay_path(place, path)), largest(shares)

    rows, skipped = each_image(images, applied.read, skip_bad, write)
    screen.table(("image", "overlay", "largest classes"), rows)
    return {"images": len(rows), "skipped": skipped, **metrics}


def write_map(subject: Subject, found: "Tensor", path: Path, folder: Path) -> dict[str, float]:
    """Both files of the image `path`, at its own size, of its class map [h, w].

    The percent of each class, largest first.
    """
    from torchvision.transforms.v2.functional import pil_to_tensor

    from iqvit.eval.overlay import overlay, png, write_class_map
    from iqvit.eval.preprocess import read_image
    from iqvit.eval.segmentation import resize_nearest
    from iqvit.files import write_atomically

    image = pil_to_tensor(read_image(path))
    found = resize_nearest(found, image.shape[1:])
    names, palette = names_and_colours(subject, int(found.max()) + 1)
    folder.mkdir(parents=True, exist_ok=True)
    write_class_map(folder / f"{path.stem}.classes.png", found)
    write_atomically(overlay_path(folder, path), png(overlay(image, found, names, palette)))
    counts = found.flatten().long().bincount(minlength=len(names)).tolist()
    order = sorted(range(len(names)), key=lambda index: -counts[index])
    return {names[i]: 100.0 * counts[i] / found.numel() for i in order if counts[i] > 0}


def largest(shares: dict[str, float]) -> str:
    """The first few classes and their percentages, in words."""
    return ", ".join(f"{name} {share:.1f} %" for name, share in list(shares.items())[:SHOWN])


def names_and_colours(
    subject: Subject, least: int
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """The model's class names and colours; made up for those of its `least` classes without."""
    from iqvit.eval.class_list import distinct_colours

    count = max(least, len(subject.labels), len(subject.palette))
    names = tuple(subject.label(i) or f"class {i}" for i in range(count))
    palette = (*subject.palette, *distinct_colours(count)[len(subject.palette) :])
    return names, palette


def overlay_path(folder: Path, image: Path) -> Path:
    """Where the picture with the class map goes."""
    return folder / f"{image.stem}.overlay.png"
