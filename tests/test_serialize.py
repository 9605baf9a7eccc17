"""The `.iqv` file: exact round trips, and every kind of damage refused by its own message."""

import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from iqvit.errors import FileFormatError, GraphError, IqvitError
from iqvit.interpret import run
from iqvit.intgraph import GraphBuilder, IntGraph
from iqvit.inttype import QParams
from iqvit.ops import Conv2d, Input, Reshape
from iqvit.serialize import FIXED, MAGIC, PREFIX, from_bytes, load, save, to_bytes

META = {"model": "tiny", "labels": ["a", "ü"], "mean": [0.1, 0.2, 1 / 3], "none": None}


def build(constants: bool = True, meta: dict | None = None) -> IntGraph:
    builder = GraphBuilder()
    pixels = QParams.of(np.array([0.1, 1 / 3, np.pi]), np.array([1.5, 2.0, -3.25]), axis=1)
    x = builder.add("image", Input((1, 3, 4, 4)), [], qparams=pixels)
    if constants:
        rng = np.random.default_rng(0)
        w = builder.constant("w", rng.integers(-127, 128, (5, 3, 2, 2)).astype(np.int8))
        b = builder.constant("b", rng.integers(-99, 99, 5).astype(np.int32))
        m = builder.constant("m", rng.integers(1, 99, 5).astype(np.int32))
        op = Conv2d((2, 2), (0, 0), (1, 1), 1, (0,), 12, 0, "int8", -128, 127)
        x = builder.add("conv", op, [x, w, b, m], qparams=QParams.of(1e-300, 7), origin="patch")
    y = builder.add("flat", Reshape((1, x.type.size)), [x], source="a, b.py:3")
    return builder.finish({"out": y.name}, META if meta is None else meta)


@pytest.fixture(scope="module")
def data() -> bytes:
    return to_bytes(build())


def test_round_trip(tmp_path: Path):
    graph = build()
    path = tmp_path / "model.iqv"
    save(graph, path)
    again = load(path)
    assert again == graph
    assert again.hash == graph.hash
    assert dict(again.meta) == META
    assert to_bytes(again) == path.read_bytes()
    for node in graph:
        other = again[node.name]
        assert (node.qparams is None) == (other.qparams is None)
        assert node.qparams is None or node.qparams.same_as(other.qparams)
        assert (node.origin, node.source) == (other.origin, other.source)
    image = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(run(again, image)["out"], run(graph, image)["out"])
    assert os.listdir(tmp_path) == ["model.iqv"]


def test_graph_without_constants_round_trips():
    graph = build(constants=False)
    assert from_bytes(to_bytes(graph), "x").hash == graph.hash


def test_scalar_constants_round_trip():
    builder = GraphBuilder()
    builder.add("image", Input((1, 1)), [])
    builder.constant("scalar", np.array(5, np.int16))
    graph = builder.finish({"out": "scalar"})
    assert from_bytes(to_bytes(graph), "x")["scalar"].type.shape == ()


def test_equal_graphs_give_equal_bytes(data: bytes):
    assert to_bytes(build()) == data


def test_truncated_anywhere(data: bytes):
    for length in {*range(0, 120), *range(120, len(data), 97), len(data) - 1}:
        with pytest.raises(FileFormatError, match="x is truncated"):
            from_bytes(data[:length], "x")


def test_one_flipped_byte_anywhere(data: bytes):
    for place in {*range(0, 160), *range(160, len(data), 31), len(data) - 1}:
        for mask in (0x01, 0x80):
            changed = bytearray(data)
            changed[place] ^= mask
            with pytest.raises(FileFormatError) as caught:
                from_bytes(bytes(changed), "x")
            assert expected_message(place) in str(caught.value)


def expected_message(place: int) -> str:
    if place < len(MAGIC):
        return "is not an .iqv"
    if place < len(MAGIC) + 4:
        return "of version"
    if len(MAGIC) + 8 <= place < FIXED.size:
        return "tr"  # a changed length: truncated, or trailing bytes
    return "was altered"


def test_trailing_bytes(data: bytes):
    with pytest.raises(FileFormatError, match="x has 3 trailing bytes"):
        from_bytes(data + b"abc", "x")


def test_unknown_version_names_both(data: bytes):
    newer = MAGIC + struct.pack("<I", 7) + data[len(MAGIC) + 4 :]
    with pytest.raises(FileFormatError, match=r"version 7; this iqvit reads version 1"):
        from_bytes(newer, "x")


@pytest.mark.parametrize("other", [b"PK\x03\x04 a torch file", b"#!/bin/sh\n", b"\x80\x04."])
def test_other_files(tmp_path: Path, other: bytes):
    path = tmp_path / "other.iqv"
    path.write_bytes(other)
    with pytest.raises(FileFormatError, match=r"other\.iqv is not an \.iqv file"):
        load(path)


def forge(data: bytes, old: bytes, new: bytes) -> bytes:
    """A file of equal length with other contents and the right hash."""
    assert len(old) == len(new)
    assert old in data
    rest = data[PREFIX:].replace(old, new)
    fixed = data[: FIXED.size]
    return fixed + hashlib.sha256(fixed + rest).digest() + rest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"text":', b'"test":', "is no graph"),
        (b'{"qparams"', b'{"rparams"', "is no graph"),
        (b'"axis": null', b'"axes": null', "is no graph"),
        (b"= reshape", b"= reshake", "no operator is named 'reshake'"),
        (b'"w":', b'"v":', "constants that no line names|has no value"),
        (b'"I8"', b'"U8"', "declared"),
        (b'"I8"', b'"F8"', "is no graph"),
    ],
)
def test_right_hash_of_wrong_contents(data: bytes, old: bytes, new: bytes, message: str):
    with pytest.raises(FileFormatError, match=message):
        from_bytes(forge(data, old, new), "x")


def test_loading_proves_the_graph_anew(data: bytes):
    with pytest.raises(GraphError, match="is typed"):
        from_bytes(forge(data, b"shift=12", b"shift=29"), "x")


def test_missing_file(tmp_path: Path):
    with pytest.raises(FileFormatError, match=r"cannot read .*none\.iqv: No such file"):
        load(tmp_path / "none.iqv")


def test_unwritable_destinations(tmp_path: Path):
    graph = build()
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "folder").mkdir()
    before = sorted(os.listdir(tmp_path))
    for name in ("missing/model.iqv", "file/model.iqv", "folder"):
        with pytest.raises(IqvitError, match="cannot write"):
            save(graph, tmp_path / name)
    with pytest.raises(IqvitError, match="not a regular file"):
        save(graph, os.devnull)
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "file").read_bytes() == b"kept"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_leaves_the_old_file(tmp_path: Path, monkeypatch, error: BaseException):
    path = tmp_path / "model.iqv"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    wanted = IqvitError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted):
        save(build(), path)
    assert os.listdir(tmp_path) == ["model.iqv"]
    assert path.read_bytes() == b"old"


def test_meta_that_is_not_json(tmp_path: Path):
    for meta in ({"tensor": torch.zeros(1)}, {"scale": float("nan")}):
        with pytest.raises(GraphError, match="not plain JSON"):
            save(build(meta=meta), tmp_path / "model.iqv")
    assert os.listdir(tmp_path) == []
