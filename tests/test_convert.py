"""Every canonical operator and every named approximation, from a float module to integers."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

import iqvit
from iqvit.calibration.recipe import Recipe, Rule, Settings
from iqvit.canonical import OPS, CanonicalModel, op_of
from iqvit.errors import GraphError, OverflowProofError, RecipeError
from iqvit.inttype import QParams
from iqvit.training.through_integers import StepRules, ThroughIntegers

SIZE = 8
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class Net(nn.Module):
    """A function over named submodules."""

    def __init__(self, function: Callable[..., object], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: torch.Tensor):
        return self.function(self, x)


class Scaled(nn.Module):
    """LayerScale."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(-0.3, 0.4, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


def quotient_and_rest(index, divisor):
    return index // divisor, index % divisor


def on_tokens(function: Callable[..., object], **modules: nn.Module) -> Net:
    """A net whose function gets 16 tokens of 16 channels, made by a patch embedding."""

    def forward(net: Net, x: torch.Tensor):
        return function(net, net.stem(x).flatten(2).transpose(1, 2))

    return Net(forward, stem=nn.Conv2d(3, 16, 2, 2), **modules)


def on_maps(function: Callable[..., object], **modules: nn.Module) -> Net:
    """A net whose function gets 6 maps of 8 x 8."""
    return Net(lambda net, x: function(net, net.stem(x)), stem=nn.Conv2d(3, 6, 1), **modules)


def activation(function: Callable[[torch.Tensor], torch.Tensor]) -> Net:
    return on_tokens(
        lambda net, x: net.after(function(net.fc(x))),
        fc=nn.Linear(16, 24),
        after=nn.Linear(24, 8),
    )


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(1, 16, 2, 8).permute(0, 2, 1, 3)


def attention_net(**options) -> Net:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads(layer(x)) for layer in (net.q, net.k, net.v))
        y = functional.scaled_dot_product_attention(q * 2, k, v, **options)
        return net.proj(y.transpose(1, 2).reshape(1, 16, 16))

    layers = {name: nn.Linear(16, 16) for name in ("q", "k", "v", "proj")}
    return on_tokens(forward, **layers)


def softmax_net() -> Net:
    return on_tokens(lambda net, x: net.fc(x).mul(3).softmax(-1), fc=nn.Linear(16, 12))


def block_net() -> Net:
    """A pre-norm MLP block with a residual connection and a head."""

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = x + net.fc2(functional.gelu(net.fc1(net.norm1(x))))
        return net.head(net.norm2(x)[:, 0])

    return on_tokens(
        forward,
        norm1=nn.LayerNorm(16),
        fc1=nn.Linear(16, 48),
        fc2=nn.Linear(48, 16),
        norm2=nn.LayerNorm(16),
        head=nn.Linear(16, 10),
    )


def joined(net: Net, x: torch.Tensor) -> torch.Tensor:
    x = torch.cat([net.token.expand(1, 1, 16), x], 1)
    return net.fc(torch.cat([x, net.norm(x)], 2))


def joined_net() -> Net:
    net = on_tokens(joined, fc=nn.Linear(32, 8), norm=nn.LayerNorm(16))
    net.token = nn.Parameter(torch.randn(1, 1, 16))
    return net


def sliced(net: Net, x: torch.Tensor):
    x = net.fc(x)
    return x[:, 1:9:2], x[:, 3], x[..., :5]


# name: how to make it, the canonical operators that it shows, the least SQNR in dB
NETS: dict[str, tuple[Callable[[], nn.Module], set[str], float]] = {
    "convolution": (lambda: nn.Conv2d(3, 8, 4, 4), {"conv2d"}, 35),
    "padded convolution": (lambda: nn.Conv2d(3, 8, 3, 2, 1), {"conv2d"}, 35),
    "grouped convolution": (lambda: nn.Conv2d(3, 9, 3, 1, 1, groups=3), {"conv2d"}, 35),
    "dilated convolution": (lambda: nn.Conv2d(3, 4, 3, dilation=2, bias=False), {"conv2d"}, 35),
    "two convolutions": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 1, 1)),
        {"conv2d", "relu"},
        30,
    ),
    "linear": (
        lambda: on_tokens(lambda net, x: net.fc(x), fc=nn.Linear(16, 8)),
        {"linear", "reshape", "permute"},
        30,
    ),
    "linear without bias": (
        lambda: on_tokens(lambda net, x: net.fc(x), fc=nn.Linear(16, 8, bias=False)),
        {"linear"},
        30,
    ),
    "matmul": (
        lambda: on_tokens(
            lambda net, x: net.a(x) @ net.b(x).transpose(1, 2),
            a=nn.Linear(16, 12),
            b=nn.Linear(16, 12),
        ),
        {"matmul"},
        30,
    ),
    "attention": (attention_net, {"attention", "mul"}, 30),
    "attention with a scale": (lambda: attention_net(scale=0.9), {"attention"}, 30),
    "layer norm": (
        lambda: on_tokens(
            lambda net, x: net.fc(net.norm(x)), norm=nn.LayerNorm(16), fc=nn.Linear(16, 8)
        ),
        {"layer_norm"},
        30,
    ),
    "layer norm alone": (
        lambda: on_tokens(
            lambda net, x: net.norm(x), norm=nn.LayerNorm(16, elementwise_affine=False)
        ),
        {"layer_norm"},
        30,
    ),
    "softmax": (softmax_net, {"softmax", "mul"}, 30),
    "gelu": (lambda: activation(functional.gelu), {"gelu"}, 30),
    "gelu tanh": (lambda: activation(nn.GELU(approximate="tanh")), {"gelu"}, 30),
    "silu": (lambda: activation(functional.silu), {"silu"}, 30),
    "relu": (lambda: activation(functional.relu), {"relu"}, 30),
    "sigmoid": (lambda: activation(torch.sigmoid), {"sigmoid"}, 28),
    "tanh": (lambda: activation(torch.tanh), {"tanh"}, 28),
    "gated tanh": (
        lambda: on_tokens(lambda net, x: net.a(x) * torch.tanh(net.a(x)), a=nn.Linear(16, 8)),
        {"tanh", "mul"},
        28,
    ),
    "sum": (
        lambda: on_tokens(
            lambda net, x: net.a(x) + net.b(x), a=nn.Linear(16, 8), b=nn.Linear(16, 8)
        ),
        {"add"},
        30,
    ),
    "sum with a constant": (
        lambda: on_tokens(lambda net, x: x + torch.arange(16.0) / 8),
        {"add"},
        30,
    ),
    "layer scale": (
        lambda: on_tokens(
            lambda net, x: x + net.scale(net.fc(x)), fc=nn.Linear(16, 16), scale=Scaled()
        ),
        {"mul", "add"},
        30,
    ),
    "cat": (joined_net, {"cat"}, 30),
    "slices": (
        lambda: on_tokens(sliced, fc=nn.Linear(16, 8)),
        {"slice", "select"},
        30,
    ),
    "mean": (
        lambda: on_tokens(lambda net, x: net.fc(x.mean(1)), fc=nn.Linear(16, 8)),
        {"mean"},
        30,
    ),
    "global pooling": (
        lambda: on_maps(lambda net, x: x.mean((2, 3), keepdim=True)),
        {"mean"},
        30,
    ),
    "amax": (lambda: on_maps(lambda net, x: x.amax((2, 3))), {"amax"}, 30),
    "max pool": (
        lambda: on_maps(lambda net, x: functional.max_pool2d(x, 3, 2, 1)),
        {"max_pool2d"},
        30,
    ),
    "average pool": (
        lambda: on_maps(lambda net, x: functional.avg_pool2d(x, 3, 2, 1)),
        {"avg_pool2d"},
        30,
    ),
    "average pool of what is there": (
        lambda: on_maps(lambda net, x: functional.avg_pool2d(x, 2, 2, 1, count_include_pad=False)),
        {"avg_pool2d"},
        30,
    ),
    "top values": (
        lambda: on_tokens(
            lambda net, x: net.out(net.fc(x).topk(4, -1).values),
            fc=nn.Linear(16, 12),
            out=nn.Linear(4, 3),
        ),
        {"topk", "getitem", "linear"},
        30,
    ),
    "upsampled": (
        lambda: on_maps(
            lambda net, x: (
                functional.interpolate(x, scale_factor=2, mode="bilinear"),
                functional.interpolate(x, (3, 20), mode="bilinear"),
                functional.interpolate(x, (12, 24)),
                net.after(functional.interpolate(x, (16, 16), mode="bilinear")),
            ),
            after=nn.Conv2d(6, 4, 3),
        ),
        {"upsample_bilinear", "upsample_nearest", "conv2d"},
        30,
    ),
    "unit length": (
        lambda: on_tokens(
            lambda net, x: (
                functional.normalize(net.fc(x), dim=-1, eps=0.5),
                functional.normalize(x, dim=1) @ (x / x.norm(dim=2, keepdim=True)).mT,
                net.after(x / x.norm(dim=-1, keepdim=True)),
            ),
            fc=nn.Linear(16, 12),
            after=nn.Linear(16, 4),
        ),
        {"l2_normalize", "matmul", "permute"},
        27,
    ),
    "block": (block_net, {"layer_norm", "gelu", "add", "select"}, 28),
}
INDICES: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "topk": (
        lambda: on_tokens(lambda net, x: tuple(net.fc(x).topk(3, -1)), fc=nn.Linear(16, 12)),
        {"topk", "getitem"},
    ),
    "argmax": (
        lambda: on_tokens(lambda net, x: net.fc(x).argmax(-1), fc=nn.Linear(16, 12)),
        {"argmax"},
    ),
    "argmax of channels": (
        lambda: on_maps(lambda net, x: x.argmax(1, keepdim=True)),
        {"argmax"},
    ),
    "class map": (
        lambda: on_maps(
            lambda net, x: functional.interpolate(x, (16, 16), mode="bilinear").argmax(1)
        ),
        {"upsample_bilinear", "argmax"},
    ),
    "squeezed class map": (
        lambda: on_maps(lambda net, x: x.argmax(1, keepdim=True).squeeze(1)),
        {"argmax", "reshape"},
    ),
    "query and class": (
        lambda: on_tokens(
            lambda net, x: quotient_and_rest(net.fc(x).flatten(1).topk(4, -1).indices, 5),
            fc=nn.Linear(16, 5),
        ),
        {"topk", "getitem", "floor_divide", "remainder"},
    ),
    "moved indices": (
        lambda: on_tokens(
            lambda net, x: torch.cat(
                [net.fc(x).topk(3, -1).indices[:, :2].reshape(1, 6), x[:, :, 0].topk(2).indices], 1
            ),
            fc=nn.Linear(16, 12),
        ),
        {"topk", "getitem", "cat", "reshape", "slice"},
    ),
}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def canonical_of(make: Callable[[], nn.Module], normalisation=IMAGENET) -> CanonicalModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
    for parameter in model.parameters():
        if parameter.ndim == 1 and bool((parameter == parameter[0]).all()):
            # No gain of one and no bias of zero: every part of an operator shows.
            parameter.data += torch.linspace(-0.2, 0.3, len(parameter))
    return iqvit.canonicalize(iqvit.capture(model, (1, 3, SIZE, SIZE), **normalisation))


def operators(canonical: CanonicalModel) -> set[str]:
    nodes = canonical.module.graph.nodes
    return {op_of(node).name for node in nodes if node.op == "call_function"}


def exact(canonical: CanonicalModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    mean, std = (torch.tensor(v)[:, None, None] for v in (canonical.mean, canonical.std))
    with torch.no_grad():
        outputs = [canonical((image / 255 - mean) / std) for image in images.split(1)]
    return {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}


def sqnr(canonical: CanonicalModel, graph: iqvit.IntGraph, images: torch.Tensor) -> float:
    """The lowest of the outputs' signal-to-noise ratios, in dB."""
    wanted, got = exact(canonical, images), iqvit.run(graph, images)
    assert set(wanted) == set(got) == set(graph.outputs)
    ratios = []
    for name, value in wanted.items():
        qparams = graph[graph.outputs[name]].qparams
        assert isinstance(qparams, QParams)
        assert not got[name].is_floating_point()
        assert got[name].shape == value.shape
        noise = (qparams.dequantize(got[name]) - value).square().sum()
        ratios.append(10 * math.log10(float(value.double().square().sum() / noise)))
    return min(ratios)


def quantized(
    canonical: CanonicalModel, images: torch.Tensor, recipe: Recipe | None = None
) -> iqvit.IntGraph:
    return iqvit.convert(canonical, iqvit.calibrate(canonical, images.split(2), recipe))


@pytest.mark.parametrize("name", NETS)
def test_operators(name, images):
    make, shown, bound = NETS[name]
    canonical = canonical_of(make)
    assert shown <= operators(canonical)
    assert sqnr(canonical, quantized(canonical, images), images) > bound


# Converted in test_detection_passes.py and, in whole detectors, in test_rtdetr_program.py.
OF_DETECTORS = {"clamp", "deformable_attention", "grid_sample", "take_rows"}


def test_all_canonical_operators_are_shown():
    shown = {op for _, ops, *_ in (*NETS.values(), *INDICES.values()) for op in ops}
    assert shown | OF_DETECTORS == {op.name for op in OPS.values()}


def test_class_maps_are_uint8_in_any_layout(images):
    for name in ("argmax of channels", "class map", "squeezed class map"):
        graph = quantized(canonical_of(INDICES[name][0]), images)
        assert {graph[node].type.dtype for node in graph.outputs.values()} == {"uint8"}


def test_an_upsampled_value_that_others_read_is_compared(images):
    def both(net, x):
        large = functional.interpolate(x, (16, 12), mode="bilinear")
        return large.argmax(1), functional.gelu(large), large.amax((2, 3))

    canonical = canonical_of(lambda: on_maps(both))
    found = iqvit.compare(canonical, quantized(canonical, images), images)
    assert any(row.op == "requantise" for row in found.rows)
    assert found.sqnr_db > 30


@pytest.mark.parametrize("name", INDICES)
def test_indices_point_at_large_values(name, images):
    make, shown = INDICES[name]
    canonical = canonical_of(make)
    assert shown <= operators(canonical)
    graph = quantized(canonical, images)
    wanted, got = exact(canonical, images), iqvit.run(graph, images)
    for output, value in wanted.items():
        qparams = graph[graph.outputs[output]].qparams
        assert isinstance(qparams, QParams)
        assert got[output].shape == value.shape
        if value.dtype == torch.int64:
            # Near ties may swap; most places agree.
            assert (got[output] == value).float().mean() > 0.9
            assert (float(qparams.scale), float(qparams.zero_point)) == (1.0, 0.0)
        else:
            assert (qparams.dequantize(got[output]) - value).abs().max() < 0.05 * value.abs().max()


# A ReLU at its kink and a choice among near ties have other gradients after rounding.
LOOSELY = {"relu": 0.98, "two convolutions": 0.98, "topk": 0.98, "top values": 0.85}


def float_gradients(canonical, images, weights, results):
    """Gradients of the constants for the sum of weighted results, by name."""
    constants = {n: t.clone().requires_grad_() for n, t in canonical.module.named_buffers()}
    for name, value in constants.items():
        setattr(canonical.module, name, value)
    mean, std = (torch.tensor(v)[:, None, None] for v in (canonical.mean, canonical.std))
    total = torch.zeros(())
    for place, image in enumerate(images.split(1)):
        values: dict[str, torch.Tensor] = {}

        class Keeper(torch.fx.Interpreter):
            def run_node(self, n, values=values):
                values[n.name] = super().run_node(n)
                return values[n.name]

        Keeper(canonical.module).run((image / 255 - mean) / std)
        for name, node in results.items():
            total = (
                total + (weights[name].unflatten(0, (len(images), -1))[place] * values[node]).sum()
            )
    total.backward()
    return {name: value.grad for name, value in constants.items()}


@pytest.mark.parametrize("name", [*NETS, *INDICES])
def test_what_converts_learns_through_its_integers(name, images):
    canonical = canonical_of((NETS.get(name) or INDICES[name])[0])
    calibrated = iqvit.calibrate(canonical, images)
    graph = iqvit.convert(canonical, calibrated)
    learner = ThroughIntegers(canonical, calibrated, StepRules("learned"))
    assert learner.export().hash == graph.hash

    outputs = learner(images)
    integers = iqvit.run(graph, images)
    for output, value in outputs.items():
        qparams = graph[graph.outputs[output]].qparams
        if canonical.outputs[output].meta["val"].is_floating_point():
            torch.testing.assert_close(qparams.dequantize(integers[output]).float(), value)
        else:
            assert value.is_floating_point()

    generator = torch.Generator().manual_seed(2)
    weights = {k: torch.randn(v.shape, generator=generator) for k, v in outputs.items()}
    sum((weights[k] * v).sum() for k, v in outputs.items()).backward()
    results = {k: node.name for k, node in learner.frame.results.items()}
    wanted = float_gradients(canonical, images, weights, results)
    found = {n.args[1].name: learner.products[n.name].weight for n in learner.frame.products}
    found |= dict(learner.norms.items())
    assert found
    for constant, parameter in found.items():
        likeness = functional.cosine_similarity(
            parameter.grad.flatten(), wanted[constant].flatten(), dim=0
        )
        assert float(likeness) > LOOSELY.get(name, 0.99), constant


# model, settings, the least SQNR in dB
APPROXIMATIONS: dict[str, tuple[Callable[[], nn.Module], dict[str, dict[str, object]], float]] = {
    "igelu": (NETS["gelu"][0], {"gelu": {"approximation": "igelu"}}, 22),
    "igelu of 8 bits": (
        NETS["gelu"][0],
        {"gelu": {"approximation": "igelu", "input_bits": 8}},
        18,
    ),
    "shiftgelu": (NETS["gelu"][0], {"gelu": {"approximation": "shiftgelu"}}, 15),
    "lambda_shiftgelu": (NETS["gelu"][0], {"gelu": {"approximation": "lambda_shiftgelu"}}, 20),
    "lut of 8 bits": (NETS["gelu"][0], {"gelu": {"approximation": "lut", "input_bits": 8}}, 25),
    "silu lut of 8 bits": (NETS["silu"][0], {"silu": {"input_bits": 8}}, 25),
    "lut of 8 bits by channel": (
        NETS["gelu"][0],
        {"gelu": {"input_bits": 8}, "linear": {"granularity": "channel"}},
        25,
    ),
    "tanh lut": (NETS["tanh"][0], {"tanh": {"approximation": "lut", "input_bits": 8}}, 25),
    "isoftmax": (softmax_net, {"softmax": {"approximation": "isoftmax"}}, 25),
    "shiftmax": (softmax_net, {"softmax": {"approximation": "shiftmax"}}, 15),
    "attention isoftmax": (attention_net, {"attention": {"approximation": "isoftmax"}}, 25),
    "attention shiftmax": (attention_net, {"attention": {"approximation": "shiftmax"}}, 18),
    "attention 16 bits": (attention_net, {"attention": {"probability_bits": 16}}, 28),
    "ilayernorm": (NETS["layer norm"][0], {"layer_norm": {"approximation": "ilayernorm"}}, 25),
    "ilayernorm on the residual": (block_net, {"layer_norm": {"approximation": "ilayernorm"}}, 25),
    "residual of 8 bits": (block_net, {"add": {"bits": 8}}, 20),
    "residual of 16 bits": (block_net, {"add": {"bits": 16}}, 28),
    "all of 8 bits": (block_net, {op: {"bits": 8} for op in ("add", "linear", "layer_norm")}, 20),
    "gelu of 16 bits": (
        block_net,
        {"gelu": {"bits": 16}, "linear": {"granularity": "channel"}},
        25,
    ),
    "layer norm of 8 bits": (block_net, {"layer_norm": {"bits": 8, "input_bits": 8}}, 20),
    "4-bit weights": (block_net, {"linear": {"weight_bits": 4}}, 12),
    "a scale per tensor of weights": (block_net, {"linear": {"weight_granularity": "tensor"}}, 25),
    **{
        f"granularity {kind}": (block_net, {"linear": {"granularity": kind}}, 25)
        for kind in ("row", "channel", "tensor")
    },
    **{
        f"observer {kind}": (
            block_net,
            {op: {"observer": kind} for op in ("linear", "conv2d", "layer_norm", "gelu")}
            | {"linear": {"observer": kind, "granularity": "tensor"}},
            15,
        )
        for kind in ("percentile", "mse", "entropy")
    },
}


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_approximations(name, images):
    make, settings, bound = APPROXIMATIONS[name]
    canonical = canonical_of(make)
    graph = quantized(canonical, images, Recipe(operators=settings))
    assert sqnr(canonical, graph, images) > bound
    for operator, values in settings.items():
        wanted = values.get("approximation")
        if wanted not in (None, "lut"):
            assert wanted in {node.op.NAME for node in graph}, operator


def test_the_default_keeps_the_residual_stream_at_20_bits(images):
    graph = quantized(canonical_of(block_net), images)
    (stream,) = (node for node in graph if node.op.NAME == "add")
    assert (stream.type.dtype, stream.type.hi) == ("int32", 2**19 - 1)


def test_linears_of_one_layer_norm_share_their_rows(images):
    def forward(net: Net, x: torch.Tensor):
        x = net.norm(x)
        return net.a(x), net.b(x)

    net = lambda: on_tokens(  # noqa: E731
        forward, norm=nn.LayerNorm(16), a=nn.Linear(16, 8), b=nn.Linear(16, 4)
    )
    graph = quantized(canonical_of(net), images)
    names = [node.op.NAME for node in graph]
    assert names.count("row_linear") == 2
    assert names.count("row_quantise") == names.count("row_peak") == 1


def test_a_sum_that_could_overflow_does_not_build():
    # Constant weights round to 127: 127 * 255 * K leaves int32 from K = 66311 on.
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 160 * 160, 1)).eval()
    nn.init.constant_(model[1].weight, 0.5)
    captured = iqvit.capture(model, (1, 3, 160, 160), mean=(0.0,) * 3, std=(1.0,) * 3)
    canonical = iqvit.canonicalize(captured)
    images = torch.full((1, 3, 160, 160), 200, dtype=torch.uint8)
    settings = {"weight_rounding": "nearest", "bias_correction": False}
    ranges = iqvit.calibrate(canonical, [images], Recipe(operators={"linear": settings}))
    with pytest.raises(OverflowProofError) as failure:
        iqvit.convert(canonical, ranges)
    message = str(failure.value)
    ((node, weight),) = ranges.weights.items()
    assert "accumulator range" in message
    assert "leaves int32" in message
    bias = round(float(weight.bias[0] / weight.scale[0]))
    assert f"{bias}..{127 * 255 * 3 * 160 * 160 + bias}" in message
    assert f"node    {node}" in message


@pytest.mark.parametrize(
    ("forward", "what"),
    [
        (lambda net, x: functional.linear(x, torch.ones(2, SIZE)), "reads the image"),
        (lambda net, x: x.reshape(1, 3 * SIZE, SIZE).relu(), "reads the image"),
        (lambda net, x: x.permute(0, 2, 1, 3) * 2, "reads the image"),
    ],
)
def test_only_convolutions_read_pixels_of_several_normalisations(forward, what, images):
    canonical = canonical_of(lambda: Net(forward))
    with pytest.raises(GraphError, match=what):
        quantized(canonical, images)


def test_unsupported_forms_are_told(images):
    canonical = canonical_of(lambda: on_tokens(lambda net, x: x.softmax(1)))
    with pytest.raises(GraphError, match="softmax over another axis") as failure:
        quantized(canonical, images)
    assert "remedy" in str(failure.value)
    assert "test_convert.py" in str(failure.value)


@pytest.mark.parametrize(
    ("make", "rule", "message"),
    [
        (
            NETS["gelu"][0],
            Rule("*:gelu", {"approximation": "shiftgelu", "input_bits": 16}),
            "impossible width",
        ),
        (
            NETS["layer norm"][0],
            Rule("*:layer_norm", {"approximation": "ilayernorm", "input_bits": 8}),
            "impossible width",
        ),
        (NETS["gelu"][0], Rule("*:gelu", {"approximation": "shiftmax"}), "no approximation"),
        (NETS["gelu"][0], Rule("blocks.7.*", {"bits": 8}), "no node matches 'blocks.7.*'"),
    ],
)
def test_recipes_that_do_not_fit_the_model(make, rule, message, images):
    with pytest.raises(RecipeError, match=message.replace("*", r"\*")):
        iqvit.calibrate(canonical_of(make), images.split(1), Recipe(rules=(rule,)))


def test_a_default_that_one_operator_cannot_take(images):
    recipe = Recipe(Settings(approximation="igelu"))
    with pytest.raises(RecipeError, match="no approximation 'igelu'"):
        iqvit.calibrate(canonical_of(attention_net), images.split(1), recipe)
