"""What RT-DETR is full of, on a few lines of model: the operators that remain, the same values."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from iqvit.canonical import OPS, CanonicalModel, arguments, constant
from iqvit.canonicalize import canonicalize
from iqvit.capture import capture
from iqvit.errors import CaptureError, UnsupportedOp
from iqvit.models.rtdetr.config import RTDetrConfig
from iqvit.models.rtdetr.deformable import DeformableAttention

SHAPE = (1, 3, 8, 8)


class Net(nn.Module):
    """Layers for every rewrite around a forward that the case gives."""

    def __init__(self, forward):
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.norm = nn.LayerNorm(8)
        self.score = nn.Linear(8, 1)
        self.wide = nn.Conv2d(3, 6, 3, 2, padding=1)
        self.narrow = nn.Conv2d(3, 6, 1, 2, bias=False)
        self.anchors = nn.Buffer(torch.randn(1, 24, 4))
        self.gain, self.offset = nn.Buffer(torch.randn(6)), nn.Buffer(torch.randn(6))
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


def canonical(model: nn.Module, outputs=None) -> CanonicalModel:
    captured = capture(model, SHAPE, mean=(0.5,) * 3, std=(0.5,) * 3, outputs=outputs)
    return canonicalize(captured)


def operators(model: CanonicalModel) -> list[str]:
    calls = [n for n in model.module.graph.nodes if n.op == "call_function"]
    return [OPS[node.target].name for node in calls]


def check(forward) -> CanonicalModel:
    """The canonical model of a forward, held to the same values on a random image."""
    torch.manual_seed(0)
    net = Net(forward).eval()
    model = canonical(net)
    x = torch.randn(SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(*model(x).values(), net(x), atol=2e-5, rtol=2e-5)
    return model


def refined(net, x, inverse):
    boxes = (4 * net.layer(x)).sigmoid()
    return (inverse(boxes) + net.layer(x)).sigmoid()


def by_quotient(x, eps=1e-5):
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def by_difference(x, eps=1e-3):
    return x.clamp(min=eps).log() - (1 - x).clamp(min=eps).log()


@pytest.mark.parametrize(
    ("inverse", "bound"),
    [
        (by_quotient, math.log(1e5)),
        (by_difference, math.log(1e3)),
        (lambda x: torch.logit(x, 1e-4), math.log(1e4)),
    ],
    ids=["quotient", "difference", "logit"],
)
def test_the_inverse_of_a_sigmoid_becomes_a_clamp(inverse, bound):
    model = check(lambda net, x: refined(net, x, inverse))
    assert sorted(operators(model)) == ["add", "clamp", "linear", "mul", "sigmoid"]
    (clamp,) = [n for n in model.module.graph.nodes if n.target is torch.ops.aten.clamp.default]
    assert arguments(clamp)["hi"] == pytest.approx(bound, abs=2e-3)
    assert arguments(clamp)["lo"] == -arguments(clamp)["hi"]


def test_a_logarithm_of_a_sigmoid_alone_stays():
    with pytest.raises(UnsupportedOp, match=r"aten\.log\.default"):
        canonical(Net(lambda net, x: net.layer(x).sigmoid().clamp(min=1e-3).log()))


def chosen(net, x, values):
    tokens = net.norm(x.reshape(1, 24, 8))
    rows = values(net, tokens)
    index = net.score(tokens).squeeze(-1).topk(5, dim=1).indices
    return rows.gather(1, index.unsqueeze(-1).repeat(1, 1, rows.shape[-1]))


def test_rows_are_taken_before_what_is_computed_of_them():
    model = check(lambda net, x: chosen(net, x, lambda n, t: n.layer(t).relu() + n.anchors))
    names = operators(model)
    assert names.index("take_rows") < names.index("relu")
    assert names.count("take_rows") == 2  # the tokens and the anchors
    linear = next(n for n in model.module.graph.nodes if "layer_linear" in n.name)
    assert tuple(linear.meta["val"].shape) == (1, 5, 4)


def test_infinite_anchors_become_finite():
    def boxes(net, x):
        anchors = torch.where(net.anchors > 1, torch.finfo(torch.float32).max, net.anchors)
        return chosen(net, x, lambda n, t: n.layer(t) + anchors).sigmoid()

    model = check(boxes)
    constants = [constant(n) for n in model.module.graph.nodes if n.op == "get_attr"]
    assert max(float(value.abs().max()) for value in constants) == 32.0


def test_a_gather_of_elements_is_refused():
    def elements(net, x):
        index = net.layer(x).reshape(1, 24, 4).topk(2, dim=1).indices
        return x.reshape(1, 24, 8).gather(1, index)

    with pytest.raises(UnsupportedOp, match=r"aten\.gather\.default"):
        canonical(Net(elements))


def test_parallel_convolutions_merge():
    assert operators(check(lambda net, x: net.wide(x) + net.narrow(x))) == ["conv2d"]
    read_twice = check(lambda net, x: (y := net.narrow(x)) + net.wide(x) + y.relu())
    assert operators(read_twice).count("conv2d") == 2


def test_scales_per_channel_fold_into_the_convolution():
    def frozen(net, x):
        return net.narrow(x) * net.gain.reshape(1, -1, 1, 1) + net.offset.reshape(1, -1, 1, 1)

    assert operators(check(frozen)) == ["conv2d"]
    by_column = check(lambda net, x: net.wide(x) * net.anchors[0, :4, 0])
    assert operators(by_column) == ["conv2d", "mul"]


def test_the_last_of_stacked_results_is_read_where_it_comes_from():
    model = check(
        lambda net, x: torch.stack([net.layer(x), net.layer(x) + 1, net.norm(x)[..., :4]], 1)[:, -1]
    )
    assert set(operators(model)) == {"layer_norm", "slice"}


def test_constants_written_through_views_fold():
    def grid(net, x):
        cells = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"), -1)
        cells[..., 0] /= 8
        shapes = torch.empty(2)
        for i in range(2):
            shapes[i] = x.shape[2 + i]
        return x + (cells[..., 0] * shapes[0] + cells[..., 1])

    assert operators(check(grid)) == ["add"]


def test_memory_that_was_never_written_does_not_fold():
    def unwritten(net, x):
        shapes = torch.empty(8)
        shapes[0] = 1.0
        return x + shapes

    with pytest.raises(UnsupportedOp):
        canonical(Net(unwritten))


class Boxes(nn.Module):
    def forward(self, x):
        return {"logits": x * 2, "boxes": x.mean(1), "rest": x.exp()}


def test_only_the_outputs_that_are_wanted():
    model = canonical(Boxes(), ("boxes", "logits"))
    assert model.output_names == ("boxes", "logits")
    assert sorted(operators(model)) == ["mean", "mul"]
    with pytest.raises(CaptureError, match="no output 'scores': the model returns logits, boxes"):
        canonical(Boxes(), ("scores",))


def test_checks_of_values_are_dropped():
    def checked(net, x):
        torch._assert_async((net.anchors > -9).all())
        return x * 2

    assert operators(check(checked)) == ["mul"]


class Attended(nn.Module):
    """Deformable attention whose boxes, queries and tokens come from an image."""

    def __init__(self, sampling: str):
        super().__init__()
        config = RTDetrConfig((64, 96), width=16, heads=2, points=3, queries=5, sampling=sampling)
        self.attention = DeformableAttention(config)
        self.tokens = nn.Linear(192, config.tokens * 16)
        self.queries = nn.Linear(192, 5 * 16)
        self.boxes = nn.Linear(192, 5 * 4)
        for layer in (self.attention.sampling_offsets, self.attention.attention_weights):
            nn.init.normal_(layer.weight, std=0.3)

    def forward(self, x):
        x = x.flatten(1)
        boxes = self.boxes(x).reshape(1, 5, 4).sigmoid()
        queries, tokens = (layer(x).reshape(1, -1, 16) for layer in (self.queries, self.tokens))
        return self.attention(queries, boxes, tokens)


@pytest.mark.parametrize(("sampling", "mode"), [("default", "bilinear"), ("discrete", "discrete")])
def test_deformable_attention_is_one_operator(sampling, mode):
    torch.manual_seed(0)
    net = Attended(sampling).eval()
    model = canonical(net)
    (node,) = [n for n in model.module.graph.nodes if "deformable_attention" in n.name]
    values = arguments(node)
    assert values["mode"] == mode
    assert values["shapes"] == [8, 12, 4, 6, 2, 3]
    assert values["points"] == [3, 3, 3]
    assert values["factors"] == pytest.approx([0.5 / 3] * 9)
    assert not {"grid_sample", "softmax", "take_rows"} & set(operators(model))
    x = torch.randn(SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(model(x)["logits"], net(x), atol=2e-5, rtol=2e-5)


def test_what_computes_something_else_is_not_fused():
    net = Attended("default").eval()
    read = net.attention.forward

    def squared(query, boxes, memory):
        return read(query, boxes * boxes, memory)

    net.attention.forward = squared
    with pytest.raises(UnsupportedOp, match=r"aten\.sum"):
        canonical(net)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_a_grid_sample_of_its_own(mode):
    def sampled(net, x):
        grid = net.layer(x.mean(1)).reshape(1, 4, 4, 2).tanh()
        return functional.grid_sample(x, grid, mode, align_corners=False)

    assert "grid_sample" in operators(check(sampled))


def test_other_paddings_are_refused():
    def sampled(net, x):
        return functional.grid_sample(x, x[:, :2].movedim(1, -1), align_corners=True)

    with pytest.raises(UnsupportedOp, match=r"remedy +use zeros outside"):
        canonical(Net(sampled))


def joined(net, x):
    return torch.cat([net.wide(x), net.wide(-x).relu()], 1)


@pytest.mark.parametrize(("twice", "convolutions"), [(False, 4), (True, 3)])
def test_convolutions_of_joined_values_are_added_up(twice, convolutions):
    kernel = torch.randn(5, 12, 3, 3)
    bias = torch.randn(5)

    def forward(net, x):
        both = torch.cat([y := net.wide(x), y], 1) if twice else joined(net, x)
        return functional.conv2d(both, kernel, bias, stride=2, padding=1)

    names = operators(check(forward))
    assert "cat" not in names
    assert (names.count("conv2d"), names.count("add")) == (convolutions, 1)


@pytest.mark.parametrize("case", ["groups", "reader", "rows"])
def test_joined_values_stay_joined(case):
    kernel = torch.randn(4, 12 // (2 if case == "groups" else 1), 1, 1)

    def forward(net, x):
        if case == "rows":
            return functional.conv2d(torch.cat([x, -x], 2), torch.ones(2, 3, 1, 1))
        both = joined(net, x)
        result = functional.conv2d(both, kernel, groups=2 if case == "groups" else 1)
        return result + both.amax() if case == "reader" else result

    assert operators(check(forward)).count("cat") == 1


@pytest.mark.parametrize(("side", "stride", "moved"), [(1, 1, True), (1, 2, False), (3, 1, False)])
def test_pixels_are_repeated_after_a_1x1_convolution(side, stride, moved):
    kernel = torch.randn(5, 6, side, side)

    def forward(net, x):
        return functional.conv2d(
            functional.interpolate(net.wide(x), scale_factor=2.0), kernel, stride=stride
        )

    names = operators(check(forward))
    assert names.index("upsample_nearest") == (2 if moved else 1)
    assert names.count("conv2d") == 2
