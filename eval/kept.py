"""Records of an evaluation on disk as they come, so that an interrupted one can go on.

A folder holds one file for each process, part-RANK.jsonl: a line that says what is evaluated, and
one line a unit. Lines are appended as they come; the last one may be cut off, and is dropped.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from iqvit.errors import FileFormatError, IqvitError

VERSION = 1


class Kept:
    """The records in a folder that belong to the evaluation `key`, and a file to add to.

    records: by unit, of all files that were there. Raises IqvitError where the folder cannot be
    written, is being written by another run, or holds another evaluation; FileFormatError for a
    damaged file.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], rank: int = 0) -> None:
        self.folder, self.key = folder, json.loads(json.dumps(key))
        self.path = folder / f"part-{rank:05d}.jsonl"
        self.records: dict[int, Any] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what could not be written is not tried again when the file is closed.
            self.file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        try:
            self._lock()
            for path in sorted(folder.glob("part-*.jsonl")):
                self.records |= self._read(path)
            self._mend()
        except BaseException:
            self.file.close()
            raise

    def add(self, unit: int, record: Any) -> None:
        """Keep a record; IqvitError where the disk is full. What was kept before stays good."""
        self._write({"unit": unit, "record": record})

    def __enter__(self) -> "Kept":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise IqvitError(
                f"another evaluation is writing to {self.path}; wait for it, or name another folder"
            ) from error

    def _read(self, path: Path) -> dict[int, Any]:
        try:
            lines = path.read_bytes().split(b"\n")[:-1]
        except OSError as error:
            raise FileFormatError(f"{path} cannot be read: {error.strerror or error}") from error
        values = [_parsed(line, path, number) for number, line in enumerate(lines, 1)]
        if values:
            self._require_same(values[0], path)
        records = {}
        for number, value in enumerate(values[1:], 2):
            if "record" not in value or not isinstance(value.get("unit"), int):
                raise _damaged(path, number)
            records[value["unit"]] = value["record"]
        return records

    def _require_same(self, head: Mapping[str, Any], path: Path) -> None:
        if head.get("evaluation") != VERSION or not isinstance(head.get("key"), dict):
            raise _damaged(path, 1)
        names = differing(self.key, head["key"])
        if names:
            raise IqvitError(
                f"{self.folder} holds results of another evaluation: it differs in "
                f"{', '.join(names)}. Name another folder, or delete this one"
            )

    def _mend(self) -> None:
        """Cut off what follows the last whole line, and begin a file that is empty."""
        size = _whole_lines(self.file)
        try:
            self.file.truncate(size)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        if size == 0:
            self._write({"evaluation": VERSION, "key": self.key})

    def _write(self, value: Mapping[str, Any]) -> None:
        line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
        try:
            while line:
                line = line[self.file.write(line) :]
        except OSError as error:
            raise _cannot_write(self.path, error) from error


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names whose values differ, or that only one has."""
    names = [*one, *(name for name in other if name not in one)]
    return [n for n in names if n not in one or n not in other or one[n] != other[n]]


def _whole_lines(file: FileIO) -> int:
    """Bytes up to the end of the last line that has one."""
    file.seek(0)
    content = file.read()
    file.seek(0, os.SEEK_END)
    return content.rfind(b"\n") + 1


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise _damaged(path, number) from error
    if not isinstance(value, dict):
        raise _damaged(path, number)
    return value


def _damaged(path: Path, number: int) -> FileFormatError:
    return FileFormatError(f"{path}, line {number} is damaged; delete the file to score that again")


def _cannot_write(path: Path, error: OSError) -> IqvitError:
    return IqvitError(
        f"cannot write {path}: {error.strerror or error}. Results that were kept before are good: "
        "the same command goes on from there"
    )
