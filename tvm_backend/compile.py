"""From an IntGraph to an artifact folder."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iqvit.cost import cost
from iqvit.intgraph import IntGraph, Node, qparams_json
from iqvit.tvm_backend.arrange import arrange
from iqvit.tvm_backend.artifact import write_artifact
from iqvit.tvm_backend.cache import add, key_of, take
from iqvit.tvm_backend.input_layout import NCHW, with_layout
from iqvit.tvm_backend.lower import lower_steps
from iqvit.tvm_backend.pipeline import build
from iqvit.tvm_backend.plan import Step, plain_nodes, plan
from iqvit.tvm_backend.targets import HOST, Target, resolve

Progress = Callable[[str], None]
"""Called with the name of every stage when it begins."""


def compile(
    graph: IntGraph,
    folder: str | os.PathLike[str],
    target: Target | str = HOST,
    progress: Progress | None = None,
    input_layout: str = NCHW,
    cache: Path | None = None,
) -> Path:
    """Compile `graph` for `target` and write the artifact folder; returns it.

    `progress` is told "lower", "build" and "write". The folder holds `artifact.FILES`; an artifact
    that was there is replaced. With the `input_layout` "nhwc" the library takes images as cameras
    give them, uint8 [1, H, W, C]; `load` takes [N, C, H, W] for either. `cache` is a folder of what
    was compiled before (`cache.usual_cache()`): the same program for the same target is copied from
    there, and "cached" told; otherwise it is added.

    Raises `TargetError` for an unknown target or one that nothing here links for, `GraphError` for
    an unknown layout or if any float is in the lowered program or the machine code,
    `FileFormatError` where the folder cannot be written or holds something else.
    """
    chosen = resolve(target) if isinstance(target, str) else target
    tell = progress or (lambda _stage: None)
    key = "" if cache is None else key_of(graph, chosen, input_layout)
    if cache is not None and take(cache, key, Path(folder)):
        tell("cached")
        return Path(folder)
    tell("lower")
    moved = with_layout(graph, input_layout)
    arranged = arrange(moved, chosen)
    steps = plan(arranged, chosen)
    module = lower_steps(arranged, steps)
    tell("build")
    executable = build(module, chosen)
    tell("write")
    manifest = {
        **manifest_of(graph, chosen, steps),
        "inputs": [_tensor(graph.input.name, moved.input)],
        "input_layout": input_layout,
    }
    written = write_artifact(folder, executable, manifest, chosen.machine)
    if cache is not None:
        add(cache, key, written)
    return written


def manifest_of(graph: IntGraph, target: Target, steps: list[Step]) -> dict[str, Any]:
    """What the artifact's manifest says of the graph (see `artifact.REQUIRED`).

    Beyond that, `task` ("classification" where the graph says nothing), `palette` (RGB of each
    class, or empty), `box_labels` (of a multi-task program, whose `labels` are those of the class
    map), `macs` and `params` of one image, `kernels` (how many steps each kernel family
    computes) and `plain_nodes` (those that no fast kernel computes).
    """
    count = cost(graph)
    return {
        "graph_hash": graph.hash,
        "target": {"name": target.name, "features": list(target.features)},
        "inputs": [_tensor(graph.input.name, graph.input)],
        "outputs": [_tensor(name, graph[source]) for name, source in graph.outputs.items()],
        "task": graph.meta.get("task") or "classification",
        "labels": list(graph.meta.get("labels") or []),
        "palette": [list(colour) for colour in graph.meta.get("palette") or []],
        "preprocessing": dict(graph.meta.get("preprocessing") or {}),
        **({"box_labels": list(boxes)} if (boxes := graph.meta.get("box_labels")) else {}),
        "macs": count.macs,
        "params": count.params,
        "kernels": dict(sorted(Counter(step.kernel for step in steps).items())),
        "plain_nodes": plain_nodes(steps),
    }


def _tensor(name: str, node: Node) -> dict[str, Any]:
    """A tensor of the manifest; scale and zero point are null where the node has none."""
    quantised = qparams_json(node.qparams) or {"scale": None, "zero_point": None, "axis": None}
    return {"name": name, "dtype": node.type.dtype, "shape": list(node.type.shape), **quantised}
