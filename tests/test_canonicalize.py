"""Whole models that others wrote go through and compute the same; what cannot is told at once."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from iqvit.canonical import OPS, CanonicalModel, arguments, attention, check, constant, shape
from iqvit.canonicalize import canonicalize
from iqvit.capture import Source, capture
from iqvit.errors import UnsupportedOp

MEAN = STD = (0.5, 0.5, 0.5)
SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 32, "patch_size": 8}


def timm_model(name: str, **options) -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(name, pretrained=False, **{**SMALL, **options})


def timm_without_fused_attention() -> nn.Module:
    timm = pytest.importorskip("timm")
    timm.layers.set_fused_attn(False)
    try:
        return timm_model("vit_tiny_patch16_224")
    finally:
        timm.layers.set_fused_attn(True)


def torchvision_model() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=96)


def transformers_model(implementation: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        attn_implementation=implementation,
    )
    return transformers.ViTForImageClassification(config)


MODELS = {
    "vit": partial(timm_model, "vit_tiny_patch16_224"),
    "distilled": partial(timm_model, "deit_tiny_distilled_patch16_224"),
    "layer scale": partial(timm_model, "deit3_small_patch16_224"),
    "registers": partial(timm_model, "vit_small_patch14_reg4_dinov2"),
    "average pooling": partial(timm_model, "vit_little_patch16_reg4_gap_256"),
    "interpolated": partial(timm_model, "vit_tiny_patch16_224", dynamic_img_size=True),
    "by hand": timm_without_fused_attention,
    "torchvision": torchvision_model,
    "transformers": partial(transformers_model, "sdpa"),
    "transformers by hand": partial(transformers_model, "eager"),
}


def randomized(model: nn.Module) -> nn.Module:
    """Weights that no initialisation made zero or one, so that every operator shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def canonical_of(model: nn.Module, size: int = 32) -> CanonicalModel:
    return canonicalize(capture(model, (1, 3, size, size), mean=MEAN, std=STD))


def assert_same(model: nn.Module, canonical: CanonicalModel) -> None:
    x = torch.randn(canonical.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
        result = canonical(x)["logits"]
    expected = expected if isinstance(expected, torch.Tensor) else expected["logits"]
    assert (result - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_foreign_models_become_canonical(name):
    model = randomized(MODELS[name]())
    canonical = canonical_of(model)
    assert canonical.output_names == ("logits",)
    assert_same(model, canonical)
    nodes = [node for node in canonical.module.graph.nodes if node.op == "call_function"]
    # Two blocks: attention is one node, however it was written.
    assert sum(node.target is attention for node in nodes) == 2
    assert not any(node.target in (torch.ops.aten.softmax.int,) for node in nodes)


def test_the_canonical_graph_is_typed_and_traced():
    canonical = canonical_of(randomized(MODELS["vit"]()))
    graph = canonical.module.graph
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)
    assert {"blocks_0_attn_qkv_linear", "blocks_1_attn_attention", "cat"} <= set(names)
    assert "blocks_0_attn_qkv_weight_0" in dict(canonical.module.named_buffers())
    for node in graph.nodes:
        assert isinstance(canonical.sources[node.name], Source)
        if node.op == "get_attr":
            assert constant(node).dtype == torch.float32
        if node.op == "call_function":
            assert set(arguments(node)) == set(OPS[node.target].params)
            assert len(shape(node)) > 0
    assert canonical.sources["blocks_0_attn_attention"].module_path == "blocks.0.attn"
    assert list(canonical.outputs) == ["logits"]


def test_canonicalizing_twice_gives_the_same_graph_and_leaves_the_capture():
    model = randomized(MODELS["distilled"]())
    captured = capture(model, (1, 3, 32, 32), mean=MEAN, std=STD)
    before = str(captured.module.graph)
    first, second = canonicalize(captured), canonicalize(captured)
    assert str(first.module.graph) == str(second.module.graph)
    assert str(captured.module.graph) == before


class Unsupported(nn.Module):
    """Three kinds of unsupported nodes, one of them twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Hardswish(), nn.Hardswish()

    def forward(self, x):
        x = self.second(self.first(x))
        x = torch.roll(x, 1, -1) + x[:, :1].expand(1, 3, 8, 8)
        return functional.layer_norm(x, [8, 8])


def test_all_unsupported_nodes_are_reported_at_once():
    with pytest.raises(UnsupportedOp) as failure:
        canonical_of(Unsupported(), 8)
    lines = str(failure.value).splitlines()
    assert lines[0] == "5 nodes have no integer operator"
    start = lines.index("aten.hardswish.default is not supported")
    assert lines[start + 1 : start + 3] == [
        "  node    first_hardswish",
        "          second_hardswish",
    ]
    assert lines[start + 3].startswith("  from    first (")
    assert lines[start + 4].startswith("          second (")
    assert "test_canonicalize.py:" in lines[start + 4]
    assert lines[start + 5] == "  remedy  use SiLU, GELU or ReLU"
    assert "aten.roll.default is not supported" in lines
    assert "aten.expand.default is not supported" in lines
    assert "layer_norm normalises over 2 dimensions; only the last alone is supported" in lines


@pytest.mark.parametrize(
    ("forward", "what"),
    [
        (
            lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True),
            "aten.scaled_dot_product_attention.default is not supported",
        ),
        (lambda x: functional.dropout(x, 0.5), "aten.dropout.default is not supported"),
        (lambda x: x / x, "aten.div.Tensor is not supported"),
        (lambda x: x.argmax(-1) + x.argmax(-1), "add computes in torch.int64"),
        (lambda x: x[:, 0].relu_() + x[:, 0], "aten.relu_.default writes into memory"),
        (lambda x: x + torch.rand(8), "aten.rand.default is not supported"),
    ],
)
def test_faults(forward, what):
    class Net(nn.Module):
        def forward(self, x):
            return forward(x)

    with pytest.raises(UnsupportedOp) as failure:
        canonical_of(Net(), 8)
    assert what in str(failure.value)


def test_the_checker_refuses_what_only_looks_canonical():
    canonical = canonical_of(randomized(MODELS["vit"]()))
    node = next(n for n in canonical.module.graph.nodes if n.name == "blocks_0_norm1_layer_norm")
    node.args = node.args[:-1]
    with pytest.raises(UnsupportedOp, match="do not follow layer_norm"):
        check(canonical.module.graph)
