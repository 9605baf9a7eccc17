"""A `Task` made of functions: any captured model, trained through its integers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import default_collate

from iqvit.processes import World
from iqvit.training.task import Network
from iqvit.training.through_integers import ThroughIntegers

__all__ = [
    "Tuning",
]

Outputs = Mapping[str, Tensor]


@dataclass
class Tuning:
    """See `iqvit.training.task.Task` for `samples`, `metric` and `facts`.

    model: what learns. read: one sample by its index, random by torch's global state alone, as a
    tuple of an image uint8 [3, H, W] and anything that collates (targets). criterion: the loss of
    the outputs (see `ThroughIntegers`) and the collated tuple, a scalar. score: by name, equal in
    all processes; it may call `model.integers`. In the folder of the run is model.iqv.
    """

    model: nn.Module
    samples: int
    read: Callable[[int], tuple[Any, ...]]
    criterion: Callable[[Outputs, Sequence[Any]], Tensor]
    score: Callable[[ThroughIntegers, World], dict[str, float]]
    metric: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def prepare(self, world: World) -> None:
        """Nothing has to be counted."""

    def sample(self, index: int) -> tuple[Any, ...]:
        """`read`."""
        return self.read(index)

    def collate(self, samples: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        """Each place of the tuples as one tensor, by torch's usual rule."""
        return tuple(default_collate(list(samples)))

    def loss(self, network: Network, batch: Any) -> Tensor:
        """`criterion` of the network's outputs for the images of a batch, a scalar."""
        return self.criterion(network(batch[0]), batch)

    def learning_rate_scale(self, name: str) -> float:
        """All parameters learn alike."""
        return 1.0

    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        """`score`."""
        return self.score(learning(model), world)

    def save(self, folder: Path, model: nn.Module) -> None:
        """The program of the present weights, as model.iqv."""
        learning(model).save(folder)


def learning(model: nn.Module) -> ThroughIntegers:
    """The model as what it is."""
    if not isinstance(model, ThroughIntegers):
        raise TypeError(f"a ThroughIntegers is trained here, not a {type(model).__name__}")
    return model
