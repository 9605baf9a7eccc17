"""A packed q, k, v projection becomes three linears: the same values, each with its own scale."""

import pytest
import torch
from torch import nn

from iqvit.canonical import op_of
from iqvit.canonicalize import canonicalize
from iqvit.capture import capture


class Packed(nn.Module):
    """A projection of `count` parts behind a reshape and a permutation."""

    def __init__(self, count: int, bias: bool, joined: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(8, count * 6, bias=bias)
        self.count, self.joined = count, joined

    def forward(self, x):
        parts = self.layer(x[0]).reshape(3, 8, self.count, 2, 3).permute(2, 0, 3, 1, 4)
        q, k = parts[0], parts[self.count - 1]
        result = nn.functional.scaled_dot_product_attention(q, k, k)
        return result + parts.mean() if self.joined else result


def linears(model: nn.Module) -> tuple[int, float]:
    torch.manual_seed(0)
    captured = capture(model.eval(), (1, 3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    canonical = canonicalize(captured)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        difference = (canonical.module(x) - model(x)).abs().max()
    nodes = [n for n in canonical.module.graph.nodes if n.op == "call_function"]
    return sum(op_of(node).name == "linear" for node in nodes), float(difference)


@pytest.mark.parametrize(("count", "bias"), [(2, True), (3, False), (3, True)])
def test_every_part_that_is_read_gets_its_own_linear(count, bias):
    found, difference = linears(Packed(count, bias))
    assert found == 2
    assert difference < 1e-6


def test_a_projection_that_is_also_read_whole_stays_packed():
    found, difference = linears(Packed(3, True, joined=True))
    assert found == 1
    assert difference < 1e-6
