"""y = gather(x, 1, repeat(unsqueeze(i, -1), [1, 1, 256]))  ->  y = take_rows(x, i)"""

from torch import fx

from iqvit.canonical import aten, shape, take_rows
from iqvit.passes.editing import calls, is_call, non_negative, operands, replace

WIDENING = (aten.repeat, aten.expand, aten.expand_as, aten.broadcast_to, aten.tile)
ADDING = (aten.unsqueeze, aten.reshape, aten.view)


def lower_gathers(module: fx.GraphModule) -> None:
    """Write the gathering of whole rows [1, N, C] -> [1, K, C] by indices [1, K] as such."""
    for node in calls(module, aten.gather):
        x, dim, index = operands(node)[:3]
        rows = _row_index(index)
        plain = len(shape(x)) == 3 and shape(x)[0] == 1 and non_negative(dim, 3) == 1
        if plain and rows is not None and shape(index)[2] == shape(x)[2]:
            replace(node, take_rows, x, rows)


def _row_index(index: fx.Node) -> fx.Node | None:
    """[1, K] indices that were widened to [1, K, C]."""
    if not is_call(index, *WIDENING):
        return None
    source = operands(index)[0]
    size = shape(index)
    if len(size) != 3 or shape(source) != (*size[:2], 1) or not is_call(source, *ADDING):
        return None
    rows = operands(source)[0]
    return rows if shape(rows) == size[:2] else None
