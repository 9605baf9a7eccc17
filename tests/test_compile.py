"""`compile`: what an artifact says of its graph, and what goes wrong without leaving anything."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from iqvit import tvm_backend
from iqvit.errors import FileFormatError, TargetError
from iqvit.interpret import run
from iqvit.intgraph import GraphBuilder
from iqvit.inttype import LIMITS, QParams
from iqvit.ops import Linear, Mean, Permute, Reshape
from iqvit.ops.input import Input
from iqvit.tvm_backend.artifact import read_manifest


@pytest.fixture
def graph():
    """Rows of an image times a weight; the output with a scale, a copy and a view without."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    x = builder.add("pixels", Input((1, 2, 3, 8)), [])
    rows = builder.add("rows", Reshape((1, 6, 8)), [x])
    operands = [
        builder.constant("weight", rng.integers(-127, 128, (5, 8)).astype(np.int8)),
        builder.constant("bias", rng.integers(-99, 99, 5).astype(np.int32)),
        builder.constant("multiplier", np.full(5, 2**30, np.int32)),
    ]
    op = Linear(36, 1, "int16", *LIMITS["int16"])
    scores = builder.add("scores", op, [rows, *operands], qparams=QParams.of(0.25, 1))
    turned = builder.add("turned", Permute((0, 2, 1)), [scores])
    flat = builder.add("flat", Reshape((30,)), [scores])
    mean = Mean.of((1, 6, 5), (1,), False, QParams.of(0.25, 1), QParams.of(0.1), "int8")
    pooled = builder.add("pooled", mean, [scores])
    nodes = {"logits": scores, "turned": turned, "flat": flat, "pooled": pooled, "raw": x}
    outputs = {name: node.name for name, node in nodes.items()}
    return builder.finish(outputs, {"labels": ["a", "b"], "preprocessing": {"resize": 9}})


@pytest.mark.parametrize("target", ["portable", "host"])
def test_outputs_in_their_order_also_where_one_views_another(graph, target, tmp_path):
    x = np.random.default_rng(1).integers(0, 256, (3, 2, 3, 8)).astype(np.uint8)
    artifact = tvm_backend.load(tvm_backend.compile(graph, tmp_path / "artifact", target))
    results = artifact(torch.from_numpy(x))
    expected = run(graph, torch.from_numpy(x))
    assert list(results) == ["logits", "turned", "flat", "pooled", "raw"]
    assert all(torch.equal(results[name], expected[name]) for name in expected if name != "flat")
    assert torch.equal(results["flat"], expected["flat"])


def test_manifest_describes_the_graph(graph, tmp_path):
    stages = []
    folder = tvm_backend.compile(graph, tmp_path / "artifact", "portable", stages.append)
    assert stages == ["lower", "build", "write"]
    manifest = read_manifest(folder)
    assert manifest["graph_hash"] == graph.hash
    assert manifest["target"] == {"name": "portable", "features": []}
    assert manifest["inputs"][0]["name"] == "pixels"
    assert manifest["inputs"][0]["shape"] == [1, 2, 3, 8]
    assert manifest["inputs"][0]["scale"] is None
    logits = manifest["outputs"][0]
    assert logits["name"] == "logits"
    assert (logits["dtype"], logits["scale"], logits["zero_point"]) == ("int16", 0.25, 1.0)
    assert manifest["labels"] == ["a", "b"]
    assert manifest["preprocessing"] == {"resize": 9}
    assert (manifest["macs"], manifest["params"]) == (6 * 5 * 8, 5 * 8 + 5)
    assert manifest["kernels"]["gemm"] == 1
    assert "pooled" in manifest["plain_nodes"]


def test_a_graph_without_labels_has_none(graph, tmp_path):
    bare = type(graph)(graph.nodes, graph.outputs)
    manifest = read_manifest(tvm_backend.compile(bare, tmp_path / "artifact", "portable"))
    assert manifest["labels"] == []
    assert manifest["preprocessing"] == {}


def test_errors_leave_nothing_behind(graph, tmp_path):
    with pytest.raises(TargetError, match="unknown target 'vax'"):
        tvm_backend.compile(graph, tmp_path / "artifact", "vax")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileFormatError, match="is not an artifact; remove it"):
        tvm_backend.compile(graph, tmp_path / "mine", "portable")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_names_are_functions_whatever_was_imported_first():
    program = (
        "import sys\n"
        "from iqvit import tvm_backend\n"
        "assert not {'tvm', 'torch'} & set(sys.modules)\n"
        "import iqvit.tvm_backend.lower\n"
        "from iqvit.tvm_backend.compile import manifest_of\n"
        "for name in ('compile', 'load', 'lower'):\n"
        "    assert type(getattr(tvm_backend, name)).__name__ == 'function', name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_manifest_is_plain_json(graph, tmp_path):
    folder = tvm_backend.compile(graph, tmp_path / "artifact", "portable")
    assert json.loads((folder / "manifest.json").read_text())["format_version"] == 1


def test_large_constants_are_bytes_of_the_library_that_are_viewed(tmp_path):
    rng = np.random.default_rng(3)
    weight = rng.integers(-127, 128, (600, 8)).astype(np.int8)
    bias = rng.integers(-99, 99, 600).astype(np.int32)
    builder = GraphBuilder()
    x = builder.add("pixels", Input((1, 2, 3, 8)), [])
    rows = builder.add("rows", Reshape((1, 6, 8)), [x])
    operands = [
        builder.constant("weight", weight),
        builder.constant("bias", bias),
        builder.constant("multiplier", np.full(600, 2**30, np.int32)),
    ]
    op = Linear(36, 1, "int16", *LIMITS["int16"])
    graph = builder.finish({"scores": builder.add("scores", op, [rows, *operands]).name}, {})
    folder = tvm_backend.compile(graph, tmp_path / "artifact", "portable")
    library = (folder / "model.so").read_bytes()
    for array in (weight, bias):
        assert library.count(array.tobytes()) == 1
    pixels = rng.integers(0, 256, (2, 2, 3, 8)).astype(np.uint8)
    found = tvm_backend.load(folder)(torch.from_numpy(pixels))
    assert torch.equal(found["scores"], run(graph, torch.from_numpy(pixels))["scores"])
