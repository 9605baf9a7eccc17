"""Writes the model card of the embedded model, with the numbers that `embedded.sh` measured.

    python benchmarks/embedded_card.py OUT models/embedded/scenes

OUT is the folder of embedded.sh: histories of the training, and the results of the demo.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iqvit.commands.screen import markdown, number
from iqvit.files import write_atomically
from iqvit.models.scenes import STUFF, THINGS
from iqvit.models.scenes.placing import FEWEST, MOST, MOST_CLUTTER, USUAL

PHASES = ("maps", "joint", "fine")
"""Folders of OUT with a history, in the order of the training."""

CARD = Path(__file__).with_suffix(".md")


def phases(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """A table of what was trained for how long, and the scores on the split val where there are."""
    columns = ("phase", "epochs", "images seen", "minutes", "last loss", "val mIoU", "val mAP")
    rows = []
    for phase, history in histories.items():
        last = history[-1]
        seconds = sum(row["seconds"] for row in history)
        scores = [last.get("mIoU"), last.get("mAP") if phase != "maps" else None]
        seen = sum(samples(row) for row in history)
        rows.append([phase, len(history), seen, seconds / 60, last["loss"], *scores])
    return markdown(columns, rows)


def samples(row: Mapping[str, float]) -> int:
    """The images of an epoch."""
    return round(row["samples_per_s"] * row["seconds"])


def table(found: Mapping[str, Any]) -> str:
    """Float beside integers; without times where others used the cores, too."""
    columns = ("", "mIoU", "mAP", "AP50", "equal_pixels", "equal_boxes")
    suffixes = () if busy(found) else ("", "@2")
    rows = [
        [
            name,
            *(found.get(f"{side}{metric}") for metric in ("mIoU", "mAP", "AP50")),
            *(found[metric] if side == "" else 100.0 for metric in ("equal_pixels", "equal_boxes")),
            *(found.get(f"{side}latency_ms{suffix}") for suffix in suffixes),
        ]
        for name, side in (("float32, PyTorch", "float_"), ("integers, TVM", ""))
    ]
    return markdown((*columns, *("ms, 1 thread", "2 threads")[: len(suffixes)]), rows)


def busy(found: Mapping[str, Any]) -> bool:
    """Whether more ran on the machine than the demo."""
    return found["load"] > found["cores"] + 1


def machine(found: Mapping[str, Any]) -> str:
    """Where and when the times are from, or why there are none."""
    place = f"{found['cores']} cores of {found['cpu']}, {found['date'][:10]}"
    if busy(found):
        return (
            f"Measured on {place}, torch {found['version_torch']}, with other work on them (load "
            f"{found['load']}), so that there are no times; `iqvit demo` takes them."
        )
    return (
        f"Times: medians of one image, in turns, on {place}, torch {found['version_torch']}. The "
        f"demo that measured this, on {found['images']} scenes instead of its usual 100, took "
        f"{found['seconds']:.0f} s."
    )


def classes(found: Mapping[str, Any]) -> str:
    """IoU and AP of the integers, a class a line."""
    rows = ([name, found.get(f"iou.{name}"), found.get(f"ap.{name}")] for name in (*STUFF, *THINGS))
    return "".join(f"| {' | '.join(map(number, row))} |\n" for row in rows)


def main(out: Path, model: Path) -> None:
    """Write MODEL_CARD.md into the folder `model`."""
    found = json.loads((out / "demo" / "results.json").read_text())
    config = json.loads((model / "config.json").read_text())["config"]
    detector, weights = config["detector"], (model / "model.safetensors").read_bytes()
    height, width = detector["image_size"]
    histories = {p: json.loads((out / p / "history.json").read_text()) for p in PHASES}
    text = CARD.read_text(encoding="utf-8").format(
        size=f"{height}x{width}",
        outer=detector["backbone"]["width"],
        depth=detector["backbone"]["depth"],
        heads=detector["backbone"]["heads"],
        decoder_layers=detector["decoder_layers"],
        inner=detector["width"],
        queries=detector["queries"],
        stuff=", ".join(STUFF),
        things=", ".join(THINGS),
        parameters=found["params"],
        megabytes=len(weights) / 1e6,
        program=found["bytes"] / 1e6,
        macs=found["macs"] / 1e9,
        images=samples(histories["joint"][0]),
        fewest=FEWEST,
        most=MOST,
        clutter=MOST_CLUTTER,
        usual=100 * USUAL,
        phases=phases(histories),
        digest=hashlib.sha256(weights).hexdigest(),
        tested=found["images"],
        small=found["AP_small"],
        medium=found["AP_medium"],
        large=found["AP_large"],
        table=table(found),
        machine=machine(found),
        classes=classes(found),
    )
    write_atomically(model / "MODEL_CARD.md", text.encode())
    print(model / "MODEL_CARD.md")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
