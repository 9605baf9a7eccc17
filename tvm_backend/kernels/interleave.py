"""Statements of independent results in turns, so that a CPU has several to work on.

A result of a GEMM's epilogue is a chain of some fifty vector instructions that wait for each other.
One chain after the other, the next one lies beyond what an out-of-order CPU looks ahead.
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from tvm import tirx
from tvm.ir.expr import TensorLoad
from tvm_ffi import structural_map, structural_walk

from iqvit.tvm_backend.kernels.script import PrimFunc

MARK = "iqvit.interleave"
"""The annotation of loops whose body stores several independent results."""


def interleave(function: PrimFunc) -> PrimFunc:
    """The function with the statements of marked loops' bodies in turns, where they do not depend
    on each other."""
    made: Any = function  # its annotations leave out that it has a body
    return made.with_body(structural_map(made.body, (tirx.For, _taken_in_turns)))


def _taken_in_turns(loop: Any) -> Any:
    if MARK not in loop.annotations:
        return loop
    body = loop.body
    chains = _chains(list(body.seq)) if isinstance(body, tirx.SeqStmt) else []
    if len(chains) > 1 and _independent(chains):
        turns = [s for turn in zip_longest(*chains) for s in turn if s is not None]
        body = tirx.SeqStmt(turns)
    return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body)


def _chains(statements: list[Any]) -> list[list[Any]]:
    """The statements up to every store that is no variable's."""
    chains: list[list[Any]] = [[]]
    own: set[Any] = set()
    for statement in statements:
        if not isinstance(statement, (tirx.AllocBuffer, tirx.BufferStore)):
            return []
        chains[-1].append(statement)
        if isinstance(statement, tirx.AllocBuffer):
            own.add(statement.buffer)
        elif statement.buffer not in own:
            chains.append([])
    return [chain for chain in chains if chain]


def _independent(chains: list[list[Any]]) -> bool:
    """Whether no chain reads what another one stores."""
    stored = [{s.buffer for s in chain if isinstance(s, tirx.BufferStore)} for chain in chains]
    read = [{buffer for s in chain for buffer in _reads(s)} for chain in chains]
    return not any(
        stored[i] & read[j] for i in range(len(chains)) for j in range(len(chains)) if i != j
    )


def _reads(statement: Any) -> Iterator[Any]:
    found: list[Any] = []
    if isinstance(statement, tirx.BufferStore):
        structural_walk(statement.value, (TensorLoad, lambda load: found.append(load.source)))
    return iter(found)
