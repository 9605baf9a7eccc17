"""Each rewrite on a few lines of model: the operators that remain, and the same values."""

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional

from iqvit.canonical import OPS, CanonicalModel, arguments
from iqvit.canonicalize import canonicalize
from iqvit.capture import capture

SHAPE = (1, 3, 8, 8)


class Net(nn.Module):
    """Parameters for every rewrite around a forward that the case gives."""

    def __init__(self, forward):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.batch_norm2d = nn.BatchNorm2d(4)
        self.batch_norm1d = nn.BatchNorm1d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.matrix = nn.Parameter(torch.randn(8, 8))
        self.bias = nn.Parameter(torch.randn(1, 3, 8, 8))
        self.register_buffer("counts", torch.arange(8))
        for norm in (self.batch_norm2d, self.batch_norm1d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


def by_hand(net, x):
    q, k = net.layer(x) * 0.5, x / 2
    return ((q @ k.transpose(-2, -1)) * 0.25).softmax(-1) @ x


def by_einsum(net, x):
    weights = torch.einsum("bhid,bhjd->bhij", net.layer(x) * 0.3, x).softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", weights, x)


def by_baddbmm(net, x):
    scores = torch.baddbmm(torch.zeros(3, 8, 8), x[0], x[0].transpose(-1, -2), beta=0, alpha=0.3)
    return scores.softmax(-1) @ x[0]


def two_uses(net, x):
    weights = (x @ x.transpose(-1, -2)).softmax(-1)
    return weights @ x + weights


def in_place(net, x):
    y = net.layer(x)
    y += 1
    y.relu_()
    return y * 2


def windows(net, x):
    x = x.reshape(3, 2, 4, 8)
    return functional.scaled_dot_product_attention(x, x, x)


def batch_norm_over_tokens(net, x):
    return net.batch_norm1d(net.layer(x[:, 0]))


def masked(net, x):
    mask = (torch.arange(8) >= 0).expand(1, 1, 8, 8)
    return functional.scaled_dot_product_attention(x, x, x, mask, scale=0.1)


# name: (forward, the operators that remain)
CASES = {
    "remove identities": (
        lambda net, x: functional.dropout(x, 0.1, False).contiguous().clone().float() + 1,
        "add",
    ),
    "expand to the same shape": (lambda net, x: x.expand(1, -1, -1, -1) * 2, "mul"),
    "neutral arithmetic": (lambda net, x: (x + 0) * torch.ones(8) * 2 - 0.0, "mul"),
    "fold constants": (lambda net, x: x + (net.matrix.t() * 2).exp()[None, :1], "add"),
    "integer constants": (lambda net, x: x * net.counts, "mul"),
    "flatten": (
        lambda net, x: x.flatten(2).unsqueeze(0).squeeze(0).unflatten(2, (4, 16)),
        "reshape",
    ),
    "transposes": (lambda net, x: x.movedim(1, -1).mT.swapaxes(0, 1), "permute"),
    "transposes cancel": (lambda net, x: x.transpose(1, 2).permute(0, 2, 1, 3) * 2, "mul"),
    "transpose of ones": (lambda net, x: x.transpose(0, 1), "reshape"),
    "chunk": (lambda net, x: operator.sub(*x.chunk(2, -1)), "slice slice mul add"),
    "split": (lambda net, x: x.split([2, 6], 2)[1], "slice"),
    "unbind": (lambda net, x: x.unbind(1)[-1], "select"),
    "slices": (lambda net, x: x[:, -2:, 1:7:2, :], "slice slice"),
    "stack": (lambda net, x: torch.stack([x, x + 1], 1), "add reshape reshape cat"),
    "sub": (lambda net, x: torch.sub(x, net.bias, alpha=3), "add"),
    "rsub": (lambda net, x: torch.rsub(x, 1, alpha=2), "mul add"),
    "neg and div": (lambda net, x: -x / 3 + x / net.bias, "mul mul mul add"),
    "square": (lambda net, x: x**2, "mul"),
    "addmm": (
        lambda net, x: torch.addmm(net.matrix[0], x[0, 0], net.matrix),
        "select select linear",
    ),
    "matmul by constant": (lambda net, x: x @ net.matrix + 2, "linear"),
    "matmul of constant": (lambda net, x: net.matrix @ x, "matmul"),
    "bias after linear": (lambda net, x: net.layer(x) + net.matrix[0], "linear"),
    "mean": (lambda net, x: x.mean((-1, -2)), "mean"),
    "adaptive to one": (
        lambda net, x: functional.adaptive_avg_pool2d(x, 1).flatten(1),
        "mean reshape",
    ),
    "adaptive": (lambda net, x: functional.adaptive_avg_pool2d(x, (4, 2)), "avg_pool2d"),
    "pooling": (
        lambda net, x: functional.max_pool2d(functional.avg_pool2d(x, 2), 3, 1, 1),
        "avg_pool2d max_pool2d",
    ),
    "max": (lambda net, x: x.max(-1).values + x.amax(-2), "amax amax add"),
    "argmax": (lambda net, x: x.argmax(-1), "argmax"),
    "topk": (lambda net, x: x.topk(2, -1).indices, "topk getitem"),
    "conv same": (lambda net, x: functional.conv2d(x, net.conv.weight, padding="same"), "conv2d"),
    "batch norm into conv": (lambda net, x: net.batch_norm2d(net.conv(x)), "conv2d"),
    "batch norm into linear": (
        lambda net, x: net.batch_norm1d(net.layer(x[:, 0, 0])),
        "select select linear",
    ),
    "batch norm alone": (batch_norm_over_tokens, "select linear mul add"),
    "activations": (
        lambda net, x: functional.gelu(functional.silu(x), approximate="tanh").sigmoid().tanh(),
        "silu gelu sigmoid tanh",
    ),
    "in place": (in_place, "linear relu mul"),
    "attention": (lambda net, x: functional.scaled_dot_product_attention(x, x, x), "attention"),
    "attention with a mask of ones": (masked, "attention"),
    "attention in windows": (
        windows,
        "reshape attention reshape",
    ),
    "attention with a bias": (
        lambda net, x: functional.scaled_dot_product_attention(x, x, x, net.bias),
        "permute matmul mul add softmax matmul",
    ),
    "attention by hand": (by_hand, "linear attention"),
    "duplicates": (lambda net, x: x[:, 0] * 2 + x[:, 0].relu(), "select mul relu add"),
    "attention by einsum": (by_einsum, "linear attention"),
    "attention by baddbmm": (
        by_baddbmm,
        "select reshape attention reshape",
    ),
    "attention weights that are read": (two_uses, "permute matmul softmax matmul add"),
}


def canonical_of(forward) -> tuple[Net, CanonicalModel]:
    torch.manual_seed(0)
    net = Net(forward).eval()
    half = (0.5, 0.5, 0.5)
    return net, canonicalize(capture(net, SHAPE, mean=half, std=half))


def names_of(canonical: CanonicalModel) -> list[str]:
    nodes = canonical.module.graph.nodes
    return [OPS[node.target].name for node in nodes if node.op == "call_function"]


@pytest.mark.parametrize("name", CASES)
def test_rewrite(name):
    forward, expected = CASES[name]
    net, canonical = canonical_of(forward)
    assert names_of(canonical) == expected.split()
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(canonical.module(x), net(x), rtol=1e-4, atol=1e-5)


def test_attention_by_hand_collects_every_scale():
    _, canonical = canonical_of(by_hand)
    node = next(n for n in canonical.module.graph.nodes if n.name.endswith("attention"))
    assert arguments(node)["scale"] == pytest.approx(0.5 * 0.5 * 0.25)


@pytest.mark.parametrize("need_weights", [False, True])
def test_multi_head_attention_fuses(need_weights):
    net, canonical = canonical_of(
        lambda net, x: net.attention(x[:, 0], x[:, 1], x[:, 1], need_weights=need_weights)[0]
    )
    assert names_of(canonical).count("attention") == 1
    assert "softmax" not in names_of(canonical)
    x = torch.randn(SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(canonical.module(x), net(x), rtol=1e-4, atol=1e-5)


def test_a_constant_keeps_the_name_of_its_parameter():
    _, canonical = canonical_of(lambda net, x: net.layer(x) * net.matrix.t().exp())
    buffers = dict(canonical.module.named_buffers())
    assert set(buffers) == {"layer_weight", "layer_bias", "matrix"}
