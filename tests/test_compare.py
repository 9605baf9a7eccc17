import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import iqvit
from iqvit.calibration.quantize import quantize_canonical
from iqvit.errors import DataError, GraphError
from iqvit.models.vit import ViT, ViTConfig

HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
TINY = ViTConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2, mlp_ratio=2, classes=4)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def canonical():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return iqvit.canonicalize(iqvit.capture(ViT(TINY).eval(), (1, 3, 16, 16), **HALF))


@pytest.fixture(scope="module")
def graph(canonical, images):
    return quantize_canonical(canonical, images)


def test_a_row_for_every_node_with_a_float_counterpart(canonical, graph, images):
    seen = []
    found = iqvit.compare(canonical, graph, images, progress=lambda *step: seen.append(step))
    names = [node.name for node in graph]
    places = [names.index(row.node) for row in found.rows]
    assert places == sorted(places)
    assert len(found.rows) > 15
    assert all("weight" not in row.node for row in found.rows)
    assert found.images == 3
    assert seen[-1] == ("comparing", 3, 3)
    assert all(row.source for row in found.rows)
    assert min(row.sqnr_db for row in found.rows) > 15


def test_the_output_is_what_dequantising_it_says(canonical, graph, images):
    found = iqvit.compare(canonical, graph, [images[:1], images[1:]])
    exact = torch.cat([canonical((i / 255 - 0.5) / 0.5)["logits"] for i in images.split(1)])
    qparams = graph[graph.outputs["logits"]].qparams
    real = qparams.dequantize(iqvit.run(graph, images)["logits"])
    noise = (exact.double() - real).square().sum()
    expected = 10 * math.log10(exact.double().square().sum() / noise)
    assert found.sqnr_db == pytest.approx(expected, abs=1e-3)
    assert found.outputs == {"logits": pytest.approx(expected, abs=1e-3)}
    last = next(row for row in found.rows if row.node == graph.outputs["logits"])
    steps = (exact.double() - real).abs().max() / float(qparams.scale)
    assert last.largest_steps == pytest.approx(float(steps), rel=1e-3)


def test_outputs_are_given_image_by_image(canonical, graph, images):
    seen = []
    iqvit.compare(canonical, graph, images, on_outputs=lambda *pair: seen.append(pair))
    assert len(seen) == 3
    for image, (exact, integers) in zip(images.split(1), seen, strict=True):
        wanted = canonical((image / 255 - 0.5) / 0.5)["logits"]
        torch.testing.assert_close(exact["logits"], wanted)
        assert torch.equal(integers["logits"], iqvit.run(graph, image)["logits"])


def test_the_worst_node_is_the_one_that_was_spoiled(canonical, graph, images):
    # A scale that is metadata only: the integers stay, what they are said to mean is doubled.
    spoiled = "blocks_0_mlp_fc1_linear"
    qparams = graph[spoiled].qparams
    wrong = type(qparams).of(qparams.scale * 2, qparams.zero_point, qparams.axis)
    nodes = tuple(replace(n, qparams=wrong) if n.name == spoiled else n for n in graph)
    found = iqvit.compare(canonical, replace(graph, nodes=nodes), images)
    (worst,) = found.worst(1)
    assert worst.node == spoiled
    assert worst.sqnr_db == pytest.approx(0, abs=0.5)
    assert "fc1" in worst.source


def test_worst_leaves_layout_out(canonical, graph, images):
    worst = iqvit.compare(canonical, graph, images).worst(99)
    assert not {row.op for row in worst} & {"reshape", "permute", "slice", "concat"}
    ratios = [row.sqnr_db for row in worst]
    assert ratios == sorted(ratios)


def test_other_images_and_models_are_refused(canonical, graph, images):
    with pytest.raises(DataError, match="uint8"):
        iqvit.compare(canonical, graph, images.float())
    with pytest.raises(DataError, match="no images"):
        iqvit.compare(canonical, graph, [])
    other = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)).eval()
    foreign = iqvit.canonicalize(iqvit.capture(other, (1, 3, 16, 16), **HALF))
    with pytest.raises(GraphError, match="not made from this model"):
        iqvit.compare(foreign, graph, images)
