"""Mixed precision: the integer program with real functions where integers can only approach them.

Matrix products, convolutions, additions and all that moves or rounds values stay the program's
integer operators. Every non-linear operator is computed by its real function in float32, from the
reals that its integer operands stand for, and rounded to the integers of its result. What differs
from the integer program is then the cost of its approximations, and nothing else.

This is for comparison: it runs on PyTorch only and is no program of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from iqvit.arith import exact_matmul
from iqvit.canonical import CanonicalModel, arguments, constant, is_constant, op_of
from iqvit.errors import GraphError
from iqvit.interpret import Functions, run
from iqvit.intgraph import IntGraph, Node
from iqvit.inttype import TORCH_DTYPES, QParams
from iqvit.ops.attention import Attention
from iqvit.ops.constant import Constant
from iqvit.ops.exp2 import full_scale

NONLINEAR = frozenset(
    (
        *("gelu", "silu", "sigmoid", "tanh", "softmax", "layer_norm", "l2_normalize"),
        *("deformable_attention", "grid_sample"),
    )
)
"""Canonical operators that are computed as real functions; of `attention` it is the softmax."""
SOFTMAX_PARTS = frozenset(("isoftmax", "shiftmax"))
"""Published forms, which are a part of what a float node became."""

Real = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class MixedPrecision:
    """A program in mixed precision; called like `iqvit.run`.

    graph: made from `model` by conversion, and not trained since, as the constants of the real
    functions (a LayerNorm's gain) are the float model's. Raises `GraphError` where it was not.
    """

    model: CanonicalModel
    graph: IntGraph

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """uint8 `[B, C, H, W]` -> the named integer outputs."""
        with torch.no_grad():
            return run(self.graph, x, instead=self.functions)

    @cached_property
    def functions(self) -> Functions:
        """The function of every non-linear node of the program."""
        floats = {node.name: node for node in self.model.module.graph.nodes}
        for node in self.graph:
            _require_same(node, floats)
        found = {}
        for node in self.graph:
            function = self._function(node, floats.get(node.origin))
            if function is not None:
                found[node.name] = function
        return found

    @property
    def integer_share(self) -> float:
        """Share of the multiply-accumulates that integers compute, 0..1: all but those of real
        functions, of which only sampling has many."""
        total = real = 0
        for node in self.graph:
            macs = node.op.macs(*self.graph.types_of(node))
            total += macs
            products = isinstance(node.op, Attention)
            real += macs if node.name in self.functions and not products else 0
        return 1.0 if total == 0 else 1 - real / total

    def _function(self, node: Node, origin: fx.Node | None) -> Real | None:
        if isinstance(node.op, Constant):
            return None
        if node.op.NAME in SOFTMAX_PARTS:
            return self._rounded(node, [0], lambda x: torch.softmax(x, -1))
        if origin is None or origin.op != "call_function":
            return None
        if isinstance(node.op, Attention):
            return self._attention(node, node.op, origin)
        if op_of(origin).name not in NONLINEAR:
            return None
        return self._rounded(node, self._computed(node), _with_constants(origin))

    def _computed(self, node: Node) -> list[int]:
        """The places of a node's operands that are no constants."""
        kinds = [self.graph[name].op for name in node.inputs]
        return [place for place, op in enumerate(kinds) if not isinstance(op, Constant)]

    def _rounded(self, node: Node, places: list[int], real: Real) -> Real:
        """`real` of the operands at these places, between integers."""
        forms = [_qparams(self.graph[node.inputs[place]]) for place in places]

        def function(*operands: Tensor) -> Tensor:
            reals = [
                form.dequantize(operands[place]).to(torch.float32)
                for form, place in zip(forms, places, strict=True)
            ]
            return _integers(node, real(*reals))

        return function

    def _attention(self, node: Node, op: Attention, origin: fx.Node) -> Real:
        """Both products in integers, the softmax between them real.

        Its probabilities are relative to the row maximum and rounded to the program's bits, and
        their sum divides at the end, as in the integer operator: normalised ones of 8 bits cannot
        represent small probabilities, which is a property of that form and not of real functions.
        """
        q, k, v = (_qparams(self.graph[name]) for name in node.inputs)
        factor = float(q.scale * k.scale) * float(arguments(origin)["scale"])
        full = full_scale(op.bits)

        def function(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            depth, count = queries.shape[-1], keys.shape[-2]
            logits = exact_matmul(queries, keys.transpose(-1, -2), depth * 128 * 128)
            reals = logits.to(torch.float32) * factor
            p = torch.exp(reals - reals.amax(-1, keepdim=True))
            p = torch.floor(p * full + 0.5).to(torch.int64)
            acc = exact_matmul(p, values, full * 128 * count).double()
            mean = acc / p.sum(-1, keepdim=True) - float(v.zero_point)
            return _integers(node, mean * float(v.scale))

        return function


def _require_same(node: Node, floats: Mapping[str, fx.Node]) -> None:
    """`GraphError` for a node that was not made from the model of these float nodes."""
    if not node.origin:
        return
    origin = floats.get(node.origin)
    if origin is None:
        raise GraphError(
            f"the graph was not made from this model, which has no node {node.origin!r}"
        )
    wanted = getattr(origin.meta.get("val"), "shape", None)
    if wanted is not None and node.qparams is not None and tuple(wanted) != node.type.shape:
        raise GraphError(
            f"the graph was not made from this model: node {node.name!r} has shape "
            f"{list(node.type.shape)}, the float node {list(wanted)}"
        )


def _with_constants(origin: fx.Node) -> Real:
    """The function of a canonical node, of its computed operands alone."""
    target: Any = origin.target

    def function(*reals: Tensor) -> Tensor:
        given = iter(reals)

        def operand(source: fx.Node) -> Tensor:
            return constant(source) if is_constant(source) else next(given)

        found: Tensor = target(*fx.map_arg(origin.args, operand))
        return found

    return function


def _integers(node: Node, real: Tensor) -> Tensor:
    """A real result in the form of the node, within the range that is proved of it."""
    q = _qparams(node).quantize(real, node.type.lo, node.type.hi)
    return q.to(TORCH_DTYPES[node.type.dtype])


def _qparams(node: Node) -> QParams:
    if node.qparams is None:
        raise GraphError(f"node {node.name!r} has no scale, so it stands for no real value")
    return node.qparams
