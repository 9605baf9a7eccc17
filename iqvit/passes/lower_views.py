"""y = flatten(x, 2)  ->  y = reshape(x, [1, 192, 196])"""

from math import prod

from torch import fx

from iqvit.canonical import aten, shape
from iqvit.passes.editing import calls, operands, replace

VIEWS = (
    aten.view,
    aten._unsafe_view,
    aten.reshape,
    aten.view_as,
    aten.reshape_as,
    aten.flatten,
    aten.unflatten,
    aten.squeeze,
    aten.unsqueeze,
    # Without broadcasting they only add dimensions of size 1.
    aten.expand,
    aten.expand_as,
    aten.broadcast_to,
)


def lower_views(module: fx.GraphModule) -> None:
    """Write every operator that keeps the order of elements as a reshape to a static shape."""
    for node in calls(module, *VIEWS):
        x = operands(node)[0]
        same_dtype = x.meta["val"].dtype == node.meta["val"].dtype
        if same_dtype and prod(shape(x)) == prod(shape(node)):
            replace(node, aten.reshape.default, x, list(shape(node)))
