"""`iqvit train detection`: teach an RT-DETR."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from iqvit.commands import screen, training
from iqvit.commands.options import Size, parse_size


def detection(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="DIR",
            help="With annotations/instances_SPLIT*.json and the images in SPLIT*/.",
        ),
    ],
    output: training.Output,
    train_split: Annotated[str, typer.Option("--train-split", metavar="NAME")] = "train",
    val_split: Annotated[str, typer.Option("--val-split", metavar="NAME")] = "val",
    supercategories: Annotated[
        bool,
        typer.Option("--supercategories", help="The classes are the groups of COCO's categories."),
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out annotations that cannot be used.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="SPEC", help="rtdetr:vit_tiny, resnet_tiny or v2_s."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="FILE", help="Of the ViT (timm's names), or of the whole model."
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", metavar="FOLDER", help="Begin with this trained detector."),
    ] = None,
    sampling: Annotated[
        str | None,
        typer.Option("--sampling", help="default (bilinear) or discrete, where not the model's."),
    ] = None,
    queries: Annotated[
        int | None,
        typer.Option("--queries", metavar="N", min=1, help="Boxes that the decoder refines."),
    ] = None,
    input_size: Annotated[
        Size | None,
        typer.Option(
            "--input-size",
            metavar="N|HxW",
            parser=parse_size,
            help="Pixels, height x width, multiples of 32; the model's own if left out.",
        ),
    ] = None,
    epochs: training.Epochs = 60,
    batch: training.Batch = 8,
    lr: training.LearningRate = 4e-4,
    backbone_lr_scale: Annotated[
        float, typer.Option("--backbone-lr-scale", help="Times --lr for the backbone.")
    ] = 0.25,
    weight_decay: training.WeightDecay = 1e-4,
    warmup: training.Warmup = None,
    drop_path: training.DropPath = 0.0,
    clip: training.Clip = 0.1,
    average: training.Average = 0.99,
    denoising: Annotated[
        int, typer.Option("--denoising", metavar="N", min=0, help="Noisy queries of an image.")
    ] = 100,
    zoom: Annotated[
        float,
        typer.Option("--zoom", min=1.0, help="Place images in areas of up to so many times."),
    ] = 2.0,
    vertical_flips: Annotated[
        bool, typer.Option("--vertical-flips", help="For pictures without an up.")
    ] = False,
    multi_scale: Annotated[
        bool,
        typer.Option("--multi-scale", help="Train at 3/4 to 5/4 of the input size as well."),
    ] = False,
    validate_every: training.ValidateEvery = 1,
    seed: training.Seed = 0,
    threads: training.TrainingThreads = None,
    workers: training.Workers = 0,
    cache: training.Cache = 4096,
    until: training.Until = None,
    resume: training.Resume = False,
) -> None:
    """Train an RT-DETR on images with boxes.

    \b
    Examples:
      iqvit train detection --data cells/ --input-size 256x320 \\
          --model rtdetr:vit_tiny --weights vit_tiny.safetensors -o trained/
      iqvit train detection --data cells/ --from trained/ --sampling discrete -o discrete/

    FOLDER gets config.json and model.safetensors of the epoch with the best mAP on val (use it as
    rtdetr:FOLDER), the same of the last one in last/, checkpoint.pt to go on from, history.json and
    curves.png. Losses and noisy queries are those of transformers, which must be installed.
    """
    training.require_output(output, resume)
    from iqvit.eval.coco_data import read_coco
    from iqvit.training.box_augment import BoxAugmentation
    from iqvit.training.detection import DetectionOptions, DetectionTask
    from iqvit.training.detection_model import continued_detector, fresh_detector
    from iqvit.training.trainer import Schedule

    options = DetectionOptions(
        BoxAugmentation(zoom=zoom, vertical=vertical_flips),
        denoising,
        backbone_lr_scale,
        multi_scale,
        cache << 20,
    )
    rising = training.usual_warmup(warmup, epochs)
    plan = Schedule(epochs, batch, lr, weight_decay, rising, clip, average, seed)
    train, val = (
        read_coco(data, split, supercategories=supercategories, skip_bad=skip_bad)
        for split in (train_split, val_split)
    )
    for fault in (*train.skipped, *val.skipped):
        screen.note(f"left out: {fault}")
    sizes: dict[str, Any] = {
        "size": input_size,
        "classes": len(train.classes),
        "sampling": sampling,
        "queries": queries,
        "drop_path": drop_path,
        "seed": seed,
    }
    begun = training.begin(
        "detector",
        partial(fresh_detector, **sizes),
        partial(continued_detector, **sizes),
        model=model,
        weights=weights,
        start=start,
    )
    training.run(
        DetectionTask(begun, train, val, options),
        plan,
        output,
        spec="rtdetr",
        notes=begun.notes,
        threads=threads,
        validate_every=validate_every,
        resume=resume,
        workers=workers,
        until=until,
    )
