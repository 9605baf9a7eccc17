"""Augmentation for detection: zoom, crop, flips and colours, image and boxes together.

All random numbers come from torch's global state.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms import v2

LEAST_SIDE = 1.0
"""Pixels of the made image; a box with a smaller side says nothing and is dropped."""


@dataclass(frozen=True)
class BoxAugmentation:
    """Which changes are made, and how likely; the defaults are those of RT-DETR but for the zoom.

    zoom: the image is placed in an area of up to so many times its sides. crop: a random part that
    keeps the overlap with some box (Liu et al., "SSD", 2016, section 2.2). colour: brightness,
    contrast, saturation and hue. vertical: mirror upside down as well, which suits pictures without
    an up, as of a microscope or from above.
    """

    zoom: float = 2.0
    zoom_probability: float = 0.5
    crop_probability: float = 0.8
    colour_probability: float = 0.5
    vertical: bool = False


class BoxAugment:
    """Image uint8 [3, h, w], boxes float32 [n, 4] (x1, y1, x2, y2) in pixels, labels int64 [n] ->
    image uint8 [3, H, W] of `size`, labels int64 [m], boxes float32 [m, 4], (cx, cy, w, h) in 0..1.

    `fill` is the colour around an image that is made smaller. Boxes whose centre is cut off, and
    those below `LEAST_SIDE`, are dropped.
    """

    def __init__(
        self, size: tuple[int, int], fill: tuple[int, int, int], chosen: BoxAugmentation
    ) -> None:
        self.size, self.chosen = size, chosen
        zoom = v2.RandomZoomOut(
            fill=list(fill), side_range=(1.0, chosen.zoom), p=chosen.zoom_probability
        )
        self.zoom = zoom if chosen.zoom > 1 else v2.Identity()
        self.crop = v2.RandomApply([v2.RandomIoUCrop()], p=chosen.crop_probability)
        self.finish = v2.Compose(
            [
                v2.RandomHorizontalFlip(0.5),
                v2.RandomVerticalFlip(0.5 if chosen.vertical else 0.0),
                v2.Resize(list(size), antialias=True),
                # After the resize, which leaves fewer pixels to colour.
                v2.RandomApply([v2.RandomPhotometricDistort()], p=chosen.colour_probability),
                v2.SanitizeBoundingBoxes(min_size=LEAST_SIDE),
            ]
        )

    def __call__(
        self, image: Tensor, boxes: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        height, width = image.shape[1:]
        sample = {
            "image": tv_tensors.Image(image),
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),  # type: ignore[call-overload]
            "labels": labels,
        }
        sample = self.zoom(sample)
        if len(labels) > 0:  # the crop looks for one that overlaps a box
            sample = self.crop(sample)
        sample = self.finish(sample)
        sides = torch.tensor([self.size[1], self.size[0]] * 2)
        corners = sample["boxes"].as_subclass(Tensor)
        fractions = box_convert(corners, "xyxy", "cxcywh") / sides
        return sample["image"].as_subclass(Tensor), sample["labels"], fractions
