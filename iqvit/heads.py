"""A multi-task program with one head cut off."""

from iqvit.errors import ModelError
from iqvit.intgraph import IntGraph, kept_nodes

HEADS = {"segmentation": ("classes",), "detection": ("boxes", "scores", "labels")}
"""What each head gives, by the task that it answers."""


def keep_head(graph: IntGraph, head: str) -> IntGraph:
    """The part of a multi-task program that `head` ("segmentation" or "detection") needs.

    What is left computes the same integers as before. Its meta data are those of a program for that
    task alone. Raises ModelError for another head, or another program.
    """
    if head not in HEADS:
        raise ModelError(f"a multi-task program has no head {head!r}: it has {' and '.join(HEADS)}")
    missing = [name for name in HEADS[head] if name not in graph.outputs]
    if graph.meta.get("task") != "multitask" or missing:
        raise ModelError(
            f"the program is for {graph.meta.get('task') or 'classification'} and has the outputs "
            f"{', '.join(graph.outputs)}: only a multi-task program has heads to choose from"
        )
    outputs = {name: graph.outputs[name] for name in HEADS[head]}
    meta = {key: value for key, value in graph.meta.items() if key != "box_labels"}
    meta["task"] = head
    if head == "detection":
        meta |= {"labels": graph.meta.get("box_labels") or [], "palette": []}
    return IntGraph(kept_nodes(graph.nodes, outputs.values()), outputs, meta)
