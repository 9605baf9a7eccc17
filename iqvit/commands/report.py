"""`iqvit report`: float, mixed precision and integers compared on data, as a page and tables."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iqvit.commands import screen
from iqvit.commands.options import Classes, InputSize, Seed, Weights, thread_counts
from iqvit.commands.outputs import require_folder
from iqvit.commands.quantize import USUAL_IMAGES
from iqvit.commands.report_calibration import (
    by_program,
    calibration_folder,
    on_images,
    require_folder_of_images,
    require_made_of,
)
from iqvit.commands.report_collect import Settings, said, write_report_of
from iqvit.commands.report_data import Asked, read_material
from iqvit.commands.report_models import open_trained, require_same_task
from iqvit.commands.subject import float_subject, load_float
from iqvit.errors import ModelError

if TYPE_CHECKING:
    from iqvit.intgraph import IntGraph
    from iqvit.models.float_model import FloatModel

SPLIT, RUNS = "val", 30


def report(
    model: Annotated[
        str,
        typer.Argument(
            metavar="SPEC",
            help="A float model: timm:NAME, torchvision:NAME, transformers:NAME_OR_FOLDER, "
            "segmenter:FOLDER, rtdetr:FOLDER, multitask:FOLDER, embedded:scenes, "
            "FILE.py:FUNCTION.",
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data", metavar="DIR", help="Labelled images, as `iqvit eval` takes them by task."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to make.")
    ],
    calib: Annotated[
        Path | None,
        typer.Option(
            "--calib",
            metavar="DIR",
            help="Images to calibrate on; otherwise the training split of DIR, or of classified "
            "images some of DIR, which are then not scored.",
        ),
    ] = None,
    calibrated: Annotated[
        Path | None,
        typer.Option(
            "--calibrated",
            metavar="FILE.iqv",
            help="What `iqvit quantize` made of SPEC; otherwise the report calibrates one itself.",
        ),
    ] = None,
    trained: Annotated[
        list[Path] | None,
        typer.Option(
            "--trained", metavar="FILE.iqv", help="A program trained through integers; repeatable."
        ),
    ] = None,
    weights: Weights = None,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="train or val.")] = SPLIT,
    class_file: Annotated[
        Path | None,
        typer.Option("--class-file", metavar="FILE", help="Of masks, where not in DIR."),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option("--images", metavar="N", min=1, help="Score so many, evenly spaced."),
    ] = None,
    calib_images: Annotated[
        int | None,
        typer.Option(
            "--calib-images", metavar="N", min=1, help=f"Calibrate on so many; {USUAL_IMAGES}."
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="TOML", help="As of `iqvit quantize`.")
    ] = None,
    seed: Seed = 0,
    input_size: InputSize = None,
    classes: Classes = None,
    threads: Annotated[
        str | None,
        typer.Option("--threads", metavar="N,N", help="Numbers of threads to time at; 1,2."),
    ] = None,
    runs: Annotated[int, typer.Option("--runs", metavar="N", min=1, help="Timed runs.")] = RUNS,
    pictures: Annotated[
        int | None, typer.Option("--pictures", metavar="N", min=0, help="How many images to show.")
    ] = None,
) -> None:
    """Compare a model in float, mixed precision and integers on data; leaves a folder.

    \b
    Examples:
      iqvit report timm:vit_tiny_patch16_224 --weights W.safetensors --data val/ -o report/
      iqvit report multitask:FOLDER --data street/ --trained trained/model.iqv -o report/

    The rows: float32 in PyTorch; mixed precision (products in integers, softmax, activations,
    normalisation and sampling by their real functions; evaluated in PyTorch only); the integer
    program after calibration, and of --trained after training, by the interpreter and as a library,
    whose results must be equal bit for bit. The columns: mAP, mIoU or top-1 as the model and data
    have them, latency and FPS with all models taking turns, parameters, multiply-accumulates, file,
    memory without Python, and what was proved. DIR has report.html, which needs no other file, the
    tables as Markdown, LaTeX and CSV, the plots, the pictures, report.json, and calibrated.iqv.
    """
    from iqvit.calibration.recipe import Recipe, load_recipe
    from iqvit.files import require_absent

    require_absent(output)
    require_folder(output)
    counts = usual_threads() if threads is None else thread_counts(threads)
    options = {
        "--weights": weights,
        "--data": data,
        "--split": None if split == SPLIT else split,
        "--class-file": class_file,
        "--calib": calib,
        "--calibrated": calibrated,
        "--trained": trained,
        "--images": images,
        "--calib-images": calib_images,
        "--recipe": recipe,
        "--seed": seed or None,
        "--input-size": input_size and f"{input_size.height}x{input_size.width}",
        "--classes": classes,
        "--threads": threads,
        "--runs": None if runs == RUNS else runs,
        "--pictures": pictures,
        "-o": output,
    }
    chosen = Recipe() if recipe is None else load_recipe(recipe)
    command = command_line(("iqvit", "report", model), options)
    settings = Settings(command, chosen, seed, counts, runs, pictures)
    real = load_float(model, weights, input_size, classes, seed)
    programs = open_trained(trained or (), real)
    folder = calibration_folder(data, split, real.task, calib)
    if calibrated is None:
        place = require_folder_of_images(folder, data)
        calibrating = on_images(place, calib_images, seed)
    else:
        unfit = {"--calib-images": calib_images, "--recipe": recipe}
        calibrating = by_program(open_calibrated(calibrated, real, unfit), folder)
    asked = Asked(data, split, class_file, images, calibrating.paths)
    material = read_material(float_subject(real), asked)
    with screen.progress() as progress:
        found = write_report_of(output, real, programs, material, calibrating, settings, progress)
    for text in found.notes:
        screen.note(text)
    screen.table(*said(found), title=f"{model} on {found.provenance.data}")
    print(f"Everything is in {output}; open {output / 'report.html'}")


def open_calibrated(path: Path, model: "FloatModel", unfit: Mapping[str, Any]) -> "IntGraph":
    """The program of `--calibrated`; ModelError for another model's, or beside options (`unfit`)
    that would make one."""
    from iqvit.serialize import load

    given = [name for name, value in unfit.items() if value is not None]
    if given:
        raise ModelError(f"{given[0]} is for calibrating, which --calibrated has done already")
    graph = load(path)
    require_same_task(graph, model, f"--calibrated {path}")
    require_made_of(graph, model.name, model.weights, path)
    return graph


def usual_threads() -> list[int]:
    """1 and 2, or 1 where there is no second core."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [1, 2] if (here or 1) > 1 else [1]


def command_line(words: Sequence[str], options: Mapping[str, Any]) -> str:
    """The command as a shell takes it; options without a value are left out."""
    given = list(words)
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            given += [] if item is None else [name, str(item)]
    return shlex.join(given)
