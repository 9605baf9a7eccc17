"""Random numbers and angles that are the same on every machine and with every numpy."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from iqvit.models.scenes.vectors import Colour

T = TypeVar("T")
GRID = 1 << 20
"""Results of the C library are rounded to its reciprocal: their last digits differ by machine."""


class Dice:
    """Draws from the bits of PCG64, which numpy keeps; what its `Generator` makes of them may
    change from version to version."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One of 2**20 evenly spaced numbers in [low, high)."""
        return low + (high - low) * ((self._bits.random_raw() >> 44) / GRID)

    def whole(self, low: int, high: int) -> int:
        """A whole number in low..high, both included."""
        return low + (self._bits.random_raw() >> 32) % (high - low + 1)

    def chance(self, share: float) -> bool:
        """True in this share of all draws."""
        return self.uniform() < share

    def pick(self, values: Sequence[T]) -> T:
        """One of the values, each as often as the others."""
        return values[self.whole(0, len(values) - 1)]

    def colour(
        self, saturation: tuple[float, float] = (0.15, 0.95), value: tuple[float, float] = (0.25, 1)
    ) -> Colour:
        """Linear RGB in 0..1 of any hue."""
        return hsv(self.uniform(), self.uniform(*saturation), self.uniform(*value))

    def grain(self, count: int) -> np.ndarray:
        """float32 [count] of mean 0 and variance 1: heads among 32 coins, nearly normal."""
        words = self._bits.random_raw((count + 1) // 2).view(np.uint32)[:count]
        return (np.bitwise_count(words).astype(np.float32) - np.float32(16)) * np.float32(
            1 / math.sqrt(8)
        )

    def bytes(self, count: int) -> np.ndarray:
        """uint8 [count]."""
        return self._bits.random_raw((count + 7) // 8).view(np.uint8)[:count]


def turn(degrees: float) -> tuple[float, float]:
    """(cosine, sine), rounded."""
    angle = math.radians(degrees)
    return round(math.cos(angle) * GRID) / GRID, round(math.sin(angle) * GRID) / GRID


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Linear RGB of a hue (1 is once around), a saturation and a value as a screen shows it."""

    def channel(offset: float) -> float:
        k = (offset + 6 * hue) % 6
        shown = value * (1 - saturation * max(0.0, min(k, 4 - k, 1.0)))
        return shown * shown

    return channel(5), channel(3), channel(1)
