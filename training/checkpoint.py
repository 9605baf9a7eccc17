"""The state of a run in one file: written whole, read without running code, resumed exactly.

Random states need no place in it. Everything random is drawn from generators that are seeded anew
for each sample and each step from (seed, epoch or step, index or rank), so the position in the
schedule is the random state.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from iqvit.errors import DataError
from iqvit.files import write_atomically

NAME = "checkpoint.pt"
FORMAT = 1


@dataclass
class Checkpoint:
    """run: the options and facts that a run must share to go on from here (plain JSON values).

    step: optimizer steps done. history: one row of numbers an epoch. best: the best metric so far.
    model, optimizer, average: state dicts (average None without a moving average).
    """

    run: dict[str, Any]
    step: int
    history: list[dict[str, float]]
    best: float | None
    model: dict[str, Any]
    optimizer: dict[str, Any]
    average: dict[str, Any] | None


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint; IqvitError where it cannot be written."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **vars(checkpoint)}, buffer)
    write_atomically(folder / NAME, buffer.getvalue())


def read_checkpoint(folder: Path, run: Mapping[str, Any]) -> Checkpoint:
    """The folder's checkpoint; DataError if missing, damaged, or of a run other than `run`."""
    path = folder / NAME
    if not path.is_file():
        raise DataError(f"nothing to resume: there is no {path}; start without --resume")
    # torch.load raises almost anything for damaged bytes, so everything is caught.
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content.pop("format")
        if version != FORMAT:
            raise DataError(f"{path} is of format {version}; this program reads {FORMAT}")
        checkpoint = Checkpoint(**content)
        if not isinstance(checkpoint.run, Mapping):
            raise TypeError("its options are no mapping")
    except DataError:
        raise
    except Exception as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise DataError(f"{path} is not a readable checkpoint: {reason}") from error
    _require_same_run(path, checkpoint.run, run)
    return checkpoint


def _require_same_run(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    different = [
        f"    {key}: {theirs.get(key)!r} there, {ours.get(key)!r} here"
        for key in sorted({*theirs, *ours})
        if theirs.get(key) != ours.get(key)
    ]
    if different:
        raise DataError(
            f"{path} belongs to another run\n" + "\n".join(different) + "\n"
            "  remedy  give the options that it was started with, or another --output folder"
        )
