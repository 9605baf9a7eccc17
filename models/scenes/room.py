"""The room: floor, walls and a rug, where each pixel shows them, and their colours."""

from dataclasses import dataclass

import numpy as np

from iqvit.models.scenes.camera import Camera
from iqvit.models.scenes.dice import Dice, turn
from iqvit.models.scenes.surfaces import (
    Noise,
    Surface,
    any_pattern,
    blotches,
    checks,
    plain,
    planks,
    stripes,
    tiles,
)
from iqvit.models.scenes.vectors import Field, Vec, dots, pick

WALL, FLOOR, RUG = range(3)
"""Their class indices."""
DEEPEST = 4.6
FAR = 60.0
"""Metres at which a ray that meets nothing ends."""


@dataclass(frozen=True, eq=False)
class Wall:
    """A plane: the points with normal . p = offset, seen from its inner side; `across` is the
    horizontal direction in it."""

    normal: Vec
    offset: float
    across: Vec
    surface: Surface
    skirting: float


@dataclass(frozen=True, eq=False)
class Rug:
    """A rectangle or an ellipse on the floor, half as long as `half` each way."""

    centre: Vec
    turn: tuple[float, float]
    half: tuple[float, float]
    round: bool
    surface: Surface


@dataclass(frozen=True, eq=False)
class Room:
    """What is there before anything is put into it."""

    floor: Surface
    walls: tuple[Wall, ...]
    rug: Rug | None

    def inside(self, point: Vec, margin: float) -> bool:
        """Whether a point is so far from all walls."""
        return all(wall.offset - wall.normal.dot(point) > margin for wall in self.walls)


@dataclass(frozen=True, eq=False)
class Backdrop:
    """The empty room as the camera sees it, for all n pixels: class index uint8 [n], points,
    normals (towards the room), albedo float32 [3, n]."""

    kinds: np.ndarray
    points: Field
    normals: Field
    albedo: np.ndarray


def draw_room(dice: Dice, camera: Camera, noise: Noise) -> Room:
    """Random walls, floor and, every other time, a rug."""
    back = camera.ground(dice.uniform(0.12, 0.34) * camera.size[0], camera.size[1] / 2)
    depth = DEEPEST if back is None else min(back.z, DEEPEST)
    surface = _wall_surface(dice, noise)
    skirting = dice.uniform(0.04, 0.14) if dice.chance(0.6) else 0.0
    yaw = dice.uniform(-28, 28)
    walls = [_wall(yaw, depth, surface, skirting)]
    if dice.chance(0.45):
        # A corner of the room, to the right or to the left.
        side = 90.0 if dice.chance(0.5) else -90.0
        walls.append(_wall(yaw + side, dice.uniform(0.25, 0.8) * depth, surface, skirting))
    rug = _rug(dice, depth, noise) if dice.chance(0.55) else None
    return Room(_floor_surface(dice, noise), tuple(walls), rug)


def backdrop(room: Room, camera: Camera) -> Backdrop:
    """The room, one ray a pixel."""
    height, width = camera.size
    rays = camera.rays(np.arange(height)[:, None], np.arange(width)).reshape(3, -1)
    along = camera.height / np.maximum(-rays[1], camera.height / FAR)
    hits = [
        (wall.offset - wall.normal.dot(camera.eye))
        / np.maximum(dots(rays, wall.normal), wall.offset / FAR)
        for wall in room.walls
    ]
    distance = along
    for hit in hits:
        distance = np.minimum(distance, hit)
    points = rays * distance + camera.eye.column
    kinds = np.full(height * width, FLOOR, np.uint8)
    facing = np.zeros((3, height * width), np.float32)
    facing[1] = 1
    floor = (along <= distance).nonzero()[0]
    albedo = np.empty((3, height * width), np.float32)
    _paint(albedo, floor, room.floor.albedo(pick(points[0], floor), pick(points[2], floor)))
    for wall, hit in zip(room.walls, hits, strict=True):
        seen = ((hit <= distance) & (hit < along)).nonzero()[0]
        kinds[seen] = WALL
        _paint(albedo, seen, _on_wall(wall, pick(points, seen)))
        for axis, value in zip(facing, wall.normal, strict=True):
            axis[seen] = -value
    if room.rug is not None:
        _lay(room.rug, points, floor, kinds, albedo)
    return Backdrop(kinds, points, facing, albedo)


def _paint(albedo: np.ndarray, where: np.ndarray, colours: np.ndarray) -> None:
    for plane, colour in zip(albedo, colours, strict=True):
        plane[where] = colour


def _on_wall(wall: Wall, points: Field) -> np.ndarray:
    colour = wall.surface.albedo(dots(points, wall.across), points[1])
    if wall.skirting > 0:
        colour *= 1 - np.float32(0.45) * (points[1] < wall.skirting)
    return colour


def _lay(rug: Rug, points: Field, floor: np.ndarray, kinds: np.ndarray, albedo: np.ndarray) -> None:
    cos, sin = rug.turn
    x, z = pick(points[0], floor) - rug.centre.x, pick(points[2], floor) - rug.centre.z
    u, v = (cos * x + sin * z) / rug.half[0], (cos * z - sin * x) / rug.half[1]
    far = u * u + v * v if rug.round else np.maximum(np.abs(u), np.abs(v))
    inside = (far < 1).nonzero()[0]
    under = floor[inside]
    kinds[under] = RUG
    colour = rug.surface.albedo(u[inside] * rug.half[0], v[inside] * rug.half[1])
    _paint(albedo, under, colour * (1 - np.float32(0.4) * (far[inside] > 0.9)))


def _wall(yaw: float, distance: float, surface: Surface, skirting: float) -> Wall:
    """Seen straight ahead for a yaw of 0, to the right for 90 degrees."""
    cos, sin = turn(yaw)
    return Wall(
        Vec(sin, 0.0, cos),
        distance * (cos if abs(yaw) < 45 else 1.0),
        Vec(cos, 0.0, -sin),
        surface,
        skirting,
    )


def _wall_surface(dice: Dice, noise: Noise) -> Surface:
    colours = (
        dice.colour((0.0, 0.25), (0.45, 0.95)),
        dice.colour((0.0, 0.25), (0.3, 0.95)),
    )
    kind = dice.whole(0, 5)
    period = dice.uniform(0.12, 0.5)
    share = plain
    if kind == 0:
        share = stripes(dice, period, 12.0)
    elif kind == 1:
        share = tiles(dice, period, 30.0)
    elif kind == 2:
        share = blotches(dice, dice.uniform(5, 40), 3.0, noise)
    elif kind == 3:
        share = checks(dice, 2 * period, 12.0)
    return Surface(colours, share, noise, dice.uniform(20, 90), dice.uniform(0.02, 0.35))


def _floor_surface(dice: Dice, noise: Noise) -> Surface:
    colours = (
        dice.colour((0.0, 0.3), (0.3, 0.9)),
        dice.colour((0.0, 0.3), (0.15, 0.8)),
    )
    kind = dice.whole(0, 5)
    period = dice.uniform(0.15, 0.5)
    share = plain
    if kind == 0:
        share = checks(dice, 2 * period, 14.0)
    elif kind == 1:
        share = tiles(dice, period, 30.0)
    elif kind in (2, 3):
        share = planks(dice, period / 2, 20.0, noise)
    elif kind == 4:
        share = blotches(dice, dice.uniform(15, 60), 4.0, noise)
    return Surface(colours, share, noise, dice.uniform(30, 120), dice.uniform(0.05, 0.4))


def _rug(dice: Dice, depth: float, noise: Noise) -> Rug:
    centre = Vec(dice.uniform(-0.8, 0.8), 0.0, dice.uniform(0.45, 0.85) * depth)
    half = (dice.uniform(0.4, 1.3), dice.uniform(0.3, 0.8))
    # Strong colours: only by them is a rug no patch of a floor, which is pale.
    surface = Surface(
        (dice.colour((0.6, 0.95)), dice.colour((0.6, 0.95))),
        any_pattern(dice, dice.uniform(0.08, 0.3), 8.0, noise),
        noise,
        dice.uniform(50, 150),
        dice.uniform(0.2, 0.5),
    )
    return Rug(centre, turn(dice.uniform(-60, 60)), half, dice.chance(0.4), surface)
