"""The canonical graph: the closed set of float operators, and the check that nothing else is left.

A canonical graph is a `torch.fx` graph of one image placeholder, `get_attr` nodes (float32
constants), `call_function` nodes of `OPS` without keyword arguments, and one output. Every later
stage reads only these.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from iqvit.capture import Source
from iqvit.errors import UnsupportedOp, node_message
from iqvit.sampling import deformable_attention, grid_sample

aten = torch.ops.aten


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k^T) v, without mask: q [1,H,N,D], k [1,H,M,D], v [1,H,M,E] -> [1,H,N,E].

    A function of its own because `scaled_dot_product_attention` takes the scale by keyword.
    """
    return functional.scaled_dot_product_attention(q, k, v, scale=scale)


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [1,N,C] by int64 indices [1,K] -> [1,K,C]."""
    return x[:, index[0]]


def floor_divide(x: Tensor, divisor: int) -> Tensor:
    """Indices (int64, not negative) by a positive number, rounded down."""
    return x // divisor


def remainder(x: Tensor, divisor: int) -> Tensor:
    """What `floor_divide` leaves of indices."""
    return x % divisor


def gelu(x: Tensor, approximate: str) -> Tensor:
    """x * Phi(x), exact (`none`) or by `tanh`; ATen takes the choice by keyword only."""
    return functional.gelu(x, approximate=approximate)


def upsample_nearest(x: Tensor, size: list[int]) -> Tensor:
    """x [1,C,h,w] at `size` [H, W], every pixel the one whose area it lies in."""
    return functional.interpolate(x, tuple(size), mode="nearest")


def upsample_bilinear(x: Tensor, size: list[int]) -> Tensor:
    """x [1,C,h,w] at `size` [H, W], bilinear between half-pixel centres, no antialiasing."""
    return functional.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def l2_normalize(x: Tensor, eps: float) -> Tensor:
    """x / max(|x|, eps) along the last axis; rows of zeros stay zeros whatever eps is."""
    return functional.normalize(x, dim=-1, eps=max(eps, torch.finfo(torch.float32).tiny))


@dataclass(frozen=True)
class CanonicalModel:
    """A float model in the closed op set.

    `module(x)` takes the normalised float32 image of `input_shape` and returns what the captured
    model computes: a tensor for one output, else a tuple in the order of `output_names`.
    Constants are float32 buffers. Node names are unique and stable: module path and operator.
    Every node has `meta["source"]` and `meta["val"]`, a meta tensor of its shape and dtype.
    """

    module: fx.GraphModule
    input_shape: tuple[int, int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    output_names: tuple[str, ...]
    sources: dict[str, Source]

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Outputs by name for one normalised float32 image of `input_shape`."""
        result = self.module(x)
        values = result if isinstance(result, tuple) else (result,)
        return dict(zip(self.output_names, values, strict=True))

    @property
    def outputs(self) -> dict[str, fx.Node]:
        """The nodes whose values are the outputs, by output name."""
        return dict(zip(self.output_names, output_nodes(self.module.graph), strict=True))


def output_nodes(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """The nodes that a graph returns, in order."""
    value: Any = graph.output_node().args[0]
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def is_constant(value: Any) -> bool:
    """Whether an argument is a constant tensor."""
    return isinstance(value, fx.Node) and value.op == "get_attr"


def constant(node: fx.Node) -> Tensor:
    """The value of a constant (`get_attr`) node of a GraphModule's graph."""
    return getattr(node.graph.owning_module, str(node.target))


def shape(node: fx.Node) -> tuple[int, ...]:
    """The static shape of a node's value."""
    return tuple(node.meta["val"].shape)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


KINDS: dict[str, Callable[[Any], bool]] = {
    "tensor": lambda value: isinstance(value, fx.Node),
    "constant": is_constant,
    "constant?": lambda value: value is None or is_constant(value),
    "tensors": lambda value: isinstance(value, list) and all(isinstance(v, fx.Node) for v in value),
    "int": _is_int,
    "index": lambda value: _is_int(value) and value >= 0,
    "ints": lambda value: isinstance(value, list) and all(map(_is_int, value)),
    "indices": lambda v: isinstance(v, list) and all(_is_int(i) and i >= 0 for i in v),
    "bool": lambda value: isinstance(value, bool),
    "float": lambda value: isinstance(value, float),
    "floats": lambda v: isinstance(v, list) and all(isinstance(x, float) for x in v),
    "str": lambda value: isinstance(value, str),
    "int?": lambda value: value is None or _is_int(value),
}


@dataclass(frozen=True)
class CanonicalOp:
    """One member of the closed set: `params` maps argument names, in order, to a key of KINDS."""

    name: str
    target: Callable[..., Any]
    params: dict[str, str]
    rule: Callable[..., str | None] = field(default=lambda **_: None)

    @property
    def signature(self) -> str:
        """`linear(x: tensor, w: constant, b: constant?)`."""
        return f"{self.name}({', '.join(f'{key}: {kind}' for key, kind in self.params.items())})"

    def fault(self, node: fx.Node) -> str | None:
        """Why a node of this target is not canonical, or None."""
        if node.kwargs or len(node.args) != len(self.params):
            return f"arguments {node.args}, {dict(node.kwargs)} do not follow {self.signature}"
        for (key, kind), value in zip(self.params.items(), node.args, strict=True):
            if not KINDS[kind](value):
                return f"argument {key} = {value} is not a {kind} of {self.signature}"
        return self.rule(**dict(zip(self.params, node.args, strict=True)))


def _last_dim_only(normalized_shape: list[int], **_: Any) -> str | None:
    if len(normalized_shape) == 1:
        return None
    return f"normalises over {len(normalized_shape)} dimensions; only the last alone is supported"


def _constant_second(a: fx.Node, b: fx.Node) -> str | None:
    return "has its constant first" if is_constant(a) and not is_constant(b) else None


def _four_dims(q: fx.Node, k: fx.Node, v: fx.Node, **_: Any) -> str | None:
    shapes = [shape(node) for node in (q, k, v)]
    if all(len(s) == 4 and s[0] == 1 and s[1] == shapes[0][1] for s in shapes):
        return None
    return f"takes q, k, v of shapes {shapes}; all must be [1, heads, tokens, channels]"


def _image_like(x: fx.Node, size: list[int]) -> str | None:
    if len(shape(x)) == 4 and len(size) == 2:
        return None
    return f"takes x of shape {shape(x)} to {size}; it must be [1, channels, height, width]"


def _from_topk(pair: fx.Node, **_: Any) -> str | None:
    return None if pair.target is aten.topk.default else f"indexes {pair.name}, which is not topk"


def _computed_rows(index: fx.Node, **_: Any) -> str | None:
    return "takes constant rows; index the tensor with slices" if is_constant(index) else None


def _positive(divisor: int, **_: Any) -> str | None:
    return None if divisor > 0 else f"divides by {divisor}"


_POOL = {"kernel": "ints", "stride": "ints", "padding": "ints"}
_RESIZE = {"x": "tensor", "size": "indices"}
_BY = {"x": "tensor", "divisor": "int"}
_PAIR = {"a": "tensor", "b": "tensor"}
_REDUCE = {"x": "tensor", "dims": "indices", "keepdim": "bool"}

OPS: dict[Callable[..., Any], CanonicalOp] = {
    op.target: op
    for op in (
        CanonicalOp(
            "conv2d",
            aten.conv2d.default,
            {
                "x": "tensor",
                "w": "constant",
                "b": "constant?",
                "stride": "ints",
                "padding": "ints",
                "dilation": "ints",
                "groups": "int",
            },
        ),
        CanonicalOp(
            "linear", aten.linear.default, {"x": "tensor", "w": "constant", "b": "constant?"}
        ),
        CanonicalOp("matmul", aten.matmul.default, _PAIR),
        CanonicalOp(
            "attention",
            attention,
            {"q": "tensor", "k": "tensor", "v": "tensor", "scale": "float"},
            _four_dims,
        ),
        CanonicalOp(
            "layer_norm",
            aten.layer_norm.default,
            {
                "x": "tensor",
                "normalized_shape": "ints",
                "w": "constant?",
                "b": "constant?",
                "eps": "float",
            },
            _last_dim_only,
        ),
        CanonicalOp("l2_normalize", l2_normalize, {"x": "tensor", "eps": "float"}),
        CanonicalOp("softmax", aten.softmax.int, {"x": "tensor", "dim": "index"}),
        CanonicalOp("gelu", gelu, {"x": "tensor", "approximate": "str"}),
        CanonicalOp("silu", aten.silu.default, {"x": "tensor"}),
        CanonicalOp("relu", aten.relu.default, {"x": "tensor"}),
        CanonicalOp("sigmoid", aten.sigmoid.default, {"x": "tensor"}),
        CanonicalOp("tanh", aten.tanh.default, {"x": "tensor"}),
        CanonicalOp("clamp", aten.clamp.default, {"x": "tensor", "lo": "float", "hi": "float"}),
        CanonicalOp("add", aten.add.Tensor, _PAIR, _constant_second),
        CanonicalOp("mul", aten.mul.Tensor, _PAIR, _constant_second),
        CanonicalOp("cat", aten.cat.default, {"tensors": "tensors", "dim": "index"}),
        CanonicalOp("reshape", aten.reshape.default, {"x": "tensor", "shape": "indices"}),
        CanonicalOp("permute", aten.permute.default, {"x": "tensor", "dims": "indices"}),
        CanonicalOp(
            "slice",
            aten.slice.Tensor,
            {"x": "tensor", "dim": "index", "start": "index", "end": "index", "step": "index"},
        ),
        CanonicalOp("select", aten.select.int, {"x": "tensor", "dim": "index", "index": "index"}),
        CanonicalOp("mean", aten.mean.dim, _REDUCE),
        CanonicalOp("amax", aten.amax.default, _REDUCE),
        CanonicalOp(
            "max_pool2d",
            aten.max_pool2d.default,
            {"x": "tensor", **_POOL, "dilation": "ints", "ceil_mode": "bool"},
        ),
        CanonicalOp(
            "avg_pool2d",
            aten.avg_pool2d.default,
            {
                "x": "tensor",
                **_POOL,
                "ceil_mode": "bool",
                "count_include_pad": "bool",
                "divisor_override": "int?",
            },
        ),
        CanonicalOp("upsample_nearest", upsample_nearest, _RESIZE, _image_like),
        CanonicalOp("upsample_bilinear", upsample_bilinear, _RESIZE, _image_like),
        CanonicalOp(
            "topk",
            aten.topk.default,
            {"x": "tensor", "k": "int", "dim": "index", "largest": "bool", "sorted": "bool"},
        ),
        CanonicalOp(
            "argmax", aten.argmax.default, {"x": "tensor", "dim": "index", "keepdim": "bool"}
        ),
        CanonicalOp("getitem", getitem, {"pair": "tensor", "index": "index"}, _from_topk),
        CanonicalOp("floor_divide", floor_divide, _BY, _positive),
        CanonicalOp("remainder", remainder, _BY, _positive),
        CanonicalOp("take_rows", take_rows, {"x": "tensor", "index": "tensor"}, _computed_rows),
        CanonicalOp("grid_sample", grid_sample, {"x": "tensor", "grid": "tensor", "mode": "str"}),
        CanonicalOp(
            "deformable_attention",
            deformable_attention,
            {
                **dict.fromkeys(("value", "boxes", "offsets", "logits"), "tensor"),
                "shapes": "indices",
                "points": "indices",
                "factors": "floats",
                "mode": "str",
            },
        ),
    )
}

# What topk and argmax give are int64 indices, which only these may handle.
ON_INDICES = (
    *("topk", "argmax", "getitem", "reshape", "permute", "slice", "select", "cat"),
    *("floor_divide", "remainder"),
)
REMEDY = "replace it in the model by supported operators, or leave that part out of the model"
REMEDIES = {
    "scaled_dot_product_attention": "call it without mask, causality and dropout",
    "expand": "write the broadcast in the operator that uses it",
    "dropout": "give F.dropout training=self.training, and call model.eval()",
    "div": "divide by constants only, or by the value's own L2 norm along one axis",
    "linalg_vector_norm": "use F.normalize(x, dim=d), or x / x.norm(dim=d, keepdim=True)",
    "upsample_bilinear2d": "use align_corners=False and an output size or a whole factor",
    "upsample_nearest2d": "give an output size or a whole factor",
    "upsample_bicubic2d": "use mode bilinear or nearest",
    "grid_sampler": "use zeros outside (padding_mode) and align_corners=False",
    "gather": "gather whole rows [1, N, C] by indices [1, K]",
    "log": "only the inverse of a sigmoid is known, clamped at both ends",
    "hardswish": "use SiLU, GELU or ReLU",
    "batch_norm": "keep its running statistics (track_running_stats=True)",
}


def op_of(node: fx.Node) -> CanonicalOp:
    """The operator of a call node in a checked graph."""
    return OPS[node.target]  # type: ignore[index]


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call node in a checked graph, by the names of its signature."""
    return dict(zip(op_of(node).params, node.args, strict=True))


def product_groups(node: fx.Node) -> int:
    """The groups of a linear or convolution: parts of the channels that do not mix."""
    return arguments(node).get("groups", 1)


def check(graph: fx.Graph) -> None:
    """Raise UnsupportedOp that names every node outside the closed set, each with its source."""
    groups: dict[tuple[str, str], list[fx.Node]] = {}
    for node in graph.nodes:
        fault = _fault(node)
        if fault is not None:
            groups.setdefault(fault, []).append(node)
    if not groups:
        return
    # Nodes of one fault share a message: their lines stand under each other, in the same order.
    margin = "\n" + " " * 10
    messages = [
        node_message(
            what,
            margin.join(node.name for node in nodes),
            margin.join(str(node.meta["source"]) or "unknown" for node in nodes),
            remedy,
        )
        for (what, remedy), nodes in groups.items()
    ]
    count = sum(map(len, groups.values()))
    noun = "node has" if count == 1 else "nodes have"
    raise UnsupportedOp("\n".join([f"{count} {noun} no integer operator", *messages]))


def _fault(node: fx.Node) -> tuple[str, str] | None:
    """What is wrong with a node, and the remedy."""
    if node.op in ("placeholder", "output"):
        return None
    name = str(node.target)
    if node.op == "get_attr":
        dtype = node.meta["val"].dtype
        right = dtype == torch.float32
        return None if right else (f"constant {name} is {dtype}", "make it float32 in the model")
    packet = getattr(node.target, "overloadpacket", None)
    remedy = REMEDIES.get(packet.__name__ if packet is not None else "", REMEDY)
    op = OPS.get(node.target)  # type: ignore[call-overload]
    if op is None and getattr(getattr(node.target, "_schema", None), "is_mutable", False):
        return f"{name} writes into memory that other values share", "do not compute in place"
    if op is None:
        return f"{name} is not supported", remedy
    dtype = getattr(node.meta["val"], "dtype", torch.float32)
    if dtype != torch.float32 and op.name not in ON_INDICES:
        return f"{op.name} computes in {dtype}", "compute in float32"
    fault = op.fault(node)
    return None if fault is None else (f"{op.name} {fault}", remedy)
