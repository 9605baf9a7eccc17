"""`rectified` on vectors: a look-up, an interpolation and a requantisation."""

from iqvit.tvm_backend.kernels.integers import gather, keep, madd, narrow, upper_halves, widen
from iqvit.tvm_backend.kernels.script import Expr, T
from iqvit.tvm_backend.kernels.stage_form import Place
from iqvit.tvm_backend.kernels.tables import entries_of_bytes, entry_or_zero
from iqvit.tvm_backend.kernels.vector import HALVES, clamp


def emit_rectified(at: Place) -> Expr:
    u = _magnitude(at)
    index = u >> at.lane(0)
    table = at.stage.operands[0]
    if table.kind == "segments":
        entry = keep(entry_or_zero(at.buffers[0], table.size, index, at.isa))
    else:
        entry = keep(gather(at.buffers[0], T.min(index, at.lane(1)), at.isa))
    return _interpolated(at, u, entry)


def emit_rectified_together(places: list[Place]) -> list[Expr]:
    first = places[0]
    found = [_magnitude(at) for at in places]
    entries = entries_of_bytes(first.buffers[-2], found, first.scalar(0), first.isa)
    together = zip(places, found, entries, strict=True)
    return [_interpolated(at, u, entry) for at, u, entry in together]


def _magnitude(at: Place) -> Expr:
    return keep(T.max(at.value, at.const(0) - at.value))


def _interpolated(at: Place, u: Expr, entry: Expr) -> Expr:
    """The result for values of magnitude u, whose entry of the table is given."""
    part = u & at.lane(2)
    positive = keep(T.max(at.value, at.const(0)))
    if at.lanes == at.isa.lanes:
        # (rise, left) . (part, 2**step) is both terms of the interpolation at once.
        weighted = madd(entry, part | at.lane(3), at.lanes)
    else:
        rise = (entry << at.const(16)) >> at.const(16)
        weighted = rise * part + ((entry >> at.const(16)) << at.lane(0))
    weighted = weighted + at.lane(4)
    if at.stage.summed:
        factor = at.lane(5)
        madds = at.lanes == at.isa.lanes and at.lanes > HALVES
        product = madd(positive, factor, at.lanes) if madds else positive * factor
        v = keep((weighted + product) >> at.lane(0))
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
