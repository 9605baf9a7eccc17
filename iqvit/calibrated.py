"""What calibration decides and conversion reads: the integer forms of values, rounded weights."""

from dataclasses import dataclass, field

import numpy as np

from iqvit.inttype import LIMITS, QParams


@dataclass(frozen=True)
class Point:
    """The integers that stand for one float value: their dtype, what they mean, and how many bits
    of the dtype they use (0: all of them)."""

    dtype: str
    qparams: QParams
    bits: int = 0

    @property
    def limits(self) -> tuple[int, int]:
        """Where values saturate."""
        if not self.bits:
            return LIMITS[self.dtype]
        most = 2 ** (self.bits - 1) - 1
        return -most, most


@dataclass(frozen=True, eq=False)
class Weight:
    """A rounded weight: `q` int8 `[N, ...]`, `scale` float64 `[N]`, corrected float bias `[N]`.

    The input's per-channel scales are already inside `q`, its zero points are not in `bias`.
    """

    q: np.ndarray
    scale: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True, eq=False)
class Calibrated:
    """The result of `calibrate`, by the names of the canonical nodes.

    `points` is the primary integer form of every value; `narrow` the 8-bit form for the matrix
    products that read a value which is 16-bit for others; `logits` the form of the logits inside an
    attention that is taken apart; `approximations` the chosen form of every non-linear node;
    `probability_bits` the width of the probabilities of every attention, `fraction_bits` of the
    places that every bilinear sampling reads; `rows` are the linears whose input has a scale per
    row.
    """

    points: dict[str, Point]
    narrow: dict[str, Point]
    logits: dict[str, Point]
    weights: dict[str, Weight]
    approximations: dict[str, str]
    probability_bits: dict[str, int]
    fraction_bits: dict[str, int]
    rows: frozenset[str]
    recipe_text: str = ""
    images: int = 0
    notes: dict[str, str] = field(default_factory=dict)
