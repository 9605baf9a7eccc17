"""Floors of scales: steps finer than what a value is computed from help nobody.

They matter where activations vanish (a network without training, a dead branch): scales from the
ranges seen would then need multipliers that no integer holds. Ordinary values are far from them.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import fx

from iqvit.calibrated import Point
from iqvit.calibration.plan import values
from iqvit.canonical import CanonicalModel, arguments, constant, is_constant, op_of, shape
from iqvit.inttype import QParams
from iqvit.ops.layernorm import NORM_BITS

# Of what one step of an operand moves the result by, the part that is still told apart.
FINEST = 2.0**-16
# Operators that give a multiple of what they read: their operands of that kind.
LINEAR = {
    **dict.fromkeys(("linear", "conv2d", "mean", "avg_pool2d", "silu", "gelu"), (0,)),
    **dict.fromkeys(("deformable_attention", "grid_sample"), (0,)),
    "add": (0, 1),
    "attention": (2,),
}


def reach(largest: float) -> float:
    """A range to represent where values up to `largest` were seen; of nothing but zeros, any."""
    return max(largest, 1e-9) if largest else 1.0


def least_scale(nodes: list[fx.Node]) -> float:
    """The finest scale that anybody could use of a group of nodes of one form.

    A LayerNorm divides by at least sqrt(eps), so that finer steps of its input would be lost in its
    output, and its epsilon would not fit its integers. For what it gives see `norm_steps`.
    """
    read = [
        math.sqrt(arguments(norm)["eps"]) / 2**16
        for node in nodes
        for norm in node.users
        if norm.op != "output" and op_of(norm).name == "layer_norm"
    ]
    made = [
        float(norm_steps(node).max())
        for node in nodes
        if node.op == "call_function" and op_of(node).name == "layer_norm"
    ]
    return max([*read, *made], default=0.0)


def norm_steps(norm: fx.Node) -> torch.Tensor:
    """The finest useful scale of every channel of a LayerNorm's output, float64 `[C]`.

    The normalised value has `NORM_BITS` fractional bits; this is a sixteenth of the last one. An
    input that vanishes beside sqrt(eps) gives no more than a few of them.
    """
    gain = arguments(norm)["w"]
    value = torch.ones(shape(norm)[-1]) if gain is None else constant(gain).abs()
    return value.double() / 2 ** (NORM_BITS + 4)


def raise_scales(
    model: CanonicalModel, group: dict[str, str], points: dict[str, Point], narrow: dict[str, Point]
) -> None:
    """Hand floors on: no result has steps below `FINEST` of its operands' times the largest weight.

    points by node, one form a `group`, narrow by group; both are changed.
    """
    members: dict[str, list[str]] = {}
    for name, key in group.items():
        members.setdefault(key, []).append(name)
    for node in values(model):
        operands = LINEAR.get(op_of(node).name, ()) if node.op == "call_function" else ()
        sources = [node.args[place] for place in operands]
        steps = [_step(points[s.name]) for s in sources if not is_constant(s)]  # type: ignore[union-attr]
        least = max(steps, default=0.0) * _gain(node) * FINEST if steps else 0.0
        if least <= _step(points[node.name]):
            continue
        key = group[node.name]
        points.update(dict.fromkeys(members[key], coarser(points[node.name], least)))
        if key in narrow:
            narrow[key] = coarser(narrow[key], least)


def coarser(point: Point, least: float) -> Point:
    """A form of one scale with a scale of at least `least`, around the same real zero."""
    scale = float(point.qparams.scale)
    if scale >= least:
        return point
    zero = round(float(point.qparams.zero_point) * scale / least)
    return replace(point, qparams=QParams.of(least, zero))


def _step(point: Point) -> float:
    return float(np.max(point.qparams.scale))


def _gain(node: fx.Node) -> float:
    if op_of(node).name not in ("linear", "conv2d"):
        return 1.0
    return float(constant(node.args[1]).abs().max())  # type: ignore[arg-type]
