"""`attention` and `softmax`, whole or by the published normalised forms."""

from typing import Any

from torch import fx

from iqvit.arith import multipliers
from iqvit.calibrated import Point
from iqvit.canonical import arguments
from iqvit.intgraph import Node
from iqvit.inttype import LIMITS, QParams
from iqvit.ops.attention import Attention
from iqvit.ops.isoftmax import ISoftmax
from iqvit.ops.matmul import Matmul
from iqvit.ops.permute import Permute
from iqvit.ops.shiftmax import Shiftmax
from iqvit.ops.softmax import Softmax

PUBLISHED = QParams.of(2.0**-15)  # the output of the published 16-bit softmax forms


def attention(c: Any, node: fx.Node) -> Node:
    """One operator with unnormalised probabilities, or product, published softmax and product."""
    args = arguments(node)
    q, k, v = (c.narrow(args[name]) for name in "qkv")
    point = c.point(node)
    if c.calibrated.approximations[node.name] != "exp2":
        return _published(c, node, (q, k, v), args["scale"], point)
    bits = c.calibrated.probability_bits[node.name]
    qq, qk, qv = (c.qparams(x) for x in (q, k, v))
    op = Attention.of(qq, qk, qv, point.qparams, args["scale"], bits, point.dtype)
    return c.emit(node, op, [q, k, v], point.qparams)


def _published(c: Any, node: fx.Node, qkv: tuple[Node, ...], scale: float, point: Point) -> Node:
    q, k, v = qkv
    transposed = c.emit(node, Permute((0, 1, 3, 2)), [k], c.qparams(k), "_keys")
    unit = QParams.of(float(c.qparams(q).scale * c.qparams(k).scale) * scale)
    if c.calibrated.approximations[node.name] == "isoftmax":
        # I-BERT feeds its softmax the 32-bit accumulator.
        raw = Matmul(1, 0, 0, "int32", *LIMITS["int32"])
        logits = c.emit(node, raw, [q, transposed], unit, "_logits")
        softmax_op = ISoftmax.of(unit)
    else:
        narrow = c.calibrated.logits[node.name]
        m, shift = multipliers(float(unit.scale / narrow.qparams.scale))
        logits_op = Matmul(int(m), shift, 0, "int8", *LIMITS["int8"])
        logits = c.emit(node, logits_op, [q, transposed], narrow.qparams, "_logits")
        softmax_op = Shiftmax.of(narrow.qparams)
    p = c.emit(node, softmax_op, [logits], PUBLISHED, "_softmax")
    m, shift = multipliers(float(PUBLISHED.scale * c.qparams(v).scale / point.qparams.scale))
    product = Matmul(
        int(m), shift, int(point.qparams.zero_point), point.dtype, *LIMITS[point.dtype]
    )
    return c.emit(node, product, [p, v], point.qparams)


def softmax(c: Any, node: fx.Node) -> Node:
    """A softmax over the last axis that is not inside an attention."""
    chosen = c.calibrated.approximations[node.name]
    x = c.narrow(node.args[0]) if chosen == "shiftmax" else c.value(node.args[0])
    if node.args[1] != len(x.type.shape) - 1:
        raise c.fault(node, "a softmax over another axis than the last", "permute the axes first")
    point = c.point(node)
    if chosen == "exp2":
        op = Softmax.of(c.qparams(x), point.qparams, point.dtype)
        return c.emit(node, op, [x], point.qparams)
    made = ISoftmax.of(c.qparams(x)) if chosen == "isoftmax" else Shiftmax.of(c.qparams(x))
    p = c.emit(node, made, [x], PUBLISHED, f"_{chosen}")
    return c.requantised(p, point, node.name)
