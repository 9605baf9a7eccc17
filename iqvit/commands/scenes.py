"""`iqvit scenes`: rendered images with class maps and boxes, for training and scoring."""

from pathlib import Path
from typing import Annotated

import typer

from iqvit.commands import screen
from iqvit.commands.options import Size, parse_size
from iqvit.commands.outputs import require_folder

USUAL_SIZE = "192"


def scenes(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write to.")
    ],
    split: Annotated[
        str, typer.Option("--split", metavar="NAME", help="train, val, calib or test.")
    ] = "val",
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", min=1)] = 200,
    seed: Annotated[
        int, typer.Option("--seed", metavar="S", min=0, help="Another seed, other scenes.")
    ] = 0,
    size: Annotated[
        Size,
        typer.Option("--size", metavar="N|HxW", parser=parse_size, help="Pixels, height x width."),
    ] = USUAL_SIZE,  # type: ignore[assignment]
) -> None:
    """Render rooms with things of eight kinds, their class maps and their boxes.

    \b
    Examples:
      iqvit scenes -o scenes/ --split train --count 20000
      iqvit scenes -o scenes/ --split val
      iqvit eval segmentation --data scenes/ MODEL
      iqvit eval coco --data scenes/ MODEL

    The same options give the same files, and fewer scenes are the first of more. DIR is data for
    `train` and `eval`, for segmentation (SPLIT/images, SPLIT/annotations, classes.txt) and for
    detection (annotations/instances_SPLIT.json, in COCO's format, with masks). A box is tight
    around what is seen of a thing; things of which less than 20 % or 40 pixels are seen are crowd
    regions, which are neither to be found nor missed.
    """
    require_folder(output)
    from iqvit.models.scenes import write_scenes

    with screen.progress() as report:
        write_scenes(
            output,
            split,
            count,
            seed,
            (size.height, size.width),
            progress=lambda done, total: report("rendering", done, total),
        )
    print(f"{count} scenes in {output / split}")
