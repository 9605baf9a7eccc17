"""COCO instances JSON, checked: what is wrong is told by the id of the annotation."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from iqvit.errors import DataError

BORDER = 1.0
"""Pixels by which a box may leave its image: COCO's own are rounded, and corners counted from 1."""
SHOWN = 3
"""Faults that a message names; it counts the others."""

XYWH = tuple[float, float, float, float]


@dataclass(frozen=True)
class Category:
    """An entry of `categories`; supercategory is "" where the file has none."""

    id: int
    name: str
    supercategory: str


@dataclass(frozen=True)
class ImageEntry:
    """An entry of `images`; size is (height, width) in pixels, None where the file has none."""

    id: int
    file_name: str
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Annotation:
    """One box: (x, y, width, height) in pixels as in the file, area in pixels, crowd region."""

    image_id: int
    category_id: int
    bbox: XYWH
    area: float
    iscrowd: bool


@dataclass(frozen=True)
class Instances:
    """The three lists: categories by id, images by file name, annotations in the file's order.

    faults names the entries that were left out.
    """

    categories: tuple[Category, ...]
    images: tuple[ImageEntry, ...]
    annotations: tuple[Annotation, ...]
    faults: tuple[str, ...]


def read_instances(path: Path) -> Instances:
    """The annotations of `path`, those that cannot be used only named in `faults`.

    Unusable: an image or a category that the file does not list, a box that is no four numbers, of
    zero size, or further outside its image than `BORDER`. Raises DataError for a file that cannot
    be read, is no COCO instances JSON, lists an id twice, or has no annotations at all.
    """
    content = _load(path)
    categories = [_category(entry, path) for entry in _list(content, "categories", path)]
    images = [_image(entry, path) for entry in _list(content, "images", path)]
    entries = _list(content, "annotations", path)
    for what, listed in (("categories", categories), ("images", images)):
        if not listed:
            raise DataError(f"{path}: the list of {what} is empty")
        _require_unique(what, "id", [entry.id for entry in listed], path)
    _require_unique("categories", "name", [category.name for category in categories], path)
    if not entries:
        raise DataError(f"{path}: the list of annotations is empty; there is nothing to learn from")
    known = {category.id for category in categories}
    by_id = {image.id: image for image in images}
    good: list[Annotation] = []
    faults: list[str] = []
    for position, entry in enumerate(entries):
        try:
            good.append(_annotation(entry, by_id, known))
        except DataError as error:
            number = entry.get("id") if isinstance(entry, Mapping) else None
            name = f"number {position + 1}" if number is None else f"{number}"
            faults.append(f"annotation {name}: {error}")
    return Instances(
        tuple(sorted(categories, key=lambda category: category.id)),
        tuple(sorted(images, key=lambda image: image.file_name)),
        tuple(good),
        tuple(faults),
    )


def check_box(bbox: XYWH, size: tuple[int, int]) -> None:
    """DataError for a box that leaves an image of (height, width) by more than `BORDER` pixels."""
    x, y, width, height = bbox
    rows, columns = size
    inside = min(x, y) >= -BORDER and x + width <= columns + BORDER and y + height <= rows + BORDER
    if not inside or x >= columns or y >= rows or min(x + width, y + height) <= 0:
        raise DataError(f"the box {list(bbox)} lies outside its image of {columns}x{rows} pixels")


def told(faults: Sequence[str], path: Path) -> DataError:
    """The error that names the first faults and says what can be done."""
    rest = len(faults) - SHOWN
    more = f"\n  and {rest} more" if rest > 0 else ""
    first = "".join(f"\n  {fault}" for fault in faults[:SHOWN])
    return DataError(
        f"{path}: {len(faults)} entries cannot be used:{first}{more}\n"
        "  correct the file, or leave them out with --skip-bad"
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path} is not COCO instances JSON: it holds a {type(content).__name__} where an "
            "object with images, annotations and categories is needed"
        )
    return content


def _list(content: dict[str, Any], key: str, path: Path) -> list[Any]:
    if not isinstance(content.get(key), list):
        raise DataError(f"{path} is not COCO instances JSON: it has no list {key!r}")
    return content[key]


def _category(entry: Any, path: Path) -> Category:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name or not _is_id(entry.get("id")):
        raise DataError(f"{path}: the category {_short(entry)} lacks a whole `id` or a `name`")
    above = entry.get("supercategory")
    return Category(entry["id"], name, above if isinstance(above, str) else "")


def _image(entry: Any, path: Path) -> ImageEntry:
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name or not _is_id(entry.get("id")):
        raise DataError(f"{path}: the image {_short(entry)} lacks a whole `id` or a `file_name`")
    if entry.get("height") is None or entry.get("width") is None:
        return ImageEntry(entry["id"], name, None)
    size = (entry["height"], entry["width"])
    if not all(_is_id(side) and side > 0 for side in size):
        raise DataError(f"{path}: the image {name} has the height and width {size}")
    return ImageEntry(entry["id"], name, size)


def _annotation(entry: Any, images: Mapping[int, ImageEntry], known: set[int]) -> Annotation:
    if not isinstance(entry, dict):
        raise DataError(f"{_short(entry)} is no object")
    image_id, category_id = entry.get("image_id"), entry.get("category_id")
    if not _is_id(image_id) or image_id not in images:
        raise DataError(f"there is no image with the id {image_id!r}")
    image = images[image_id]
    if not _is_id(category_id) or category_id not in known:
        raise DataError(f"there is no category with the id {category_id!r} ({image.file_name})")
    bbox = entry.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise DataError(f"bbox is {_short(bbox)}, not [x, y, width, height] ({image.file_name})")
    box: XYWH = (float(bbox[0]), float(bbox[1]), float(bbox[2]), float(bbox[3]))
    if min(box[2:]) <= 0:
        raise DataError(f"the box {bbox} has no size ({image.file_name})")
    if image.size is not None:
        try:
            check_box(box, image.size)
        except DataError as error:
            raise DataError(f"{error} ({image.file_name})") from error
    area, crowd = entry.get("area", box[2] * box[3]), entry.get("iscrowd", 0)
    if not _is_number(area) or area < 0 or crowd not in (0, 1):
        raise DataError(f"area is {area!r} and iscrowd {crowd!r} ({image.file_name})")
    return Annotation(image_id, category_id, box, float(area), bool(crowd))


def _require_unique(what: str, key: str, values: Sequence[Any], path: Path) -> None:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise DataError(f"{path}: two {what} have the {key} {value!r}")
        seen.add(value)


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
