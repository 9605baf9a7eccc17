"""How long every call of a compiled program takes, by node of its graph or by function."""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tvm
from tvm import relax

from iqvit.intgraph import IntGraph
from iqvit.tvm_backend.arrange import arrange
from iqvit.tvm_backend.lower import lower_named
from iqvit.tvm_backend.pipeline import build
from iqvit.tvm_backend.plan import ALIAS, plan
from iqvit.tvm_backend.runtime import open_library
from iqvit.tvm_backend.targets import HOST, Target, resolve
from iqvit.tvm_backend.threads import set_threads

REPEATS = 5
RUNS = 20
BUILTIN = "vm.builtin"
"""The virtual machine's own work (memory, checks), one row of a profile by function."""


@dataclass(frozen=True)
class Row:
    """One step of the program: the nodes that one kernel computes together."""

    node: str
    """The last of its nodes, whose value it stores."""
    op: str
    """The operators of its nodes, joined by `+`."""
    kernel: str
    """The kernel's family, or `plain`."""
    ms: float
    """Median milliseconds."""
    macs: int

    @property
    def gmacs_per_s(self) -> float:
        """Billions of multiply-accumulates a second; 0 where there are none."""
        return self.macs / self.ms / 1e6 if self.ms > 0 else 0.0


@dataclass(frozen=True)
class FunctionRow:
    """One function of a library: all its calls in one run."""

    function: str
    calls: int
    ms: float
    """Median milliseconds of all calls together."""
    share: float
    """Percent of the sum of all rows."""


def profile(
    graph: IntGraph, target: Target | str = HOST, threads: int = 1, repeats: int = REPEATS
) -> list[Row]:
    """Time every step of `graph` compiled for `target`, in order of execution.

    Runs on random pixels. What lies between the kernels (allocation, the machine's dispatch) is in
    no row. Raises as `lower`, and `TargetError` for a wrong number of threads.
    """
    chosen = resolve(target) if isinstance(target, str) else target
    graph = arrange(graph, chosen)
    planned = plan(graph, chosen)
    steps = [step for step in planned if step.kernel != ALIAS]
    module, names = lower_named(graph, planned)
    counts = _calls(module, [names[step.group.last.name] for step in steps])
    device: Any = tvm.cpu()  # a class of tvm_ffi, which relax's annotations do not know
    machine = relax.VirtualMachine(build(module, chosen), device)
    set_threads(threads)
    functions = {name.name_hint for name in module.get_global_vars()} - {"main"}
    runs: list[list[float]] = []
    for run in _runs(machine, graph.input.type.shape, repeats):
        times = iter([seconds for symbol, seconds in run if symbol in functions])
        runs.append([sum(next(times) for _ in range(count)) for count in counts])
    return [
        Row(
            step.group.last.name,
            "+".join(node.op.NAME for node in step.group.nodes),
            step.kernel,
            1e3 * median(times),
            sum(node.op.macs(*graph.types_of(node)) for node in step.group.nodes),
        )
        for step, *times in zip(steps, *runs, strict=True)
    ]


def profile_artifact(
    folder: Path, shape: tuple[int, ...], repeats: int = RUNS
) -> list[FunctionRow]:
    """Time every function of the library in `folder`, the slowest first, on random pixels of
    `shape`, at the number of threads that is set.

    Equal layers share a function, so that one row may stand for many nodes.
    """
    runs: list[dict[str, float]] = []
    calls: dict[str, int] = {}
    for run in _runs(open_library(folder), shape, repeats):
        totals: dict[str, float] = {}
        calls = {}
        for symbol, seconds in run:
            name = BUILTIN if symbol.startswith(BUILTIN) else symbol
            totals[name] = totals.get(name, 0.0) + seconds
            calls[name] = calls.get(name, 0) + 1
        runs.append(totals)
    medians = {name: 1e3 * median(run[name] for run in runs) for name in calls}
    whole = sum(medians.values())
    ranked = sorted(medians.items(), key=lambda item: -item[1])
    return [FunctionRow(name, calls[name], ms, 100 * ms / whole) for name, ms in ranked]


def _calls(module: tvm.IRModule, variables: list[str]) -> list[int]:
    """How many TIR functions compute every variable of `main` after the one before it."""
    counts = [0] * len(variables)
    ends = {name: i for i, name in enumerate(variables)}
    pending = 0
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            op: Any = value.op if isinstance(value, relax.Call) else None
            is_call = op is not None and op.name == "relax.call_tir"
            pending += is_call
            if binding.var.name in ends:
                counts[ends[binding.var.name]] = pending
                pending = 0
    return counts


def _runs(machine: Any, shape: tuple[int, ...], repeats: int) -> list[list[tuple[str, float]]]:
    """Of every run but a first one: the functions called, in order, and the seconds of each.

    The instrument itself costs about a microsecond a call.
    """
    image = tvm.runtime.tensor(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    run: list[tuple[str, float]] = []
    started = 0.0

    def watch(_function: Any, symbol: str, before: bool, _result: Any, *_args: Any) -> None:
        nonlocal started
        if before:
            started = time.perf_counter()
        else:
            run.append((symbol, time.perf_counter() - started))

    machine["main"](image)
    machine.set_instrument(watch)
    runs: list[list[tuple[str, float]]] = []
    for _ in range(repeats):
        machine["main"](image)
        runs.append(run.copy())
        run.clear()
    machine.set_instrument(lambda *_: None)
    return runs
