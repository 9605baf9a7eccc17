"""From an IntGraph to a TVM Relax module of finished TIR functions."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
import tvm.relax

from iqvit.intgraph import IntGraph
from iqvit.ops.reshape import Reshape
from iqvit.tvm_backend.arrange import arrange
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.plan import Step, plan
from iqvit.tvm_backend.targets import HOST, Target, resolve
from iqvit.tvm_backend.weights import Weights, constant

# Its shapes and arguments are typed as expressions; it takes tuples of integers and lists.
relax: Any = tvm.relax


def lower(graph: IntGraph, target: Target | str = HOST) -> tvm.IRModule:
    """The Relax module of `graph`: `main(image uint8 [1, C, H, W])` and the TIR functions it calls.

    `main` returns a tuple of the outputs in the order of `graph.outputs`; constants are in it,
    weights packed for the target's instruction set. On a target with one, nodes are computed by
    fast kernels where there are some (`plan.plan` says which); all others, and `portable`, use the
    operators' own lowerings. Raises `TargetError` for an unknown target.
    """
    chosen = resolve(target) if isinstance(target, str) else target
    arranged = arrange(graph, chosen)
    return lower_steps(arranged, plan(arranged, chosen))


def lower_steps(graph: IntGraph, steps: list[Step], weights: Weights | None = None) -> tvm.IRModule:
    """`lower` for steps already planned.

    With `weights` the large constants are added to those, and the module works only in a library
    that they are linked into.
    """
    return lower_named(graph, steps, weights)[0]


def lower_named(
    graph: IntGraph, steps: list[Step], weights: Weights | None = None
) -> tuple[tvm.IRModule, dict[str, str]]:
    """`lower_steps`, and the names of the variables of `main` by the computed nodes they hold."""
    builder = relax.BlockBuilder()
    image = graph.input
    x = relax.Var("image", relax.TensorType(image.type.shape, image.type.dtype))
    make = constant if weights is None else weights.constant
    lowering = Lowering(graph, builder, {image.name: x}, {}, make)
    with builder.function("main", [x]):
        with builder.dataflow():
            for step in steps:
                lowering.emit(step)
            values = [lowering.value(name) for name in graph.outputs.values()]
            results = builder.emit_output(relax.Tuple(values))
        builder.emit_func_output(results)
    computed = [step.group.last.name for step in steps]
    return builder.get(), {name: lowering.values[name].name for name in computed}


@dataclass(frozen=True)
class Lowering:
    """The state of one lowering: what is there so far."""

    graph: IntGraph
    builder: tvm.relax.BlockBuilder
    values: dict[str, Any]
    """Relax expressions of the graph's values by node name, in the shapes that they are made in."""
    functions: dict[tuple[str, Hashable], Any]
    """The functions made so far by (kernel, key)."""
    make_constant: Callable[[np.ndarray], Any] = constant
    views: dict[tuple[str, tuple[int, ...]], Any] = field(default_factory=dict)
    """Values in other shapes; each view costs the virtual machine as much as a small kernel."""

    def value(self, name: str, shape: tuple[int, ...] | None = None) -> Any:
        """The Relax expression of a node's value, in its own shape or `shape`; constants are made
        when first read."""
        wanted = self.graph[name].type.shape if shape is None else shape
        if name not in self.values:
            array = np.asarray(self.graph[name].type.value)
            self.values[name] = self.constant(array.reshape(wanted))
        made = self.values[name]
        if _shape(made) == wanted:
            return made
        if (name, wanted) not in self.views:
            self.views[name, wanted] = self.builder.emit(relax.op.reshape(made, wanted))
        return self.views[name, wanted]

    def emit(self, step: Step) -> None:
        """Compute the value of the step's last node."""
        node = step.group.last
        if step.call is None and isinstance(node.op, Reshape):
            self.values[node.name] = self.value(node.inputs[0])
            return
        if step.call is not None:
            result = self.call(step.call)
        else:
            args = [self.value(name) for name in node.inputs]
            result = node.op.lower(self.builder, args, self.graph.types_of(node), node.type)
        if step.group.also and step.call is not None:
            result = self.builder.emit(result)
            for place, also in enumerate(step.group.also, 1):
                self.values[also.name] = self.builder.emit(relax.TupleGetItem(result, place))
            result = relax.TupleGetItem(result, 0)
        self.values[node.name] = self.builder.emit(result, name_hint=node.name)

    def call(self, call: Call) -> Any:
        """The expression of a kernel call, after the calls whose results it reads."""
        args = [self._operand(operand) for operand in call.operands]
        outputs = [relax.TensorType(*kind) for kind in ((call.shape, call.dtype), *call.also)]
        out = outputs if call.also else outputs[0]
        return relax.call_tir(self._function(call), args, out)

    def constant(self, value: np.ndarray) -> Any:
        """The Relax expression of an array."""
        made = self.make_constant(value)
        return self.builder.emit(made) if isinstance(made, relax.Call) else made

    def _operand(self, operand: str | As | np.ndarray | Call) -> Any:
        if isinstance(operand, str):
            return self.value(operand)
        if isinstance(operand, As):
            return self.value(operand.name, operand.shape)
        if isinstance(operand, Call):
            return self.builder.emit(self.call(operand))
        return self.constant(operand)

    def _function(self, call: Call) -> Any:
        key = (call.kernel, call.key)
        if key not in self.functions:
            count = sum(kernel == call.kernel for kernel, _ in self.functions)
            name = f"{call.kernel}_{count}"
            self.functions[key] = self.builder.add_func(call.make(name), name)
        return self.functions[key]


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in value.ty.shape)
