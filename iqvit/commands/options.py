"""Options that several commands share, with one meaning and one help text."""

from pathlib import Path
from typing import Annotated

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
InputSize = Annotated[
    int | None,
    typer.Option(
        "--input-size", metavar="N", help="Pixels of a side, where not the float model's own."
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
    "transformers:NAME_OR_FOLDER, FILE.py:FUNCTION."
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
