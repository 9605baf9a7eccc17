"""Artifacts that were compiled before, so that the same program is compiled once for a target."""

import hashlib
import importlib.metadata
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import iqvit.ops
from iqvit.errors import FileFormatError
from iqvit.intgraph import IntGraph
from iqvit.tvm_backend.artifact import FILES, put_folder, read_manifest
from iqvit.tvm_backend.targets import Target

VARIABLE = "IQVIT_CACHE"
"""Where the cache is; `off` for none."""
LARGEST = 2 << 30
"""Bytes that are kept; beyond them, what was not used for longest goes."""
LIBRARIES = ("iqvit", "apache-tvm", "apache-tvm-ffi")


def usual_cache() -> Path | None:
    """The folder that `IQVIT_CACHE` names, or `iqvit` in the user's cache; None if it is off."""
    named = os.environ.get(VARIABLE, "")
    if named:
        return None if named == "off" else Path(named)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "iqvit"


def key_of(graph: IntGraph, target: Target, input_layout: str) -> str:
    """What decides an artifact: program, what the manifest says of it, target, and our code."""
    digest = hashlib.sha256(graph.hash.encode())
    versions = [importlib.metadata.version(name) for name in LIBRARIES]
    about = [dict(graph.meta), str(target.tvm_target()), target.name, input_layout, versions]
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for folder in (Path(iqvit.ops.__file__).parent, Path(__file__).parent):
        for file in sorted([*folder.rglob("*.py"), *folder.rglob("*.c")]):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def take(cache: Path, key: str, folder: Path) -> bool:
    """Put the artifact of `key` at `folder`; False if it is not there, or not whole."""
    kept = cache / key
    try:
        read_manifest(kept)
    except FileFormatError:
        return False
    if any(not (kept / name).is_file() for name in FILES):
        return False
    put_folder(folder, lambda beside: shutil.copytree(kept, beside, dirs_exist_ok=True))
    with suppress(OSError):
        os.utime(kept)
    return True


def add(cache: Path, key: str, folder: Path, largest: int = LARGEST) -> None:
    """Keep a copy of the artifact in `folder`, and drop the oldest beyond `largest` bytes.

    A cache that cannot be written is no fault: the artifact is there.
    """
    with suppress(OSError, FileFormatError):
        put_folder(cache / key, lambda beside: shutil.copytree(folder, beside, dirs_exist_ok=True))
        _trim(cache, cache / key, largest)


def _trim(cache: Path, newest: Path, largest: int) -> None:
    kept = [entry for entry in cache.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    total = 0
    for entry in sorted(kept, key=lambda entry: (entry != newest, -entry.stat().st_mtime)):
        total += sum(file.stat().st_size for file in entry.iterdir())
        if total > largest and entry != newest:
            shutil.rmtree(entry, ignore_errors=True)
