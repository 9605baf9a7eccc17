"""Statements of independent results in turns, so that a CPU has several to work on.

A result of a GEMM's epilogue is a chain of some fifty vector instructions that wait for each other.
One chain after the other, the next one lies beyond what an out-of-order CPU looks ahead.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

from tvm import tirx
from tvm.ir.expr import TensorLoad
from tvm_ffi import structural_map, structural_walk

from iqvit.tvm_backend.kernels.script import PrimFunc, T

MARK = "iqvit.interleave"
"""The annotation of loops whose body stores several independent results."""
WEAVE = "iqvit.weave"
"""The annotation of a loop of one turn around two threads."""


@contextmanager
def woven() -> Iterator[Callable[[], Any]]:
    """Two threads, each `with thread():` of what is given, whose statements `interleave` puts in
    turns, in proportion to how many they are; neither reads what the other one stores."""
    with T.serial(1, annotations={WEAVE: True}):
        yield lambda: T.serial(1)


def interleave(function: PrimFunc) -> PrimFunc:
    """The function with the statements of marked loops' bodies in turns, where they do not depend
    on each other, and those of two threads (`woven`)."""
    made: Any = function  # its annotations leave out that it has a body
    return made.with_body(structural_map(made.body, (tirx.For, _rewritten)))


def _rewritten(loop: Any) -> Any:
    return _one_thread(loop) if WEAVE in loop.annotations else _taken_in_turns(loop)


def _one_thread(loop: Any) -> Any:
    threads = [_statements(thread.body) for thread in loop.body.seq]
    places = [
        (i / len(thread), t, statement)
        for t, thread in enumerate(threads)
        for i, statement in enumerate(thread)
    ]
    places.sort(key=lambda place: place[:2])
    return tirx.SeqStmt([statement for _, _, statement in places])


def _taken_in_turns(loop: Any) -> Any:
    if MARK not in loop.annotations:
        return loop
    body = loop.body
    chains = _chains(_statements(body))
    if len(chains) > 1:
        turns = [s for turn in zip_longest(*chains) for s in turn if s is not None]
        body = tirx.SeqStmt(turns)
    return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body)


def _statements(body: Any) -> list[Any]:
    return list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]


def _chains(statements: list[Any]) -> list[list[Any]]:
    """The statements in groups that no variable connects; none if there are others than those that
    compute variables and store results, or if what is stored is read as well."""
    if not all(isinstance(s, (tirx.AllocBuffer, tirx.BufferStore)) for s in statements):
        return []
    own = {s.buffer for s in statements if isinstance(s, tirx.AllocBuffer)}
    groups: list[tuple[set[Any], list[int]]] = []
    for i, statement in enumerate(statements):
        used = {statement.buffer, *_reads(statement)} & own
        joined = [group for group in groups if group[0] & used]
        groups = [group for group in groups if not group[0] & used]
        variables = used.union(*(group[0] for group in joined))
        groups.append((variables, [*(j for group in joined for j in group[1]), i]))
    stored = {s.buffer for s in statements} - own
    if any(buffer in stored for s in statements for buffer in _reads(s)):
        return []
    chains = sorted(sorted(places) for _, places in groups)
    return [[statements[i] for i in places] for places in chains]


def _reads(statement: Any) -> Iterator[Any]:
    found: list[Any] = []
    if isinstance(statement, tirx.BufferStore):
        structural_walk(statement.value, (TensorLoad, lambda load: found.append(load.source)))
    return iter(found)
