"""The command line: which commands there are, and how every one of them ends."""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from iqvit.commands import (
    bench,
    compile,
    demo,
    eval,
    eval_coco,
    eval_multitask,
    eval_segmentation,
    inspect,
    predict,
    quantize,
    recipe,
    report,
    scenes,
    targets,
    train_detection,
    train_multitask,
    train_segmentation,
    training,
)
from iqvit.errors import IqvitError

USER_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
"""Exit codes; the last two are 128 and the number of the signal, as shells have it."""


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with one message on stderr and an exit code for what is no bug.

    Errors of the user give 2, Ctrl-C 130, and a reader that went away (`| head`) 141 in silence.
    Everything else is a bug and keeps its traceback.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except IqvitError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(USER_ERROR) from error
        except KeyboardInterrupt as error:
            print("interrupted; nothing was written", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError as error:
            _discard_stdout()
            raise typer.Exit(BROKEN_PIPE) from error

    return run


def _discard_stdout() -> None:
    """Let what is still in the buffer go nowhere when Python flushes it at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"iqvit {version('iqvit')}")
        raise typer.Exit


app = typer.Typer(
    name="iqvit",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Compile vision transformers to programs of integers only.

    \b
    The way from a float model to a library:
      iqvit quantize timm:vit_tiny_patch16_224 --weights W.safetensors --calib DIR -o model.iqv
      iqvit inspect model.iqv
      iqvit compile model.iqv -o artifact/
      iqvit predict artifact/ photo.jpg
      iqvit eval imagenet --data DIR artifact/
      iqvit bench artifact/ --threads 1,2

    Start with `iqvit demo`, which does all of this on a small model that comes along
    (embedded:scenes) and on scenes that it renders.
    Every command explains itself with --help. Results go to standard output (tab-separated where
    that is no terminal), --json FILE writes them as one flat object. Exit code 2: something to
    put right, told in one message; 130: interrupted.
    """


COMMANDS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("demo", demo.demo, "All of it, on a small model that comes along."),
    ("quantize", quantize.quantize, "A float model and images become integers (.iqv)."),
    ("inspect", inspect.inspect, "Cost, widths and proofs of an .iqv or artifact."),
    ("compile", compile.compile_graph, "An .iqv becomes a library for a CPU."),
    ("predict", predict.predict, "Classes, class maps or boxes of images."),
    ("bench", bench.bench, "Latency and speed, in turns."),
    ("report", report.report, "Float, mixed and integers compared, as a page and tables."),
    ("recipe", recipe.recipe, "Print the usual settings, to edit."),
    ("scenes", scenes.scenes, "Render images with class maps and boxes."),
    ("targets", targets.targets, "The CPUs that can be compiled for."),
)
for name, command, line in COMMANDS:
    app.command(name, short_help=line)(guarded(command))

evaluation = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
EVALUATIONS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("imagenet", eval.imagenet, "Classified images: top1, top5."),
    ("segmentation", eval_segmentation.segmentation, "Any images with masks: mIoU."),
    ("ade20k", eval_segmentation.ade20k, "ADE20K, 150 classes: mIoU."),
    ("cityscapes", eval_segmentation.cityscapes, "Cityscapes, 19 classes: mIoU."),
    ("coco", eval_coco.coco, "COCO and data in its format: average precision."),
    ("multitask", eval_multitask.multitask, "Images with masks and boxes: both, from one run."),
)
for name, command, line in EVALUATIONS:
    evaluation.command(name, short_help=line)(guarded(command))
app.add_typer(evaluation, name="eval", help=eval.HELP, short_help="Accuracy on labelled images.")

train = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
# A callback keeps the name of the task in the command while there is only one.
train.callback()(lambda: None)
train.command("segmentation", short_help="A Segmenter, from images with masks.")(
    guarded(train_segmentation.segmentation)
)
train.command("detection", short_help="An RT-DETR, from images with boxes.")(
    guarded(train_detection.detection)
)
train.command("multitask", short_help="Both from one encoder, from images with masks and boxes.")(
    guarded(train_multitask.multitask)
)
app.add_typer(train, name="train", help=training.HELP, short_help="Teach a float model.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` for None); returns the exit code.

    Errors of the program itself are raised as they are.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="iqvit")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0
