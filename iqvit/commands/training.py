"""What the sub-commands of `iqvit train` share: options, and the run with what it tells."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from iqvit.commands import screen
from iqvit.commands.outputs import require_folder
from iqvit.errors import IqvitError, ModelError
from iqvit.files import write_atomically

if TYPE_CHECKING:
    from iqvit.training.task import Task
    from iqvit.training.trainer import Schedule

T = TypeVar("T")

HELP = "Train a float model, or its integers; one sub-command for each task."
PROGRESS_SECONDS = 10
INTERRUPTED = 130

Output = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FOLDER", help="Of the model and the checkpoint."),
]
Epochs = Annotated[int, typer.Option("--epochs", min=1)]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Images a step, over all processes.")]
LearningRate = Annotated[float, typer.Option("--lr", help="Largest learning rate.")]
WeightDecay = Annotated[float, typer.Option("--weight-decay")]
Warmup = Annotated[
    float | None,
    typer.Option("--warmup", metavar="EPOCHS", help="Of rising learning rate; a tenth, at most 2."),
]
DropPath = Annotated[float, typer.Option("--drop-path", help="Stochastic depth.")]
Clip = Annotated[float, typer.Option("--clip", help="Largest norm of the gradient.")]
Average = Annotated[
    float, typer.Option("--ema", metavar="DECAY", help="Moving average of the weights; 0: none.")
]
ValidateEvery = Annotated[int, typer.Option("--validate-every", metavar="EPOCHS", min=1)]
Seed = Annotated[
    int, typer.Option("--seed", metavar="S", help="Of weights, order and augmentation.")
]
TrainingThreads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Of each process.")
]
Workers = Annotated[
    int, typer.Option("--workers", metavar="N", min=0, help="Processes that prepare images.")
]
Cache = Annotated[
    int,
    typer.Option("--cache", metavar="MIB", min=0, help="Decoded images kept by a process."),
]
Until = Annotated[
    int | None,
    typer.Option(
        "--until", metavar="EPOCH", min=1, help="Stop after this one; --resume goes on from it."
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the checkpoint in FOLDER, exactly.")
]


def usual_warmup(warmup: float | None, epochs: int) -> float:
    """--warmup, or a tenth of the epochs, at most 2."""
    return min(2.0, epochs / 10) if warmup is None else warmup


def begin(
    kind: str,
    fresh: Callable[..., T],
    continued: Callable[..., T],
    *,
    model: str | None,
    weights: Path | None,
    start: Path | None,
) -> T:
    """What --model and --weights, or --from say to begin with; ModelError for a mixture."""
    if model is not None and start is None:
        return fresh(model, weights=weights)
    if start is None or model is not None:
        raise ModelError(f"give one of --model SPEC, for a fresh {kind}, and --from FOLDER")
    if weights is not None:
        raise ModelError("--weights goes with --model; --from FOLDER has its own")
    return continued(start)


def require_output(folder: Path, resume: bool) -> None:
    """IqvitError where a new run would write over an older one, or over a model."""
    require_folder(folder)
    there = [n for n in ("checkpoint.pt", "config.json", "model.iqv") if (folder / n).exists()]
    if there and not resume:
        raise IqvitError(
            f"{folder} already holds {' and '.join(there)}: go on with --resume, or give another "
            "--output folder"
        )


def run(
    task: "Task",
    plan: "Schedule",
    output: Path,
    *,
    spec: str | None,
    notes: Sequence[str],
    threads: int | None,
    validate_every: int,
    resume: bool,
    workers: int,
    until: int | None,
) -> None:
    """Train `task` in the processes that torchrun started, or in this one, and tell how it goes.

    spec: the source of models that reads `output`, "segmenter", "rtdetr" or "multitask"; None where
    it gets an integer program.
    """
    import torch

    from iqvit.processes import processes
    from iqvit.training.trainer import Output, Trainer

    if threads is not None:
        torch.set_num_threads(threads)
    teller = Teller(output, task.metric)
    where = Output(output, validate_every, resume, workers, teller.step, teller.epoch)
    with processes() as world:
        if world.leads:
            output.mkdir(parents=True, exist_ok=True)
            for text in notes:
                screen.note(text)
        try:
            task.prepare(world)
            history = Trainer(task, plan, where, world).run(until)
        except KeyboardInterrupt as error:
            print(f"interrupted; --resume goes on from the last epoch in {output}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from error
    if world.leads:
        scores = [row[task.metric] for row in history if task.metric in row]
        best = {f"best_{task.metric}": max(scores)} if scores else {}
        made = str(output / "model.iqv") if spec is None else f"{spec}:{output}"
        screen.facts({"model": made, "epochs": len(history), **best})


class Teller:
    """What the leading process tells: lines on stderr now and then, history and curves."""

    def __init__(self, folder: Path, metric: str) -> None:
        self.folder, self.metric = folder, metric
        self.told = 0.0

    def step(self, done: int, total: int, loss: float, rate: float) -> None:
        """The mean loss of the epoch so far and images/s, every few seconds."""
        if time.monotonic() - self.told < PROGRESS_SECONDS and done < total:
            return
        self.told = time.monotonic()
        print(f"  step {done}/{total}  loss {loss:.4f}  {rate:.2f} images/s", file=sys.stderr)

    def epoch(self, history: list[dict[str, float]]) -> None:
        """One line for the epoch; the files of the history are written anew."""
        from iqvit.training.curves import write_curves

        row = history[-1]
        line = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        print(line, file=sys.stderr, flush=True)
        write_atomically(self.folder / "history.json", json.dumps(history, indent=1).encode())
        if self.metric not in row:
            return
        if not write_curves(self.folder / "curves.png", history, self.metric):
            screen.note("no curves.png without matplotlib: pip install 'iqvit[train]'")
