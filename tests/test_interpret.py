"""The interpreter: batches, traces, outputs and what it refuses."""

import numpy as np
import pytest
import torch

from iqvit.errors import DataError
from iqvit.interpret import run
from iqvit.intgraph import GraphBuilder, IntGraph
from iqvit.ops import Add, Input, Linear, Requantise, Reshape


@pytest.fixture(scope="module")
def graph() -> IntGraph:
    """`y = 2*x0 - x1 + 3` and `x + y`, of two pixels."""
    builder = GraphBuilder()
    image = builder.add("image", Input((1, 1, 1, 2)), [])
    x = builder.add("x", Reshape((1, 2)), [image])
    w = builder.constant("w", np.array([[2, -1]], np.int8))
    b = builder.constant("b", np.array([3], np.int32))
    m = builder.constant("m", np.array([1], np.int32))
    y = builder.add("y", Linear(0, 0, "int16", -(2**15), 2**15 - 1), [x, w, b, m])
    half = builder.add("half", Requantise(1, 0, 1, "int16", -(2**15), 2**15 - 1), [y])
    z = builder.add("z", Add(1, 1, 0, 0, "int32", -(2**31), 2**31 - 1), [x, half])
    return builder.finish({"y": y.name, "z": z.name, "weight": w.name, "image": image.name})


def images(*pixels: list[int]) -> torch.Tensor:
    return torch.tensor(pixels, dtype=torch.uint8).reshape(-1, 1, 1, 2)


def test_values(graph: IntGraph):
    out = run(graph, images([10, 4], [0, 255]))
    assert list(out) == ["y", "z", "weight", "image"]
    assert out["y"].tolist() == [[19], [-252]]
    # 19 >> 1 rounds up to 10, -252 >> 1 is -126
    assert out["z"].tolist() == [[20, 14], [-126, 129]]
    assert out["y"].dtype == torch.int16
    assert out["z"].dtype == torch.int32


def test_trace_has_every_computed_value(graph: IntGraph):
    out = run(graph, images([10, 4], [1, 2], [3, 4]), trace=True)
    computed = {"image", "x", "y", "half", "z"}
    assert set(out) == computed | set(graph.outputs)
    for name in computed:
        kind = graph[name].type
        assert tuple(out[name].shape) == (3 * kind.shape[0], *kind.shape[1:])
        assert kind.lo <= int(out[name].min()) <= int(out[name].max()) <= kind.hi


def test_batch_equals_single_images(graph: IntGraph):
    x = torch.randint(0, 256, (5, 1, 1, 2), dtype=torch.uint8)
    whole = run(graph, x)
    for name in ("y", "z"):
        singles = torch.cat([run(graph, x[i : i + 1])[name] for i in range(5)])
        assert torch.equal(whole[name], singles)


def test_input_is_not_written(graph: IntGraph):
    x = images([10, 4])
    kept = x.clone()
    run(graph, x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 1, 1, 2), "images are uint8, these are torch.float32"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), r"images are \[batch, 1, 1, 2\]"),
        (torch.zeros(1, 1, 2, dtype=torch.uint8), r"these are \[1, 1, 2\]"),
        (torch.zeros(0, 1, 1, 2, dtype=torch.uint8), r"these are \[0, 1, 1, 2\]"),
    ],
)
def test_wrong_images(graph: IntGraph, x: torch.Tensor, message: str):
    with pytest.raises(DataError, match=message):
        run(graph, x)
