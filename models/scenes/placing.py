"""Which bodies lie where: on the floor, apart from each other, some right behind another."""

from dataclasses import dataclass

from iqvit.models.scenes.bodies import Body
from iqvit.models.scenes.camera import Camera
from iqvit.models.scenes.dice import Dice, hsv, turn
from iqvit.models.scenes.room import Room
from iqvit.models.scenes.shapes import CLUTTER, THINGS, Shape
from iqvit.models.scenes.surfaces import Noise, Surface, any_pattern
from iqvit.models.scenes.vectors import Colour, Vec, length, rotation

FEWEST, MOST, MOST_CLUTTER = 2, 7, 4
LEAST_RADIUS, MOST_RADIUS = 0.25, 0.45
"""Of things, in metres."""
USUAL = 0.95
"""Share of the things whose hue is the usual one of their kind; the others have any. With 0 only
their shape tells them apart, which a small model learns from tens of thousands of scenes alone."""
DULL = (0.0, 0.12), (0.1, 0.6)
"""Saturation and value of clutter."""
HUE_STEP, HUE_SPREAD = 3 / 8, 0.04
"""From the usual hue of a kind to that of the next, and how far a thing's can be from it; 1 is once
around. Kinds of like shapes (can and mug, cone and pyramid) are far apart."""
BEHIND = 0.45
"""Share of the bodies that are put right behind another one, as far as there is place."""
TRIES = 8
NO_LABEL = -1


@dataclass(frozen=True, eq=False)
class Placed:
    """A body with its surface; label is the index of its kind, `NO_LABEL` for clutter."""

    body: Body
    surface: Surface
    label: int


def place_all(dice: Dice, room: Room, camera: Camera, noise: Noise) -> list[Placed]:
    """Things of all kinds and clutter, the farthest first."""
    labels = [dice.whole(0, len(THINGS) - 1) for _ in range(dice.whole(FEWEST, MOST))]
    labels += [NO_LABEL] * dice.whole(0, MOST_CLUTTER)
    kinds = list(THINGS.values())
    placed: list[Placed] = []
    for label in labels:
        shape = kinds[label](dice) if label != NO_LABEL else dice.pick(CLUTTER)(dice)
        radius = dice.uniform(LEAST_RADIUS, MOST_RADIUS) * (0.55 if label == NO_LABEL else 1.0)
        body = _put(dice, shape, radius, [other.body for other in placed], room, camera)
        if body is not None:
            placed.append(Placed(body, _surface(dice, noise, label), label))
    # Of two spheres apart, the one that the eye has less power over hides the other.
    return sorted(placed, key=lambda one: -_power(one.body, camera.eye))


def _put(
    dice: Dice, shape: Shape, radius: float, others: list[Body], room: Room, camera: Camera
) -> Body | None:
    """The body at a free place; None if none was found."""
    tilt = dice.pick(shape.tilts)
    spin = turn(dice.uniform(0, 360) if shape.spins else 0)
    turned = rotation(turn(dice.uniform(0, 360)), turn(tilt), spin)
    height = radius * shape.reach(turned.undo(Vec(0.0, -1.0, 0.0)))
    behind = bool(others) and dice.chance(BEHIND)
    for _ in range(TRIES):
        place = _behind(dice, dice.pick(others), radius) if behind else _anywhere(dice, camera)
        if place is None or place.z < 2.2 * radius or not room.inside(place, radius):
            continue
        centre = Vec(place.x, height, place.z)
        if all(_apart(centre, radius, other) for other in others):
            return Body(shape, centre, radius, turned)
    return None


def _anywhere(dice: Dice, camera: Camera) -> Vec | None:
    height, width = camera.size
    return camera.ground(dice.uniform(0.25, 1.02) * height, dice.uniform(-0.03, 1.03) * width)


def _behind(dice: Dice, other: Body, radius: float) -> Vec:
    """A place away from the eye, a little to the side."""
    x, z = other.centre.x, other.centre.z
    far = length(x, z)
    away = (other.radius + radius) * dice.uniform(0.95, 1.5)
    aside = (other.radius + radius) * dice.uniform(-0.65, 0.65)
    return Vec(x + (x * away - z * aside) / far, 0.0, z + (z * away + x * aside) / far)


def _apart(centre: Vec, radius: float, other: Body) -> bool:
    offset = centre.minus(other.centre)
    least = 0.93 * (radius + other.radius)
    return offset.dot(offset) > least * least


def _power(body: Body, eye: Vec) -> float:
    offset = body.centre.minus(eye)
    return offset.dot(offset) - body.radius * body.radius


def _surface(dice: Dice, noise: Noise, label: int) -> Surface:
    return Surface(
        _colours(dice, label),
        any_pattern(dice, dice.uniform(0.3, 0.8), 6.0, noise),
        noise,
        dice.uniform(6, 30),
        dice.uniform(0.0, 0.35),
        dice.uniform(0.1, 0.9) if dice.chance(0.5) else 0.0,
    )


def _colours(dice: Dice, label: int) -> tuple[Colour, Colour]:
    """Two greys for clutter; for a thing two shades of about the hue of its kind, or any."""
    if label == NO_LABEL:
        return dice.colour(*DULL), dice.colour(*DULL)
    if not dice.chance(USUAL):
        return dice.colour(), dice.colour()
    hue = (label * HUE_STEP + dice.uniform(-HUE_SPREAD, HUE_SPREAD)) % 1
    return (
        hsv(hue, dice.uniform(0.55, 0.95), dice.uniform(0.45, 1.0)),
        hsv(hue, dice.uniform(0.3, 0.95), dice.uniform(0.25, 1.0)),
    )
