"""Boxes of the objects in masks: what a data set of masks alone gives to a detector."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from iqvit.errors import DataError
from iqvit.eval.segmentation_data import SegmentationSet
from iqvit.files import write_atomically

LEAST_PIXELS = 100
NEIGHBOURS = np.ones((3, 3), dtype=int)
"""Which pixels of a 3x3 area belong together: all eight around the one in the middle."""


@dataclass(frozen=True)
class MaskBox:
    """A connected component: its class, box (x, y, width, height) and number of pixels."""

    label: int
    bbox: tuple[int, int, int, int]
    area: int


def mask_boxes(
    mask: Tensor, classes: Sequence[int], least: int = LEAST_PIXELS
) -> tuple[MaskBox, ...]:
    """The components of at least `least` pixels of each of the `classes` in a mask [H, W].

    Pixels of one class that touch, at a side or at a corner (8-connectivity), are one component, so
    that objects of one class that touch have one box, and one that another object cuts in two has
    two boxes. The box holds the component exactly: whole pixels, the last ones included. In the
    order of `classes`, then of their first pixels row by row. Needs scipy (DataError without).
    """
    ndimage = _ndimage()
    found = []
    for label in classes:
        components, count = ndimage.label(mask.numpy() == label, NEIGHBOURS)
        areas = np.bincount(components.reshape(-1), minlength=count + 1)[1:]
        for area, (rows, columns) in zip(areas, ndimage.find_objects(components), strict=True):
            if area >= least:
                width, height = columns.stop - columns.start, rows.stop - rows.start
                bbox = (columns.start, rows.start, width, height)
                found.append(MaskBox(label, bbox, int(area)))
    return tuple(found)


def instances_json(
    data: SegmentationSet, names: Sequence[str], least: int = LEAST_PIXELS
) -> dict[str, Any]:
    """COCO's instances of the masks of `data`: the components of the classes `names`.

    file_name is that below the folder of the split. Category ids count from 1 in the order of
    `names`. Raises DataError for a name that is no class of the data.
    """
    unknown = [name for name in names if name not in data.classes]
    if unknown or not names:
        raise DataError(
            f"{data.folder} has no class {', '.join(map(repr, unknown))}: its classes are "
            f"{', '.join(data.classes)}"
        )
    labels = [data.classes.index(name) for name in names]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, (image, _) in enumerate(data.items):
        mask = data.mask(index)
        name = image.relative_to(data.folder).as_posix()
        height, width = mask.shape
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        annotations += [
            {
                "id": len(annotations) + number,
                "image_id": index + 1,
                "category_id": labels.index(box.label) + 1,
                "bbox": list(box.bbox),
                "area": box.area,
                "iscrowd": 0,
            }
            for number, box in enumerate(mask_boxes(mask, labels, least), 1)
        ]
    rule = f"8-connected components of at least {least} pixels in the masks of each class"
    return {
        "info": {"description": rule},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
    }


def write_instances(path: Path, content: dict[str, Any]) -> None:
    """As one JSON file, whole or not at all; IqvitError where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content) + "\n").encode())


def _ndimage() -> Any:
    try:
        from scipy import ndimage
    except ImportError as error:
        raise DataError(
            f"the components of masks need scipy ({error}): pip install 'iqvit[train]'"
        ) from error
    return ndimage
