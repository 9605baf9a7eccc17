"""y = select(cat([a, b], 1), 1, 1)  ->  y = reshape(b, ...)"""

from torch import fx

from iqvit.canonical import aten, shape
from iqvit.passes.editing import calls, is_call, operands, replace


def remove_unread_pieces(module: fx.GraphModule) -> None:
    """Read a piece of a concatenation where it comes from: DETR stacks the results of all layers,
    of which inference returns the last."""
    for node in calls(module, aten.select):
        joined, dim, index = operands(node)
        if not is_call(joined, aten.cat) or operands(joined)[1] != dim:
            continue
        pieces = [(piece, i) for piece in operands(joined)[0] for i in range(shape(piece)[dim])]
        piece, inside = pieces[index]
        if shape(piece)[dim] == 1:
            replace(node, aten.reshape.default, piece, list(shape(node)))
        else:
            replace(node, aten.select.int, piece, dim, inside)
