"""`iqvit train detection`: teach an RT-DETR."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from iqvit.commands import screen, train_integers, training
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
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, show_default="60; 8 through integers"),
    ] = None,
    batch: training.Batch = 8,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr", help="Largest learning rate.", show_default="4e-4; 2e-5 through integers"
        ),
    ] = None,
    backbone_lr_scale: Annotated[
        float, typer.Option("--backbone-lr-scale", help="Times --lr for the backbone.")
    ] = 0.25,
    weight_decay: training.WeightDecay = 1e-4,
    warmup: training.Warmup = None,
    drop_path: Annotated[
        float | None, typer.Option("--drop-path", help="Stochastic depth.", show_default="0")
    ] = None,
    clip: training.Clip = 0.1,
    average: training.Average = 0.99,
    denoising: Annotated[
        int | None,
        typer.Option(
            "--denoising",
            metavar="N",
            min=0,
            help="Noisy queries of an image.",
            show_default="100",
        ),
    ] = None,
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
    through_integers: train_integers.Through = False,
    calib: train_integers.Calib = None,
    images: train_integers.Images = None,
    recipe: train_integers.RecipeFile = None,
    steps: train_integers.Steps = "followed",
    ranges: train_integers.Ranges = "fixed",
) -> None:
    """Train an RT-DETR on images with boxes.

    \b
    Examples:
      iqvit train detection --data cells/ --input-size 256x320 \\
          --model rtdetr:vit_tiny --weights vit_tiny.safetensors -o trained/
      iqvit train detection --data cells/ --from trained/ --sampling discrete -o discrete/
      iqvit train detection --data cells/ --from trained/ --through-integers \\
          --calib cells/train -o tuned/

    FOLDER gets config.json and model.safetensors of the epoch with the best mAP on val (use it as
    rtdetr:FOLDER), the same of the last one in last/, checkpoint.pt to go on from, history.json and
    curves.png. Losses and noisy queries are those of transformers, which must be installed. With
    --through-integers the forward pass is the integer program itself, and instead of the weights
    there is model.iqv: the program that was scored.
    """
    training.require_output(output, resume)
    from iqvit.eval.coco_data import read_coco
    from iqvit.training.box_augment import BoxAugmentation
    from iqvit.training.detection import DetectionOptions, DetectionTask
    from iqvit.training.detection_integers import IntegerDetectionTask, decoder_taps
    from iqvit.training.detection_model import continued_detector, fresh_detector
    from iqvit.training.trainer import Schedule

    chosen = train_integers.asked(
        through_integers,
        start=start,
        calib=calib,
        images=images,
        recipe=recipe,
        steps=steps,
        ranges=ranges,
        unfit={
            "--denoising": denoising,
            "--drop-path": drop_path,
            "--sampling": sampling,
            "--queries": queries,
            "--multi-scale": multi_scale or None,
        },
    )
    options = DetectionOptions(
        BoxAugmentation(zoom=zoom, vertical=vertical_flips),
        train_integers.either(denoising, 100, 0, chosen),
        backbone_lr_scale,
        multi_scale,
        cache << 20,
    )
    length = train_integers.either(epochs, 60, 8, chosen)
    rate = train_integers.either(lr, 4e-4, 2e-5, chosen)
    rising = training.usual_warmup(warmup, length)
    plan = Schedule(length, batch, rate, weight_decay, rising, clip, average, seed)
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
        "drop_path": drop_path or 0.0,
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
    task = DetectionTask(begun, train, val, options)
    if chosen is not None:
        layers = begun.model.config.decoder_layers
        taps = partial(decoder_taps, layers=layers)
        known = {"labels": list(train.classes)}
        made, told = train_integers.learner(chosen, "rtdetr", input_size, seed, known, taps)
        task = IntegerDetectionTask(begun, train, val, options, made, told)
    training.run(
        task,
        plan,
        output,
        spec="rtdetr" if chosen is None else None,
        notes=begun.notes,
        threads=threads,
        validate_every=validate_every,
        resume=resume,
        workers=workers,
        until=until,
    )
