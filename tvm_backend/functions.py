"""What the functions of a library compute, as its manifest says."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tvm
from tvm.s_tir.stmt import SBlock
from tvm_ffi import VisitInterrupt, structural_walk

from iqvit.errors import FileFormatError
from iqvit.intgraph import IntGraph
from iqvit.tvm_backend.plan import ALIAS, Step

TUPLE: Any = tvm.ir.TupleType  # its annotations leave out its fields
KEY = "functions"
"""Of the manifest; artifacts that were compiled before there was one lack it."""


@dataclass(frozen=True)
class Function:
    """All calls of one function in one run."""

    operators: str
    """Of the nodes that it computes together, joined by `+`; by `, ` where calls differ."""
    macs: int
    bytes: int
    """Of the tensors that it is given, weights as they are packed, and of its result. One that is
    given twice, or as views of other shapes, counts once for a call."""


@dataclass(frozen=True)
class _Called:
    """One call."""

    function: str
    bytes: int


def functions_of(
    graph: IntGraph, steps: list[Step], module: tvm.IRModule, names: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The `functions` of a manifest: a `Function`, as a dict, for every function that `main` calls.

    `module` and `names` are what `lower_named` made of the graph's steps. Where several functions
    compute a step, its multiply-accumulates belong to the one that sums, else to the last.
    """
    ends = {names[step.group.last.name]: step for step in steps if step.kernel != ALIAS}
    found: dict[str, Function] = {}
    waiting: list[_Called] = []
    for variable, call in _calls(module):
        if call is not None:
            waiting.append(call)
        step = ends.get(variable)
        if step is None:
            continue
        operators = "+".join(node.op.NAME for node in step.group.nodes)
        macs = sum(node.op.macs(*graph.types_of(node)) for node in step.group.nodes)
        sums = [called for called in waiting if _sums(module[called.function])]
        for called in waiting:
            mine = macs if called is (sums or waiting)[-1] else 0
            more = Function(operators, mine, called.bytes)
            found[called.function] = _and(found.get(called.function), more)
        waiting = []
    return {name: asdict(function) for name, function in found.items()}


def read_functions(manifest: Mapping[str, Any]) -> dict[str, Function]:
    """The functions of an artifact by name; empty where its manifest does not tell.

    Raises `FileFormatError` where it tells something else.
    """
    try:
        found = {name: Function(**entry) for name, entry in manifest.get(KEY, {}).items()}
    except (AttributeError, TypeError) as error:
        raise FileFormatError(f"the manifest's {KEY!r} cannot be read: {error}") from error
    for name, function in found.items():
        if [type(value) for value in vars(function).values()] != [str, int, int]:
            raise FileFormatError(f"the manifest's {KEY!r} has an entry of wrong types: {name}")
    return found


def _and(first: Function | None, second: Function) -> Function:
    """Both together."""
    if first is None:
        return second
    seen = first.operators.split(", ")
    operators = seen if second.operators in seen else [*seen, second.operators]
    return Function(", ".join(operators), first.macs + second.macs, first.bytes + second.bytes)


def _calls(module: tvm.IRModule) -> Iterator[tuple[str, _Called | None]]:
    """Every variable of `main`, in order, with the call that computes it where there is one."""
    whole: dict[Any, Any] = {}  # what a view is a view of
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            value: Any = binding.value
            name = getattr(getattr(value, "op", None), "name", "")
            called = None
            if name == "relax.reshape":
                whole[binding.var] = whole.get(value.args[0], value.args[0])
            elif name == "relax.call_tir":
                tensors = {whole.get(field, field) for field in value.args[1].fields}
                size = sum(_bytes(tensor.ty) for tensor in tensors) + _bytes(value.ty_args[0])
                called = _Called(value.args[0].name_hint, size)
            yield binding.var.name, called


def _bytes(kind: Any) -> int:
    """Of a tensor, or a tuple of them, of this Relax type."""
    if isinstance(kind, TUPLE):
        return sum(_bytes(field) for field in kind.fields)
    size = np.prod([int(extent) for extent in kind.shape], dtype=np.int64)
    return int(size) * np.dtype(str(kind.dtype)).itemsize


def _sums(function: Any) -> bool:
    """Whether a tensor expression of the function reduces an axis; kernels that are written out
    have none."""

    def at(block: SBlock) -> VisitInterrupt | None:
        return VisitInterrupt(block) if block.init is not None else None

    return structural_walk(function, (SBlock, at)) is not None
