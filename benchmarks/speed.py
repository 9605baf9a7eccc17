"""How fast: iqvit and other toolchains on the same models, images and cores, in turns.

    python benchmarks/speed.py --calib-dir images/ -o speed/

Every row of `ROWS` is quantised, compiled and timed with its peers; `speed/` gets a JSON file for
each, `speed.md` and `speed.png`. Weights are random: they do not change what is computed. Times are
medians of one image with all models taking turns, so that the ratios hold whatever the clock does.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

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
from speed_peers import SPEED_PEERS
from workshop import Workshop

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
TITLES = {
    "pytorch-float32": "PyTorch float32",
    "pytorch-compiled": "PyTorch compiled",
    "onnxruntime-float32": "ONNX Runtime float32",
    "onnxruntime-minmax": "ONNX Runtime int8, static",
    "onnxruntime-dynamic": "ONNX Runtime int8, dynamic",
    "openvino-float32": "OpenVINO float32",
    "openvino-default": "OpenVINO default",
    "nncf-transformer": "OpenVINO int8",
    "executorch-int8": "ExecuTorch int8",
    "tvm-float32": "TVM float32, stock",
}
USUAL = ",".join(TITLES)
DASH = "–"
"""In the table, where a peer failed; the reason is below it."""


def speed(
    calib_dir: CalibDir,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER")],
    rows: Annotated[str, typer.Option(metavar="NAME,...", help=f"Of: {', '.join(ROWS)}")] = "",
    only: Annotated[
        str, typer.Option(metavar="NAME,...", help=f"Of: {', '.join(SPEED_PEERS)}")
    ] = USUAL,
    calib: Calib = 4,
    threads: Threads = "1,2",
    runs: Runs = 40,
    seed: int = 0,
) -> None:
    """Makes, times and compares every model; then the table and the plot of what is in FOLDER."""
    require_folder(output)
    counts, names = thread_counts(threads), chosen(only, SPEED_PEERS)
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
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
            jobs += [peer_job(peer, SPEED_PEERS[peer], shop) for peer in names]
            timed = compare(jobs, None, counts, runs, report)
        peaks = {f"peak_gmacs@{n}": measure_peak(resolve("host"), n) / 1e9 for n in counts}
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
    rows = {name: data["rows"] for name, data in found.items()}
    # The peak is a bound: where others used the machine while it was measured it came out too low.
    for key in [f"peak_gmacs@{n}" for n in counts]:
        having = [row for measured in rows.values() for row in measured if key in row]
        most = max((row[key] for row in having), default=0.0)
        for row in having:
            row[key] = most
    text = table(rows, counts)
    write_atomically(folder / "speed.md", text.encode())
    print(text)
    draw(folder / "speed.png", rows, counts)


def table(found: dict[str, list[Row]], counts: list[int]) -> str:
    """Markdown of all models: a line for each number of threads, then why peers failed."""
    peers = peers_of(found)
    titles = "".join(f" against {TITLES.get(peer, peer)} |" for peer in peers)
    lines = [
        f"| model | threads | iqvit, ms | share of peak |{titles}",
        "|---" * (4 + len(peers)) + "|",
        *(line(name, rows, n, peers) for name, rows in found.items() for n in counts),
    ]
    failed = [
        f"- {name}, {TITLES.get(row['peer'], row['peer'])}: {row['error']}"
        for name, rows in found.items()
        for row in rows
        if "error" in row
    ]
    return "\n".join([*lines, *(["", f"{DASH}: failed.", "", *failed] if failed else [])]) + "\n"


def peers_of(found: dict[str, list[Row]]) -> list[str]:
    """All that are in any of the rows, the usual ones first and in their order."""
    there = {row["peer"]: None for rows in found.values() for row in rows if row["peer"] != OURS}
    return [*(peer for peer in TITLES if peer in there), *(p for p in there if p not in TITLES)]


def line(name: str, rows: list[Row], count: int, peers: list[str]) -> str:
    """One row of the table: our time, and how much slower each of the others is."""
    by_peer = {row["peer"]: row for row in rows}
    ours = by_peer[OURS]
    time = ours.get(f"latency_ms@{count}")
    share = DASH
    if time is not None:
        share = f"{100 * ours['macs'] / (time * 1e6) / ours[f'peak_gmacs@{count}']:.0f} %"
    cells = [cell(by_peer.get(peer), count, time) for peer in peers]
    return f"| {' | '.join([name, str(count), cell(ours, count, None), share, *cells])} |"


def cell(row: Row | None, count: int, ours: float | None) -> str:
    """Milliseconds, after how many times `ours` that is; empty where nothing was measured."""
    if row is None or f"latency_ms@{count}" not in row:
        return DASH if row is not None and "error" in row else ""
    time = row[f"latency_ms@{count}"]
    return f"{time:.1f}" if ours is None else f"{time / ours:.2f}x ({time:.1f})"


def draw(path: Path, found: dict[str, list[Row]], counts: list[int]) -> None:
    """Bars of milliseconds, a picture for each number of threads."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    titles = {OURS: "iqvit, integers only"} | {p: TITLES.get(p, p) for p in peers_of(found)}
    figure, axes = pyplot.subplots(1, len(counts), figsize=(7 * len(counts), 5), squeeze=False)
    width = 0.8 / len(titles)
    for axis, count in zip(axes[0], counts, strict=True):
        for place, (peer, title) in enumerate(titles.items()):
            heights = [
                next((r.get(f"latency_ms@{count}") for r in rows if r["peer"] == peer), None)
                for rows in found.values()
            ]
            at = [i + place * width for i in range(len(found))]
            colour = pyplot.get_cmap("tab20")(place)
            axis.bar(at, [h or 0 for h in heights], width, label=title, color=colour)
        axis.set_xticks([i + 0.4 - width / 2 for i in range(len(found))], list(found), rotation=15)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_locator(ticker.NullLocator())
        axis.set_ylabel("ms an image, logarithmic")
        axis.set_title(f"{count} thread{'s' if count > 1 else ''}, lower is better")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(guarded(speed))
