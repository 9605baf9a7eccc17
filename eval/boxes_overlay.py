"""Detections for people to look at: boxes with their class and score on the image."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from iqvit.errors import DataError
from iqvit.eval.class_list import Colour
from iqvit.eval.overlay import INK, LARGEST_TEXT, LEAST_HEIGHT, SMALLEST_TEXT

LEAST_LUMA = 140
"""Of a class colour, in 0..255; darker ones are mixed with white, to be seen on dark images."""

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
    line = max(2, picture.height // 240)
    draw = ImageDraw.Draw(picture)
    frames = [_inside(box, factor, picture.size) for box in boxes.tolist()]
    colours = [bright(palette[label]) for label in labels.tolist()]
    # The best are drawn last, over the others.
    for frame, colour in reversed(list(zip(frames, colours, strict=True))):
        _frame(draw, frame, colour, line)
    font = ImageFont.load_default(size)
    taken: list[Rectangle] = []
    for index, (frame, colour) in enumerate(zip(frames, colours, strict=True)):
        text = classes[int(labels[index])]
        if scores is not None:
            text += f" {float(scores[index]):.2f}"
        extent = (font.getlength(text) + size // 2, size * 5 // 4)
        place = _place(frame, extent, picture.size, taken)
        taken.append(place)
        draw.rectangle(place, fill=colour)
        middle = (place[1] + place[3]) / 2
        draw.text((place[0] + size // 4, middle), text, fill=INK, font=font, anchor="lm")
    return picture


def bright(colour: Colour) -> Colour:
    """The colour, mixed with as much white as gives it a luma (BT.601) of `LEAST_LUMA`."""
    luma = sum(w * c for w, c in zip((299, 587, 114), colour, strict=True)) / 1000
    if luma >= LEAST_LUMA:
        return colour
    share = (LEAST_LUMA - luma) / (255 - luma)
    red, green, blue = (round(c + share * (255 - c)) for c in colour)
    return red, green, blue


def _frame(draw: ImageDraw.ImageDraw, frame: Rectangle, colour: Colour, line: int) -> None:
    """The outline, with a thin dark one around it, so that it is seen on light images too."""
    x1, y1, x2, y2 = frame
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=INK, width=line + 2)
    draw.rectangle(frame, outline=colour, width=line)


def _inside(box: Sequence[float], factor: int, size: tuple[int, int]) -> Rectangle:
    """The corners in whole pixels of the picture, right and bottom never before left and top."""
    x1, x2 = (min(max(round(x * factor), 0), size[0] - 1) for x in (box[0], box[2]))
    y1, y2 = (min(max(round(y * factor), 0), size[1] - 1) for y in (box[1], box[3]))
    return x1, y1, max(x1, x2), max(y1, y2)


def _place(
    frame: Rectangle, extent: tuple[float, float], size: tuple[int, int], taken: list[Rectangle]
) -> Rectangle:
    """Above the box, inside its top, below it, inside its bottom: the first that hides no name."""
    width, height = extent
    x1, y1, x2, y2 = frame
    lefts = (x1, x2 - width)
    tops = (y1 - height, y1, y2, y2 - height)
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
