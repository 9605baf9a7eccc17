"""Which cells a fixed-point place reads and with which weights, for all operators that sample.

Written once for torch tensors and for TE expressions: `lib` says how each clamps and selects.
"""

from typing import Any

import torch

from iqvit.ops.base import want

FRACTIONS = {"bilinear": range(1, 9), "nearest": range(1), "discrete": range(1)}
"""How many fractional bits a place may have: a cell that is read alone needs none."""


class TorchLib:
    """int64 tensors."""

    @staticmethod
    def clamp(x: Any, lo: Any, hi: Any) -> Any:
        return x.clamp(max=hi).clamp(min=lo)  # each may be a number or a tensor

    @staticmethod
    def where_equal(a: Any, b: Any, x: Any) -> Any:
        """x where a equals b, else 0."""
        return torch.where(a == b, x, 0)


class TeLib:
    """Scalar int32 expressions."""

    @staticmethod
    def clamp(x: Any, lo: Any, hi: Any) -> Any:
        from iqvit.ops.te import i32, tirx

        def const(value: Any) -> Any:
            return tirx.const(value, "int32") if isinstance(value, int) else i32(value)

        return tirx.max(tirx.min(x, const(hi)), const(lo))

    @staticmethod
    def where_equal(a: Any, b: Any, x: Any) -> Any:
        from iqvit.ops.te import tirx

        value = tirx.const(x, "int32") if isinstance(x, int) else x
        return tirx.Select(a == b, value, tirx.const(0, "int32"))


def check_mode(mode: str, fraction: int, known: tuple[str, ...]) -> None:
    """Raise `GraphError` for an unknown mode or fractional bits that it cannot have."""
    want(mode in known, f"mode {mode!r} is none of {', '.join(known)}")
    bits = FRACTIONS[mode]
    want(fraction in bits, f"{mode} has {bits[0]} to {bits[-1]} fractional bits, not {fraction}")


def centre(mode: str, fraction: int, shift: int) -> tuple[int, int]:
    """What is added before and after the shift that makes a place of a scaled coordinate.

    A bilinear place is rounded and counts from the centre of cell 0, half a cell in; a discrete one
    is rounded, a nearest one is the cell that the coordinate lies in.
    """
    half = (1 << shift) >> 1
    if mode == "bilinear":
        return half, -(1 << (fraction - 1))
    return (half, 0) if mode == "discrete" else (0, 0)


def axis_taps(lib: Any, mode: str, fraction: int, place: Any, size: Any) -> list[tuple[Any, Any]]:
    """The cells along one axis of `size` cells that `place` reads: (cell, weight) pairs.

    The cell is always inside; the weight, of `fraction` bits, is 0 where the place is outside.
    """
    if mode == "discrete":
        return [(lib.clamp(place, 0, size - 1), 1)]
    if mode == "nearest":
        cell = lib.clamp(place, 0, size - 1)
        return [(cell, lib.where_equal(cell, place, 1))]
    one = 1 << fraction
    # Past one cell outside nothing is read whatever the place.
    near = lib.clamp(place, -one, size * one)
    first, part = near >> fraction, near & (one - 1)
    taps = []
    for cell, weight in ((first, one - part), (first + 1, part)):
        inside = lib.clamp(cell, 0, size - 1)
        taps.append((inside, lib.where_equal(inside, cell, weight)))
    return taps


def cell_taps(
    lib: Any, mode: str, fraction: int, x: Any, y: Any, width: Any, height: Any
) -> list[tuple[Any, Any]]:
    """The cells of a level that a place reads, `row * width + column`, and their weights, which are
    `2**(2 * fraction)` together where all are inside."""
    columns = axis_taps(lib, mode, fraction, x, width)
    rows = axis_taps(lib, mode, fraction, y, height)
    return [(r * width + c, a * b) for r, a in rows for c, b in columns]
