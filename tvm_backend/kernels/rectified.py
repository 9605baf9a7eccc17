"""`rectified` on vectors: a look-up, an interpolation and a requantisation."""

import numpy as np

from iqvit.ops.rectified import Rectified
from iqvit.tvm_backend.kernels.integers import gather, keep, madd, narrow, upper_halves, widen
from iqvit.tvm_backend.kernels.script import Expr, T
from iqvit.tvm_backend.kernels.stage_form import Place
from iqvit.tvm_backend.kernels.tables import ENTRIES, entries_of_bytes, entry_or_zero
from iqvit.tvm_backend.kernels.vector import clamp


def emit_rectified(at: Place) -> Expr:
    """The result of a vector."""
    u = _magnitude(at)
    index = u >> at.lane(0)
    table = at.stage.operands[0]
    if table.kind == "segments":
        entry = keep(entry_or_zero(at.buffers[0], table.size, index, at.isa))
    else:
        entry = keep(gather(at.buffers[0], T.min(index, at.lane(1)), at.isa))
    return _interpolated(at, u & at.lane(2), entry)


PLANES = {"planes", "full_planes"}
"""The operands by which `emit_rectified_together` looks up."""


def planes_kind(op: Rectified, table: np.ndarray) -> str | None:
    """How a table `[n]`, n <= `ENTRIES`, is given by bytes; None where it cannot be.

    Indices beyond the last entry read it. It is 0, or there are none but that of 2**15, which is
    `2**step` into the last segment: the interpolation ends at the 0 that follows the table.
    """
    if table.size < ENTRIES or table[-1] == 0:
        return "planes"
    return "full_planes" if ENTRIES << op.step >= 1 << 15 else None


def emit_rectified_together(places: list[Place]) -> list[Expr]:
    """The results of vectors of a row, which are looked up together."""
    first = places[0]
    found = [_magnitude(at) for at in places]
    entries = entries_of_bytes(first.buffers[-2], found, first.scalar(0), first.isa)
    results = []
    for at, u, entry in zip(places, found, entries, strict=True):
        part = u & at.lane(2)
        if "full_planes" in at.stage.kinds:
            least = at.const(0) - at.lane(2) - at.const(1)  # the mask's complement
            part = keep(u - (T.min(u, at.const((1 << 15) - 1)) & least))
        results.append(_interpolated(at, part, entry))
    return results


def _magnitude(at: Place) -> Expr:
    return keep(T.max(at.value, at.const(0) - at.value))


def _interpolated(at: Place, part: Expr, entry: Expr) -> Expr:
    """The result for values whose entry of the table is given, and how far they are beyond it."""
    positive = keep(T.max(at.value, at.const(0)))
    if at.lanes == at.isa.lanes:
        # (rise, left) . (part, 2**step) is both terms of the interpolation at once.
        weighted = madd(entry, part | at.lane(3), at.lanes)
    else:
        rise = (entry << at.const(16)) >> at.const(16)
        weighted = rise * part + ((entry >> at.const(16)) << at.lane(0))
    weighted = weighted + at.lane(4)
    if at.stage.summed:
        v = keep((weighted + (positive << at.lane(5))) >> at.lane(0))
    else:
        v = keep((positive << at.lane(5)) + (weighted >> at.lane(0)))
    if at.stage.upper:
        raised = keep(v << at.lane(6)) if at.stage.raised else v
        high = upper_halves(widen(raised) * widen(at.read(1)))
        return clamp((high + at.read(2)) >> at.lane(7), at.stage.lo, at.stage.hi)
    scaled = (widen(v) * widen(at.read(1)) + at.scalar(6)) >> at.scalar(7)
    if not at.stage.fits:
        return at.limited(scaled + widen(at.read(2)))
    return clamp(narrow(scaled) + at.read(2), at.stage.lo, at.stage.hi)
