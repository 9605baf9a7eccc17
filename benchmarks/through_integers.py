"""What training through the integers recovers of what a recipe costs: a table row for each.

    python benchmarks/through_integers.py timm:vit_tiny_patch16_224 --weights W.safetensors \
        --data DIR --only shiftgelu,weights_4 -o trained/

The images that calibrate also train, augmented, towards the float model's own answers: no label is
used. The others are scored, before and after, by the compiled program. A run that was interrupted
goes on where it was; OUT/RECIPE/model.iqv is the trained program.
"""

import tempfile
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from iqvit.calibration.calibrate import calibrate, normalise
from iqvit.calibration.quantize import facts
from iqvit.calibration.recipe import Recipe, load_recipe
from iqvit.canonical import CanonicalModel
from iqvit.canonicalize import canonicalize
from iqvit.capture import capture
from iqvit.commands.outputs import write_metrics
from iqvit.eval.bench import machine
from iqvit.eval.evaluate import evaluate, without
from iqvit.eval.imagenet import choose, read_imagenet
from iqvit.eval.preprocess import Preprocess, load_images, read_image
from iqvit.intgraph import IntGraph
from iqvit.models.float_model import FloatModel
from iqvit.models.spec import load_model
from iqvit.processes import World
from iqvit.training.through_integers import StepRules, ThroughIntegers
from iqvit.training.trainer import Output, Schedule, Trainer
from iqvit.training.tuning import Tuning
from iqvit.tvm_backend import compile as compile_library
from iqvit.tvm_backend import load

RECIPES = Path(__file__).parent / "recipes"
COLUMNS = ("top1", "agreement", "sqnr_db")
LEAST_AREA = 0.35
"""Of an image, in a training crop."""


def main(
    spec: str,
    weights: Annotated[Path, typer.Option()],
    data: Annotated[Path, typer.Option(help="Images as `iqvit eval imagenet` reads them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder for the runs.")],
    images: Annotated[int, typer.Option(help="How many calibrate and train.")] = 128,
    only: Annotated[str, typer.Option(help="Recipes, comma-separated.")] = "weights_4,shiftgelu",
    epochs: int = 8,
    batch: int = 8,
    lr: float = 5e-5,
    steps: Annotated[str, typer.Option(help="followed or learned.")] = "followed",
    ranges: Annotated[str, typer.Option(help="fixed or moving.")] = "fixed",
    seed: int = 0,
    limit: Annotated[int | None, typer.Option(help="Of the images that are scored.")] = None,
    json: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Calibrate, train and score every recipe; prints Markdown rows as they come."""
    model = load_model(spec, weights=weights)
    items = read_imagenet(data).items
    paths = [path for path, _ in choose(items, images, seed)]
    scored = without(items, paths)
    calibration = load_images(paths, Preprocess.from_dict(model.preprocessing))
    captured = capture(model.module, model.input_shape, mean=model.mean, std=model.std)
    canonical = canonicalize(captured)
    rules = StepRules(steps, ranges)
    plan = Schedule(epochs, batch, lr, weight_decay=0.0, warmup=min(1.0, epochs / 4), seed=seed)
    print(f"{date.today()}, {machine()['cpu']}, {len(paths)} images, {len(scored)} scored, {plan}")
    print("| recipe | top-1 | equal | dB | trained: top-1 | equal | dB | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    found: dict[str, Any] = dict(machine())
    for name in only.split(","):
        begun = time.perf_counter()
        learner = made(canonical, calibration, load_recipe(RECIPES / f"{name}.toml"), rules)
        before = score(learner.export(), model, scored, limit)
        task = distillation(learner, model, paths, {"recipe": name, "spec": spec})
        folder = output / name
        resume = (folder / "checkpoint.pt").exists()
        folder.mkdir(parents=True, exist_ok=True)
        place = Output(folder, epochs, resume, progress=tell)
        run = Trainer(task, plan, place, World())
        run.run()
        after = score(learner.eval().export(), model, scored, limit)
        cells = [f"{row[column]:.2f}" for row in (before, after) for column in COLUMNS]
        print(f"| {name} | {' | '.join(cells)} | {time.perf_counter() - begun:.0f} |", flush=True)
        found |= {f"{key}@{name}, calibrated": value for key, value in before.items()}
        found |= {f"{key}@{name}, trained": value for key, value in after.items()}
    write_metrics(json, found)


def made(
    canonical: CanonicalModel, images: Tensor, recipe: Recipe, rules: StepRules
) -> ThroughIntegers:
    """The calibrated model, ready to learn."""
    calibrated = calibrate(canonical, [images], recipe)
    return ThroughIntegers(canonical, calibrated, rules, facts(canonical, [images], recipe))


def distillation(
    learner: ThroughIntegers, model: FloatModel, paths: list[Path], told: Mapping[str, Any]
) -> Tuning:
    """Learn the probabilities that the float model gives to crops of the images."""
    size = learner.input_shape[2:]
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(list(size), scale=(LEAST_AREA, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3),
        ]
    )

    def read(index: int) -> tuple[Tensor]:
        return (augment(v2.functional.pil_to_tensor(read_image(paths[index]))),)

    def criterion(outputs: Mapping[str, Tensor], batch: Any) -> Tensor:
        with torch.no_grad():
            wanted = model.module(normalise(learner.frame.model, batch[0])).softmax(-1)
        (logits,) = outputs.values()
        return functional.cross_entropy(logits, wanted)

    def no_score(learning: ThroughIntegers, world: World) -> dict[str, float]:
        # What is held out must not choose among epochs.
        return {"epochs": 1.0}

    return Tuning(learner, len(paths), read, criterion, no_score, "epochs", told)


def score(
    graph: IntGraph, model: FloatModel, scored: Any, limit: int | None
) -> dict[str, float | int]:
    """Metrics of the compiled program on images that it has never seen."""
    (output,) = graph.outputs
    qparams = graph[graph.outputs[output]].qparams
    if qparams is None:
        raise RuntimeError("an output without a scale")
    with tempfile.TemporaryDirectory() as folder:
        library = load(compile_library(graph, Path(folder) / "artifact"))
        return evaluate(
            lambda x: library(x)[output],
            scored,
            Preprocess.from_dict(model.preprocessing),
            reference=model.scores,
            scale=float(qparams.scale),
            zero_point=float(qparams.zero_point),
            limit=limit,
        )


def tell(done: int, total: int, loss: float, rate: float) -> None:
    """A line for each step on stderr."""
    typer.echo(f"  step {done}/{total}  loss {loss:.4f}  {rate:.2f} images/s", err=True)


if __name__ == "__main__":
    typer.run(main)
