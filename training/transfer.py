"""A trained model's weights into another one of the same kind."""

from collections.abc import Mapping

from torch import Tensor, nn


def carry_over(trained: nn.Module, into: nn.Module) -> tuple[str, ...]:
    """Copies every weight whose name and shape `into` has; a note on those it keeps of its own."""
    return carry_tensors(trained.state_dict(), into)


def carry_tensors(tensors: Mapping[str, Tensor], into: nn.Module) -> tuple[str, ...]:
    """`carry_over` of weights by name."""
    own = into.state_dict()
    kept = {n: t for n, t in tensors.items() if n in own and t.shape == own[n].shape}
    into.load_state_dict({**own, **kept})
    anew = sorted(own.keys() - kept.keys())
    return (f"made anew: {', '.join(anew)}",) if anew else ()
