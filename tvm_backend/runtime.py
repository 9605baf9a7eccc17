"""Running an artifact: needs numpy and TVM's runtime, and torch only if given torch tensors."""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iqvit.errors import DataError, TargetError
from iqvit.tvm_backend.artifact import LIBRARY, read_manifest
from iqvit.tvm_backend.linker import machine as this_machine
from iqvit.tvm_backend.targets import missing_features
from iqvit.tvm_backend.threads import prepare_threads, set_threads

if TYPE_CHECKING:
    import torch

__all__ = [
    "Artifact",
    "load",
]

LAST = (0, 2, 3, 1)
"""The axes of [N, C, H, W] as a library of the layout `nhwc` takes them."""
ALIGNMENT = 64
"""Bytes to which TVM wants the memory of its inputs aligned."""


class Artifact:
    """A compiled integer program; called like `iqvit.run`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], machine: Any) -> None:
        """Use `load` instead."""
        self.folder = folder
        self.manifest = manifest
        self._machine = machine
        self._main = machine["main"]
        self._spec = manifest["inputs"][0]
        self._last = manifest.get("input_layout") == "nhwc"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, with its batch axis of 1: [1, C, H, W] of an image, whatever the
        layout in which the library takes it."""
        shape = tuple(self._spec["shape"])
        return (shape[0], shape[3], *shape[1:3]) if self._last else shape

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the results, in the order of the manifest."""
        return tuple(output["name"] for output in self.manifest["outputs"])

    def __call__(self, x: "np.ndarray | torch.Tensor") -> dict[str, Any]:
        """Run a uint8 NCHW batch; the images go through one by one.

        Returns integer tensors by name, the batch on axis 0: torch tensors where `x` was one, else
        numpy arrays. What they mean (scale, zero point) is in `manifest["outputs"]`.
        Raises `DataError` for an input of a wrong shape or type.
        """
        if isinstance(x, np.ndarray):
            return self._run_batch(x)
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(x, torch.Tensor):
            raise DataError(f"the input must be a numpy array or torch tensor, not {type(x)}")
        results = self._run_batch(x.detach().cpu().contiguous().numpy())
        return {name: torch.from_numpy(array) for name, array in results.items()}

    def run_one(self, x: Any) -> Any:
        """One input as a TVM tensor -> what the library returns: a tensor or an array of them.

        Nothing is checked, copied or converted: this is the call that a benchmark times.
        """
        return self._main(x)

    def input_tensor(self, x: np.ndarray) -> Any:
        """An array of the input's shape as the TVM tensor that the library takes, without a copy if
        it lies like that and is aligned."""
        from tvm.runtime import from_dlpack, tensor

        contiguous = np.ascontiguousarray(x.transpose(LAST) if self._last else x)
        if contiguous.ctypes.data % ALIGNMENT or not contiguous.flags.writeable:
            return tensor(contiguous)
        return from_dlpack(contiguous)

    def _run_batch(self, x: np.ndarray) -> dict[str, np.ndarray]:
        self._check(x)
        rows: list[list[np.ndarray]] = []
        for i in range(x.shape[0]):
            results = self.run_one(self.input_tensor(x[i : i + 1]))
            tensors = [results] if hasattr(results, "numpy") else list(results)
            rows.append([t.numpy() for t in tensors])
        return {
            name: np.concatenate([row[i] for row in rows])
            for i, name in enumerate(self.output_names)
        }

    def _check(self, x: np.ndarray) -> None:
        wanted = ("N", *self.input_shape[1:])
        if x.ndim != len(wanted) or x.shape[1:] != wanted[1:] or x.shape[0] == 0:
            raise DataError(
                f"the input must have shape ({', '.join(map(str, wanted))}) with N >= 1, "
                f"got {tuple(x.shape)}"
            )
        if str(x.dtype) != self._spec["dtype"]:
            raise DataError(f"the input must be {self._spec['dtype']}, got {x.dtype}")


def load(folder: str | os.PathLike[str], *, threads: int | None = None) -> Artifact:
    """Load the artifact in `folder`; `threads` is passed to `set_threads` if given.

    Raises `FileFormatError` for a folder that is no whole artifact (see `read_manifest`) and
    `TargetError`, before any of its code runs, where this CPU lacks features that it needs.
    """
    manifest = read_manifest(folder)
    target = manifest["target"]
    machine = manifest.get("machine_code", {}).get("machine")
    if machine not in (None, this_machine()):
        raise TargetError(
            f"{folder} was compiled for {target['name']} on {machine}; this machine is "
            f"{this_machine()}: compile it here, or run it there"
        )
    missing = missing_features(target["features"])
    if missing:
        raise TargetError(
            f"{folder} was compiled for {target['name']}; this CPU lacks {', '.join(missing)}: "
            "compile it with --target host (or --target portable)"
        )
    prepare_threads()
    if threads is not None:
        set_threads(threads)
    return Artifact(Path(folder), manifest, open_library(Path(folder)))


def open_library(folder: Path) -> Any:
    """TVM's virtual machine over the library of an artifact, unchecked.

    The dynamic loader takes a file whose path it has seen for the one it has: each time it gets a
    copy of another name, so that an artifact made anew in the same folder is really loaded.
    """
    import tvm
    from tvm import relax

    with tempfile.TemporaryDirectory() as place:
        # These are named by classes of tvm_ffi, which relax's annotations do not know.
        library: Any = tvm.runtime.load_module(shutil.copy(folder / LIBRARY, place))
    device: Any = tvm.cpu()
    return relax.VirtualMachine(library, device)
