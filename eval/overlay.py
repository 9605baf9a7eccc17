"""Class maps for people to look at: blended over the image, with a legend of what is in them."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from iqvit.errors import DataError
from iqvit.eval.class_list import Colour
from iqvit.eval.segmentation_data import IGNORE
from iqvit.files import write_atomically

OPACITY = 150
"""Of the colours over the image, of 256."""
PAPER, INK, EDGE = (255, 255, 255), (20, 20, 20), (90, 90, 90)
SMALLEST_TEXT, LARGEST_TEXT = 13, 40
"""Pixels of the legend's letters, which grow with the image."""
LEAST_HEIGHT = 240
"""An image below it is drawn enlarged by a whole factor, for the legend beside it."""


def overlay(
    image: Tensor, class_map: Tensor, classes: Sequence[str], palette: Sequence[Colour]
) -> Image.Image:
    """The image under the colours of its classes, and right of it the classes that occur.

    image: uint8 [3, H, W]; class_map: integers [H, W], `IGNORE` shows the bare image. The legend is
    ordered by area and says its share in percent. Raises DataError for sizes that differ and for a
    class without a name or a colour.
    """
    indices = class_map.numpy()
    if tuple(image.shape[1:]) != indices.shape:
        raise DataError(
            f"a class map of {indices.shape} cannot lie over an image of {tuple(image.shape[1:])}"
        )
    if len(palette) != len(classes):
        raise DataError(f"{len(palette)} colours for {len(classes)} classes")
    found, counts = np.unique(indices[indices != IGNORE], return_counts=True)
    if found.size and (found[0] < 0 or found[-1] >= len(classes)):
        raise DataError(f"the class map holds class {found[-1]}; there are {len(classes)} classes")
    picture = Image.fromarray(blend(image.permute(1, 2, 0).numpy(), indices, palette))
    factor = max(1, -(-LEAST_HEIGHT // picture.height))
    if factor > 1:
        enlarged = (picture.width * factor, picture.height * factor)
        picture = picture.resize(enlarged, Image.Resampling.NEAREST)
    order = np.argsort(-counts, kind="stable")
    labels: list[int] = found[order].tolist()
    shares: list[float] = (100.0 * counts[order] / indices.size).tolist()
    entries = [
        (classes[label], palette[label], share) for label, share in zip(labels, shares, strict=True)
    ]
    return _beside(picture, entries)


def blend(image: np.ndarray, indices: np.ndarray, palette: Sequence[Colour]) -> np.ndarray:
    """The image under the colours of its classes: uint8 [H, W, 3], integers [H, W] -> [H, W, 3]."""
    table = np.zeros((256, 3), np.uint16)
    table[: len(palette)] = np.array(palette, np.uint16).reshape(-1, 3)
    colours = table[indices.astype(np.uint8)]
    mixed = (image.astype(np.uint16) * (256 - OPACITY) + colours * OPACITY + 128) >> 8
    return np.where((indices == IGNORE)[..., None], image, mixed).astype(np.uint8)


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def write_class_map(path: Path, class_map: Tensor) -> None:
    """A grey 8-bit PNG whose values are the class indices of uint8 [H, W], as masks hold them."""
    write_atomically(path, png(Image.fromarray(class_map.numpy().astype(np.uint8))))


def _beside(picture: Image.Image, entries: list[tuple[str, Colour, float]]) -> Image.Image:
    """The picture with the legend on paper at its right, in as many columns as its height asks."""
    size = min(LARGEST_TEXT, max(SMALLEST_TEXT, picture.height // 28))
    font = ImageFont.load_default(size)
    line, gap = size * 3 // 2, size // 2
    texts = [f"{name}  {share:.1f} %" for name, _, share in entries]
    width = max([round(font.getlength(text)) for text in texts], default=0)
    column = line + gap + width + 2 * gap
    rows = max(1, (picture.height - 2 * gap) // line)
    columns = -(-len(entries) // rows)
    canvas = Image.new("RGB", (picture.width + gap + columns * column, picture.height), PAPER)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for index, (text, (_, colour, _)) in enumerate(zip(texts, entries, strict=True)):
        x = picture.width + gap + index // rows * column
        y = gap + index % rows * line
        draw.rectangle((x, y, x + line - 1, y + size - 1), fill=colour, outline=EDGE)
        draw.text((x + line + gap, y + size // 2), text, fill=INK, font=font, anchor="lm")
    return canvas
