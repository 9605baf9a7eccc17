"""Options that several commands share, with one meaning and one help text."""

import re
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the metrics as one flat JSON object."),
]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Count and leave out images that cannot be read."),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="Weights of the float model, .safetensors or .pth; every name and shape must fit.",
    ),
]


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


def parse_size(text: str) -> Size:
    """ "224" -> (224, 224), "352x480" -> (352, 480); `typer.BadParameter` for anything else."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no size such as 224, or 352x480 (height x width)")
    return Size(int(found[1]), int(found[2] or found[1]))


InputSize = Annotated[
    Size | None,
    typer.Option(
        "--input-size",
        metavar="N|HxW",
        parser=parse_size,
        help="Pixels of a side, or height x width, where not the float model's own.",
    ),
]
Classes = Annotated[
    int | None,
    typer.Option("--classes", metavar="N", help="Classes of the float model, where not its own."),
]
Seed = Annotated[
    int,
    typer.Option("--seed", metavar="S", help="Which images calibrate; also random weights."),
]
OneThreads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, help="Threads to run on; otherwise all cores."),
]

MODEL_HELP = (
    "An artifact folder, an .iqv file, or a float model: timm:NAME, torchvision:NAME, "
    "transformers:NAME_OR_FOLDER, segmenter:FOLDER, rtdetr:FOLDER, multitask:FOLDER, "
    "embedded:scenes, FILE.py:FUNCTION."
)


def thread_counts(text: str) -> list[int]:
    """ "1,2" -> [1, 2]; `typer.BadParameter` for anything that is no list of counts."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise typer.BadParameter(f"{text!r} is no list of thread counts such as 1,2")
    return counts
