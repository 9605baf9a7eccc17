"""Augmentation for masks and boxes at once: scale, crop, flip and colours of all three together.

All random numbers come from torch's global state.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_area, box_convert

from iqvit.errors import IqvitError
from iqvit.training.augment import Augment, Span
from iqvit.training.box_augment import LEAST_SIDE

SEEN = 1 / 3
"""The share of a box that must be seen in the crop for it to be kept, as what is seen of it."""


@dataclass(frozen=True)
class JointAugmentation:
    """scales: the image is scaled by a factor between them. least_area: an object of fewer pixels
    in the made image is dropped, for data that have no boxes of objects smaller than that."""

    scales: tuple[float, float] = (0.5, 2.0)
    least_area: float = 0.0

    def __post_init__(self) -> None:
        least, most = self.scales
        if not 0 < least <= most < math.inf or not 0 <= self.least_area < math.inf:
            raise IqvitError(
                f"images cannot be scaled by factors from scales {least} to {most}, or objects "
                f"dropped below {self.least_area} pixels"
            )


class JointAugment:
    """Image uint8 [3, h, w], mask uint8 [h, w], boxes float32 [n, 4] (x1, y1, x2, y2) in pixels,
    areas float [n] of the objects in pixels, labels int64 [n] -> those of the crop: image uint8
    [3, H, W], mask uint8 [H, W], labels int64 [m], boxes float32 [m, 4], (cx, cy, w, h) in 0..1.

    The crop is that of `Augment`. A box is cut to what is seen of it, and dropped if that is less
    than `SEEN` of it, has a side below `LEAST_SIDE`, or is too small (`least_area`).
    """

    def __init__(
        self,
        frame: tuple[int, int],
        crop: tuple[int, int],
        fill: tuple[int, int, int],
        chosen: JointAugmentation,
    ) -> None:
        self.images = Augment(frame, crop, fill, chosen.scales)
        self.least_area = chosen.least_area

    def __call__(
        self, image: Tensor, mask: Tensor, boxes: Tensor, areas: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        images = self.images
        rows, columns = images.draw(image)
        seen, ids = images.cut(image, mask, rows, columns)
        corners, kept = self._visible(boxes, areas, rows, columns)
        moved = tv_tensors.BoundingBoxes(  # type: ignore[call-overload]
            corners, format="XYXY", canvas_size=(rows.made, columns.made)
        )
        seen, ids, moved = images.mirror(seen, ids, moved)
        corners = moved.as_subclass(Tensor) + _both(columns.place, rows.place)
        height, width = images.crop
        fractions = box_convert(corners, "xyxy", "cxcywh") / _both(width, height)
        return (*images.placed(seen, ids, rows, columns), labels[kept], fractions)

    def _visible(
        self, boxes: Tensor, areas: Tensor, rows: Span, columns: Span
    ) -> tuple[Tensor, Tensor]:
        """Boxes in pixels of what is seen, cut to it, and which of all these are."""
        factors = _both(columns.made / columns.taken, rows.made / rows.taken)
        whole = (boxes - _both(columns.start, rows.start)) * factors
        cut = whole.clamp(min=0).minimum(_both(columns.made, rows.made))
        share = box_area(cut) / box_area(whole).clamp(min=1e-6)
        area = areas.float() * factors[0] * factors[1] * share
        sides = (cut[:, 2:] - cut[:, :2]).amin(1)
        kept = (share >= SEEN) & (sides >= LEAST_SIDE) & (area >= self.least_area)
        return cut[kept], kept


def _both(x: float, y: float) -> Tensor:
    """float32 [4]: x, y, x, y."""
    return torch.tensor([x, y, x, y], dtype=torch.float32)
