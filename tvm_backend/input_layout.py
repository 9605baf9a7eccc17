"""How a library takes its image: channels first, as models do, or last, as cameras give it."""

from iqvit.errors import GraphError
from iqvit.intgraph import GraphBuilder, IntGraph
from iqvit.ops.input import Input
from iqvit.ops.permute import Permute
from iqvit.tvm_backend.channels_last import TO_FIRST, TO_LAST

NCHW, NHWC = "nchw", "nhwc"
LAYOUTS = (NCHW, NHWC)


def with_layout(graph: IntGraph, layout: str) -> IntGraph:
    """The same program on an image `[1, C, H, W]` (`nchw`, as it is) or `[1, H, W, C]` (`nhwc`).

    All values keep their names; that of the image is behind a permutation then, which kernels that
    read images channels-last do without. Raises `GraphError` for another layout, or an image
    without four axes.
    """
    if layout not in LAYOUTS:
        raise GraphError(f"the input layout {layout!r} is none of {', '.join(LAYOUTS)}")
    if layout == NCHW:
        return graph
    shape = graph.input.type.shape
    if len(shape) != 4:
        raise GraphError(f"the input {list(shape)} is no image [1, C, H, W]: it has no {layout}")
    builder = GraphBuilder()
    builder.nodes = {node.name: node for node in graph}
    name = builder.unique(f"{graph.input.name}_{layout}")
    builder.nodes = {}
    for node in graph:
        if not isinstance(node.op, Input):
            builder.nodes[node.name] = node
            continue
        image = builder.add(name, Input(tuple(shape[axis] for axis in TO_LAST)), [])
        builder.add(node.name, Permute(TO_FIRST), [image], qparams=node.qparams)
    return builder.finish(graph.outputs, graph.meta)
