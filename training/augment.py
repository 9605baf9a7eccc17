"""Augmentation for segmentation: scale, crop, flip and colours, image and mask together.

All random numbers come from torch's global state.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

IGNORE = 255
"""The train id of pixels without a class, and of padding."""


@dataclass(frozen=True)
class Span:
    """Along one axis: `taken` source pixels from `start` become `made` of the result at `place`."""

    start: int
    taken: int
    made: int
    place: int


class Augment:
    """Random scale, crop, flip and colours: image [3, h, w], mask [h, w] -> those of the crop.

    The image is thought of as squashed to `frame` (height, width), as it is for the model, times a
    scale drawn from `scales`; a random `crop` (height, width) is cut from that, padded by `fill`
    (image, one value a channel) and IGNORE (mask) where the scaled image is smaller. Only what the
    crop shows is resized: bilinear for the image, nearest for the mask. Then a mirror image with
    probability 1/2 and a change of brightness, contrast and saturation; a change of hue would take
    more time than all the rest.
    """

    def __init__(
        self,
        frame: tuple[int, int],
        crop: tuple[int, int],
        fill: tuple[int, int, int],
        scales: tuple[float, float] = (0.5, 2.0),
    ) -> None:
        self.frame, self.crop, self.scales = frame, crop, scales
        self.fill = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1)
        self.colours = v2.ColorJitter(0.4, 0.4, 0.4)
        self.mirror = v2.RandomHorizontalFlip(0.5)

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = self.draw(image)
        seen, ids = self.mirror(*self.cut(image, mask, rows, columns))
        return self.placed(seen, ids, rows, columns)

    def draw(self, image: Tensor) -> tuple[Span, Span]:
        """Where a random crop of a randomly scaled image lies: its rows and columns."""
        scale = float(torch.empty(()).uniform_(*self.scales))
        rows = span(image.shape[1], self.frame[0] * scale, self.crop[0])
        return rows, span(image.shape[2], self.frame[1] * scale, self.crop[1])

    def cut(self, image: Tensor, mask: Tensor, rows: Span, columns: Span) -> tuple[Tensor, Tensor]:
        """What is seen of both, resized, in other colours: an image and a mask of torchvision's."""
        region = (rows.start, columns.start, rows.taken, columns.taken, [rows.made, columns.made])
        seen = functional.resized_crop(tv_tensors.Image(image), *region, antialias=True)
        ids = functional.resized_crop(tv_tensors.Mask(mask[None]), *region)
        return self.colours(seen), ids

    def placed(self, seen: Tensor, ids: Tensor, rows: Span, columns: Span) -> tuple[Tensor, Tensor]:
        """The crop, [3, H, W] and [H, W], of what is seen and the padding around it."""
        nothing = torch.tensor(IGNORE, dtype=torch.uint8)
        image = place(seen, self.fill, rows, columns, self.crop)
        return image, place(ids, nothing, rows, columns, self.crop)[0]


def span(length: int, scaled: float, crop: int) -> Span:
    """Where a random crop of `crop` lies in an axis of `length` pixels scaled to `scaled`."""
    if scaled <= crop:
        made = max(1, round(scaled))
        return Span(0, length, made, _draw(crop - made))
    taken = max(1, round(length * crop / scaled))
    return Span(_draw(length - taken), taken, crop, 0)


def place(part: Tensor, fill: Tensor, rows: Span, columns: Span, size: tuple[int, int]) -> Tensor:
    """`part` [C, h, w] in an area of `size` full of `fill`."""
    if (rows.made, columns.made) == size:
        return part.as_subclass(Tensor)
    area = fill.expand(part.shape[0], *size).clone()
    area[:, rows.place : rows.place + rows.made, columns.place : columns.place + columns.made] = (
        part.as_subclass(Tensor)
    )
    return area


def _draw(most: int) -> int:
    """A random integer of 0..most."""
    return int(torch.randint(most + 1, ()))
