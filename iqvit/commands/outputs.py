"""Where results go: checked before the work begins, written whole or not at all."""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iqvit.errors import DataError, IqvitError
from iqvit.files import write_atomically


def require_file(path: Path | None) -> None:
    """`IqvitError` unless a file can be written at `path` (None: nothing is to be written)."""
    if path is None:
        return
    if path.exists() and not path.is_file():
        raise IqvitError(f"cannot write {path}: it is not a regular file")
    if not path.parent.is_dir():
        raise IqvitError(f"cannot write {path}: there is no folder {path.parent}")
    _require_writable(path, path.parent)


def require_folder(path: Path) -> None:
    """`IqvitError` unless a folder is or can be made at `path`, its parents included."""
    if path.exists() and not path.is_dir():
        raise IqvitError(f"cannot write {path}: it is a file where a folder is needed")
    ancestor = path.absolute().parent
    while not ancestor.exists():
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise IqvitError(f"cannot write {path}: {ancestor} is not a folder")
    _require_writable(path, ancestor)


def require_own_names(images: Sequence[Path]) -> None:
    """`DataError` for two images of one name, if what is written is named after the image."""
    seen: dict[str, Path] = {}
    for image in images:
        if seen.setdefault(image.stem, image) is not image:
            raise DataError(
                f"{seen[image.stem]} and {image} have one name, so their results would replace "
                "each other; predict them into two folders"
            )


def _require_writable(path: Path, folder: Path) -> None:
    # Asking for permissions says too little (root, read-only mounts): a file is made and dropped.
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise IqvitError(f"cannot write {path}: {error.strerror or error}") from error


def write_metrics(path: Path | None, metrics: Mapping[str, Any]) -> None:
    """One flat JSON object; null for what is no finite number (an infinite `sqnr_db`)."""
    if path is None:
        return
    plain = {name: _finite(value) for name, value in metrics.items() if value is not None}
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text.encode())


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
