"""Detections for people to look at: boxes with their class and score on the image."""

import colorsys
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from iqvit.errors import DataError
from iqvit.eval.class_list import Colour
from iqvit.eval.overlay import INK, LARGEST_TEXT, LEAST_HEIGHT, PAPER, SMALLEST_TEXT

DARK_LUMA = 120
"""Of a class colour, in 0..255 (BT.601); below it names are written in white."""
GOLDEN = 0.618034
"""Of a turn: hues at this distance stay apart however many there are."""

Rectangle = tuple[float, float, float, float]


def draw_boxes(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor | None,
    classes: Sequence[str],
    palette: Sequence[Colour],
) -> Image.Image:
    """The image with its boxes, each with its class and, where there are scores, its score.

    image: uint8 [3, H, W]; boxes: [n, 4], (x1, y1, x2, y2) in pixels, drawn cut to the image;
    labels: integers [n]; scores: [n], best first. A small image is drawn enlarged by a whole
    factor. Names are put where they hide no other name, best first. Raises DataError for lengths
    that differ and for a class without a name or a colour.
    """
    _check(boxes, labels, scores, classes, palette)
    picture = to_pil_image(image)
    factor = max(1, -(-LEAST_HEIGHT // picture.height))
    if factor > 1:
        enlarged = (picture.width * factor, picture.height * factor)
        picture = picture.resize(enlarged, Image.Resampling.NEAREST)
    size = min(LARGEST_TEXT, max(SMALLEST_TEXT, picture.height // 36))
    line = max(3, picture.height // 200)
    draw = ImageDraw.Draw(picture)
    frames = [_inside(box, factor, picture.size) for box in boxes.tolist()]
    indices: list[int] = labels.tolist()
    colours = [palette[index] for index in indices]
    # The best are drawn last, over the others.
    for frame, colour in reversed(list(zip(frames, colours, strict=True))):
        _frame(draw, frame, colour, line)
    font = ImageFont.load_default(size)
    texts = [classes[index] for index in indices]
    if scores is not None:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores.tolist(), strict=True)]
    places: list[Rectangle] = []
    for frame, text in zip(frames, texts, strict=True):
        extent = (font.getlength(text) + size // 2, size * 5 // 4)
        places.append(_place(frame, extent, picture.size, places))
    for place, colour, text in reversed(list(zip(places, colours, texts, strict=True))):
        draw.rectangle(place, fill=colour)
        middle = (place[1] + place[3]) / 2
        ink = PAPER if _luma(colour) < DARK_LUMA else INK
        draw.text((place[0] + size // 4, middle), text, fill=ink, font=font, anchor="lm")
    return picture


def vivid_colours(count: int) -> tuple[Colour, ...]:
    """RGB in 0..255 for `count` classes, bright and far apart, as thin lines ask for."""
    hues = [(index * GOLDEN + 0.95) % 1 for index in range(count)]
    shades = [((0.85, 1.0), (1.0, 0.75), (0.5, 1.0))[index // 8 % 3] for index in range(count)]
    colours = [colorsys.hsv_to_rgb(hue, *shade) for hue, shade in zip(hues, shades, strict=True)]
    return tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours)


def _luma(colour: Colour) -> float:
    return sum(w * c for w, c in zip((299, 587, 114), colour, strict=True)) / 1000


def _frame(draw: ImageDraw.ImageDraw, frame: Rectangle, colour: Colour, line: int) -> None:
    """The outline, with a thin dark one around it, so that it is seen on light images too."""
    x1, y1, x2, y2 = frame
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=INK)
    draw.rectangle(frame, outline=colour, width=line)


def _inside(box: Sequence[float], factor: int, size: tuple[int, int]) -> Rectangle:
    """The corners in whole pixels of the picture, right and bottom never before left and top."""
    x1, x2 = (min(max(round(x * factor), 0), size[0] - 1) for x in (box[0], box[2]))
    y1, y2 = (min(max(round(y * factor), 0), size[1] - 1) for y in (box[1], box[3]))
    return x1, y1, max(x1, x2), max(y1, y2)


def _place(
    frame: Rectangle, extent: tuple[float, float], size: tuple[int, int], taken: list[Rectangle]
) -> Rectangle:
    """Above the box, in its top, below it, down inside it: the first that hides no name."""
    width, height = extent
    x1, y1, x2, y2 = frame
    lefts = (x1, x2 - width)
    rows = int((y2 - y1) // height)
    tops = (y1 - height, y1, y2, *(y1 + row * height for row in range(1, rows)))
    places = [
        (x, y, x + width, y + height)
        for y in tops
        for x in (min(max(left, 0), size[0] - width) for left in lefts)
        if 0 <= y <= size[1] - height
    ]
    free = (place for place in places if not any(_overlap(place, other) for other in taken))
    return next(free, places[0] if places else (x1, 0, x1 + width, height))


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _check(
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor | None,
    classes: Sequence[str],
    palette: Sequence[Colour],
) -> None:
    lengths = {len(boxes), len(labels), len(labels if scores is None else scores)}
    if len(lengths) != 1:
        raise DataError(f"{len(boxes)} boxes for {len(labels)} labels, or another count of scores")
    if len(palette) != len(classes):
        raise DataError(f"{len(palette)} colours for {len(classes)} classes")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise DataError(f"a box has the class {int(labels.max())}; there are {len(classes)}")
