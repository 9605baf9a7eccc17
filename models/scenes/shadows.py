"""Rays towards the lamp: which points bodies keep its light from, and how much of it is left."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from iqvit.models.scenes.bodies import Bodies
from iqvit.models.scenes.vectors import Field, Vec, dots, pick, squares

STEPS = 7
LEAST_STEP = 0.03
CONTACT = 0.75
"""Share of the scattered light that is missing right under a body."""
CONTACT_REACH = 1.5
"""Radii from the centre of a body in which it keeps scattered light away."""


@dataclass(frozen=True, eq=False)
class Shade:
    """shares [n] of the light that is left at points of given numbers [n], by body; bounds: where
    those of each body begin, and the end. A point may be in the shade of several."""

    points: np.ndarray
    shares: np.ndarray
    bounds: np.ndarray

    def fall_on(self, light: np.ndarray) -> None:
        """Multiply the light at each point."""
        ends = self.bounds.tolist()
        for begin, end in pairwise(ends):
            light[self.points[begin:end]] *= self.shares[begin:end]


def cast(
    bodies: Bodies, points: Field, numbers: np.ndarray, owners: np.ndarray, lamp: Vec, wide: float
) -> Shade:
    """The shade that bodies (owners, rising) cast on points of these numbers.

    lamp: unit vector towards it. wide: its half width, as a tangent; half shade widens with the
    distance from the body. The soft edge is Inigo Quilez', from the closest pass of the ray.
    """
    offset = pick(points, numbers) - pick(bodies.centres, owners)
    along = dots(offset, lamp)
    apart = squares(offset) - along * along
    radii = pick(bodies.radii, owners)
    reach = radii + wide * np.maximum(-along, 0)
    room = reach * reach - apart
    met = ((room > 0) & (along < radii)).nonzero()[0]
    numbers, owners, along = pick(numbers, met), pick(owners, met), pick(along, met)
    scale = 1 / pick(radii, met)
    half = np.sqrt(pick(room, met))
    t = np.maximum((-along - half) * scale, 0.02)
    end = np.maximum((half - along) * scale, t)
    bounds = bodies.bounds(owners)
    start = bodies.into(pick(offset, met) * scale, bounds)
    lamps = [body.turned.undo(lamp) for body in bodies.bodies]
    ray = pick(np.array(lamps, np.float32).reshape(-1, 3).T, owners)
    share = np.ones_like(t)
    for _ in range(STEPS):
        gap = bodies.distances(ray * t + start, bounds)
        share = np.minimum(share, gap / (t * wide))
        t = np.minimum(t + np.maximum(gap, LEAST_STEP), end)
    share = np.maximum(share, 0)
    return Shade(numbers, share * share * (3 - 2 * share), bounds)


def touch(bodies: Bodies, points: Field, numbers: np.ndarray, owners: np.ndarray) -> Shade:
    """What bodies that are close keep of the scattered light from points of these numbers."""
    offset = pick(points, numbers) - pick(bodies.centres, owners)
    radii = pick(bodies.radii, owners)
    near = (squares(offset) < (CONTACT_REACH * CONTACT_REACH) * (radii * radii)).nonzero()[0]
    owners = pick(owners, near)
    bounds = bodies.bounds(owners)
    local = bodies.into(pick(offset, near) * (1 / pick(radii, near)), bounds)
    dark = np.maximum(1 - np.maximum(bodies.distances(local, bounds), 0) * 2, 0)
    return Shade(pick(numbers, near), 1 - CONTACT * dark * dark, bounds)
