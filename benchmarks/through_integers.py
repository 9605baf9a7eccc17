"""What training through the integers recovers of what a recipe costs: a table row for each.

    python benchmarks/through_integers.py timm:vit_tiny_patch16_224 --weights W.safetensors \
        --data DIR --only shiftgelu,weights_4 -o trained/

Some images train, augmented, towards the float model's own values: its answers, and what its
LayerNorms give. No label is used. The first of them calibrate. The others are scored, before and
after, by the compiled program. A run that was interrupted goes on where it was, a row that is done
is not done again. OUT/RECIPE/model.iqv is the trained program, OUT/RECIPE/row.json its row, and
OUT/table.md the table of all rows in OUT.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from comparing import remembered
from torch import Tensor, fx
from torch.nn import functional
from torchvision.transforms import v2

from iqvit.calibration.calibrate import calibrate, normalise, run_nodes
from iqvit.calibration.quantize import facts
from iqvit.calibration.recipe import Recipe, load_recipe
from iqvit.canonical import CanonicalModel, op_of
from iqvit.canonicalize import canonicalize
from iqvit.capture import capture
from iqvit.eval.bench import machine
from iqvit.eval.evaluate import evaluate, without
from iqvit.eval.imagenet import choose, list_images, read_imagenet
from iqvit.eval.preprocess import Preprocess, load_images, read_image
from iqvit.files import write_atomically
from iqvit.intgraph import IntGraph
from iqvit.models.spec import load_model
from iqvit.processes import World
from iqvit.training.through_integers import StepRules, ThroughIntegers
from iqvit.training.trainer import Output, Schedule, Trainer
from iqvit.training.tuning import Tuning
from iqvit.tvm_backend import compile as compile_library
from iqvit.tvm_backend import load

RECIPES = Path(__file__).parent / "recipes"
LEAST_AREA = 0.35
"""Of an image, in a training crop."""
CALIBRATED = ("spec", "trained on", "calibrated on", "seed", "limit")
"""The settings that decide how a calibrated program scores."""
NOISE = 1.0
"""Points of top-1: a smaller loss is no more than a few images, and its share says nothing."""
HEADER = (
    "| recipe | top-1: calibrated | trained | recovered | equal to float: calibrated | trained | "
    "logits, dB: calibrated | trained | error removed | images | steps |"
)

Predictor = Callable[[Tensor], Tensor]


def main(
    spec: str,
    weights: Annotated[Path, typer.Option()],
    data: Annotated[Path, typer.Option(help="Images as `iqvit eval imagenet` reads them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder for the runs.")],
    images: Annotated[int, typer.Option(help="How many train.")] = 128,
    extra: Annotated[Path | None, typer.Option(help="A folder of more images to train on.")] = None,
    calib: Annotated[int, typer.Option(help="How many of these calibrate.")] = 32,
    only: Annotated[str, typer.Option(help="Recipes, comma-separated.")] = "weights_4,shiftgelu",
    epochs: int = 2,
    batch: int = 4,
    lr: float = 3e-4,
    hidden: Annotated[float, typer.Option(help="The weight of the LayerNorms' values.")] = 1.0,
    steps: Annotated[str, typer.Option(help="followed or learned.")] = "followed",
    ranges: Annotated[str, typer.Option(help="fixed or moving.")] = "fixed",
    seed: int = 0,
    limit: Annotated[int | None, typer.Option(help="Of the images that are scored.")] = None,
) -> None:
    """Calibrate, train and score every recipe; prints the table of all rows that OUT has."""
    model = load_model(spec, weights=weights)
    items = read_imagenet(data).items
    paths = [path for path, _ in choose(items, images, seed)]
    taught = [*paths, *(list_images(extra) if extra else ())]
    preprocess = Preprocess.from_dict(model.preprocessing)
    scorer = Scorer(without(items, paths), preprocess, remembered(model.scores), limit)
    canonical = canonicalize(
        capture(model.module, model.input_shape, mean=model.mean, std=model.std)
    )
    rules = StepRules(steps, ranges)
    plan = Schedule(epochs, batch, lr, weight_decay=0.0, warmup=min(1.0, epochs / 8), seed=seed)
    told = {**asdict(plan), **asdict(rules), "hidden": hidden, "calibrated on": calib}
    told |= {"spec": spec, "trained on": len(paths), "limit": limit}
    told |= {"extra": len(taught) - len(paths)}
    for name in only.split(","):
        folder = output / name
        folder.mkdir(parents=True, exist_ok=True)
        row = read_row(folder)
        if row.get("settings") == told and "trained" in row:
            continue
        begun = time.process_time()
        recipe = load_recipe(RECIPES / f"{name}.toml")
        calibration = load_images(paths[:calib], preprocess)
        learner = made(canonical, calibration, recipe, rules)
        if not same(row.get("settings", {}), told):
            row = {"calibrated": scorer.score(learner.export())}
        row = {"calibrated": row["calibrated"], "settings": told}
        row |= {"machine": machine(), "date": str(date.today())}
        write_row(folder, row)
        task = distillation(learner, canonical, taught, hidden, {**told, "recipe": name})
        resume = (folder / "checkpoint.pt").exists()
        place = Output(folder, epochs, resume, progress=tell)
        Trainer(task, plan, place, World()).run()
        row["trained"] = scorer.score(learner.eval().export())
        row["steps"] = epochs * (len(taught) // batch)
        row["cpu seconds"] = time.process_time() - begun
        write_row(folder, row)
    text = table(output)
    write_atomically(output / "table.md", text.encode())
    print(text)


def same(settings: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether two settings mean the same calibrated program, scored alike."""
    return all(settings.get(key) == told[key] for key in CALIBRATED)


def made(
    canonical: CanonicalModel, images: Tensor, recipe: Recipe, rules: StepRules
) -> ThroughIntegers:
    """The calibrated model, ready to learn, with taps of its LayerNorms."""
    calibrated = calibrate(canonical, [images], recipe)
    taps = {f"tap {node.name}": node.name for node in normalised(canonical)}
    known = facts(canonical, [images], recipe)
    return ThroughIntegers(canonical, calibrated, rules, known, taps)


def normalised(canonical: CanonicalModel) -> list[fx.Node]:
    """The LayerNorms, whose channels are of one size, unlike those of the residual stream."""
    nodes = [n for n in canonical.module.graph.nodes if n.op == "call_function"]
    return [node for node in nodes if op_of(node).name == "layer_norm"]


def distillation(
    learner: ThroughIntegers,
    canonical: CanonicalModel,
    paths: list[Path],
    hidden: float,
    told: Mapping[str, Any],
) -> Tuning:
    """Learn the float model's probabilities for crops of the images, and its LayerNorms' values.

    The loss is the Kullback-Leibler divergence, plus `hidden` times the mean over the LayerNorms of
    the squared error relative to the square of the float values.
    """
    size = learner.input_shape[2:]
    (answers,) = canonical.outputs
    wanted = {name: node for name, node in learner.frame.results.items() if name != answers}
    names = {name: node.name for name, node in wanted.items()}
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
        exact = float_values(
            canonical, batch[0], {**names, answers: canonical.outputs[answers].name}
        )
        found = outputs[answers].log_softmax(-1)
        loss = functional.kl_div(
            found, exact[answers].log_softmax(-1), reduction="batchmean", log_target=True
        )
        errors = [
            (outputs[name] - exact[name]).square().mean() / exact[name].square().mean()
            for name in names
        ]
        return loss + hidden * torch.stack(errors).mean()

    def no_score(learning: ThroughIntegers, world: World) -> dict[str, float]:
        # What is held out must not choose among epochs.
        return {"epochs": 1.0}

    return Tuning(learner, len(paths), read, criterion, no_score, "epochs", told)


@torch.no_grad()
def float_values(
    canonical: CanonicalModel, images: Tensor, names: Mapping[str, str]
) -> dict[str, Tensor]:
    """What nodes of the float graph give for uint8 images `[B, 3, H, W]`: `[B, ...]` by name."""

    def single(image: Tensor) -> dict[str, Tensor]:
        by_name = {node.name: env[node] for node, env in run_nodes(canonical, image)}
        return {name: by_name[source] for name, source in names.items()}

    found = torch.vmap(single)(normalise(canonical, images)[:, None])
    return {name: value.flatten(0, 1) for name, value in found.items()}


@dataclass(frozen=True)
class Scorer:
    """Metrics of compiled programs on images that they have never seen."""

    items: Any
    preprocess: Preprocess
    reference: Predictor
    limit: int | None

    def score(self, graph: IntGraph) -> dict[str, float | int]:
        (output,) = graph.outputs
        qparams = graph[graph.outputs[output]].qparams
        if qparams is None:
            raise RuntimeError("an output without a scale")
        with tempfile.TemporaryDirectory() as folder:
            library = load(compile_library(graph, Path(folder) / "artifact"))
            return evaluate(
                lambda x: library(x)[output],
                self.items,
                self.preprocess,
                reference=self.reference,
                scale=float(qparams.scale),
                zero_point=float(qparams.zero_point),
                limit=self.limit,
            )


def read_row(folder: Path) -> dict[str, Any]:
    """What row.json has, if it is there."""
    path = folder / "row.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def write_row(folder: Path, row: Mapping[str, Any]) -> None:
    """row.json, whole."""
    write_atomically(folder / "row.json", json.dumps(row, indent=1).encode())


def table(output: Path) -> str:
    """Markdown of all finished rows in a folder, those that lost most first."""
    rows = {path.parent.name: json.loads(path.read_text()) for path in output.glob("*/row.json")}
    done = {name: row for name, row in rows.items() if "trained" in row}
    ordered = sorted(done.items(), key=lambda pair: pair[1]["calibrated"]["sqnr_db"])
    if not ordered:
        return ""
    first = ordered[0][1]
    settings, scored = first["settings"], first["trained"]
    lines = [
        f"{first['date']}, {first['machine']['cpu']}. {settings['calibrated on']} images "
        f"calibrate, these and others train, {scored['images']} more are scored; float32: "
        f"{scored['float_top1']:.2f}.",
        "",
        HEADER,
        "|---" * (HEADER.count("|") - 1) + "|",
    ]
    return "\n".join(lines + [line(name, row) for name, row in ordered]) + "\n"


def line(name: str, row: Mapping[str, Any]) -> str:
    """One row of the table: what was lost, and how much of it came back."""
    before, after = row["calibrated"], row["trained"]
    lost = before["float_top1"] - before["top1"]
    back = f"{100 * (after['top1'] - before['top1']) / lost:.0f} %" if lost > NOISE else ""
    removed = 100 * (1 - 10 ** ((before["sqnr_db"] - after["sqnr_db"]) / 10))
    pairs = {key: (f"{before[key]:.2f}", f"{after[key]:.2f}") for key in ("top1", "agreement")}
    decibels = f"{before['sqnr_db']:.1f}", f"{after['sqnr_db']:.1f}"
    cells = [name, *pairs["top1"], back, *pairs["agreement"], *decibels, f"{removed:.0f} %"]
    images = row["settings"]["trained on"] + row["settings"]["extra"]
    return f"| {' | '.join(cells)} | {images} | {row['steps']} |"


def tell(done: int, total: int, loss: float, rate: float) -> None:
    """A line for each step on stderr."""
    typer.echo(f"  step {done}/{total}  loss {loss:.4f}  {rate:.2f} images/s", err=True)


if __name__ == "__main__":
    typer.run(main)
