"""Answers to one image beside each other: class map and boxes of the truth, and of models."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from iqvit.eval.boxes_overlay import draw_boxes
from iqvit.eval.class_list import Colour
from iqvit.eval.overlay import INK, PAPER, blend

GAP = 6
TITLE = 26
"""Pixels of the line above each answer."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What one model, or a person, says of an image.

    classes: integers [H, W]. boxes: [n, 4], (x1, y1, x2, y2) in pixels; labels: integers [n];
    scores: [n], best first, None for the truth.
    """

    title: str
    classes: Tensor
    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None


def side_by_side(
    image: Tensor,
    answers: Sequence[Answer],
    palette: Sequence[Colour],
    box_labels: Sequence[str],
    box_palette: Sequence[Colour],
) -> Image.Image:
    """The image, uint8 [3, H, W], and right of it each answer: its class map blended over the
    image in the colours of `palette`, its boxes in those of `box_palette`."""
    bare = Answer(
        "image", torch.full(image.shape[1:], 255), torch.empty(0, 4), torch.empty(0).long()
    )
    panels = [
        (answer.title, _panel(image, answer, palette, box_labels, box_palette))
        for answer in (bare, *answers)
    ]
    width, height = panels[0][1].size
    canvas = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height + TITLE), PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(TITLE * 2 // 3)
    for place, (title, panel) in enumerate(panels):
        left = place * (width + GAP)
        canvas.paste(panel, (left, TITLE))
        draw.text((left + GAP, TITLE // 2), title, fill=INK, font=font, anchor="lm")
    return canvas


def _panel(
    image: Tensor,
    answer: Answer,
    palette: Sequence[Colour],
    box_labels: Sequence[str],
    box_palette: Sequence[Colour],
) -> Image.Image:
    under = torch.from_numpy(blend(image, answer.classes, palette)).permute(2, 0, 1)
    return draw_boxes(under, answer.boxes, answer.labels, answer.scores, box_labels, box_palette)
