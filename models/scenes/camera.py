"""A pinhole camera over the floor, looking slightly down."""

import math
from dataclasses import dataclass

import numpy as np

from iqvit.models.scenes.vectors import Field, Vec

Window = tuple[int, int, int, int]
"""Rows top..bottom and columns left..right of pixels, the ends not included."""


@dataclass(frozen=True)
class Camera:
    """size: (height, width) of the image; height: of the eye over the floor; pitch: (cosine, sine)
    of the angle downwards; focal: pixels a unit of tangent."""

    size: tuple[int, int]
    height: float
    pitch: tuple[float, float]
    focal: float

    @property
    def eye(self) -> Vec:
        return Vec(0.0, self.height, 0.0)

    def rays(self, rows: np.ndarray, columns: np.ndarray) -> Field:
        """Unit directions through the centres of pixels, float32 [3, *the two's common shape].

        They may lie outside the image.
        """
        half_height, half_width = self.size[0] / 2, self.size[1] / 2
        up = (half_height - 0.5 - rows.astype(np.float32)) * (1 / self.focal)
        x = (columns.astype(np.float32) + (0.5 - half_width)) * (1 / self.focal)
        cos, sin = self.pitch
        y, z = up * cos - sin, up * sin + cos
        scale = 1 / np.sqrt(x * x + (y * y + z * z))
        found = np.empty((3, *scale.shape), np.float32)
        found[0], found[1], found[2] = x, y, z
        found *= scale
        return found

    def ground(self, row: float, column: float) -> Vec | None:
        """Where the ray through a place in the image meets the floor; None above the horizon."""
        up, x = (self.size[0] / 2 - row) / self.focal, (column - self.size[1] / 2) / self.focal
        cos, sin = self.pitch
        y, z = up * cos - sin, up * sin + cos
        if y > -1e-3:
            return None
        return Vec(x * -self.height / y, 0.0, z * -self.height / y)

    def window(self, centre: Vec, radius: float) -> Window | None:
        """Pixels that a sphere can be seen in; None if it is beside or behind the camera."""
        cos, sin = self.pitch
        offset = centre.minus(self.eye)
        depth = offset.z * cos - offset.y * sin
        if depth < 1.5 * radius:
            return None
        up = offset.y * cos + offset.z * sin
        # The silhouette of a sphere is wider than its middle plane, the more so off the axis.
        near = depth * depth - radius * radius
        return (
            *_span(self.size[0] / 2, -up, depth, radius, near, self.focal),
            *_span(self.size[1] / 2, offset.x, depth, radius, near, self.focal),
        )

    def clip(self, window: Window) -> Window | None:
        """The part inside the image; None where there is none."""
        top, bottom, left, right = window
        top, left = max(top, 0), max(left, 0)
        bottom, right = min(bottom, self.size[0]), min(right, self.size[1])
        return None if top >= bottom or left >= right else (top, bottom, left, right)


def _span(
    middle: float, offset: float, depth: float, radius: float, near: float, focal: float
) -> tuple[int, int]:
    """Tangents to the circle (offset, depth) of a radius, seen from the origin, in pixels."""
    root = radius * math.sqrt(max(offset * offset + near, 0.0))
    low, high = (offset * depth - root) / near, (offset * depth + root) / near
    return math.floor(middle + focal * low) - 1, math.ceil(middle + focal * high) + 1
