"""The cache of compiled artifacts: the same program and target are copied, all else is compiled."""

import json
import os

import numpy as np
import pytest
from typer.testing import CliRunner

from iqvit import tvm_backend
from iqvit.cli import app
from iqvit.intgraph import GraphBuilder
from iqvit.ops import Reshape
from iqvit.ops.input import Input
from iqvit.serialize import save
from iqvit.tvm_backend import cache
from iqvit.tvm_backend.artifact import FILES, read_manifest
from iqvit.tvm_backend.targets import TARGETS


def program(side=3, labels=("a", "b")):
    builder = GraphBuilder()
    x = builder.add("pixels", Input((1, 3, side, 8)), [])
    flat = builder.add("flat", Reshape((side * 24,)), [x])
    return builder.finish({"logits": flat.name}, {"labels": list(labels)})


def stages(graph, folder, kept, target="portable", layout="nchw"):
    told = []
    tvm_backend.compile(graph, folder, target, told.append, layout, kept)
    return told


def test_the_second_time_is_a_copy(tmp_path):
    kept = tmp_path / "cache"
    assert "cached" not in stages(program(), tmp_path / "first", kept)
    assert stages(program(), tmp_path / "second", kept) == ["cached"]
    for name in FILES:
        first, second = (tmp_path / f / name for f in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
    image = np.arange(72, dtype=np.uint8).reshape(1, 3, 3, 8)
    found = tvm_backend.load(tmp_path / "second")(image)["logits"]
    np.testing.assert_array_equal(np.asarray(found).ravel(), image.ravel())


@pytest.mark.parametrize("change", ["program", "labels", "target", "layout", "code"])
def test_whatever_decides_an_artifact_is_in_its_key(change, monkeypatch):
    graph, target = program(), TARGETS["portable"]
    first = cache.key_of(graph, target, "nchw")
    assert first == cache.key_of(program(), target, "nchw")
    if change == "code":
        monkeypatch.setattr(cache.importlib.metadata, "version", lambda name: "0")
    others = {
        "program": (program(side=4), target, "nchw"),
        "labels": (program(labels=("a", "c")), target, "nchw"),
        "target": (graph, TARGETS["x86-avx2"], "nchw"),
        "layout": (graph, target, "nhwc"),
        "code": (graph, target, "nchw"),
    }
    assert cache.key_of(*others[change]) != first


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_damaged_copy_is_not_taken(name, tmp_path):
    kept = tmp_path / "cache"
    stages(program(), tmp_path / "first", kept)
    (file,) = kept.glob(f"*/{name}")
    file.unlink()
    if name == "model.so":
        file.write_bytes(b"not what was compiled")
    assert "cached" not in stages(program(), tmp_path / "second", kept)
    read_manifest(tmp_path / "second")
    assert stages(program(), tmp_path / "third", kept) == ["cached"]


def test_the_oldest_goes_first(tmp_path):
    kept, keys = tmp_path / "cache", []
    for side in (3, 4, 5):
        stages(program(side), tmp_path / str(side), None)
        keys.append(f"key{side}")
        cache.add(kept, keys[-1], tmp_path / str(side))
        os.utime(kept / keys[-1], (side, side))
    size = sum(file.stat().st_size for file in (tmp_path / "5").iterdir())
    assert cache.take(kept, "key3", tmp_path / "taken")
    cache.add(kept, "key6", tmp_path / "5", largest=3 * size)
    assert sorted(entry.name for entry in kept.iterdir()) == ["key3", "key5", "key6"]


def test_a_cache_that_cannot_be_written_is_no_fault(tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert "cached" not in stages(program(), tmp_path / "artifact", tmp_path / "cache")
    read_manifest(tmp_path / "artifact")


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv(cache.VARIABLE, "off")
    assert cache.usual_cache() is None
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    assert cache.usual_cache() == tmp_path
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert cache.usual_cache() == tmp_path / "mine" / "iqvit"


def test_the_command_says_that_it_is_a_copy(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    save(program(), tmp_path / "model.iqv")
    found = []
    for extra in ([], [], ["--no-cache"]):
        line = ["compile", str(tmp_path / "model.iqv"), "--target", "portable", *extra]
        line += ["-o", str(tmp_path / "artifact"), "--json", str(tmp_path / "metrics.json")]
        assert CliRunner().invoke(app, line).exit_code == 0
        found.append(json.loads((tmp_path / "metrics.json").read_text())["cached"])
    assert found == [0, 1, 0]
