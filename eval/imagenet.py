"""Classification images on disk, in the two usual layouts, and a repeatable choice among them."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from iqvit.errors import DataError
from iqvit.eval.traces import below_shared

__all__ = [
    "ImageSet",
    "Item",
    "choose",
    "list_images",
    "read_imagenet",
]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff")
INDEXED = re.compile(r"(\d+)[_-]")
"""A file name that begins with its class: 0017_n01530575_brambling.jpg."""

Item = tuple[Path, int]


@dataclass(frozen=True)
class ImageSet:
    """Images with their class index, in the order of their names.

    classes holds the folder names where each class is a folder, so that its length is the number
    of classes; None where the class is in the file name and the number cannot be known.
    """

    folder: Path
    items: tuple[Item, ...]
    classes: tuple[str, ...] | None = None


def read_imagenet(folder: Path) -> ImageSet:
    """The labelled images of `folder`; DataError where it is missing, empty or ambiguous.

    Two layouts: a folder per class (the sorted folder names are classes 0, 1, ...; images at any
    depth below), or files whose names begin with the class index, then `_` or `-`. Hidden entries
    and files that are not images are passed over; both layouts at once are refused.
    """
    entries = _entries(folder)
    folders = [e for e in entries if e.is_dir()]
    files = [e for e in entries if _is_image(e)]
    nested = [(label, _images_below(f)) for label, f in enumerate(folders)]
    filled = [f.name for f, (_, images) in zip(folders, nested, strict=True) if images]
    if files and filled:
        raise DataError(
            f"{folder} mixes two layouts: {len(files)} images such as {files[0].name} beside "
            f"folders of images such as {filled[0]}/; keep a folder per class, or files named by "
            "class index"
        )
    if files:
        return ImageSet(folder, _indexed(folder, files))
    if not filled:
        raise DataError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    items = tuple((image, label) for label, images in nested for image in images)
    return ImageSet(folder, items, tuple(f.name for f in folders))


def list_images(folder: Path) -> tuple[Path, ...]:
    """All images at any depth below `folder`, by name, whatever their class; DataError if none."""
    images = tuple(
        image for e in _entries(folder) for image in (_images_below(e) if e.is_dir() else [e])
    )
    images = tuple(image for image in images if _is_image(image))
    if not images:
        raise DataError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    return images


T = TypeVar("T", Path, Item)


def choose(items: Sequence[T], count: int, seed: int = 0) -> list[T]:
    """`count` of `items` (paths, or (path, label)), the same ones for the same files and `seed`.

    Ordered by SHA-256 of the seed and of the path below the folder that all share, so the choice
    depends neither on where the folder lies, nor on the layout's reader, nor on the order given;
    the choice of fewer is the beginning of the choice of more. DataError if there are not enough.
    """
    if not 0 <= count <= len(items):
        raise DataError(f"{count} images asked for where there are {len(items)}")
    paths = [_path_of(item) for item in items]
    if len(set(paths)) != len(paths):
        raise DataError("the same image is listed twice")
    names = dict(zip(paths, below_shared(paths), strict=True))

    def rank(item: T) -> bytes:
        name = f"{seed}:{names[_path_of(item)]}"
        return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()

    return sorted(items, key=rank)[:count]


def _path_of(item: Path | Item) -> Path:
    return item if isinstance(item, Path) else item[0]


def _entries(folder: Path) -> list[Path]:
    if not folder.exists():
        raise DataError(f"no folder {folder}")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file where a folder of images is needed")
    try:
        return sorted(e for e in folder.iterdir() if not e.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if _is_image(path))


def _indexed(folder: Path, files: list[Path]) -> tuple[Item, ...]:
    matches = [INDEXED.match(f.name) for f in files]
    unnamed = [f.name for f, match in zip(files, matches, strict=True) if match is None]
    if unnamed:
        raise DataError(
            f"{folder}: {len(unnamed)} of {len(files)} image names do not begin with a class index "
            f"and `_` or `-`, for example {', '.join(unnamed[:3])}"
        )
    return tuple((f, int(m[1])) for f, m in zip(files, matches, strict=True) if m is not None)
