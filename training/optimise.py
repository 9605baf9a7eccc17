"""AdamW with its groups, the learning rate over time, and the average of the weights."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.swa_utils import get_ema_multi_avg_fn

UNDECAYED = ("pos_embed", "cls_token", "dist_token", "cls_emb")
"""Embeddings that weight decay would pull to zero without making the function simpler."""


def adamw(model: nn.Module, lr: float, weight_decay: float, scale: Callable[[str], float]) -> AdamW:
    """AdamW (Loshchilov and Hutter, 2019) over the parameters that learn.

    Vectors and scalars (norms, biases) and the embeddings do not decay. `scale(name)` is the factor
    on the learning rate of a parameter, kept in its group as `lr_scale`.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.dim() <= 1 or name.rpartition(".")[2] in UNDECAYED
        key = (0.0 if plain else weight_decay, scale(name))
        groups.setdefault(key, []).append(parameter)
    listed = [
        {"params": parameters, "weight_decay": decay, "lr_scale": factor, "lr": lr * factor}
        for (decay, factor), parameters in groups.items()
    ]
    return AdamW(listed, lr=lr, fused=True)


def schedule(step: int, steps: int, warmup: int) -> float:
    """The factor on the learning rate: linear up to step `warmup`, then half a cosine to zero.

    Source: Loshchilov and Hutter, "SGDR" (2017), eq. 5 without restarts.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_learning_rate(optimizer: AdamW, lr: float) -> None:
    """`lr` times the scale of each group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


class Average:
    """Exponential moving average of a model's weights, in `model`, which never trains.

    The decay grows as (1 + n) / (10 + n) up to `decay`, so that the first weights, which are
    random, are soon forgotten.
    """

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(source).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, source: nn.Module, step: int) -> None:
        """Move towards the weights after step `step`; buffers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine: list[Tensor] = list(self.model.parameters())
        theirs: list[Tensor] = list(source.parameters())
        get_ema_multi_avg_fn(decay)(mine, theirs, step)
        for kept, new in zip(self.model.buffers(), source.buffers(), strict=True):
            kept.copy_(new)
