"""`deformable_attention`, `grid_sample` and `take_rows`: values read at computed places."""

from typing import Any

from torch import fx

from iqvit.calibrated import Point
from iqvit.canonical import arguments, is_constant
from iqvit.intgraph import Node
from iqvit.inttype import QParams
from iqvit.ops.deform_attention import DeformAttention
from iqvit.ops.grid_sample import GridSample
from iqvit.ops.take_rows import TakeRows


def deformable_attention(c: Any, node: fx.Node) -> Node:
    """One operator: places, softmax, sampling and one rounding of the weighted sum."""
    args, point = arguments(node), c.point(node)
    value = c.narrow(args["value"])
    rest = [_wide(c, args[name]) for name in ("boxes", "offsets", "logits")]
    qvalue, qboxes, qoffsets, qlogits = (c.qparams(x) for x in (value, *rest))
    op = DeformAttention.of(
        qvalue,
        qboxes,
        qoffsets,
        qlogits,
        point.qparams,
        args["shapes"],
        args["points"],
        args["factors"],
        args["mode"],
        point.dtype,
        c.calibrated.fraction_bits[node.name],
        c.calibrated.probability_bits[node.name],
    )
    return c.emit(node, op, [value, *rest], point.qparams)


def grid_sample(c: Any, node: fx.Node) -> Node:
    """An image read at computed coordinates, or at constant ones."""
    args, point = arguments(node), c.point(node)
    x, grid = c.value(args["x"]), c.operand(args["grid"], node, "grid")
    size = (x.type.shape[2], x.type.shape[3])
    qx, qgrid = c.qparams(x), c.qparams(grid)
    fraction = c.calibrated.fraction_bits[node.name]
    op = GridSample.of(size, qx, qgrid, point.qparams, point.dtype, args["mode"], fraction)
    return c.emit(node, op, [x, grid], point.qparams)


def take_rows(c: Any, node: fx.Node) -> Node:
    """Rows of a value, or of a constant rounded to the form of the result."""
    args = arguments(node)
    source, index = args["x"], c.value(args["index"])
    x = c.quantised(node, "rows", source, c.point(node)) if is_constant(source) else c.value(source)
    return c.emit(node, TakeRows(), [x, index], c.qparams(x))


def _wide(c: Any, source: fx.Node) -> Node:
    """A value as int16 with zero point 0; one of 8 bits keeps its values."""
    x = c.value(source)
    qparams = c.qparams(x)
    if x.type.dtype not in ("int8", "uint8"):
        return x
    point = Point("int16", QParams.of(float(qparams.scale) / 128))
    return c.requantised(x, point, f"{source.name}_wide")
