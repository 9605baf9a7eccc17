"""`iqvit demo`: the whole way on a model and images that the project makes itself."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iqvit.commands import screen
from iqvit.commands.outputs import require_file, require_folder, write_metrics
from iqvit.errors import GraphError, IqvitError

if TYPE_CHECKING:
    from iqvit.commands.screen import Report
    from iqvit.commands.subject import Subject
    from iqvit.intgraph import IntGraph
    from iqvit.models.float_model import FloatModel

CALIBRATION, TEST = 32, 256
RANDOM = 16
"""Images of noise on which interpreter and library must also give equal integers."""
RUNS = 50
TITLE = "A small ViT, trained here, on drawn images it never saw"
COLUMNS = ("program", "top1", "agreement", "sqnr_db", "bytes", "threads", "latency_ms", "fps")


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The new folder to write.")
    ] = Path("iqvit-demo"),
    epochs: Annotated[
        int, typer.Option("--epochs", metavar="N", min=1, help="Of training; fewer is faster.")
    ] = 8,
    images: Annotated[
        int, typer.Option("--images", metavar="N", min=64, help="Drawn for training.")
    ] = 2048,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the metrics there as well."),
    ] = None,
) -> None:
    """Train a small ViT on drawn images, make it integers, prove it, compile it, and race it.

    \b
    Example:
      iqvit demo -o demo/
      iqvit inspect demo/model.iqv
      iqvit predict demo/artifact demo/images/test/*.png

    Takes a minute or two on two cores and needs no data. Leaves the weights, the images, model.iqv,
    artifact/, results.json and results.md, so that every other command can be tried on them.
    """
    require_file(json)
    require_folder(output)
    if output.exists():
        raise IqvitError(f"{output} exists already; remove it, or name another with -o")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        with screen.progress() as report:
            model = make_model(partial, epochs, images, report)
            graph, found = quantize_demo(partial, model, report)
            rows = run_demo(partial, model, found, report)
        proofs = prove_demo(graph)
        table = [[row.get(column) for column in COLUMNS] for row in rows]
        text = f"# {TITLE}\n\n{screen.markdown(COLUMNS, table)}\n{proofs}\n"
        (partial / "results.md").write_text(text, encoding="utf-8")
        write_metrics(partial / "results.json", found)
        write_metrics(json, found)
        partial.chmod(0o755)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    screen.table(COLUMNS, table, TITLE)
    print(proofs)
    print(f"Everything is in {output}; next: iqvit inspect {output / 'model.iqv'}")


def make_model(folder: Path, epochs: int, images: int, report: "Report") -> "FloatModel":
    """The trained model; its weights and the images that it will be tried on are in the folder."""
    import torch
    from safetensors.torch import save_file

    from iqvit.models import demo as drawn

    def learning(done: int, total: int, loss: float) -> None:
        del loss
        report("training", done, total)

    report("drawing images", 0, 2)
    drawn.write_images(folder / "images" / "calib", "calib", CALIBRATION)
    report("drawing images", 1, 2)
    drawn.write_images(folder / "images" / "test", "test", TEST)
    report("drawing images", 2, 2)
    # The number of threads decides the order of sums, and so the weights and the integers. One is
    # nearly as fast for a model of this size.
    torch.set_num_threads(1)
    report("training", 0, 0)
    network = drawn.train(images=images, epochs=epochs, progress=learning)
    save_file(network.state_dict(), folder / "weights.safetensors")
    (folder / "weights.safetensors").chmod(0o644)
    return drawn.float_model(network)


def quantize_demo(
    folder: Path, model: "FloatModel", report: "Report"
) -> tuple["IntGraph", dict[str, Any]]:
    """The integer program (model.iqv) and its metrics; compiled into artifact/."""
    from iqvit import tvm_backend
    from iqvit.calibration.recipe import Recipe
    from iqvit.commands.quantize import calibration_images, meta_of, quantize_model, read_images
    from iqvit.cost import cost
    from iqvit.serialize import save

    paths = calibration_images(folder / "images" / "calib", CALIBRATION, seed=0)
    data, _ = read_images(paths, model, False, report)
    graph, _ = quantize_model(model, data, Recipe(), meta_of(model), report)
    save(graph, folder / "model.iqv")
    with screen.staged(report) as begin:
        tvm_backend.compile(graph, folder / "artifact", progress=begin)
    spent = cost(graph)
    return graph, {"macs": spent.macs, "params": spent.params, "bytes": spent.bytes}


def run_demo(
    folder: Path, model: "FloatModel", found: dict[str, Any], report: "Report"
) -> list[dict[str, Any]]:
    """Scores float, interpreter and library, races float and library; fills `found`."""
    from iqvit.commands.bench import measure
    from iqvit.commands.subject import float_subject, open_artifact, open_graph
    from iqvit.eval.bench import machine

    exact = float_subject(model, "float, PyTorch")
    interpreter, library = open_graph(folder / "model.iqv"), open_artifact(folder / "artifact")
    about = machine()
    require_equal(interpreter, library)
    whole = {s.kind: score(s, exact, folder, report) for s in (interpreter, library)}
    found |= whole[library.kind]
    threads = sorted({1, min(2, about["cores"])})
    timed = {(r["kind"], r["threads"]): r for r in measure([exact, library], threads, RUNS, report)}
    first = timed[library.kind, 1]
    found |= {k: first[k] for k in ("latency_ms", "latency_p90_ms", "fps", "gmacs_per_s")}
    exact_row = timed[exact.kind, 1]
    found |= {"float_latency_ms": exact_row["latency_ms"], "float_fps": exact_row["fps"], **about}
    rows = []
    for count in threads:
        top = {"top1": found["float_top1"], "bytes": 4 * found["params"]}
        rows.append({"program": exact.name, **top, **timed[exact.kind, count]})
        scores = {"program": "integers, TVM library", **whole[library.kind]}
        rows.append({**scores, "bytes": found["bytes"], **timed[library.kind, count]})
    scores = {"program": "integers, interpreter", **whole[interpreter.kind]}
    return [*rows, {**scores, "bytes": found["bytes"]}]


def score(
    subject: "Subject", reference: "Subject", folder: Path, report: "Report"
) -> dict[str, Any]:
    """Metrics on the test images, without their time."""
    from iqvit.eval.evaluate import evaluate
    from iqvit.eval.imagenet import read_imagenet

    found: dict[str, Any] = evaluate(
        subject.scores,
        read_imagenet(folder / "images" / "test").items,
        subject.preprocess,
        reference=reference.scores,
        scale=subject.scale,
        zero_point=subject.zero_point,
        progress=lambda done, total: report(f"scoring the {subject.kind}", done, total),
    )
    found.pop("seconds")
    return found


def require_equal(one: "Subject", other: "Subject") -> None:
    """`GraphError` unless both give equal integers for images of noise."""
    from iqvit.commands.subject import random_image

    noise = random_image((RANDOM, *one.input_shape[1:]))
    if not one.scores(noise).equal(other.scores(noise)):
        raise GraphError(
            "interpreter and library give different integers: this is a defect of iqvit, please "
            "report it with the output of `iqvit bench` on this machine"
        )


def prove_demo(graph: "IntGraph") -> str:
    """What was proved, in two sentences."""
    from iqvit.verify import prove, tightest

    proofs = prove(graph)
    least = tightest(proofs)
    return (
        f"Proved: {len(proofs)} values and accumulators stay in their integer types for every "
        f"image, and no type is a float. Tightest: {least}."
    )
