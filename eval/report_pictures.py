"""The pictures of a report: an image, what is true of it, and what models see, side by side."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from iqvit.eval.boxes import Found
from iqvit.eval.boxes_overlay import draw_boxes, vivid_colours
from iqvit.eval.class_list import Colour
from iqvit.eval.overlay import blend
from iqvit.eval.report import Panel
from iqvit.eval.segmentation import resize_nearest

QUALITY = 88
"""Of JPEG files."""
LONGEST = 960
"""Pixels of the longer side of a picture; larger images are made smaller."""


@dataclass(frozen=True)
class Seen:
    """What is true of an image, or what a model sees in it; None of what is not known.

    class_map: integers [h, w], `IGNORE` without a class. boxes: float [n, 4], corners in pixels of
    the image; labels: integers [n]; scores: [n], best first, None of what is true.
    """

    class_map: Tensor | None = None
    boxes: Tensor | None = None
    labels: Tensor | None = None
    scores: Tensor | None = None

    @classmethod
    def of(cls, class_map: Tensor | None, found: Found | None) -> "Seen":
        """A class map and detections of a model."""
        if found is None:
            return cls(class_map)
        return cls(class_map, found.corners, found.labels, found.scores)


def panel(
    title: str,
    image: Tensor,
    seen: Seen,
    palette: Sequence[Colour],
    names: Sequence[str],
    caption: str = "",
) -> Panel:
    """The image, uint8 [3, H, W], under its class map and with its boxes; `palette` are the colours
    of classes, `names` those of the boxes' labels."""
    shown = image
    if seen.class_map is not None:
        resized = resize_nearest(seen.class_map, image.shape[1:])
        shown = torch.from_numpy(blend(image, resized, palette)).permute(2, 0, 1)
    if seen.boxes is None or seen.labels is None:
        return Panel(title, jpeg(as_picture(shown)), caption)
    colours = vivid_colours(len(names))
    drawn = draw_boxes(shown, seen.boxes, seen.labels, seen.scores, names, colours)
    return Panel(title, jpeg(drawn), caption)


def as_picture(image: Tensor) -> Image.Image:
    """uint8 [3, H, W] as a picture."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def jpeg(picture: Image.Image) -> bytes:
    """The bytes of a JPEG file, with neither side longer than `LONGEST`."""
    small = picture.copy()
    small.thumbnail((LONGEST, LONGEST))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue()
