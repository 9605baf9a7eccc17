"""The real functions of a program, evaluated at its own values: what gradients flow through."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from iqvit.canonical import CanonicalModel, op_of
from iqvit.intgraph import Node
from iqvit.inttype import LIMITS, QParams
from iqvit.ops.row_quantise import RowQuantise
from iqvit.ops.shiftgelu import ShiftGelu
from iqvit.training.integers.program import Program
from iqvit.training.integers.straight import dequantised, real_limits, straight, within

# Operators that only move what they read, whose integers are those already.
MOVES = frozenset({"reshape", "permute", "slice", "select"})


def is_real(node: fx.Node) -> bool:
    """Whether a node's value is real numbers: not indices, nor the pair of a topk."""
    return getattr(node.meta["val"], "is_floating_point", bool)()


def chosen_from(node: fx.Node) -> fx.Node:
    """The real value that an output of indices (a class map) was chosen from; others themselves."""
    while not is_real(node):
        node = node.all_input_nodes[0]
    return node


@dataclass
class RealPass:
    """One evaluation of the float graph for one image `[1, C, H, W]`.

    Every real function is computed from the reals that its integer operands stand for, and its
    result is then replaced by what the integer result stands for (`straight`). What a linear or
    attention reads in 8 bits it reads so here.

    trace: the integers of every node of the program. tensors: constants by name. weights: rounded
    weight and bias of every linear and convolution. forms: the key of the form that a value has, or
    is read in. factor: the learned factor of a form. watched: the forms whose range moves, each
    with its present factor; `used` is filled with the largest share of their calibrated ranges.
    """

    model: CanonicalModel
    program: Program
    trace: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    weights: Mapping[str, tuple[Tensor, Tensor]]
    forms: Mapping[str, str]
    factor: Callable[[str], Tensor | None]
    watched: Mapping[str, float] = field(default_factory=dict)
    used: dict[str, Tensor] = field(default_factory=dict)
    _special: dict[str, Tensor] = field(default_factory=dict)

    def run(self, wanted: Mapping[str, fx.Node]) -> dict[str, Tensor]:
        """The values of float nodes, by the names that they are given."""
        env: dict[fx.Node, Any] = {}
        for node in self.model.module.graph.nodes:
            if node.op == "placeholder":
                env[node] = self._value(self._integer(node))
            elif node.op == "get_attr":
                env[node] = self.tensors.get(node.name)  # None: a weight
            elif node.op == "call_function":
                env[node] = self._node(node, env)
        return {name: env[node] for name, node in wanted.items()}

    def _node(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        operator = op_of(node).name
        made = self._integer(node)
        if operator == "topk":
            index = self.trace[made.name].to(torch.int64)
            return env[node.all_input_nodes[0]].gather(-1, index), index
        if not is_real(node):
            return self.trace[made.name].to(torch.int64)
        read = self.program.operands.get(node.name, {})

        def operand(source: fx.Node) -> Any:
            if source.name not in read:
                return env[source]
            return self._operand(source, self.program.graph[read[source.name]], env[source])

        args: Any = fx.map_arg(node.args, operand)
        if node.name in self.weights:
            args = (args[0], *self.weights[node.name], *args[3:])
        if operator == "attention":
            real = self._attention(node, args)
        elif isinstance(made.op, ShiftGelu):
            # Half of every negative value in some rows: nothing learns that from GELU's gradient.
            real = made.op.real(args[0])
        else:
            real = _call(node, args)
        return real if operator in MOVES else self._rounded(real, made, node.name)

    def _rounded(self, real: Tensor, made: Node, name: str) -> Tensor:
        """A real result as what the integers stand for."""
        key = self.forms.get(name, "")
        qparams = _qparams(made)
        scale, zero_point = _on(qparams, real)
        limits = _limits(made)
        lo, hi = real_limits(scale, zero_point, limits)
        if key in self.watched:
            largest = torch.maximum(_share(real, lo), _share(real, hi)).amax() * self.watched[key]
            self.used[key] = torch.maximum(self.used.get(key, largest), largest)
        saturates = made.type.lo <= limits[0] or made.type.hi >= limits[1]
        inside = within(real.detach(), lo, hi, scale) if saturates else None
        value = dequantised(self.trace[made.name], scale, zero_point)
        return straight(real, value, inside, self.factor(key), max(limits[1], 1))

    def _operand(self, source: fx.Node, made: Node, whole: Tensor) -> Tensor:
        """A value in the 8 bits that a product reads, rounded once for all its readers."""
        if made.name not in self._special:
            if isinstance(made.op, RowQuantise):
                self._special[made.name] = straight(whole, self._rows(made, made.op))
            else:
                self._special[made.name] = self._rounded(whole, made, f"{source.name}_narrow")
        return self._special[made.name]

    def _rows(self, made: Node, op: RowQuantise) -> Tensor:
        """Rows of 8 bits: `offset + q * peak / levels`, in steps of what they were made of."""
        source, peak = (self.program.graph[name] for name in made.inputs)
        rows = self.trace[made.name].to(torch.float32)
        steps = rows * self.trace[peak.name].to(torch.float32) / op.levels
        scale, zero_point = _on(_qparams(source), steps)
        return (steps + (op.offset if op.one_sided else 0) - zero_point) * scale

    def _attention(self, node: fx.Node, args: Any) -> Tensor:
        """Attention, by way of the program's own logits and probabilities where they are nodes."""
        q, k, v, factor = args
        nodes = self.program.graph
        logits = q @ k.transpose(-1, -2) * factor
        probabilities = f"{node.name}_softmax"
        if probabilities not in self.trace:
            return torch.softmax(logits, -1) @ v
        logits = self._rounded(logits, nodes[f"{node.name}_logits"], f"{node.name}_logits")
        p = torch.softmax(logits, -1)
        return straight(p, self._value(nodes[probabilities])) @ v

    def _integer(self, node: fx.Node) -> Node:
        return self.program.graph[self.program.values[node.name]]

    def _value(self, made: Node) -> Tensor:
        q = self.trace[made.name]
        return dequantised(q, *_on(_qparams(made), q))


def integer_values(
    program: Program, trace: Mapping[str, Tensor], wanted: Mapping[str, fx.Node]
) -> dict[str, Tensor]:
    """What `RealPass.run` gives, without it: what the integers stand for."""
    found = {}
    for name, node in wanted.items():
        made = program.graph[program.values[node.name]]
        q = trace[made.name]
        real = is_real(node)
        found[name] = dequantised(q, *_on(_qparams(made), q)) if real else q.to(torch.int64)
    return found


def _call(node: fx.Node, args: tuple[Any, ...]) -> Tensor:
    return node.target(*args)  # type: ignore[operator]


def _qparams(made: Node) -> QParams:
    if made.qparams is None:
        raise TypeError(f"{made.name} stands for a real value without a scale")
    return made.qparams


def _on(qparams: QParams, like: Tensor) -> tuple[Any, Any]:
    """Scale and zero point: two numbers, or float32 tensors that broadcast over `like`."""
    if not qparams.per_channel:
        return float(qparams.scale), float(qparams.zero_point)
    shape = [1] * like.ndim
    shape[qparams.axis or 0] = -1
    scale, zero = (
        torch.from_numpy(v.astype("float32")).to(like.device).reshape(shape)
        for v in (qparams.scale, qparams.zero_point)
    )
    return scale, zero


def _limits(made: Node) -> tuple[int, int]:
    """Where the operator's result saturates."""
    least, most = LIMITS[made.type.dtype]
    return getattr(made.op, "lo", least), getattr(made.op, "hi", most)


def _share(real: Tensor, bound: Any) -> Tensor:
    """How much of the way to a bound values go; 0 where the bound is 0."""
    real = real.detach()
    if isinstance(bound, Tensor):
        return torch.where(bound != 0, real / bound, 0.0)
    return real / bound if bound else torch.zeros_like(real)
