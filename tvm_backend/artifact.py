"""The artifact folder: a compiled library and what must be known to call it."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from iqvit.errors import FileFormatError

if TYPE_CHECKING:
    from iqvit.tvm_backend.weights import Weights

LIBRARY = "model.so"
MANIFEST = "manifest.json"
TENSORS = "model.txt"
"""What the runner reads of the manifest."""
RUNNER = "runner.c"
FILES = frozenset((LIBRARY, MANIFEST, TENSORS, RUNNER))
"""Everything that an artifact may hold."""
FORMAT = "iqvit-artifact"
FORMAT_VERSION = 1

REQUIRED: Mapping[str, type] = {
    "graph_hash": str,
    "target": dict,
    "inputs": list,
    "outputs": list,
    "labels": list,
    "preprocessing": dict,
}
"""What `write_artifact` must be given; the rest of the manifest it fills in itself."""
_TENSOR_KEYS = {"name", "dtype", "shape"}
_WRITTEN = {"format": str, "format_version": int, "sha256": str, "versions": dict}


class Executable(Protocol):
    """What `relax.build` and `tvm.compile` return."""

    def export_library(self, file_name: str, **settings: Any) -> Any:
        """Write the library as a shared object, linked by `fcompile` with the files `addons`."""
        ...


def write_artifact(
    folder: str | os.PathLike[str],
    executable: Executable,
    manifest: Mapping[str, Any],
    machine: str | None = None,
    weights: "Weights | None" = None,
) -> Path:
    """Write `folder/model.so`, `folder/manifest.json`, and the runner's source beside the
    `model.txt` that it reads; returns the folder.

    `machine` is what the executable was made for (`linker.linker`), `weights` are the constants
    that were left out of it.

    `manifest` holds the keys of `REQUIRED`: `inputs` and `outputs` are lists of
    `{"name", "dtype", "shape", "scale", "zero_point"}` (shapes for a batch of one), `target` is
    `{"name", "features"}`. Format, versions, the library's SHA-256 and what was found in its
    machine code are added here.

    The folder is made beside and renamed, so it is whole or not there; an artifact that was there
    is replaced. Raises `FileFormatError` for a manifest that lacks something, or where the place
    holds something that is not an artifact, or cannot be written; `GraphError` for a library with
    float instructions (`machine_code`); `TargetError` where nothing links for the machine.
    """
    check_manifest({**manifest}, REQUIRED, "the manifest to write")
    return put_folder(folder, lambda beside: _fill(beside, executable, manifest, machine, weights))


def put_folder(folder: str | os.PathLike[str], fill: Callable[[Path], Any]) -> Path:
    """An artifact folder that `fill` fills beside its place before it is renamed.

    Raises `FileFormatError` where something else lies there, or it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not _replaceable(folder):
        raise FileFormatError(f"{folder} exists and is not an artifact; remove it or name another")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise FileFormatError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        fill(beside)
        beside.chmod(0o755)
        _swap(beside, folder)
    except OSError as error:
        raise FileFormatError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of an artifact folder, checked to be complete and to match its library.

    Raises `FileFormatError` where a file is missing, no JSON, of an unknown version, lacks a key,
    or where the library is not the one that the manifest was written for.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileFormatError(f"{folder} is not an artifact: it has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise FileFormatError(f"{path} is not the manifest of an artifact")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise FileFormatError(
            f"{path} has format version {version!r}; this iqvit reads version {FORMAT_VERSION}: "
            "compile the model again"
        )
    check_manifest(manifest, {**REQUIRED, **_WRITTEN}, str(path))
    library = Path(folder) / LIBRARY
    if not library.is_file():
        raise FileFormatError(f"{folder} is not a whole artifact: it has no {LIBRARY}")
    if file_sha256(library) != manifest["sha256"]:
        raise FileFormatError(
            f"{library} is not the library that {path} describes (its SHA-256 differs): "
            "compile the model again"
        )
    return manifest


def check_manifest(manifest: Mapping[str, Any], required: Mapping[str, type], where: str) -> None:
    """Raise `FileFormatError` unless every required key is there with its type."""
    for key, kind in required.items():
        if not isinstance(manifest.get(key), kind):
            raise FileFormatError(f"{where}: {key!r} is missing or is no {kind.__name__}")
    for key in ("inputs", "outputs"):
        for tensor in manifest[key]:
            if not isinstance(tensor, dict) or not tensor.keys() >= _TENSOR_KEYS:
                raise FileFormatError(f"{where}: {key!r} has an entry without name, dtype or shape")
    target = manifest["target"]
    if not isinstance(target.get("name"), str) or not isinstance(target.get("features"), list):
        raise FileFormatError(f"{where}: 'target' has no name or no list of features")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fill(
    folder: Path,
    executable: Executable,
    manifest: Mapping[str, Any],
    machine: str | None,
    weights: "Weights | None",
) -> None:
    import tvm
    import tvm_ffi

    from iqvit.tvm_backend.linker import linker
    from iqvit.tvm_backend.machine_code import assert_no_float_code
    from iqvit.tvm_backend.weights import OPTIONS

    library = folder / LIBRARY
    with tempfile.TemporaryDirectory() as place:
        link: dict[str, Any] = {"fcompile": linker(machine, Path(place))}
        if weights is not None:
            link |= {"addons": [str(weights.write(Path(place)))], "options": OPTIONS}
        executable.export_library(str(library), **link)
    code = assert_no_float_code(library)
    complete = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **manifest,
        "machine_code": {
            "machine": code.machine,
            "functions": code.functions,
            "instructions": code.instructions,
            "float_instructions": len(code.found),
        },
        "sha256": file_sha256(library),
        "versions": {
            "iqvit": _own_version(),
            "tvm": tvm.__version__,
            "tvm_ffi": tvm_ffi.__version__,
        },
    }
    text = json.dumps(complete, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    (folder / TENSORS).write_text(tensors_text(manifest), encoding="utf-8")
    shutil.copyfile(Path(__file__).parent / "runner" / RUNNER, folder / RUNNER)


def tensors_text(manifest: Mapping[str, Any]) -> str:
    """Inputs and outputs of a manifest for the runner: a line each, in order."""
    lines = [
        " ".join([key, tensor["name"], tensor["dtype"], *map(str, tensor["shape"])])
        for key, tensors in (("input", manifest["inputs"]), ("output", manifest["outputs"]))
        for tensor in tensors
    ]
    return "\n".join(["iqvit-model 1", *lines, ""])


def _own_version() -> str:
    from importlib.metadata import version

    return version("iqvit")


def _replaceable(folder: Path) -> bool:
    """Whether nothing but an artifact (or nothing) would be lost with this folder."""
    return folder.is_dir() and {entry.name for entry in folder.iterdir()} <= FILES


def _swap(beside: Path, folder: Path) -> None:
    if not folder.exists():
        beside.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    try:
        folder.rename(old / "artifact")
        beside.rename(folder)
    finally:
        shutil.rmtree(old, ignore_errors=True)
