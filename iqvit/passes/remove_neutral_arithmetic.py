"""y = mul(x, 1); z = add(y, 0)  ->  z = x"""

from torch import fx

from iqvit.canonical import aten, constant, is_constant, shape
from iqvit.passes.editing import calls, operands, substitute


def remove_neutral_arithmetic(module: fx.GraphModule) -> None:
    """Remove additions of zeros and products with ones that do not broadcast."""
    for node in calls(module, aten.add, aten.mul):
        neutral = 0 if node.target is aten.add.Tensor else 1
        x, other = operands(node)[:2]
        if not is_constant(other) or node.kwargs or shape(x) != shape(node):
            continue
        if bool((constant(other) == neutral).all()):
            substitute(node, x)
