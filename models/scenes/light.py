"""Light: one lamp far away, what the room scatters, and what arrives where."""

from dataclasses import dataclass

import numpy as np

from iqvit.models.scenes.bodies import Bodies, Body
from iqvit.models.scenes.camera import Camera, Window
from iqvit.models.scenes.dice import Dice, turn
from iqvit.models.scenes.looking import Sights
from iqvit.models.scenes.room import Backdrop
from iqvit.models.scenes.shadows import CONTACT_REACH, cast, touch
from iqvit.models.scenes.vectors import Colour, Vec, dots, pick, units

SHINE = 5
"""The reflected light is the cosine squared so many times over: to the power of 2**SHINE."""
LIFT = 0.04
"""Radii over its surface from which a body is looked at for its own shade."""


@dataclass(frozen=True)
class Light:
    """towards: unit vector to the lamp. lamp, room: linear RGB of what comes from it and from
    everywhere. softness: half width of the lamp as a tangent."""

    towards: Vec
    lamp: Colour
    room: Colour
    softness: float


def draw_light(dice: Dice) -> Light:
    """A lamp above and before the walls, warm or cold; the room's light tends to the other."""
    cos, sin = turn(dice.uniform(28, 72))
    side, ahead = turn(dice.uniform(-25, 205))
    warmth = dice.uniform(-1, 1)
    strength = dice.uniform(0.55, 1.15)
    fill = dice.uniform(0.12, 0.5)
    return Light(
        Vec(cos * side, sin, -cos * ahead),
        _tinted(strength, warmth * 0.35),
        _tinted(fill, -warmth * 0.2),
        dice.uniform(0.04, 0.25),
    )


def light_backdrop(empty: Backdrop, light: Light, bodies: Bodies, camera: Camera) -> np.ndarray:
    """Linear RGB of the room, float32 [3, n], with the shadows of all bodies.

    These are found for every other pixel of every other row, and blended between.
    """
    height, width = camera.size
    coarse = empty.points.reshape(3, height, width)[:, ::2, ::2]
    shape, points = coarse.shape[1:], np.ascontiguousarray(coarse).reshape(3, -1)
    lamp, room = np.ones_like(points[0]), np.ones_like(points[0])
    shaded, close = (
        _numbers([camera.clip(window(body, light, camera)) for body in bodies.bodies], shape[1])
        for window in (_shadow_window, _contact_window)
    )
    cast(bodies, points, *shaded, light.towards, light.softness).fall_on(lamp)
    touch(bodies, points, *close).fall_on(room)
    lamp, room = (_doubled(a.reshape(shape), height, width).ravel() for a in (lamp, room))
    lamp *= np.maximum(dots(empty.normals, light.towards), 0)
    room *= 0.75 + 0.25 * empty.normals[1]
    pixels = np.empty_like(empty.albedo)
    for channel, albedo in enumerate(empty.albedo):
        pixels[channel] = albedo * (lamp * light.lamp[channel] + room * light.room[channel])
    return pixels


def light_bodies(
    seen: Sights,
    albedo: np.ndarray,
    gloss: np.ndarray,
    light: Light,
    bodies: Bodies,
    ground: Colour,
) -> np.ndarray:
    """Linear RGB of what is seen of the bodies, float32 [3, n].

    gloss: of each pixel, float32 [n]. ground: RGB of the floor, which lights the lower sides.
    """
    facing = np.maximum(dots(seen.normals, light.towards), 0)
    numbers, owners = _pairs(seen, light, bodies)
    radii = pick(bodies.radii, seen.owners)
    lifted = seen.points + seen.normals * (LIFT * radii)
    cast(bodies, lifted, numbers, owners, light.towards, light.softness).fall_on(facing)
    up = 0.5 + 0.5 * seen.normals[1]
    open_ = 0.45 + 0.55 * np.minimum(seen.points[1] / radii, 1)
    shine = _shine(seen, light) * facing * gloss
    lamp, room = (Vec(*colour).column for colour in (light.lamp, light.room))
    bounced = (0.35 * Vec(*ground).column) * lamp
    scattered = (open_ * up) * room + (open_ * (1 - up)) * bounced
    return albedo * (facing * lamp + scattered) + shine * lamp


def _shine(seen: Sights, light: Light) -> np.ndarray:
    product = units(light.towards.column - seen.rays) * seen.normals
    share = np.maximum(product[0] + product[1] + product[2], 0)
    for _ in range(SHINE):
        share = share * share
    return share


def _pairs(seen: Sights, light: Light, bodies: Bodies) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the seen points that may be in the shade of bodies, and these, rising."""
    numbers, counts = [np.empty(0, np.int64)], []
    for caster in bodies.bodies:
        before = len(numbers)
        for other, one in enumerate(bodies.bodies):
            own = one is caster
            if (own and not caster.shape.convex) or (not own and _may_shade(caster, one, light)):
                numbers.append(np.arange(seen.bounds[other], seen.bounds[other + 1]))
        counts.append(sum(len(part) for part in numbers[before:]))
    return np.concatenate(numbers), np.arange(len(bodies)).repeat(counts)


def _may_shade(caster: Body, other: Body, light: Light) -> bool:
    offset = caster.centre.minus(other.centre)
    along = offset.dot(light.towards)
    reach = caster.radius + other.radius + light.softness * along
    return along > 0 and offset.dot(offset) - along * along < reach * reach


def _shadow_window(body: Body, light: Light, camera: Camera) -> Window:
    """Pixels around the body and its shadow, wherever that falls; all where it passes the eye."""
    away = (body.centre.y + body.radius) / light.towards.y
    spread = body.radius + light.softness * away
    first = camera.window(body.centre, spread)
    last = camera.window(body.centre.along(light.towards, -away), spread)
    if first is None or last is None:
        return 0, camera.size[0], 0, camera.size[1]
    tops, bottoms, lefts, rights = zip(first, last, strict=True)
    return min(tops), max(bottoms), min(lefts), max(rights)


def _contact_window(body: Body, light: Light, camera: Camera) -> Window:
    del light
    window = camera.window(body.centre, CONTACT_REACH * body.radius)
    return (0, camera.size[0], 0, camera.size[1]) if window is None else window


def _numbers(windows: list[Window | None], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the coarse pixels in each body's window, and the bodies."""
    numbers, counts = [np.empty(0, np.int64)], []
    for window in windows:
        top, bottom, left, right = (0, -2, 0, -2) if window is None else window
        rows = np.arange(top // 2, (bottom + 1) // 2)
        columns = np.arange(left // 2, (right + 1) // 2)
        numbers.append((rows[:, None] * width + columns).ravel())
        counts.append(len(numbers[-1]))
    return np.concatenate(numbers), np.arange(len(windows)).repeat(counts)


def _doubled(coarse: np.ndarray, height: int, width: int) -> np.ndarray:
    """[h, w] -> [height, width] of about twice the size, blended."""
    rows = _between(coarse, height)
    return _between(rows.T, width).T


def _between(coarse: np.ndarray, count: int) -> np.ndarray:
    """`count` rows: the given ones, and after each the mean of it and the next."""
    rows = np.empty((count, coarse.shape[1]), np.float32)
    rows[::2] = coarse
    rows[1::2] = coarse[: count // 2]
    rows[1:-1:2] = (coarse[: (count - 1) // 2] + coarse[1 : (count + 1) // 2]) * 0.5
    return rows


def _tinted(strength: float, warmth: float) -> Colour:
    return strength * (1 + warmth), strength, strength * (1 - warmth)
