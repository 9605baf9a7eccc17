"""Calibrate: one pass for the ranges, one sweep that rounds node by node."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import fx

from iqvit.calibrated import Calibrated
from iqvit.calibration.observers import Observer
from iqvit.calibration.plan import Plan, make_plan, read_bounded, values
from iqvit.calibration.recipe import Recipe
from iqvit.calibration.sweep import Sweep
from iqvit.canonical import CanonicalModel, constant, op_of
from iqvit.errors import DataError

Progress = Callable[[str, int, int], None]


def calibrate(
    model: CanonicalModel,
    images: Iterable[torch.Tensor],
    recipe: Recipe | None = None,
    *,
    progress: Progress | None = None,
) -> Calibrated:
    """Ranges, scales and rounded weights of every node.

    images: uint8 batches `[B, C, H, W]` of the model's input size; 1 image is enough, 32 to 128 are
    better. progress: called as `progress(stage, done, total)`. The result depends on the images,
    the recipe and its seed only. Raises `DataError` without images, `RecipeError` for a recipe
    that does not fit the model.
    """
    recipe = recipe if recipe is not None else Recipe()
    plan = make_plan(model, recipe)
    inputs = [normalise(model, image) for image in _images(model, images)]
    report = progress if progress is not None else _silent
    with torch.no_grad():
        observers = observe(model, plan, inputs, report)
        sweep = Sweep(model, plan, observers, recipe)
        return sweep.run(inputs, report)


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total


def _images(model: CanonicalModel, images: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    given: list[torch.Tensor] = []
    for batch in images:
        if not isinstance(batch, torch.Tensor):
            raise DataError(f"images are torch tensors, got {type(batch).__name__}")
        given.append(batch if batch.ndim == 4 else batch[None])
    for batch in given:
        if batch.dtype != torch.uint8 or tuple(batch.shape[1:]) != model.input_shape[1:]:
            raise DataError(
                f"calibration images are uint8 [B, {', '.join(map(str, model.input_shape[1:]))}], "
                f"got {batch.dtype} {list(batch.shape)}"
            )
    if sum(map(len, given)) == 0:
        raise DataError("no calibration images")
    return list(torch.cat(given).split(1))  # the captured graph is for one image


def normalise(model: CanonicalModel, images: torch.Tensor) -> torch.Tensor:
    """What the float model takes: `(pixel / 255 - mean) / std`, float32."""
    mean, std = (
        torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (model.mean, model.std)
    )
    return (images.to(torch.float32) / 255 - mean) / std


def run_nodes(
    model: CanonicalModel, x: torch.Tensor
) -> Iterator[tuple[fx.Node, dict[fx.Node, Any]]]:
    """Every node of the float graph when its value is there, and the values so far, of which those
    that no later node reads may be dropped; x: what `normalise` gives."""
    env: dict[fx.Node, Any] = {}
    for node in model.module.graph.nodes:
        if node.op == "placeholder":
            env[node] = x
        elif node.op == "get_attr":
            env[node] = constant(node)
        elif node.op == "call_function":
            arguments = fx.map_arg(node.args, lambda n: env[n])
            env[node] = node.target(*arguments)  # type: ignore[operator]
        if node in env:
            yield node, env


def observe(
    model: CanonicalModel, plan: Plan, inputs: list[torch.Tensor], report: Progress
) -> dict[str, Observer]:
    """The float pass: an observer for every value, "NAME.logits" for those inside attention."""
    # Values that share their integers share the rule too: one of them says it for all.
    counted = {
        plan.group[name]
        for name, settings in plan.settings.items()
        if name in plan.group and settings.observer != "minmax"
    }
    counted |= {plan.group[node.name] for node in values(model) if read_bounded(plan, node)}
    observers = {
        node.name: Observer(plan.group[node.name] in counted, node.name) for node in values(model)
    }
    for done, x in enumerate(inputs):
        report("observing", done, len(inputs))
        _observe_image(model, plan, x, observers)
    report("observing", len(inputs), len(inputs))
    return observers


def _observe_image(
    model: CanonicalModel, plan: Plan, x: torch.Tensor, observers: dict[str, Observer]
) -> None:
    for node, env in run_nodes(model, x):
        called = node.op == "call_function"
        if called and op_of(node).name == "attention" and plan.approximation(node) != "exp2":
            arguments: Any = node.args
            q, k, scale = env[arguments[0]], env[arguments[1]], arguments[3]
            logits = q @ k.transpose(-1, -2) * scale
            observers.setdefault(f"{node.name}.logits", Observer(False)).update(logits)
        if node.name in observers:
            observers[node.name].update(env[node])
        for source in node.all_input_nodes:
            if all(user in env for user in source.users) and source in env:
                env[source] = None
