"""What the forms of `iqvit predict` that write files share: the folder, and the images in turn."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from iqvit.commands import screen
from iqvit.commands.outputs import require_folder, require_own_names
from iqvit.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def require_place(folder: Path | None, images: list[Path], without: str) -> Path:
    """The folder of `-o`; DataError saying `without` where there is none, or for two images of one
    name, whose files would replace each other."""
    if folder is None:
        raise DataError(without)
    require_own_names(images)
    require_folder(folder)
    return folder


def each_image(
    images: list[Path],
    read: "Callable[[Path], Tensor]",
    skip_bad: bool,
    write: "Callable[[Path, Tensor], T]",
) -> tuple[list[T], int]:
    """What `write(image, input of the model)` returns for each, and how many could not be read.

    DataError for an image that cannot be read, unless `skip_bad`, and where none could.
    """
    skipped: list[DataError] = []
    rows: list[T] = []
    with screen.progress() as report:
        for done, path in enumerate(images, 1):
            report("predicting", done, len(images))
            try:
                pixels = read(path)
            except DataError as error:
                if not skip_bad:
                    raise
                skipped.append(error)
                continue
            rows.append(write(path, pixels))
    for error in skipped:
        screen.note(f"skipped: {error}")
    if not rows:
        raise DataError(f"none of {len(images)} images could be read")
    return rows, len(skipped)
