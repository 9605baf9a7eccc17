"""A trained model's weights into another one of the same kind."""

from torch import nn


def carry_over(trained: nn.Module, into: nn.Module) -> tuple[str, ...]:
    """Copies every weight whose name and shape `into` has; a note on those it keeps of its own."""
    own, theirs = into.state_dict(), trained.state_dict()
    kept = {n: t for n, t in theirs.items() if n in own and t.shape == own[n].shape}
    into.load_state_dict({**own, **kept})
    anew = sorted(own.keys() - kept.keys())
    return (f"made anew: {', '.join(anew)}",) if anew else ()
