"""Capture: what is kept of a model, and one message for whatever cannot be exported."""

import warnings
from collections import namedtuple

import pytest
import torch
from torch import nn

from iqvit.capture import CapturedModel, Source, capture
from iqvit.errors import CaptureError

SHAPE = (1, 3, 8, 8)
MEAN = STD = (0.5, 0.5, 0.5)
Detections = namedtuple("Detections", "boxes scores")


class Net(nn.Module):
    """A linear layer and a buffer around a forward that the test gives."""

    def __init__(self, forward):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer("offset", torch.ones(8))
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


def captured(forward) -> CapturedModel:
    return capture(Net(forward), SHAPE, mean=MEAN, std=STD)


def calls(model: CapturedModel) -> list[str]:
    return [str(node.target) for node in model.module.graph.nodes if node.op == "call_function"]


def test_module_computes_what_the_model_computes():
    net = Net(lambda net, x: net.layer(x) + net.offset)
    model = capture(net, SHAPE, mean=MEAN, std=STD)
    x = torch.randn(SHAPE)
    torch.testing.assert_close(model.module(x), (net(x),))
    assert calls(model) == ["aten.linear.default", "aten.add.Tensor"]


def test_every_node_knows_its_source_and_no_machine_path():
    model = captured(lambda net, x: net.layer(x).relu())
    source = model.sources["linear"]
    assert source.module_path == "layer"
    assert source.file.endswith("test_capture.py")
    assert not source.file.startswith("/")
    assert source.line > 0
    assert str(source) == f"layer ({source.file}:{source.line})"
    for node in model.module.graph.nodes:
        assert isinstance(node.meta["source"], Source)
        assert "stack_trace" not in node.meta


def test_weights_are_copies():
    net = Net(lambda net, x: net.layer(x))
    model = capture(net, SHAPE, mean=MEAN, std=STD)
    before = model.module(torch.ones(SHAPE))[0]
    with torch.no_grad():
        net.layer.weight.zero_()
    assert torch.equal(model.module(torch.ones(SHAPE))[0], before)


def test_the_model_is_left_as_it_was():
    net = Net(lambda net, x: nn.functional.dropout(net.layer(x), 0.5, net.training))
    net.layer.eval()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    model = capture(net, SHAPE, mean=MEAN, std=STD)
    assert net.training
    assert not net.layer.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert not any(value.requires_grad for value in model.module.state_dict().values())


def test_multi_head_attention_is_not_one_opaque_node():
    def forward(net, x):
        return net.attention(x[:, 0], x[:, 0], x[:, 0], need_weights=False)[0]

    targets = calls(captured(forward))
    assert "aten.scaled_dot_product_attention.default" in targets
    assert not any("native_multi_head" in target for target in targets)


def test_modes_that_inference_has_off_are_inlined():
    def forward(net, x):
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            return net.layer(x)

    model = captured(forward)
    assert calls(model) == ["aten.linear.default"]
    assert model.sources["linear"].module_path == "layer"


@pytest.mark.parametrize(
    ("forward", "names"),
    [
        (lambda net, x: x + 1, ("logits",)),
        (lambda net, x: x.argmax(1), ("classes",)),
        (lambda net, x: (x + 1, x + 2), ("output_0", "output_1")),
        (lambda net, x: {"boxes": x + 1, "none": None, "logits": x + 2}, ("boxes", "logits")),
        (lambda net, x: Detections(x + 1, x + 2), ("boxes", "scores")),
        (lambda net, x: {"aux": [x + 1, x + 2]}, ("aux_0", "aux_1")),
    ],
    ids=["tensor", "indices", "tuple", "dict", "namedtuple", "nested"],
)
def test_output_names(forward, names):
    model = captured(forward)
    assert model.output_names == names
    assert len(model.module(torch.ones(SHAPE))) == len(names)


def branch(net, x):
    return x if x.sum() > 0 else -x


def autocast(net, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net.layer(x)


@pytest.mark.parametrize(
    ("forward", "what"),
    [
        (branch, "Net has data-dependent control flow"),
        (lambda net, x: x * float(x.max()), "Net has data-dependent control flow"),
        (lambda net, x: x[x > 0], "aten.index.Tensor gives a shape or a number that depends on"),
        (lambda net, x: net.missing(x), "'Net' object has no attribute 'missing'"),
        (lambda net, x: x.reshape(7), "shape '[7]' is invalid for input of size 192"),
        (autocast, "the model computes under autocast in reduced precision"),
    ],
    ids=["if", "item", "shape", "attribute", "error", "autocast"],
)
def test_what_cannot_be_exported_is_one_message(forward, what, capfd):
    with pytest.raises(CaptureError) as failure:
        captured(forward)
    lines = str(failure.value).splitlines()
    assert len(lines) == 4
    assert what in lines[0]
    assert "test_capture.py:" in lines[2]
    assert lines[3].startswith("  remedy  ")
    assert failure.value.__cause__ is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("forward", "what"),
    [
        (lambda net, x: None, "the model returns no tensor"),
        (lambda net, x: (x + 1, 3), "output 1 is 3: outputs must be tensors"),
    ],
)
def test_outputs_must_be_tensors(forward, what):
    with pytest.raises(CaptureError, match=what):
        captured(forward)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"input_shape": (2, 3, 8, 8)}, r"input shape \(2, 3, 8, 8\)"),
        ({"input_shape": (3, 8, 8)}, r"input shape \(3, 8, 8\)"),
        ({"mean": (0.5,)}, "mean has 1 values and std 3"),
        ({"std": (0.5, 0.0, 0.5)}, "every value must be greater than 0"),
    ],
)
def test_impossible_requests(change, what):
    arguments = {"input_shape": SHAPE, "mean": MEAN, "std": STD, **change}
    with pytest.raises(CaptureError, match=what):
        capture(nn.Identity(), **arguments)


def test_half_precision_models_are_refused():
    with pytest.raises(CaptureError, match=r"weight is torch.float16: call model.float\(\)"):
        capture(nn.Conv2d(3, 4, 1).half(), SHAPE, mean=MEAN, std=STD)


def test_capture_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captured(lambda net, x: net.layer(x))
