"""`iqvit train segmentation`: teach a Segmenter."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iqvit.commands import train_integers, training
from iqvit.commands.options import Size, parse_size
from iqvit.errors import DataError, ModelError

if TYPE_CHECKING:
    from iqvit.eval.segmentation_data import SegmentationSet

DATASETS = ("folder", "ade20k", "cityscapes")
USUAL_SIZE = "512x512"


def segmentation(
    data: Annotated[
        Path,
        typer.Option("--data", metavar="DIR", help="With DIR/train and DIR/val, see --dataset."),
    ],
    output: training.Output,
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
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, show_default="100; 8 through integers"),
    ] = None,
    batch: training.Batch = 8,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr", help="Largest learning rate.", show_default="5e-4; 2e-5 through integers"
        ),
    ] = None,
    encoder_lr_scale: Annotated[
        float,
        typer.Option("--encoder-lr-scale", help="Times --lr for the encoder."),
    ] = 0.5,
    weight_decay: training.WeightDecay = 0.05,
    warmup: training.Warmup = None,
    drop_path: Annotated[
        float | None,
        typer.Option("--drop-path", help="Stochastic depth.", show_default="0.1"),
    ] = None,
    clip: training.Clip = 1.0,
    average: training.Average = 0.0,
    class_weights: Annotated[
        str, typer.Option("--class-weights", help="none or sqrt-inverse (of their pixels).")
    ] = "none",
    validate_every: training.ValidateEvery = 1,
    seed: training.Seed = 0,
    threads: training.TrainingThreads = None,
    workers: training.Workers = 0,
    cache: training.Cache = 4096,
    until: training.Until = None,
    resume: training.Resume = False,
    through_integers: train_integers.Through = False,
    calib: train_integers.Calib = None,
    images: train_integers.Images = None,
    recipe: train_integers.RecipeFile = None,
    steps: train_integers.Steps = "followed",
    ranges: train_integers.Ranges = "fixed",
) -> None:
    """Fine-tune a Segmenter on images with masks.

    \b
    Examples:
      iqvit train segmentation --data camvid/ --class-file camvid.txt --input-size 352x480 \\
          --model segmenter:vit_tiny_patch16_224+mask --weights vit_tiny.safetensors -o trained/
      torchrun --nproc-per-node 2 -m iqvit train segmentation ... -o trained/ --resume
      iqvit train segmentation --data camvid/ --class-file camvid.txt --input-size 352x480 \\
          --from trained/ --through-integers --calib camvid/train/images -o tuned/

    FOLDER gets config.json and model.safetensors of the epoch with the best mIoU on val (use it as
    segmenter:FOLDER), the same of the last one in last/, checkpoint.pt to go on from, history.json
    and curves.png. With --through-integers the forward pass is the integer program itself, and
    instead of the weights there is model.iqv: the program that was scored.
    """
    training.require_output(output, resume)
    from iqvit.training.segmentation import Options, SegmentationTask
    from iqvit.training.segmentation_integers import IntegerSegmentationTask
    from iqvit.training.segmentation_model import continued, fresh
    from iqvit.training.trainer import Schedule

    chosen = train_integers.asked(
        through_integers,
        start=start,
        calib=calib,
        images=images,
        recipe=recipe,
        steps=steps,
        ranges=ranges,
        unfit={"--crop": crop, "--drop-path": drop_path, "--decoder": decoder},
    )
    options = Options(input_size, crop or input_size, class_weights, encoder_lr_scale, cache << 20)
    length = train_integers.either(epochs, 100, 8, chosen)
    rate = train_integers.either(lr, 5e-4, 2e-5, chosen)
    rising = training.usual_warmup(warmup, length)
    plan = Schedule(length, batch, rate, weight_decay, rising, clip, average, seed)
    train, val = (_read(dataset, data, split, class_file) for split in ("train", "val"))
    if decoder is not None and start is None:
        raise ModelError("--decoder goes with --from; --model names its decoder")
    sizes: dict[str, Any] = {
        "size": options.crop,
        "classes": len(train.classes),
        "drop_path": train_integers.either(drop_path, 0.1, 0.0, chosen),
        "seed": seed,
    }
    begun = training.begin(
        "segmenter",
        partial(fresh, **sizes),
        partial(continued, decoder=decoder, **sizes),
        model=model,
        weights=weights,
        start=start,
    )
    task = SegmentationTask(begun, train, val, options)
    if chosen is not None:
        palette = [list(colour) for colour in train.palette or ()]
        known = {"labels": list(train.classes), "palette": palette}
        made, told = train_integers.learner(chosen, "segmenter", input_size, seed, known)
        task = IntegerSegmentationTask(begun, train, val, options, made, told)
    training.run(
        task,
        plan,
        output,
        spec="segmenter" if chosen is None else None,
        notes=begun.notes,
        threads=threads,
        validate_every=validate_every,
        resume=resume,
        workers=workers,
        until=until,
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
