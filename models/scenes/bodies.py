"""Bodies in a room, and points of many of them handled at once: numpy is slow for short arrays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from iqvit.models.scenes.shapes import Shape
from iqvit.models.scenes.vectors import Field, Rotation, Vec


@dataclass(frozen=True, eq=False)
class Body:
    """A shape in the room: its centre, its size (radius of the sphere around it) and how it is
    turned. The room is measured in metres."""

    shape: Shape
    centre: Vec
    radius: float
    turned: Rotation


class Bodies:
    """Bodies by number. Arrays of points come with their owners, the numbers in rising order."""

    def __init__(self, bodies: Sequence[Body]) -> None:
        self.bodies = tuple(bodies)
        self.centres = np.array([body.centre for body in bodies], np.float32).reshape(-1, 3).T
        self.radii = np.array([body.radius for body in bodies], np.float32)
        self.convex = np.array([body.shape.convex for body in bodies], bool)

    def __len__(self) -> int:
        return len(self.bodies)

    def into(self, field: Field, bounds: np.ndarray) -> Field:
        """Directions of the room in the axes of their owners."""
        found = np.empty_like(field)
        for body, part in self._parts(bounds):
            found[:, part] = body.turned.undo_all(field[:, part])
        return found

    def out_of(self, field: Field, bounds: np.ndarray) -> Field:
        """Directions in the axes of their owners in those of the room."""
        found = np.empty_like(field)
        for body, part in self._parts(bounds):
            found[:, part] = body.turned.apply_all(field[:, part])
        return found

    def distances(self, points: Field, bounds: np.ndarray) -> np.ndarray:
        """To the surface of the owner, of points in its axes and in its radii."""
        found = np.empty(points.shape[1], np.float32)
        for body, part in self._parts(bounds):
            found[part] = body.shape.distance(points[:, part])
        return found

    def bounds(self, owners: np.ndarray) -> np.ndarray:
        """Where the points of each body begin, and the end."""
        return np.searchsorted(owners, np.arange(len(self.bodies) + 1))

    def _parts(self, bounds: np.ndarray) -> Iterator[tuple[Body, slice]]:
        for body, (begin, end) in zip(self.bodies, pairwise(bounds.tolist()), strict=True):
            if begin < end:
                yield body, slice(begin, end)
