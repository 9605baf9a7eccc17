"""y = dropout(x, 0.1, False)  ->  y = x"""

from collections.abc import Callable

from torch import fx

from iqvit.canonical import aten, shape
from iqvit.passes.editing import is_call, operands, schema_arguments, substitute

COPIES = (
    aten.contiguous,
    aten.clone,
    aten.alias,
    aten.detach,
    aten.lift_fresh,
    aten.lift_fresh_copy,
    aten.positive,
)
DROPOUTS = (aten.dropout, aten.feature_dropout, aten.alpha_dropout)
# Identities where they change neither shape nor dtype.
CASTS_AND_VIEWS = (
    aten.to,
    aten._to_copy,
    aten.type_as,
    aten.expand,
    aten.expand_as,
    aten.broadcast_to,
    aten.view,
    aten.reshape,
    aten.slice,
    aten.squeeze,
    aten.flatten,
)
ASSERTS = (
    aten._assert_async,
    aten._assert_scalar,
    aten._assert_tensor_metadata,
    aten.sym_constrain_range_for_size,
)


def remove_identities(module: fx.GraphModule) -> None:
    """Remove copies, inactive dropout, casts and views to the same type, and assertions."""
    for node in list(module.graph.nodes):
        if is_call(node, *ASSERTS):
            module.graph.erase_node(node)
        elif any(rule(node) for rule in RULES):
            substitute(node, operands(node)[0])


def _is_copy(node: fx.Node) -> bool:
    return is_call(node, *COPIES)


def _is_inactive_dropout(node: fx.Node) -> bool:
    if not is_call(node, *DROPOUTS):
        return False
    values = schema_arguments(node)
    return not values["train"] or values["p"] == 0


def _keeps_type(node: fx.Node) -> bool:
    if not is_call(node, *CASTS_AND_VIEWS):
        return False
    before, after = operands(node)[0].meta["val"], node.meta["val"]
    # A slice of the same shape can only be the whole.
    return before.shape == after.shape and before.dtype == after.dtype


def _is_single_cat(node: fx.Node) -> bool:
    if not is_call(node, aten.cat) or len(operands(node)[0]) != 1:
        return False
    node.update_arg(0, operands(node)[0][0])
    return True


def _is_unit_permute(node: fx.Node) -> bool:
    return is_call(node, aten.permute) and list(operands(node)[1]) == [*range(len(shape(node)))]


RULES: tuple[Callable[[fx.Node], bool], ...] = (
    _is_copy,
    _is_inactive_dropout,
    _keeps_type,
    _is_single_cat,
    _is_unit_permute,
)
