"""Shapes by their distance functions: how far a point is from the surface, negative inside.

A distance may be too small (the largest of the distances to planes is), never too large, which is
what marching along a ray needs. Every shape lies in a sphere of radius 1 about its origin. After
Inigo Quilez, https://iquilezles.org/articles/distfunctions/.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from iqvit.models.scenes.dice import Dice, turn
from iqvit.models.scenes.vectors import Field, Vec, length, squares

Distance = Callable[[Field], np.ndarray]
UPRIGHT = 0.0


@dataclass(frozen=True)
class Shape:
    """A kind of thing with its proportions drawn.

    reach(u) is the largest u . p over the points p of the shape, for a unit vector of floats: how
    high the centre must lie over the floor. tilts: degrees about x in which it can stand or lie.
    spins: it may then also be turned about its own y axis. convex: rays may take longer steps, and
    its own shadow never falls on it.
    """

    distance: Distance
    reach: Callable[[Vec], float]
    tilts: tuple[float, ...]
    spins: bool = False
    convex: bool = True


def ball(dice: Dice) -> Shape:
    """A sphere."""
    del dice
    return Shape(lambda p: np.sqrt(squares(p)) - 1, lambda u: 1.0, (UPRIGHT,), spins=True)


def box(dice: Dice) -> Shape:
    """A cuboid, from a cube to a brick."""
    drawn = [dice.uniform(0.5, 1.0) for _ in range(3)]
    a, b, c = _scaled(*drawn, to=length(*drawn))
    sides = Vec(a, b, c).column

    def distance(p: Field) -> np.ndarray:
        x, y, z = np.abs(p) - sides
        return np.maximum(np.maximum(x, y), z)

    return Shape(
        distance, lambda u: a * abs(u.x) + b * abs(u.y) + c * abs(u.z), (UPRIGHT, UPRIGHT, 90.0)
    )


def can(dice: Dice) -> Shape:
    """A closed cylinder about y."""
    radius, half = _scaled(1.0, dice.uniform(0.8, 1.6))

    def distance(p: Field) -> np.ndarray:
        return np.maximum(_radius(p) - radius, np.abs(p[1]) - half)

    return Shape(
        distance,
        lambda u: radius * length(u.x, u.z) + half * abs(u.y),
        (UPRIGHT, UPRIGHT, 90.0),
        spins=True,
    )


def cone(dice: Dice) -> Shape:
    """A circular cone whose tip points to +y."""
    radius, half = _scaled(1.0, dice.uniform(0.8, 1.3))
    slant = length(radius, 2 * half)
    side, up = 2 * half / slant, radius / slant

    def distance(p: Field) -> np.ndarray:
        return np.maximum(_radius(p) * side + (p[1] - half) * up, -half - p[1])

    def reach(u: Vec) -> float:
        return max(half * u.y, radius * length(u.x, u.z) - half * u.y)

    # Lying, its side touches the floor: the axis is below the horizontal by half the tip's angle.
    lying = 90 + math.degrees(math.atan2(radius, 2 * half))
    return Shape(distance, reach, (UPRIGHT, UPRIGHT, UPRIGHT, lying))


def mug(dice: Dice) -> Shape:
    """A cylinder open at +y, with a handle at +x."""
    tall, arc, grip = dice.uniform(0.8, 1.15), dice.uniform(0.45, 0.6), dice.uniform(0.1, 0.16)
    width = max(1 + tall * arc + grip, length(1.0, tall))
    radius, half, loop, thick, wall = _scaled(1.0, tall, tall * arc, grip, 0.13, to=width)

    def distance(p: Field) -> np.ndarray:
        q = _radius(p)
        cavity = np.maximum(q - (radius - wall), wall - half - p[1])
        cup = np.maximum(np.maximum(q - radius, np.abs(p[1]) - half), -cavity)
        x = p[0] - radius
        ring = np.sqrt(x * x + p[1] * p[1]) - loop
        handle = np.sqrt(ring * ring + p[2] * p[2]) - thick
        return np.minimum(cup, np.maximum(handle, (radius - wall / 2) - q))

    def reach(u: Vec) -> float:
        return radius * length(u.x, u.z) + half * abs(u.y)

    return Shape(distance, reach, (UPRIGHT, UPRIGHT, UPRIGHT, 90.0, 180.0), convex=False)


def pyramid(dice: Dice) -> Shape:
    """Four sides over a square, the tip at +y."""
    side, half = _scaled(1.0, dice.uniform(0.7, 1.1), to=1.8)
    slant = length(side, 2 * half)
    out, up = 2 * half / slant, side / slant

    def distance(p: Field) -> np.ndarray:
        outmost = np.maximum(np.abs(p[0]), np.abs(p[2]))
        return np.maximum(outmost * out + (p[1] - half) * up, -half - p[1])

    def reach(u: Vec) -> float:
        return max(half * u.y, side * (abs(u.x) + abs(u.z)) - half * u.y)

    lying = 90 + math.degrees(math.atan2(side, 2 * half))
    return Shape(distance, reach, (UPRIGHT, UPRIGHT, UPRIGHT, lying))


def ring(dice: Dice) -> Shape:
    """A torus in the plane of x and y."""
    tube = dice.uniform(0.2, 0.33)
    middle = 1 - tube

    def distance(p: Field) -> np.ndarray:
        out = np.sqrt(p[0] * p[0] + p[1] * p[1]) - middle
        return np.sqrt(out * out + p[2] * p[2]) - tube

    return Shape(
        distance, lambda u: middle * length(u.x, u.y) + tube, (UPRIGHT, 90.0), convex=False
    )


def star(dice: Dice) -> Shape:
    """Five points in the plane of x and y, thicker in the middle than at the rim."""
    inner = dice.uniform(0.42, 0.52)
    rim, bulge = dice.uniform(0.06, 0.1), dice.uniform(0.12, 0.25)
    c, s = turn(36)
    # One edge, from the upper tip (0, 1) to the notch beside it, and its normal outwards.
    across, down = inner * s, 1 - inner * c
    nx, ny = down / length(across, down), across / length(across, down)
    slope = bulge / ny
    steep = length(slope, 1.0)

    def distance(p: Field) -> np.ndarray:
        # Mirrored into the sector of the upper tip.
        x, y = np.abs(p[0]), p[1]
        past = 2 * np.maximum(c * x - s * y, 0)
        x, y = x - c * past, y + s * past
        past = 2 * np.maximum(-c * x - s * y, 0)
        x, y = np.abs(x + c * past), y + s * past
        edge = x * nx + (y - 1) * ny
        return np.maximum((edge * slope + np.abs(p[2]) - rim) / steep, edge)

    tips = [turn(90 + 72 * i) for i in range(5)]

    def reach(u: Vec) -> float:
        depth = rim * abs(u.z)
        return max(max(x * u.x + y * u.y for x, y in tips) + depth, depth + bulge * abs(u.z))

    return Shape(distance, reach, (UPRIGHT, 90.0), convex=False)


def pebble(dice: Dice) -> Shape:
    """An ellipsoid, flat and longish: clutter, never a ball."""
    a, b, c = 1.0, dice.uniform(0.3, 0.5), dice.uniform(0.55, 0.8)
    axes = Vec(1 / a, 1 / b, 1 / c).column

    def distance(p: Field) -> np.ndarray:
        # |p / axes| - 1 grows at most by 1 / b a unit.
        return (np.sqrt(squares(p * axes)) - 1) * b

    return Shape(distance, lambda u: length(a * u.x, b * u.y, c * u.z), (UPRIGHT,), spins=True)


def rod(dice: Dice) -> Shape:
    """A stick with round ends along z: clutter."""
    thick = dice.uniform(0.07, 0.14)
    half = 1 - thick

    def distance(p: Field) -> np.ndarray:
        past = np.maximum(np.abs(p[2]) - half, 0)
        return np.sqrt(p[0] * p[0] + p[1] * p[1] + past * past) - thick

    return Shape(distance, lambda u: thick + half * abs(u.z), (UPRIGHT,), spins=True)


def slab(dice: Dice) -> Shape:
    """A plate much flatter than any box: clutter."""
    a, b, c = _scaled(1.0, dice.uniform(0.06, 0.12), dice.uniform(0.6, 1.0), to=1.45)
    sides = Vec(a, b, c).column

    def distance(p: Field) -> np.ndarray:
        x, y, z = np.abs(p) - sides
        return np.maximum(np.maximum(x, y), z)

    return Shape(distance, lambda u: a * abs(u.x) + b * abs(u.y) + c * abs(u.z), (UPRIGHT,))


THINGS: dict[str, Callable[[Dice], Shape]] = {
    "ball": ball,
    "box": box,
    "can": can,
    "cone": cone,
    "mug": mug,
    "pyramid": pyramid,
    "ring": ring,
    "star": star,
}
CLUTTER: tuple[Callable[[Dice], Shape], ...] = (pebble, rod, slab)


def _radius(p: Field) -> np.ndarray:
    """Distance from the y axis."""
    return np.sqrt(p[0] * p[0] + p[2] * p[2])


def _scaled(*sizes: float, to: float | None = None) -> tuple[float, ...]:
    """The sizes divided so that `to`, or the diagonal of the first two, becomes 1."""
    whole = length(sizes[0], sizes[1]) if to is None else to
    return tuple(size / whole for size in sizes)
