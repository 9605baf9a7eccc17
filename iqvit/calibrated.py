"""What calibration decides and conversion reads: settings, ranges and rounded weights of every node."""

from dataclasses import dataclass, field

import numpy as np

from iqvit.inttype import QParams


@dataclass(frozen=True)
class Point:
    """The integers that stand for one float value: their dtype and what they mean."""

    dtype: str
    qparams: QParams


@dataclass(frozen=True, eq=False)
class Weight:
    """A rounded weight: `q` int8 `[N, ...]`, `scale` float64 `[N]`, and the corrected float bias `[N]`.

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
    `probability_bits` the width of the probabilities of every attention.
    """

    points: dict[str, Point]
    narrow: dict[str, Point]
    logits: dict[str, Point]
    weights: dict[str, Weight]
    approximations: dict[str, str]
    probability_bits: dict[str, int]
    recipe_text: str = ""
    images: int = 0
    notes: dict[str, str] = field(default_factory=dict)
