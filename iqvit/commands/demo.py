"""`iqvit demo`: the whole way on the model that comes with iqvit and scenes that it renders."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iqvit.commands import screen
from iqvit.commands.demo_scores import COLUMNS, score_demo, table_of
from iqvit.commands.outputs import require_file, require_folder, write_metrics
from iqvit.errors import IqvitError

if TYPE_CHECKING:
    from iqvit.commands.screen import Report
    from iqvit.intgraph import IntGraph
    from iqvit.models.float_model import FloatModel

MODEL = "embedded:scenes"
SCENE = 192, 256
"""Height and width of the scenes that the model was trained on, which it squashes to its input."""
CALIBRATION, USUAL_TEST, PICTURES = 32, 100, 8
TITLE = "One small ViT with two heads, on rendered scenes it never saw"


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The new folder to write.")
    ] = Path("iqvit-demo"),
    images: Annotated[
        int, typer.Option("--images", metavar="N", min=1, help="Scenes to score on.")
    ] = USUAL_TEST,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the metrics there as well."),
    ] = None,
) -> None:
    """Make integers of the model that comes with iqvit, prove, compile, score, race and draw them.

    \b
    Example:
      iqvit demo -o demo/
      iqvit inspect demo/model.iqv
      iqvit predict demo/artifact demo/scenes/test/images/*.png -o found/
      iqvit eval multitask --data demo/scenes --split test demo/artifact --reference embedded:scenes

    One to three minutes on two cores, without any download. The model, embedded:scenes, finds the
    class of every pixel and the boxes of eight kinds of things in rendered rooms, from one run; its
    weights were trained on other rooms. Steps: render scenes with their truth; score the float
    model; calibrate on 32 scenes, convert to integers, prove that none overflows; compile for this
    CPU; score the integers, run by PyTorch and by TVM, which must be equal; time float and integers
    in turns. DIR gets:

    \b
      results.md, results.json   the table and all metrics
      pictures/                  truth, float and integers side by side
      model.iqv                  the integer program
      artifact/                  the compiled library
      scenes/                    the images, class maps and boxes

    mIoU is of the class maps, mAP of the boxes, both in percent; equal_pixels and equal_boxes say
    how often the integers answer what float answers.
    """
    require_file(json)
    require_folder(output)
    if output.exists():
        raise IqvitError(f"{output} exists already; remove it, or name another with -o")
    begun = time.perf_counter()
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        with screen.progress() as report:
            model = render_demo(partial, images, report)
            graph = quantize_demo(partial, model, report)
            found, rows, equal = score_demo(partial, model, graph, PICTURES, report)
        said = f"{prove_demo(graph)} {equal}"
        found["seconds"] = time.perf_counter() - begun
        text = f"# {TITLE}\n\n{screen.markdown(COLUMNS, table_of(rows))}\n{said}\n"
        (partial / "results.md").write_text(text, encoding="utf-8")
        write_metrics(partial / "results.json", found)
        write_metrics(json, found)
        partial.chmod(0o755)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    screen.table(COLUMNS, table_of(rows), TITLE)
    print(said)
    print(f"Everything is in {output}; next: look at {output / 'pictures'}, or run")
    print(f"  iqvit inspect {output / 'model.iqv'}")


def render_demo(folder: Path, images: int, report: "Report") -> "FloatModel":
    """Scenes to calibrate on and scenes to score on; returns the model."""
    from iqvit.models.scenes import write_scenes
    from iqvit.models.spec import load_model

    total = CALIBRATION + images
    for split, count, before in (("calib", CALIBRATION, 0), ("test", images, CALIBRATION)):
        write_scenes(
            folder / "scenes",
            split,
            count,
            size=SCENE,
            progress=lambda done, _, before=before: report(
                "rendering scenes", before + done, total
            ),
        )
    return load_model(MODEL)


def quantize_demo(folder: Path, model: "FloatModel", report: "Report") -> "IntGraph":
    """The integer program, also in model.iqv; compiled into artifact/."""
    from iqvit import tvm_backend
    from iqvit.calibration.quantize import quantize_canonical
    from iqvit.calibration.recipe import Recipe
    from iqvit.commands.quantize import calibration_images, canonical_of, meta_of, read_images
    from iqvit.serialize import save

    paths = calibration_images(folder / "scenes" / "calib" / "images", CALIBRATION, seed=0)
    data, _ = read_images(paths, model, False, report)
    canonical = canonical_of(model, report)
    graph = quantize_canonical(canonical, data, Recipe(), progress=report, meta=meta_of(model))
    save(graph, folder / "model.iqv")
    with screen.staged(report) as begin:
        tvm_backend.compile(graph, folder / "artifact", progress=begin)
    return graph


def prove_demo(graph: "IntGraph") -> str:
    """What was proved, in two sentences."""
    from iqvit.verify import prove, tightest

    proofs = prove(graph)
    least = tightest(proofs)
    return (
        f"Proved: {len(proofs)} values and accumulators stay in their integer types for every "
        f"image, and no type is a float. Tightest: {least}."
    )
