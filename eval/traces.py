"""Short stand-ins for data, by which two evaluations are known to be of the same."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path


def names_and_sizes(paths: Sequence[Path]) -> str:
    """SHA-256 of the files' names below the folder that all share and of their sizes in bytes, in
    this order; a file that is not there has the size -1. The contents are not read."""
    root = os.path.commonpath([path.parent for path in paths]) if paths else "."
    lines = [f"{path.relative_to(root).as_posix()}\t{_size(path)}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def names_and_contents(paths: Sequence[Path]) -> str:
    """SHA-256 of the files' names below the folder that all share and of their bytes, in this
    order; a file that is given twice counts twice."""
    root = os.path.commonpath([path.parent for path in paths]) if paths else "."
    lines = [f"{path.relative_to(root).as_posix()}\t{content(path)}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def content(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
