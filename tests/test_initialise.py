"""Random networks whose layers were scaled on images: every channel has the variance asked for."""

import pytest
import torch
from torch import nn

from iqvit.errors import ModelError
from iqvit.models.initialise import normalise_layers


class Net(nn.Module):
    """Every kind of layer, one of them run twice, one with a weight of zeros."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, groups=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 12, 2, 2, groups=2)
        self.twice = nn.Linear(12, 12)
        self.score = nn.Linear(12, 5)
        self.unread = nn.Linear(4, 4)
        nn.init.constant_(self.norm.weight, 0.01)
        nn.init.zeros_(self.score.weight)
        nn.init.constant_(self.score.bias, -4.6)

    def forward(self, x):
        self.first = self.norm(self.stem(x))
        self.second = self.up(self.first.relu())
        tokens = self.second.relu().flatten(2).transpose(1, 2)
        self.third = self.twice(tokens)
        return self.score(self.twice(self.third.relu()).relu())


def test_every_channel_has_the_spread_asked_for():
    torch.manual_seed(0)
    net, x = Net(), torch.rand(2, 3, 9, 9)
    before = net.unread.weight.clone()
    normalise_layers(net, x, {"*": 1.0, "sc*": 3.0})
    assert net.training
    net.eval()
    with torch.no_grad():
        found = net(x)
    for value, axis in ((net.first, 1), (net.second, 1), (net.third, -1)):
        rows = value.movedim(axis, -1).flatten(0, -2)
        torch.testing.assert_close(rows.std(0), torch.ones(rows.shape[1]), atol=1e-2, rtol=0)
    torch.testing.assert_close(net.first.mean((0, 2, 3)), torch.zeros(8), atol=1e-5, rtol=0)
    rows = found.flatten(0, 1)
    torch.testing.assert_close(rows.std(0), torch.full((5,), 3.0), atol=1e-3, rtol=0)
    # The prior of the scores is their mean.
    torch.testing.assert_close(rows.mean(0), torch.full((5,), -4.6), atol=1e-3, rtol=0)
    assert torch.equal(net.unread.weight, before)
    again = net(x)
    torch.testing.assert_close(again, found)  # no hook is left


def test_channels_that_nothing_moves_keep_their_size():
    layer = nn.Linear(2, 2)
    weight = layer.weight.detach().clone()
    normalise_layers(layer, torch.ones(1, 7, 2))
    assert torch.equal(layer.weight, weight)


def test_a_glob_that_matches_nothing_is_refused():
    with pytest.raises(ModelError, match="named 'norm', 'haed'"):
        normalise_layers(Net(), torch.rand(1, 3, 9, 9), {"norm": 1.0, "haed": 2.0, "score": 1.0})
