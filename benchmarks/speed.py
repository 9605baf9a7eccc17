"""How fast: iqvit and other toolchains on the same models, images and cores, in turns.

    python benchmarks/speed.py --calib-dir images/ -o speed/

Every row of `ROWS` is quantised, compiled and timed with its peers; `speed/` gets a JSON file for
each, `speed.md` and `speed.png`. Weights are random: they do not change what is computed. Times are
medians of one image with all models taking turns, so that the ratios hold whatever the clock does.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from comparing import (
    Calib,
    CalibDir,
    Job,
    Row,
    Runs,
    Threads,
    calibrated_shop,
    chosen,
    compare,
    peer_job,
    write_rows,
)
from toolchains import PEERS, Workshop

from iqvit import tvm_backend
from iqvit.calibration.quantize import quantize
from iqvit.cli import guarded
from iqvit.commands import screen
from iqvit.commands.options import thread_counts
from iqvit.commands.outputs import require_folder
from iqvit.commands.quantize import calibration_images, meta_of
from iqvit.commands.screen import Report
from iqvit.commands.subject import Subject, load_float, open_artifact
from iqvit.files import write_atomically
from iqvit.models.float_model import FloatModel
from iqvit.tvm_backend.cache import usual_cache
from iqvit.tvm_backend.peak import measure_peak
from iqvit.tvm_backend.targets import resolve

OURS = "iqvit"
ROWS: dict[str, tuple[str, tuple[int, int] | None, int | None]] = {
    # name: spec, input size, classes
    "deit-tiny-224": ("timm:deit_tiny_patch16_224", None, None),
    "deit-small-224": ("timm:deit_small_patch16_224", None, None),
    "deit-tiny-384": ("timm:vit_tiny_patch16_384", None, None),
    "segmenter-tiny-mask-512": ("segmenter:vit_tiny_patch16_224+mask", (512, 512), 150),
    "rtdetrv2-r18-640": ("{here}/r18_boxes.py:detector", None, None),
}
USUAL = "pytorch-float32,onnxruntime-float32,onnxruntime-dynamic,openvino-float32,nncf-transformer"
SHOWN = {
    OURS: "iqvit, integers only",
    "pytorch-float32": "PyTorch float32",
    "onnxruntime-float32": "ONNX Runtime float32",
    "onnxruntime-dynamic": "ONNX Runtime int8, dynamic",
    "openvino-float32": "OpenVINO float32",
    "nncf-transformer": "OpenVINO int8",
}


def speed(
    calib_dir: CalibDir,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER")],
    rows: Annotated[str, typer.Option(metavar="NAME,...", help=f"Of: {', '.join(ROWS)}")] = "",
    only: Annotated[str, typer.Option(metavar="NAME,...", help="The peers.")] = USUAL,
    calib: Calib = 4,
    threads: Threads = "1,2",
    runs: Runs = 40,
    seed: int = 0,
) -> None:
    """Makes, times and compares every model; then the table and the plot of what is in FOLDER."""
    require_folder(output)
    counts, names = thread_counts(threads), chosen(only)
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    peaks = {f"peak_gmacs@{n}": measure_peak(resolve("host"), n) / 1e9 for n in counts}
    for name in chosen(rows or None, ROWS):
        screen.note(f"{name}:")
        spec, size, classes = ROWS[name]
        model = load_float(
            spec.format(here=Path(__file__).parent), None, size, classes=classes, seed=seed
        )
        paths = calibration_images(calib_dir, calib, seed)
        with ExitStack() as stack, screen.progress() as report:
            shop = calibrated_shop(model, paths, output / "made", stack, report)
            jobs = [our_job(model, shop, output / "made" / name, report)]
            jobs += [peer_job(peer, PEERS[peer], shop) for peer in names]
            timed = compare(jobs, None, counts, runs, report)
        for row in timed:
            row.update(peaks)
        write_rows(output / f"{name}.json", spec, seed, timed)
    write_report(output, counts)


def our_job(model: FloatModel, shop: Workshop, folder: Path, report: Report) -> Job:
    """Of iqvit itself: quantised on the shop's images, compiled for this CPU."""

    def make() -> Subject:
        graph = quantize(
            model.module,
            shop.images,
            mean=model.mean,
            std=model.std,
            progress=report,
            meta=meta_of(model),
        )
        tvm_backend.compile(graph, folder, cache=usual_cache())
        return open_artifact(folder)

    return Job({"peer": OURS, "note": "integers only"}, make)


def write_report(folder: Path, counts: list[int]) -> None:
    """`speed.md` and `speed.png` of the JSON files that are there."""
    found = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ROWS
        if (folder / f"{name}.json").is_file()
    }
    lines = [
        f"| model | threads | iqvit, ms | share of peak | {' | '.join(peer_titles())} |",
        "|---" * (4 + len(peer_titles())) + "|",
    ]
    for name, data in found.items():
        lines += [line(name, data["rows"], count) for count in counts]
    text = "\n".join(lines) + "\n"
    write_atomically(folder / "speed.md", text.encode())
    print(text)
    draw(folder / "speed.png", found, counts)


def peer_titles() -> list[str]:
    """Of the columns of ratios."""
    return [f"against {SHOWN[peer]}" for peer in SHOWN if peer != OURS]


def line(name: str, rows: list[Row], count: int) -> str:
    """One row of the table: our time, and how much slower each of the others is."""
    by_peer = {row["peer"]: row for row in rows}
    ours = by_peer[OURS]
    time = ours.get(f"latency_ms@{count}")
    if time is None:
        return f"| {name} | {count} | {ours.get('error', '')} |"
    share = 100 * ours["macs"] / (time * 1e6) / ours[f"peak_gmacs@{count}"]
    cells = []
    for peer in SHOWN:
        other = by_peer.get(peer, {}).get(f"latency_ms@{count}")
        if peer != OURS:
            cells.append("" if other is None else f"{other / time:.2f}x ({other:.1f})")
    return f"| {name} | {count} | {time:.1f} | {share:.0f} % | {' | '.join(cells)} |"


def draw(path: Path, found: dict[str, Any], counts: list[int]) -> None:
    """Bars of milliseconds, a picture for each number of threads."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(counts), figsize=(7 * len(counts), 5), squeeze=False)
    width = 0.8 / len(SHOWN)
    for axis, count in zip(axes[0], counts, strict=True):
        for place, (peer, title) in enumerate(SHOWN.items()):
            heights = [
                next((r.get(f"latency_ms@{count}") for r in d["rows"] if r["peer"] == peer), None)
                for d in found.values()
            ]
            at = [i + place * width for i in range(len(found))]
            axis.bar(at, [h or 0 for h in heights], width, label=title)
        axis.set_xticks([i + 0.4 - width / 2 for i in range(len(found))], list(found), rotation=15)
        axis.set_yscale("log")
        axis.set_ylabel("ms an image")
        axis.set_title(f"{count} thread{'s' if count > 1 else ''}, lower is better")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(guarded(speed))
