"""Files and folders that appear whole or not at all."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from iqvit.errors import IqvitError


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file beside its destination, flush it to the disk, and rename it into place.

    Readers see the old file or the whole new one; nothing is left behind on failure or Ctrl-C.
    Raises `IqvitError` where the destination cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        # Renaming onto /dev/null or a folder would replace it or fail late.
        if path.exists() and not path.is_file():
            raise IqvitError(f"cannot write {path}: it is not a regular file")
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise IqvitError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        # gone after the renaming, and never there where the folder is not one
        with suppress(OSError):
            part.unlink()


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, beside `folder`, which it is renamed to when the block ends well.

    Otherwise nothing is left of it. Raises `IqvitError` where something lies at `folder` already,
    and for every `OSError` of the block: a folder that cannot be written, a full disk.
    """
    require_absent(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            yield beside
            beside.chmod(0o755)
            require_absent(folder)
            beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise IqvitError(f"cannot write {folder}: {error.strerror or error}") from error


def require_absent(folder: Path) -> None:
    """`IqvitError` where something lies at `folder`."""
    if folder.exists():
        raise IqvitError(f"{folder} exists already; remove it, or name another with -o")


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
