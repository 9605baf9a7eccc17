"""Short stand-ins for data, by which two evaluations are known to be of the same."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path


def names_and_sizes(paths: Sequence[Path]) -> str:
    """SHA-256 of the files' names below the folder that all share and of their sizes in bytes, in
    this order; a file that is not there has the size -1. The contents are not read."""
    return _digest(paths, _size)


def names_and_contents(paths: Sequence[Path]) -> str:
    """SHA-256 of the files' names below the folder that all share and of their bytes, in this
    order; a file that is given twice counts twice."""
    return _digest(paths, content)


def content(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(paths: Sequence[Path], fact: Callable[[Path], object]) -> str:
    lines = [f"{name}\t{fact(p)}\n" for name, p in zip(below_shared(paths), paths, strict=True)]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def below_shared(paths: Sequence[Path]) -> list[str]:
    """The files' names below the folder that all share, relative and absolute ones mixed."""
    whole = [path.absolute() for path in paths]
    root = os.path.commonpath([path.parent for path in whole]) if whole else "."
    return [path.relative_to(root).as_posix() for path in whole]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
