"""What surfaces look like: two colours and a pattern of where each is, and a grain."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from iqvit.models.scenes.dice import Dice
from iqvit.models.scenes.vectors import Colour, Field, Vec, pick

SIDE = 128
"""Texels of a side of the noise that all surfaces of a scene share; it repeats."""
FAR = 1 << 12
"""Added to coordinates so that they are positive; a multiple of every period."""

Pattern = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Noise:
    """Smooth random numbers in 0..1, float32 [SIDE * SIDE]."""

    values: np.ndarray

    def at(self, u: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
        """Those of the texels `scale` a unit."""
        row = (v * scale + FAR).astype(np.int32) & (SIDE - 1)
        column = (u * scale + FAR).astype(np.int32) & (SIDE - 1)
        return pick(self.values, row * SIDE + column)


def make_noise(dice: Dice) -> Noise:
    """Octaves of 8, 32 and 128 random numbers a side, the coarse ones smoothed."""
    total = np.zeros((SIDE, SIDE), np.float32)
    for side, weight in ((8, 0.45), (32, 0.3), (128, 0.25)):
        grid = dice.bytes(side * side).reshape(side, side).astype(np.float32)
        total += _stretched(_stretched(grid, SIDE // side).T, SIDE // side).T * (weight / 255)
    return Noise(total.ravel())


def _stretched(grid: np.ndarray, times: int) -> np.ndarray:
    """Rows repeated `times` and blended with the next, around the end."""
    share = (np.arange(times, dtype=np.float32) / times)[None, :, None]
    share = share * share * (3 - 2 * share)
    following = np.concatenate([grid[1:], grid[:1]])
    blended = grid[:, None] * (1 - share) + following[:, None] * share
    return blended.reshape(-1, grid.shape[1])


@dataclass(frozen=True, eq=False)
class Surface:
    """share(u, v) of the second colour, and a grain that darkens by up to `rough`.

    u, v: the place on the surface, float32 [n], in metres or, on bodies, in radii. texels: of the
    noise, a unit. gloss: strength of the reflected light.
    """

    colours: tuple[Colour, Colour]
    share: Pattern
    noise: Noise
    texels: float
    rough: float
    gloss: float = 0.0

    @property
    def middle(self) -> Colour:
        """Between the two colours."""
        first, second = self.colours
        red, green, blue = ((a + b) / 2 for a, b in zip(first, second, strict=True))
        return red, green, blue

    def albedo(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Linear RGB, float32 [3, n]."""
        share = self.share(u, v)
        grain = 1 - self.rough * self.noise.at(u, v, self.texels)
        first = grain * (1 - share)
        second = grain * share
        one, other = (Vec(*colour).column for colour in self.colours)
        return first * one + second * other


def wave(u: np.ndarray) -> np.ndarray:
    """A triangle of period 1 between -1/4 and 1/4, zero at whole numbers and halves."""
    return np.abs(u - np.floor(u) - 0.5) - 0.25


def sharp(values: np.ndarray, slope: float) -> np.ndarray:
    """0 below, 1 above zero, and in between for a while."""
    return np.minimum(np.maximum(values * slope + 0.5, 0), 1)


def stripes(dice: Dice, period: float, slope: float) -> Pattern:
    """Bands along v."""
    shift = dice.uniform()
    width = dice.uniform(-0.12, 0.12)
    return lambda u, v: sharp(wave(u * (1 / period) + shift) + width, slope)


def checks(dice: Dice, period: float, slope: float) -> Pattern:
    """Squares in turns."""
    shift = dice.uniform()
    scale = 1 / period

    def share(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        a = sharp(wave(u * scale + shift), slope) - 0.5
        b = sharp(wave(v * scale + shift), slope) - 0.5
        return 0.5 + 2 * a * b

    return share


def tiles(dice: Dice, period: float, slope: float) -> Pattern:
    """Thin lines around squares or bricks."""
    width = dice.uniform(0.01, 0.03)
    scale, rows = 1 / period, dice.pick((1.0, 1.0, 2.0))

    def share(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        v = v * (scale * rows)
        row = np.floor(v)
        u = u * scale + (row - 2 * np.floor(row / 2)) * (0.5 if rows == 2 else 0.0)
        line = np.maximum(np.abs(u - np.floor(u) - 0.5), np.abs(v - row - 0.5))
        return sharp(line - (0.5 - width * rows), slope)

    return share


def planks(dice: Dice, period: float, slope: float, noise: Noise) -> Pattern:
    """Boards along v, each of its own shade, streaked."""
    shift = dice.uniform(0, 64)
    scale = 1 / period

    def share(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        u = u * scale + shift
        board = np.floor(u)
        own = noise.at(board, board, 37.0)
        joint = sharp(np.abs(u - board - 0.5) - 0.47, slope)
        streaks = noise.at(u, v + 3 * own, 9.0) * 0.35
        return np.minimum(own * 0.6 + streaks + 0.5 * joint, 1)

    return share


def blotches(dice: Dice, texels: float, slope: float, noise: Noise) -> Pattern:
    """Patches of either colour, of no shape."""
    level = dice.uniform(0.42, 0.6)
    return lambda u, v: sharp(noise.at(v, u, texels) - level, slope)


def plain(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The first colour alone."""
    del v
    return np.zeros_like(u)


def any_pattern(dice: Dice, period: float, slope: float, noise: Noise) -> Pattern:
    """One of the patterns; every other time none."""
    kind = dice.whole(0, 7)
    if kind == 0:
        return stripes(dice, period, slope)
    if kind == 1:
        return checks(dice, 2 * period, slope)
    if kind == 2:
        return blotches(dice, 10 / period, 6.0, noise)
    if kind == 3:
        return planks(dice, period, slope, noise)
    return plain


def body_uv(local: Field) -> tuple[np.ndarray, np.ndarray]:
    """Places on a body from the axes of its shape: no seams, and no plane of them is uniform."""
    x, y, z = local
    return x + 0.31 * z, y + 0.73 * z
