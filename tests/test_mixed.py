"""Mixed precision: real functions between the integers of a program."""

import copy
import re

import pytest
import torch
from published import PUBLISHED

import iqvit
from iqvit.calibration.quantize import quantize_canonical
from iqvit.calibration.recipe import Recipe, Settings
from iqvit.errors import GraphError
from iqvit.interpret import evaluate
from iqvit.mixed import MixedPrecision
from iqvit.models.spec import load_model
from iqvit.models.vit import ViT, ViTConfig

HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
TINY = ViTConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2, mlp_ratio=2, classes=4)
RECIPES = {
    "default": Recipe(),
    **PUBLISHED,
    "channels": Recipe(Settings(granularity="channel")),
}


def drawn(shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def captured(model, shape, mean=HALF["mean"], std=HALF["std"]):
    return iqvit.canonicalize(iqvit.capture(model, shape, mean=mean, std=std))


@pytest.fixture(scope="module")
def canonical():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return captured(ViT(TINY).eval(), (1, 3, 16, 16))


@pytest.mark.parametrize("name", RECIPES)
def test_real_functions_come_closer_than_approximations(canonical, name):
    images = drawn((4, 3, 16, 16))
    graph = quantize_canonical(canonical, images, RECIPES[name])
    mixed = MixedPrecision(canonical, graph)
    exact = torch.cat([canonical((i / 255 - 0.5) / 0.5)["logits"] for i in images.split(1)])
    qparams = graph[graph.outputs["logits"]].qparams
    errors = [
        float((qparams.dequantize(found["logits"]) - exact).square().sum())
        for found in (mixed(images), iqvit.run(graph, images))
    ]
    # The published forms lose much; the default ones next to nothing, where chance decides.
    assert errors[0] < errors[1] * (2 if name in ("default", "channels") else 0.7)
    assert mixed.integer_share == 1.0


def test_only_the_non_linear_nodes_are_real(canonical):
    images = drawn((1, 3, 16, 16))
    graph = quantize_canonical(canonical, images)
    mixed = MixedPrecision(canonical, graph)
    kinds = sorted(graph[name].op.NAME for name in mixed.functions)
    assert kinds == ["attention", "layernorm", "layernorm", "layernorm", "rectified"]
    whole = evaluate(graph, images, trace=True)
    for name, function in mixed.functions.items():
        node = graph[name]
        operands = [
            whole[n] if n in whole else torch.from_numpy(graph[n].type.value.copy())
            for n in node.inputs
        ]
        found = function(*operands)
        assert (found.dtype, found.shape) == (whole[name].dtype, whole[name].shape)
        assert int(found.min()) >= node.type.lo
        assert int(found.max()) <= node.type.hi
        # Of the same operands: as close as 8-bit probabilities are.
        least = int(whole[name].long().abs().max()) / 500
        assert int((found.long() - whole[name].long()).abs().max()) <= max(2, least)


def test_detectors_sample_in_float(small_multitask):
    model = load_model(f"multitask:{small_multitask}")
    canonical = captured(model.module, model.input_shape, model.mean, model.std)
    images = drawn((2, 3, 64, 96))
    graph = quantize_canonical(canonical, images)
    mixed = MixedPrecision(canonical, graph)
    kinds = {graph[name].op.NAME for name in mixed.functions}
    assert {"deform_attention", "attention", "layernorm"} <= kinds
    assert 0.9 < mixed.integer_share < 1
    found, whole = mixed(images), iqvit.run(graph, images)
    assert {k: (v.dtype, v.shape) for k, v in found.items()} == {
        k: (v.dtype, v.shape) for k, v in whole.items()
    }
    assert float((found["classes"] == whole["classes"]).float().mean()) > 0.95


def test_a_graph_of_another_model_is_refused(canonical):
    graph = quantize_canonical(canonical, drawn((1, 3, 16, 16)))
    other = copy.deepcopy(canonical)
    node = next(n for n in other.module.graph.nodes if n.name.endswith("gelu"))
    shape, node.meta["val"] = list(node.meta["val"].shape), torch.empty(1, 2)
    with pytest.raises(GraphError, match=f"has shape {re.escape(str(shape))}, the float node"):
        MixedPrecision(other, graph)(drawn((1, 3, 16, 16)))
    node.name = "another"
    with pytest.raises(GraphError, match=r"which has no node '.*gelu'"):
        MixedPrecision(other, graph)(drawn((1, 3, 16, 16)))
