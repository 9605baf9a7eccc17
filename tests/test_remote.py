"""`iqvit bench --rpc`: artifacts timed by an RPC server, here one on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from iqvit import tvm_backend
from iqvit.cli import main
from iqvit.errors import TargetError
from iqvit.intgraph import GraphBuilder
from iqvit.inttype import LIMITS
from iqvit.ops import Linear, Reshape
from iqvit.ops.input import Input
from iqvit.tvm_backend.remote import Board

STARTUP_SECONDS = 240


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    x = builder.add("pixels", Input((1, 3, 4, 8)), [])
    rows = builder.add("rows", Reshape((1, 12, 8)), [x])
    operands = [
        builder.constant("weight", rng.integers(-127, 128, (5, 8)).astype(np.int8)),
        builder.constant("bias", rng.integers(-99, 99, 5).astype(np.int32)),
        builder.constant("multiplier", np.full(5, 2**30, np.int32)),
    ]
    out = builder.add("scores", Linear(36, 1, "int16", *LIMITS["int16"]), [rows, *operands])
    graph = builder.finish({"scores": out.name, "raw": rows.name})
    place = tmp_path_factory.mktemp("remote") / "artifact"
    return tvm_backend.compile(graph, place, input_layout="nhwc")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A server of TVM's in a process of its own."""
    pytest.importorskip("cloudpickle")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--port-end", str(port + 1)]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + STARTUP_SECONDS
        while f"bind to 127.0.0.1:{port}" not in log.read_text():
            assert server.poll() is None, log.read_text()
            if time.monotonic() > deadline:
                pytest.skip("the RPC server does not start")
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_a_board_is_timed_at_every_number_of_threads(folder, address, tmp_path, capsys):
    metrics = tmp_path / "m.json"
    options = ["--rpc", address, "--threads", "1,2", "--runs", "4", "--json", str(metrics)]
    assert main(["bench", str(folder), *options]) == 0
    found = json.loads(metrics.read_text())
    assert (found["kind"], found["threads"], found["board"]) == ("board", 1, address)
    assert 0 < found["latency_min_ms"] <= found["latency_ms"] <= found["latency_p90_ms"]
    assert found[f"macs@{folder}@2"] == 12 * 8 * 5
    assert "latency_ms" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("address_of", "message"),
    [
        ("board", "'board' is no address of a board: it must be HOST:PORT"),
        ("127.0.0.1:1", "no RPC server answers at 127.0.0.1:1"),
    ],
)
def test_a_board_that_does_not_answer(address_of, message):
    with pytest.raises(TargetError, match=message):
        Board(address_of)


def test_what_a_board_cannot_time(folder, capsys, tmp_path):
    assert main(["bench", "timm:vit_tiny_patch16_224", "--rpc", "h:1"]) == 2
    assert "is no artifact" in capsys.readouterr().err
    assert main(["bench", str(folder), "--rpc", "h:1", "--profile"]) == 2
    assert "leave it out with --rpc" in capsys.readouterr().err
