"""Canonicalize: a list of small passes takes a captured model into the closed op set."""

from collections.abc import Callable, Container

from torch import fx

from iqvit.canonical import CanonicalModel, check
from iqvit.capture import CapturedModel
from iqvit.passes.fold_batch_norm import fold_batch_norm
from iqvit.passes.fold_biases import fold_biases
from iqvit.passes.fold_constant_writes import fold_constant_writes
from iqvit.passes.fold_constants import fold_constants
from iqvit.passes.fold_scales import fold_scales
from iqvit.passes.functionalize_inplace import functionalize_inplace
from iqvit.passes.fuse_attention import fuse_attention
from iqvit.passes.fuse_deformable import fuse_deformable
from iqvit.passes.fuse_l2_norm import fuse_l2_norm
from iqvit.passes.fuse_logit import fuse_logit
from iqvit.passes.hoist_take_rows import hoist_take_rows
from iqvit.passes.hoist_upsampling import hoist_upsampling
from iqvit.passes.lower_arithmetic import lower_arithmetic
from iqvit.passes.lower_attention_bias import lower_attention_bias
from iqvit.passes.lower_einsum import lower_einsum
from iqvit.passes.lower_gathers import lower_gathers
from iqvit.passes.lower_index_arithmetic import lower_index_arithmetic
from iqvit.passes.lower_matmuls import lower_matmuls
from iqvit.passes.lower_reductions import lower_reductions
from iqvit.passes.lower_splits import lower_splits
from iqvit.passes.lower_transposes import lower_transposes
from iqvit.passes.lower_upsampling import lower_upsampling
from iqvit.passes.lower_views import lower_views
from iqvit.passes.merge_convolutions import merge_convolutions
from iqvit.passes.merge_duplicates import merge_duplicates
from iqvit.passes.merge_layouts import merge_layouts
from iqvit.passes.name_nodes import name_nodes
from iqvit.passes.normalize_arguments import normalize_arguments
from iqvit.passes.normalize_attention import normalize_attention
from iqvit.passes.remove_identities import remove_identities
from iqvit.passes.remove_neutral_arithmetic import remove_neutral_arithmetic
from iqvit.passes.remove_unread_pieces import remove_unread_pieces
from iqvit.passes.split_branches import split_branches
from iqvit.passes.split_projections import split_projections

Pass = Callable[[fx.GraphModule], None]


def canonical_pipeline() -> list[Pass]:
    """The passes in order; each edits the graph in place."""
    return [
        # First, while copies and views still show what shares memory.
        fold_constant_writes,
        functionalize_inplace,
        remove_identities,
        fold_constants,
        # While the layouts of the model still show.
        fuse_deformable,
        fuse_logit,
        lower_gathers,
        lower_index_arithmetic,
        lower_einsum,
        # Before the views, while the lengths of rows still show as broadcast.
        fuse_l2_norm,
        lower_upsampling,
        lower_views,
        lower_transposes,
        lower_splits,
        lower_reductions,
        normalize_arguments,
        lower_attention_bias,
        # Before the arithmetic, which puts the sums that it makes in order.
        lower_matmuls,
        fold_batch_norm,
        lower_arithmetic,
        remove_neutral_arithmetic,
        fold_biases,
        fold_scales,
        merge_convolutions,
        split_branches,
        hoist_upsampling,
        remove_unread_pieces,
        hoist_take_rows,
        # Of the reshapes that the lowerings left, those to the same shape hide attention.
        remove_identities,
        normalize_attention,
        fuse_attention,
        # Last: what the passes above left between each other.
        remove_identities,
        merge_layouts,
        split_projections,
        merge_layouts,
        merge_duplicates,
    ]


def canonicalize(captured: CapturedModel, *, without: Container[Pass] = ()) -> CanonicalModel:
    """Rewrite `captured` (left as it is) into the closed op set of `iqvit.canonical`.

    without: passes of `canonical_pipeline` to leave out, which tells what they are worth.
    Raises UnsupportedOp that names all the nodes which no pass could bring there.
    """
    graph = fx.Graph()
    output = graph.graph_copy(captured.module.graph, val_map={})
    graph.output(output).meta = dict(captured.module.graph.output_node().meta)
    module = fx.GraphModule(captured.module, graph)
    for rewrite in canonical_pipeline():
        if rewrite in without:
            continue
        rewrite(module)
        module.graph.eliminate_dead_code()
        module.graph.lint()
    module = name_nodes(module)
    check(module.graph)
    sources = {node.name: node.meta["source"] for node in module.graph.nodes}
    return CanonicalModel(
        module,
        captured.input_shape,
        captured.mean,
        captured.std,
        captured.output_names,
        sources,
    )
