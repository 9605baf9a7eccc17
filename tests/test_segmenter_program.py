"""A whole Segmenter, either decoder: pixels to a uint8 class map, the same bits when compiled."""

import numpy as np
import pytest
import torch

import iqvit
from iqvit.calibration.quantize import quantize_canonical
from iqvit.calibration.recipe import Recipe
from iqvit.models.segmenter import ClassMap, Segmenter, SegmenterConfig
from iqvit.tvm_backend.compile import compile as compile_graph
from iqvit.tvm_backend.plan import plain_nodes, plan
from iqvit.tvm_backend.runtime import load
from iqvit.tvm_backend.targets import HOST, resolve

SIZE = (32, 48)
SHIFT = {"approximation": "lambda_shiftgelu"}
PROGRAMS = {
    "linear": ({"decoder": "linear"}, Recipe()),
    "mask": ({"decoder": "mask"}, Recipe()),
    "mask, lambda_shiftgelu": (
        {"decoder": "mask", "normalise": False},
        Recipe(operators={"gelu": SHIFT}),
    ),
}


def segmenter(**options) -> ClassMap:
    config = SegmenterConfig(SIZE, 11, width=64, depth=2, heads=2, decoder_heads=2, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Segmenter(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Weights as a trained model has them: classes differ, no bias is zero.
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
                elif "cls_emb" in name:
                    parameter.copy_(torch.randn_like(parameter))
                elif parameter.ndim == 2 and "proj_" not in name:
                    parameter.mul_(4)
    return ClassMap(model)


@pytest.mark.parametrize("name", PROGRAMS)
def test_interpreter_and_library_agree(name, tmp_path):
    options, recipe = PROGRAMS[name]
    canonical = iqvit.canonicalize(
        iqvit.capture(segmenter(**options), (1, 3, *SIZE), mean=(0.5,) * 3, std=(0.5,) * 3)
    )
    generator = torch.Generator().manual_seed(0)
    # A colour for every patch, so that their classes differ.
    colours = torch.randint(0, 256, (4, 3, 2, 3), dtype=torch.uint8, generator=generator)
    images = colours.repeat_interleave(16, 2).repeat_interleave(16, 3)
    graph = quantize_canonical(canonical, images[:3], recipe)
    assert str(graph[graph.outputs["classes"]].type) == "uint8[1,32,48] 0..10"
    found = iqvit.compare(canonical, graph, images)
    assert found.agreement["classes"] > 85
    assert found.sqnr_db > 14
    target = resolve(HOST)
    if target.isa is not None:
        assert plain_nodes(plan(graph, target)) == []
    compile_graph(graph, tmp_path / "artifact")
    library = load(tmp_path / "artifact", threads=2)
    expected = iqvit.run(graph, images)["classes"].numpy()
    np.testing.assert_array_equal(library(images.numpy())["classes"], expected)
    assert expected.dtype == np.uint8
    assert len(np.unique(expected)) > 1
