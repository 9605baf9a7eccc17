"""`iqvit train segmentation`: teach a Segmenter."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iqvit.commands import training
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
    epochs: training.Epochs = 100,
    batch: training.Batch = 8,
    lr: training.LearningRate = 5e-4,
    encoder_lr_scale: Annotated[
        float,
        typer.Option("--encoder-lr-scale", help="Times --lr for the encoder."),
    ] = 0.5,
    weight_decay: training.WeightDecay = 0.05,
    warmup: training.Warmup = None,
    drop_path: training.DropPath = 0.1,
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
    training.require_output(output, resume)
    from iqvit.training.segmentation import Options, SegmentationTask
    from iqvit.training.segmentation_model import continued, fresh
    from iqvit.training.trainer import Schedule

    options = Options(input_size, crop or input_size, class_weights, encoder_lr_scale, cache << 20)
    rising = training.usual_warmup(warmup, epochs)
    plan = Schedule(epochs, batch, lr, weight_decay, rising, clip, average, seed)
    train, val = (_read(dataset, data, split, class_file) for split in ("train", "val"))
    if decoder is not None and start is None:
        raise ModelError("--decoder goes with --from; --model names its decoder")
    sizes: dict[str, Any] = {
        "size": options.crop,
        "classes": len(train.classes),
        "drop_path": drop_path,
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
    training.run(
        SegmentationTask(begun, train, val, options),
        plan,
        output,
        spec="segmenter",
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
