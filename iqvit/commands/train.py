"""`iqvit train`: teach a float model."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iqvit.commands import screen
from iqvit.commands.options import Size, parse_size
from iqvit.commands.outputs import require_folder
from iqvit.errors import DataError, IqvitError, ModelError
from iqvit.files import write_atomically

if TYPE_CHECKING:
    from iqvit.eval.segmentation_data import SegmentationSet
    from iqvit.training.segmentation_model import Start

HELP = "Train a float model; one sub-command for each task."
DATASETS = ("folder", "ade20k", "cityscapes")
PROGRESS_SECONDS = 10
INTERRUPTED = 130
USUAL_SIZE = "512x512"


def segmentation(
    data: Annotated[
        Path,
        typer.Option("--data", metavar="DIR", help="With DIR/train and DIR/val, see --dataset."),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Of the model and the checkpoint."),
    ],
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            help="folder: SPLIT/images, SPLIT/annotations and classes.txt; or ade20k, cityscapes.",
        ),
    ] = "folder",
    class_file: Annotated[
        Path | None,
        typer.Option("--class-file", metavar="FILE", help="The class list, where not in DIR."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="SPEC", help="segmenter:TIMM_NAME+linear or +mask."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="Weights of the encoder, timm's names."),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", metavar="FOLDER", help="Begin with this trained segmenter."),
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option("--decoder", help="linear or mask, made anew, where --from has the other."),
    ] = None,
    input_size: Annotated[
        Size,
        typer.Option(
            "--input-size",
            metavar="N|HxW",
            parser=parse_size,
            help="Pixels, height x width, of the finished model; validation has this size.",
        ),
    ] = USUAL_SIZE,  # type: ignore[assignment]
    crop: Annotated[
        Size | None,
        typer.Option(
            "--crop",
            metavar="N|HxW",
            parser=parse_size,
            help="Train on crops of this size, smaller than the input: faster.",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = 100,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Images a step, over all processes.")
    ] = 8,
    lr: Annotated[float, typer.Option("--lr", help="Largest learning rate.")] = 5e-4,
    encoder_lr_scale: Annotated[
        float,
        typer.Option("--encoder-lr-scale", help="Times --lr for the encoder."),
    ] = 0.5,
    weight_decay: Annotated[float, typer.Option("--weight-decay")] = 0.05,
    warmup: Annotated[
        float | None,
        typer.Option(
            "--warmup", metavar="EPOCHS", help="Of rising learning rate; a tenth, at most 2."
        ),
    ] = None,
    drop_path: Annotated[float, typer.Option("--drop-path", help="Stochastic depth.")] = 0.1,
    clip: Annotated[float, typer.Option("--clip", help="Largest norm of the gradient.")] = 1.0,
    average: Annotated[
        float,
        typer.Option("--ema", metavar="DECAY", help="Moving average of the weights; 0: none."),
    ] = 0.0,
    class_weights: Annotated[
        str, typer.Option("--class-weights", help="none or sqrt-inverse (of their pixels).")
    ] = "none",
    validate_every: Annotated[int, typer.Option("--validate-every", metavar="EPOCHS", min=1)] = 1,
    seed: Annotated[
        int, typer.Option("--seed", metavar="S", help="Of weights, order and augmentation.")
    ] = 0,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="Of each process.")
    ] = None,
    workers: Annotated[
        int,
        typer.Option("--workers", metavar="N", min=0, help="Processes that prepare images."),
    ] = 0,
    cache: Annotated[
        int,
        typer.Option("--cache", metavar="MIB", min=0, help="Decoded images kept by a process."),
    ] = 4096,
    until: Annotated[
        int | None,
        typer.Option(
            "--until", metavar="EPOCH", min=1, help="Stop after this one; --resume goes on from it."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in FOLDER, exactly.")
    ] = False,
) -> None:
    """Fine-tune a Segmenter on images with masks.

    \b
    Examples:
      iqvit train segmentation --data camvid/ --class-file camvid.txt --input-size 352x480 \\
          --model segmenter:vit_tiny_patch16_224+mask --weights vit_tiny.safetensors -o trained/
      torchrun --nproc-per-node 2 -m iqvit train segmentation ... -o trained/ --resume

    FOLDER gets config.json and model.safetensors of the epoch with the best mIoU on val (use it as
    segmenter:FOLDER), the same of the last one in last/, checkpoint.pt to go on from, history.json
    and curves.png.
    """
    require_folder(output)
    if not resume:
        _require_unused(output)
    import torch

    from iqvit.training.processes import processes
    from iqvit.training.segmentation import Options, SegmentationTask
    from iqvit.training.trainer import Output, Schedule, Trainer

    if threads is not None:
        torch.set_num_threads(threads)
    options = Options(input_size, crop or input_size, class_weights, encoder_lr_scale, cache << 20)
    rising = min(2.0, epochs / 10) if warmup is None else warmup
    plan = Schedule(epochs, batch, lr, weight_decay, rising, clip, average, seed)
    train, val = (_read(dataset, data, split, class_file) for split in ("train", "val"))
    begun = _begin(
        model,
        weights,
        start,
        decoder,
        size=options.crop,
        classes=len(train.classes),
        drop_path=drop_path,
        seed=seed,
    )
    with processes() as world:
        task = SegmentationTask(begun, train, val, options)
        teller = Teller(output, task.metric)
        where = Output(output, validate_every, resume, workers, teller.step, teller.epoch)
        if world.leads:
            output.mkdir(parents=True, exist_ok=True)
            for text in begun.notes:
                screen.note(text)
        try:
            task.prepare(world)
            history = Trainer(task, plan, where, world).run(until)
        except KeyboardInterrupt as error:
            print(f"interrupted; --resume goes on from the last epoch in {output}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from error
    if world.leads:
        scores = [row[task.metric] for row in history if task.metric in row]
        best = {"best_mIoU": max(scores)} if scores else {}
        screen.facts({"model": f"segmenter:{output}", "epochs": len(history), **best})


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


def _begin(
    model: str | None, weights: Path | None, start: Path | None, decoder: str | None, **sizes: Any
) -> "Start":
    """The model of --model and --weights, or of --from; ModelError unless it is one of them."""
    from iqvit.training.segmentation_model import continued, fresh

    if decoder is not None and start is None:
        raise ModelError("--decoder goes with --from; --model names its decoder")
    if model is not None and start is None:
        return fresh(model, weights=weights, **sizes)
    if start is None or model is not None:
        raise ModelError("give one of --model SPEC, for a fresh segmenter, and --from FOLDER")
    if weights is not None:
        raise ModelError("--weights goes with --model; --from FOLDER has its own")
    return continued(start, decoder=decoder, **sizes)


def _require_unused(folder: Path) -> None:
    """IqvitError where a new run would write over an older one, or over a model."""
    there = [n for n in ("checkpoint.pt", "config.json") if (folder / n).exists()]
    if there:
        raise IqvitError(
            f"{folder} already holds {' and '.join(there)}: go on with --resume, or give another "
            "--output folder"
        )


def _read(kind: str, data: Path, split: str, class_file: Path | None) -> "SegmentationSet":
    from iqvit.eval.segmentation_data import read_ade20k, read_cityscapes, read_folder

    if kind not in DATASETS:
        raise DataError(f"--dataset {kind!r} is none of {', '.join(DATASETS)}")
    if kind == "folder":
        return read_folder(data, split, class_file)
    if class_file is not None:
        raise DataError(f"--class-file is for --dataset folder; {kind} has its own classes")
    return read_ade20k(data, split) if kind == "ade20k" else read_cityscapes(data, split)
