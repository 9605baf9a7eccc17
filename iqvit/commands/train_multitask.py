"""`iqvit train multitask`: teach one ViT with a segmentation and a detection head."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from iqvit.commands import screen, train_integers, training
from iqvit.commands.options import Size, parse_size

USUAL_SIZE = "320x320"


def multitask(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="DIR",
            help="With SPLIT/images, masks in SPLIT/annotations, and boxes in "
            "annotations/instances_SPLIT.json.",
        ),
    ],
    output: training.Output,
    class_file: Annotated[
        Path | None,
        typer.Option("--class-file", metavar="FILE", help="Of the masks, where not in DIR."),
    ] = None,
    train_split: Annotated[str, typer.Option("--train-split", metavar="NAME")] = "train",
    val_split: Annotated[str, typer.Option("--val-split", metavar="NAME")] = "val",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out boxes that cannot be used.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="SPEC",
            help="multitask:vit_tiny or multitask:small, [+mask][+discrete].",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="FILE", help="Of the ViT (timm's names), or of the whole model."
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FOLDER",
            help="Begin with this trained multi-task model, segmenter or detector.",
        ),
    ] = None,
    queries: Annotated[
        int | None,
        typer.Option("--queries", metavar="N", min=1, help="Boxes that the decoder refines."),
    ] = None,
    input_size: Annotated[
        Size,
        typer.Option(
            "--input-size",
            metavar="N|HxW",
            parser=parse_size,
            help="Pixels, height x width, multiples of 32, of the finished model.",
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
    scales: Annotated[
        tuple[float, float],
        typer.Option(
            "--scales", metavar="LEAST MOST", help="Images are scaled by a factor between them."
        ),
    ] = (0.5, 2.0),
    least_area: Annotated[
        float,
        typer.Option(
            "--least-area",
            metavar="PIXELS",
            min=0,
            help="Drop objects that scaling makes smaller, where data have no boxes below this.",
        ),
    ] = 0.0,
    box_weight: Annotated[
        float,
        typer.Option(
            "--box-weight",
            help="Times the detection loss; 0: only class maps are learnt, in half the time.",
        ),
    ] = 0.1,
    class_weights: Annotated[
        str, typer.Option("--class-weights", help="none or sqrt-inverse (of their pixels).")
    ] = "none",
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
    encoder_lr_scale: Annotated[
        float, typer.Option("--encoder-lr-scale", help="Times --lr for the encoder.")
    ] = 0.4,
    weight_decay: training.WeightDecay = 0.01,
    warmup: training.Warmup = None,
    drop_path: Annotated[
        float | None, typer.Option("--drop-path", help="Stochastic depth.", show_default="0.05")
    ] = None,
    clip: training.Clip = 1.0,
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
    """Train one ViT for class maps and boxes at once, on images with masks and boxes.

    \b
    Examples:
      iqvit train multitask --data street/ --model multitask:vit_tiny \\
          --weights vit_tiny.safetensors --input-size 352x480 -o trained/
      iqvit train multitask --data street/ --from segmenter/ --input-size 352x480 -o trained/
      iqvit train multitask --data street/ --from trained/ --input-size 352x480 \\
          --through-integers --calib street/train/images -o tuned/

    FOLDER gets config.json and model.safetensors of the epoch with the best mean of mIoU and mAP on
    val (use it as multitask:FOLDER), the same of the last one in last/, checkpoint.pt to go on
    from, history.json and curves.png. The loss is the cross entropy of the masks plus --box-weight
    times RT-DETR's losses, which are those of transformers. With --through-integers the forward
    pass is the integer program itself, and instead of the weights there is model.iqv: the program
    that was scored.
    """
    training.require_output(output, resume)
    from iqvit.eval.multitask_data import read_multitask, require_both
    from iqvit.training.detection_integers import decoder_taps
    from iqvit.training.joint_augment import JointAugmentation
    from iqvit.training.multitask import MultitaskOptions, MultitaskTask
    from iqvit.training.multitask_integers import IntegerMultitaskTask
    from iqvit.training.multitask_model import continued_multitask, fresh_multitask
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
            "--crop": crop,
            "--denoising": denoising,
            "--drop-path": drop_path,
            "--queries": queries,
        },
    )
    options = MultitaskOptions(
        input_size,
        crop or input_size,
        JointAugmentation(scales, least_area),
        box_weight,
        class_weights,
        train_integers.either(denoising, 100, 0, chosen),
        encoder_lr_scale,
        cache << 20,
    )
    length = train_integers.either(epochs, 60, 8, chosen)
    rate = train_integers.either(lr, 4e-4, 2e-5, chosen)
    rising = training.usual_warmup(warmup, length)
    plan = Schedule(length, batch, rate, weight_decay, rising, clip, average, seed)
    train, val = (
        require_both(read_multitask(data, split, class_file, skip_bad=skip_bad), data / split)
        for split in (train_split, val_split)
    )
    for fault in (*train.boxes.skipped, *val.boxes.skipped):
        screen.note(f"left out: {fault}")
    sizes: dict[str, Any] = {
        "size": options.crop,
        "classes": len(train.masks.classes),
        "box_classes": len(train.boxes.classes),
        "queries": queries,
        "drop_path": train_integers.either(drop_path, 0.05, 0.0, chosen),
        "seed": seed,
    }
    begun = training.begin(
        "multi-task model",
        partial(fresh_multitask, **sizes),
        partial(continued_multitask, **sizes),
        model=model,
        weights=weights,
        start=start,
    )
    task = MultitaskTask(begun, train, val, options)
    if chosen is not None:
        taps = partial(decoder_taps, layers=begun.model.config.detector.decoder_layers)
        palette = [list(colour) for colour in train.masks.palette or ()]
        known = {
            "labels": list(train.masks.classes),
            "box_labels": list(train.boxes.classes),
            "palette": palette,
        }
        made, told = train_integers.learner(chosen, "multitask", input_size, seed, known, taps)
        task = IntegerMultitaskTask(begun, train, val, options, made, told)
    training.run(
        task,
        plan,
        output,
        spec="multitask" if chosen is None else None,
        notes=begun.notes,
        threads=threads,
        validate_every=validate_every,
        resume=resume,
        workers=workers,
        until=until,
    )
