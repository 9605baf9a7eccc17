"""The accuracy of recipes, side by side: one table row for each TOML file of a folder.

    python benchmarks/recipes.py timm:vit_tiny_patch16_224 --weights W.safetensors --data DIR

Every row is calibrated on the same images, compiled for this CPU and scored on the images that were
not calibrated on. The command line gives a row by itself:

    iqvit quantize SPEC --weights W --calib DIR --images 32 --recipe benchmarks/recipes/igelu.toml \
        -o m.iqv
    iqvit compile m.iqv -o artifact/
    iqvit eval imagenet --data DIR artifact/ --exclude-calib 32 --reference SPEC \
        --reference-weights W
"""

import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from comparing import remembered

from iqvit.calibration.calibrate import calibrate
from iqvit.calibration.recipe import load_recipe
from iqvit.canonical import CanonicalModel
from iqvit.canonicalize import canonicalize
from iqvit.capture import capture
from iqvit.commands.outputs import write_metrics
from iqvit.convert import convert
from iqvit.errors import OverflowProofError
from iqvit.eval.bench import machine
from iqvit.eval.evaluate import evaluate, without
from iqvit.eval.imagenet import choose, read_imagenet
from iqvit.eval.preprocess import Preprocess, load_images
from iqvit.intgraph import IntGraph
from iqvit.models.spec import load_model
from iqvit.tvm_backend import compile as compile_library
from iqvit.tvm_backend import load
from iqvit.tvm_backend.runtime import Artifact

RECIPES = Path(__file__).parent / "recipes"


def main(
    spec: str,
    weights: Annotated[Path, typer.Option()],
    data: Annotated[Path, typer.Option(help="Images as `iqvit eval imagenet` reads them.")],
    images: Annotated[int, typer.Option(help="How many calibrate.")] = 32,
    held_out: Annotated[int, typer.Option(help="How many are never scored.")] = 128,
    seed: int = 0,
    only: Annotated[str, typer.Option(help="Recipes, comma-separated; all of the folder.")] = "",
    json: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Calibrate, compile and score every recipe; prints Markdown rows as they come."""
    model = load_model(spec, weights=weights)
    preprocess = Preprocess.from_dict(model.preprocessing)
    items = read_imagenet(data).items
    chosen = choose(items, held_out, seed)
    calibration = load_images([path for path, _ in chosen[:images]], preprocess)
    scored = without(items, [path for path, _ in chosen])
    captured = capture(model.module, model.input_shape, mean=model.mean, std=model.std)
    canonical = canonicalize(captured)
    reference = remembered(model.scores)
    print(f"{date.today()}, {machine()['cpu']}, {images} calibration images, {len(scored)} scored")
    print("| recipe | top-1 | equal to float | dB | seconds to calibrate |\n|---|---|---|---|---|")

    def score(library: Artifact, graph: IntGraph) -> dict[str, float | int]:
        output = next(iter(graph.outputs))
        qparams = graph[graph.outputs[output]].qparams
        if qparams is None:
            raise RuntimeError("an output without a scale")
        return evaluate(
            lambda x: library(x)[output],
            scored,
            preprocess,
            reference=reference,
            scale=float(qparams.scale),
            zero_point=float(qparams.zero_point),
        )

    write_metrics(json, rows(canonical, calibration, only, ("top1", "agreement", "sqnr_db"), score))


def rows(
    canonical: CanonicalModel,
    calibration: torch.Tensor,
    only: str,
    columns: tuple[str, ...],
    score: Callable[[Artifact, IntGraph], dict[str, Any]],
    folder: Path = RECIPES,
) -> dict[str, object]:
    """One Markdown row for each recipe, printed as it comes; all metrics as `NAME@RECIPE`."""
    names = only.split(",") if only else sorted(path.stem for path in folder.glob("*.toml"))
    found: dict[str, object] = dict(machine())
    for name in names:
        begun = time.perf_counter()
        try:
            calibrated = calibrate(canonical, [calibration], load_recipe(folder / f"{name}.toml"))
            seconds = time.perf_counter() - begun
            graph = convert(canonical, calibrated)
        except OverflowProofError as error:
            print(f"| {name} | does not build: {str(error).splitlines()[0]} |", flush=True)
            continue
        with tempfile.TemporaryDirectory() as made:
            row = score(load(compile_library(graph, Path(made) / "artifact")), graph)
        cells = " | ".join("" if row[c] is None else f"{row[c]:.2f}" for c in columns)
        print(f"| {name} | {cells} | {seconds:.0f} |", flush=True)
        found |= {f"{key}@{name}": value for key, value in row.items()}
    return found


if __name__ == "__main__":
    typer.run(main)
