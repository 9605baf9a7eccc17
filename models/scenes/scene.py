"""A rendered scene with its answers: class map, and boxes of what can be seen."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from iqvit.errors import DataError
from iqvit.models.scenes.bodies import Bodies
from iqvit.models.scenes.camera import Camera
from iqvit.models.scenes.dice import Dice, turn
from iqvit.models.scenes.light import draw_light, light_backdrop, light_bodies
from iqvit.models.scenes.looking import Sights, look
from iqvit.models.scenes.placing import NO_LABEL, Placed, place_all
from iqvit.models.scenes.room import backdrop, draw_room
from iqvit.models.scenes.sensor import develop
from iqvit.models.scenes.shapes import THINGS as KINDS
from iqvit.models.scenes.surfaces import body_uv, make_noise
from iqvit.models.scenes.vectors import pick

STUFF = ("wall", "floor", "rug", "clutter")
THINGS = tuple(KINDS)
CLASSES = (*STUFF, *THINGS)
"""Of the class map, by index; a box of label i is of the class len(STUFF) + i."""
CLUTTER = 3
SPLITS = ("train", "val", "calib", "test")
LEAST_SIDE, MOST_SIDE = 32, 2048
LEAST_PIXELS, LEAST_SHARE = 40, 0.2
"""A thing is to be found if so many of its pixels and this share of them are seen; the pixels that
it would have outside the image, or alone, count as well."""
NOTHING = 255


@dataclass(frozen=True, eq=False)
class Scene:
    """image: uint8 RGB [H, W, 3]. class_map: uint8 [H, W], indices of `CLASSES`.

    things: uint8 [H, W], the position in labels of the thing that is seen, 255 for none. boxes:
    float32 [n, 4], (x1, y1, x2, y2) in pixels, tight around the seen pixels. labels: int64 [n],
    indices of `THINGS`. hidden: bool [n], things of which too little is seen to be found.
    """

    image: np.ndarray
    class_map: np.ndarray
    things: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    hidden: np.ndarray


def split_scene(seed: int, split: str, index: int, size: int | tuple[int, int]) -> Scene:
    """Scene `index` of a split of `SPLITS`; splits share none. DataError for another split."""
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r} of scenes; splits are {', '.join(SPLITS)}")
    return scene((seed, SPLITS.index(split), index), size)


def scene(seed: int | tuple[int, ...], size: int | tuple[int, int]) -> Scene:
    """The scene of a seed of whole numbers from 0 on, in size pixels or (height, width).

    Arrays meet only operations that IEEE 754 rounds alike everywhere, and the angles' sines are
    rounded; the same seed gives the same bytes. DataError for a size out of 32..2048.
    """
    height, width = (size, size) if isinstance(size, int) else size
    parts = (seed,) if isinstance(seed, int) else seed
    if min(parts) < 0:
        raise DataError(f"the seed of a scene cannot be {min(parts)}; whole numbers from 0 on can")
    if not all(LEAST_SIDE <= side <= MOST_SIDE for side in (height, width)):
        raise DataError(f"no scene of {height}x{width} pixels; sides are {LEAST_SIDE}..{MOST_SIDE}")
    dice = Dice(*parts)
    camera = _camera(dice, (height, width))
    noise = make_noise(dice)
    room = draw_room(dice, camera, noise)
    light = draw_light(dice)
    placed = place_all(dice, room, camera, noise)

    bodies = Bodies([one.body for one in placed])
    empty = backdrop(room, camera)
    pixels = light_backdrop(empty, light, bodies, camera)
    canvas = _Canvas(camera.size, pixels, empty.kinds)
    seen = look(bodies, camera)
    albedo, gloss = _surfaces(placed, seen)
    colours = light_bodies(seen, albedo, gloss, light, bodies, room.floor.middle)
    for one, (begin, end) in zip(placed, pairwise(seen.bounds), strict=True):
        canvas.add(seen, slice(begin, end), colours, one.label)
    return canvas.finish(dice)


def _surfaces(placed: list[Placed], seen: Sights) -> tuple[np.ndarray, np.ndarray]:
    """Albedo, float32 [3, n], and gloss, float32 [n], of what is seen of the bodies."""
    albedo = np.empty_like(seen.points)
    u, v = body_uv(seen.local)
    for one, (begin, end) in zip(placed, pairwise(seen.bounds), strict=True):
        albedo[:, begin:end] = one.surface.albedo(u[begin:end], v[begin:end])
    gloss = np.array([one.surface.gloss for one in placed], np.float32)
    return albedo, pick(gloss, seen.owners)


class _Canvas:
    """The image so far, the far parts first, and whose its pixels are."""

    def __init__(self, size: tuple[int, int], pixels: np.ndarray, kinds: np.ndarray) -> None:
        self.size, self.pixels, self.kinds = size, pixels, kinds
        self.things = np.full(len(kinds), NOTHING, np.uint8)
        self.labels: list[int] = []
        self.wholes: list[int] = []

    def add(self, seen: Sights, part: slice, colours: np.ndarray, label: int) -> None:
        """Paint a body over what is there; a pixel is its own if it covers half of it."""
        height, width = self.size
        rows, columns, share = seen.rows[part], seen.columns[part], seen.coverage[part]
        whole = int((share >= 0.5).sum())
        # Compared as unsigned, what is left of or above the image is far beyond it.
        inside = ((rows.view(np.uint32) < height) & (columns.view(np.uint32) < width)).nonzero()[0]
        where, share = pick(rows, inside) * width + pick(columns, inside), pick(share, inside)
        under = pick(self.pixels, where)
        painted = under + (pick(colours[:, part], inside) - under) * share
        for plane, values in zip(self.pixels, painted, strict=True):
            plane[where] = values
        solid = where[share >= 0.5]
        if label == NO_LABEL:
            self.kinds[solid] = CLUTTER
            self.things[solid] = NOTHING
            return
        self.kinds[solid] = len(STUFF) + label
        self.things[solid] = len(self.labels)
        self.labels.append(label)
        self.wholes.append(whole)

    def finish(self, dice: Dice) -> Scene:
        """The bytes, and the boxes of the things of which any pixel is left."""
        things = self.things.reshape(self.size)
        left = [i for i in range(len(self.labels)) if bool((self.things == i).any())]
        renumbered = np.full(256, NOTHING, np.uint8)
        renumbered[left] = np.arange(len(left))
        boxes = [_box(things == i) for i in left]
        counts = np.bincount(self.things, minlength=256)
        hidden = [
            bool(counts[i] < LEAST_PIXELS or counts[i] < LEAST_SHARE * self.wholes[i]) for i in left
        ]
        return Scene(
            image=develop(self.pixels.reshape(3, *self.size), dice),
            class_map=self.kinds.reshape(self.size),
            things=renumbered[things],
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            labels=np.array([self.labels[i] for i in left], np.int64),
            hidden=np.array(hidden, bool),
        )


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _camera(dice: Dice, size: tuple[int, int]) -> Camera:
    return Camera(
        size,
        height=dice.uniform(0.8, 1.7),
        pitch=turn(dice.uniform(18, 38)),
        focal=dice.uniform(0.9, 1.25) * math.sqrt(size[0] * size[1]),
    )
