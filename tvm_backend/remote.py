"""Latency of an artifact on another machine, through TVM's RPC.

There `python -m tvm.exec.rpc_server --host 0.0.0.0 --port 9090` is to run, which needs TVM and
cloudpickle. Whoever reaches that port can run anything there: it is for a network that is trusted.
"""

import secrets
from pathlib import Path
from typing import Any

import numpy as np

from iqvit.errors import TargetError
from iqvit.tvm_backend.artifact import LIBRARY, read_manifest
from iqvit.tvm_backend.threads import BIG_CORES

SESSION_SECONDS = 600


class Board:
    """A machine that runs TVM's RPC server; use as a context manager."""

    def __init__(self, address: str) -> None:
        """Connect to `HOST:PORT`; raises `TargetError` where nothing answers there."""
        from tvm import rpc

        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdecimal()):
            raise TargetError(f"{address!r} is no address of a board: it must be HOST:PORT")
        try:
            connected = rpc.connect(host, int(port), session_timeout=SESSION_SECONDS)
        except (OSError, RuntimeError) as error:
            lines = str(error).strip().splitlines() or ["no answer"]
            raise TargetError(
                f"no RPC server answers at {address} ({lines[-1]}): start one there with `python "
                "-m tvm.exec.rpc_server --host 0.0.0.0 --port ...`"
            ) from error
        self.address = address
        self._session: Any = connected

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None  # which ends it: TVM has no other way to

    def open(self, folder: Path) -> "RemoteArtifact":
        """Send the library of an artifact and load it there.

        Raises as `read_manifest`, and `TargetError` where the board cannot load it, for example
        because it is for another CPU.
        """
        manifest = read_manifest(folder)
        name = f"iqvit_{secrets.token_hex(6)}.so"
        try:
            # given a path, TVM would leave the file open
            self._session.upload(bytearray((folder / LIBRARY).read_bytes()), target=name)
            library = self._session.load_module(name)
            return RemoteArtifact(manifest, library, self._session)
        except RuntimeError as error:
            lines = str(error).strip().splitlines() or ["no reason given"]
            raise TargetError(
                f"{self.address} cannot load {folder}, which is for {manifest['target']['name']}: "
                f"{lines[-1]}"
            ) from error


class RemoteArtifact:
    """An artifact that is loaded on a board."""

    def __init__(self, manifest: dict[str, Any], library: Any, session: Any) -> None:
        """Use `Board.open` instead."""
        from tvm import relax

        self.manifest = manifest
        self._session = session
        self._device = session.cpu()
        self._machine = relax.VirtualMachine(library, self._device)
        spec = manifest["inputs"][0]
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, spec["shape"]).astype(spec["dtype"])
        from tvm.runtime import tensor

        image = tensor(pixels, device=self._device)
        # What the library returns stays there: RPC cannot send a tuple.
        self._machine.save_function("main", "timed", image, include_return=False)

    def time(self, threads: int, runs: int) -> list[float]:
        """Milliseconds of `runs` runs on random pixels, measured on the board, after one that is
        not counted."""
        self._session.get_function("runtime.config_threadpool")(BIG_CORES, threads)
        timer = self._machine.time_evaluator("timed", self._device, number=1, repeat=runs)
        return [1e3 * seconds for seconds in timer().results]
