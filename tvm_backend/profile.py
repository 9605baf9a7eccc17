"""How long every node takes: the program run call by call, each timed."""

import time
from dataclasses import dataclass
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
from iqvit.tvm_backend.targets import HOST, Target, resolve
from iqvit.tvm_backend.threads import set_threads

REPEATS = 5


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
    rng = np.random.default_rng(0)
    image = tvm.runtime.tensor(rng.integers(0, 256, graph.input.type.shape, np.uint8))
    functions = {name.name_hint for name in module.get_global_vars()} - {"main"}
    runs = [_run(machine, image, functions, counts) for _ in range(repeats + 1)][1:]
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


def _run(machine: Any, image: Any, names: set[str], counts: list[int]) -> list[float]:
    """Seconds of every step in one run."""
    times: list[float] = []
    started = 0.0

    def watch(_function: Any, symbol: str, before: bool, _result: Any, *_args: Any) -> None:
        nonlocal started
        if symbol not in names:
            return
        if before:
            started = time.perf_counter()
        else:
            times.append(time.perf_counter() - started)

    machine.set_instrument(watch)
    machine["main"](image)
    machine.set_instrument(lambda *_: None)
    results: list[float] = []
    at = 0
    for count in counts:
        results.append(sum(times[at : at + count]))
        at += count
    return results
