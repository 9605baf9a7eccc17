"""`--through-integers` of the sub-commands of `iqvit train`: options, and the model that learns."""

import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from iqvit.commands import screen
from iqvit.commands.quantize import (
    USUAL_IMAGES,
    calibration_images,
    canonical_of,
    meta_of,
    names_hash,
    read_images,
)
from iqvit.commands.subject import load_float
from iqvit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from iqvit.canonical import CanonicalModel
    from iqvit.training.through_integers import ThroughIntegers

T = TypeVar("T")

Through = Annotated[
    bool,
    typer.Option(
        "--through-integers",
        help="Calibrate --from FOLDER on --calib DIR and train the integer program.",
    ),
]
Calib = Annotated[
    Path | None,
    typer.Option("--calib", metavar="DIR", help="Through integers: images to calibrate on."),
]
Images = Annotated[
    int | None,
    typer.Option(
        "--images",
        metavar="N",
        min=1,
        help=f"Through integers: how many calibrate; {USUAL_IMAGES}, or all.",
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="TOML", help="Through integers: as of `iqvit quantize`."),
]
Steps = Annotated[
    str,
    typer.Option(
        "--steps",
        help="Through integers: step sizes are followed (the largest weights) or learned (LSQ).",
    ),
]
Ranges = Annotated[
    str,
    typer.Option(
        "--ranges", help="Through integers: of activations, fixed as calibrated or moving."
    ),
]


@dataclass(frozen=True)
class Asked:
    """What the options say; see `asked`."""

    start: Path
    calib: Path
    images: int | None
    recipe: Path | None
    steps: str
    ranges: str


def asked(
    through: bool,
    *,
    start: Path | None,
    calib: Path | None,
    images: int | None,
    recipe: Path | None,
    steps: str,
    ranges: str,
    unfit: "Mapping[str, Any]",
) -> Asked | None:
    """The options together, None without --through-integers; ModelError where they do not fit.

    unfit: options of float training that mean nothing here, by name, None where not given.
    """
    if not through:
        given = {"--calib": calib, "--images": images, "--recipe": recipe}
        told = [name for name, value in given.items() if value is not None]
        if told:
            raise ModelError(f"{told[0]} goes with --through-integers")
        return None
    told = [name for name, value in unfit.items() if value is not None]
    if told:
        raise ModelError(f"{told[0]} is for training in float; without --through-integers")
    if start is None or calib is None:
        raise ModelError(
            "--through-integers trains what is trained in float already: give --from FOLDER, and "
            "--calib DIR with images to calibrate on"
        )
    return Asked(start, calib, images, recipe, steps, ranges)


def learner(
    chosen: Asked,
    spec: str,
    size: tuple[int, int] | None,
    seed: int,
    known: "Mapping[str, Any]",
    taps: "Callable[[CanonicalModel], Mapping[str, str]] | None" = None,
) -> tuple["ThroughIntegers", dict[str, Any]]:
    """The calibrated model, and the facts that tell its run from others.

    spec: the source of models that reads the folder. known: what the data say of the program
    (`labels`). taps: which inner values are given, of the canonical graph.
    """
    from iqvit.calibration.calibrate import calibrate
    from iqvit.calibration.quantize import facts
    from iqvit.calibration.recipe import Recipe, load_recipe
    from iqvit.training.through_integers import StepRules, ThroughIntegers

    rules = StepRules(chosen.steps, chosen.ranges)
    settings = Recipe() if chosen.recipe is None else load_recipe(chosen.recipe)
    paths = calibration_images(chosen.calib, chosen.images, seed)
    model = load_float(f"{spec}:{chosen.start}", input_size=size)
    # Of several processes one shows how far it is.
    shown = screen.progress() if os.environ.get("RANK", "0") == "0" else nullcontext(_silent)
    with shown as report:
        data, _ = read_images(paths, model, False, report)
        canonical = canonical_of(model, report)
        calibrated = calibrate(canonical, [data], settings, progress=report)
    told = {"recipe": settings.to_toml(), "images_hash": names_hash(chosen.calib, paths)}
    meta = {**meta_of(model), "seed": seed, "images_hash": told["images_hash"]}
    meta |= {**known, **facts(canonical, [data], settings), "trained": asdict(rules)}
    tapped = {} if taps is None else taps(canonical)
    return ThroughIntegers(canonical, calibrated, rules, meta, tapped), {**told, **asdict(rules)}


def either(value: T | None, usual: T, through: T, chosen: Asked | None) -> T:
    """An option, or what is usual in float or through integers."""
    if value is not None:
        return value
    return usual if chosen is None else through


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total
