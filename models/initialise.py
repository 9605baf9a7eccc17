"""Random weights under which activations neither vanish nor explode, by looking at images."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from iqvit.errors import ModelError

LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
LEAST_SPREAD = 1e-12


def normalise_layers(
    module: nn.Module, images: Tensor, spread: Mapping[str, float] | None = None
) -> None:
    """Scale every layer so that each of its output channels has unit variance over the images.

    Data-dependent initialisation (Kraehenbuehl et al., arXiv 1511.06856, section 3; LSUV, arXiv
    1511.06422, scales whole layers): linears and convolutions in the order in which they run, each
    seeing what those before it give after their own scaling. The mean of a channel becomes its bias
    (where there is one), so that a prior in the biases of class scores stays. A weight of zeros is
    drawn from torch's random state first. Batch norms get the statistics of what they read, and a
    gain of 1. What runs several times is scaled at its first run.

    images: float32 [N, 3, H, W] as the module takes them. spread: the standard deviation of the
    layers whose name matches a glob, 1 for the rest; of several globs the last one that matches.
    Weights are changed in place. Raises `ModelError` for globs that match no layer.
    """
    layers = {name: part for name, part in module.named_modules() if isinstance(part, LAYERS)}
    asked = dict(spread or {})
    lost = [glob for glob in asked if not any(fnmatchcase(name, glob) for name in layers)]
    if lost:
        raise ModelError(f"no linear or convolution is named {', '.join(map(repr, lost))}")
    seen: set[nn.Module] = set()
    training = module.training
    with ExitStack() as hooks, torch.no_grad():
        for name, part in module.named_modules():
            if name in layers:
                target = [value for glob, value in asked.items() if fnmatchcase(name, glob)]
                hooks.enter_context(part.register_forward_hook(_scale(seen, [1.0, *target][-1])))
            elif isinstance(getattr(part, "running_var", None), Tensor):
                hooks.enter_context(part.register_forward_pre_hook(_measure(seen)))
        module.eval()
        module(images)
    module.train(training)


def _scale(seen: set[nn.Module], target: float) -> Callable[..., Tensor | None]:
    def hook(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if layer in seen:
            return None
        seen.add(layer)
        if not bool(layer.weight.any()):
            nn.init.normal_(layer.weight)
            output = layer.forward(*inputs)
        rows = output.movedim(-1 if isinstance(layer, nn.Linear) else 1, -1).flatten(0, -2)
        spread, mean = rows.double().std(0), rows.double().mean(0)
        # Channels that no input moves keep their size.
        factor = torch.where(spread > LEAST_SPREAD, target / spread, 1.0)
        _multiply(layer, factor.float())
        if layer.bias is not None:
            layer.bias.sub_((factor * (mean - layer.bias)).float())
        return layer.forward(*inputs)  # without hooks

    return hook


def _multiply(layer: Any, factor: Tensor) -> None:
    """Every output channel of the weight times its factor."""
    weight = layer.weight
    if isinstance(layer, nn.ConvTranspose2d):
        by_group = weight.view(layer.groups, -1, *weight.shape[1:])
        by_group.mul_(factor.reshape(layer.groups, 1, -1, 1, 1))
    else:
        weight.mul_(factor.reshape(-1, *[1] * (weight.ndim - 1)))


def _measure(seen: set[nn.Module]) -> Callable[..., None]:
    def hook(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        if norm in seen:
            return
        seen.add(norm)
        rows = inputs[0].movedim(1, -1).flatten(0, -2).double()
        norm.running_mean.copy_(rows.mean(0))
        norm.running_var.copy_(rows.var(0))
        if norm.weight is not None:
            norm.weight.fill_(1.0)

    return hook
