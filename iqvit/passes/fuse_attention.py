"""y = matmul(softmax(matmul(mul(q, s), k_t), 3), v)  ->  y = attention(q, permute(k_t), v, s)"""

from torch import fx

from iqvit.canonical import aten, shape
from iqvit.passes.editing import calls, insert, is_call, operands, scalar_of, substitute
from iqvit.passes.normalize_attention import have_equal_heads, insert_attention

LAYOUT = (aten.reshape, aten.permute, aten.select, aten.slice)


def fuse_attention(module: fx.GraphModule) -> None:
    """Recognise attention written by hand, with its scale on q, on k or on the scores.

    A mask or a position bias between the scores and the softmax keeps the four operators apart.
    """
    for node in calls(module, aten.matmul):
        weights, v = operands(node)
        if not is_call(weights, aten.softmax) or len(weights.users) != 1:
            continue
        scores, dim = operands(weights)
        if dim != len(shape(weights)) - 1 or len(scores.users) != 1:
            continue
        scores, scale = _unscale(scores)
        if is_call(scores, aten.matmul) and len(scores.users) == 1:
            _fuse(node, scores, v, scale)


def _fuse(node: fx.Node, scores: fx.Node, v: fx.Node, scale: float) -> None:
    q, q_scale = _unscale(operands(scores)[0])
    k_t, k_scale = _unscale(operands(scores)[1])
    rank = len(shape(k_t))
    k = insert(node, aten.permute.default, k_t, [*range(rank - 2), rank - 1, rank - 2])
    if have_equal_heads(q, k, v):
        total = scale * q_scale * k_scale
        substitute(node, insert_attention(node, q, k, v, total))


def _unscale(x: fx.Node) -> tuple[fx.Node, float]:
    """The value before its products with single numbers, also through one use of a layout."""
    scale = 1.0
    while is_call(x, aten.mul):
        number = scalar_of(operands(x)[1])
        if number is None:
            break
        x, scale = operands(x)[0], scale * number
    if is_call(x, *LAYOUT) and is_call(operands(x)[0], aten.mul):
        inner, factor = _unscale(operands(x)[0])
        if factor != 1:
            return insert(x, x.target, inner, *operands(x)[1:]), scale * factor
    return x, scale
