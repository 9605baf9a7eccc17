"""What a trainer needs to know of a task; segmentation, detection."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from iqvit.processes import World

__all__ = ["Network", "Task"]

Network = Callable[..., Any]
"""The model as the trainer calls it: itself, or the wrapper that averages gradients."""


class Task(Protocol):
    """A model, its data, its loss and its score.

    model: the module to train, on the CPU until the trainer moves it. samples: how many training
    samples there are. metric: the key of `validate`'s result by which the best epoch is chosen,
    higher is better. facts: plain JSON values that tell this task from another; a checkpoint is
    resumed only where they are equal.
    """

    model: nn.Module
    samples: int
    metric: str
    facts: Mapping[str, Any]

    def prepare(self, world: World) -> None:
        """What must be known of the whole data, once, before training."""
        ...

    def sample(self, index: int) -> Any:
        """One augmented sample, random by torch's global state alone, which the trainer seeds."""
        ...

    def collate(self, samples: Sequence[Any]) -> Any:
        """A batch of samples: a tensor, or a tuple of tensors."""
        ...

    def loss(self, network: Network, batch: Any) -> Tensor:
        """The mean loss of a batch that lies on the model's device, a scalar."""
        ...

    def learning_rate_scale(self, name: str) -> float:
        """The factor on the learning rate of the parameter of this name."""
        ...

    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        """Scores of a model in eval mode, equal in all processes; each does its share."""
        ...

    def save(self, folder: Path, model: nn.Module) -> None:
        """Write the model as the folder that the other commands read."""
        ...
