"""`iqvit report`: rows that agree, figures that say where they are from, a page by itself."""

import csv
import errno
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from iqvit.cli import main
from iqvit.eval import report_folder

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 4, 4), nn.Linear(width, 5)

    def forward(self, x):
        return self.last(nn.functional.gelu(self.first(x)).mean((2, 3)))

def model(width=8):
    torch.manual_seed(0)
    net = Net(width).eval()
    return net, {"input_size": 16, "mean": (0.5,) * 3, "std": (0.25,) * 3}

def wide():
    return model(12)
"""
ROWS = [
    ("float32", "PyTorch"),
    ("mixed precision", "PyTorch"),
    ("integers, calibrated", "PyTorch, interpreter"),
    ("integers, calibrated", "TVM"),
    ("integers, trained", "PyTorch, interpreter"),
    ("integers, trained", "TVM"),
]
IMAGES, CALIBRATING = 12, 3
FEW = ["--runs", "2", "--calib-images", str(CALIBRATING), "--threads", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, labelled_images):
    """net.py, images/, trained.iqv, which is another program of the model, and wide.iqv, which is
    none."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "net.py").write_text(NET)
    labelled_images(folder / "images", IMAGES)
    for name, function in (("trained", "model"), ("wide", "wide")):
        made = ["-o", f"{folder}/{name}.iqv", "--images", "1"]
        calib = ["--calib", f"{folder}/images"]
        assert main(["quantize", f"{folder}/net.py:{function}", *calib, *made]) == 0
    return folder


def command(place, *more):
    data = ["--data", f"{place}/images", "-o", f"{place}/out"]
    return ["report", f"{place}/net.py:model", *data, *FEW, *more]


@pytest.fixture(scope="module")
def classified(place):
    """The folder of a report of a classifier, trained program included."""
    assert main(command(place, "--trained", f"{place}/trained.iqv", "--images", "6")) == 0
    return place / "out"


@pytest.fixture(scope="module")
def both_heads(tmp_path_factory, masks_and_boxes, small_multitask):
    """The folder of a report of a multi-task model."""
    folder = tmp_path_factory.mktemp("multitask_report") / "out"
    data = ["--data", str(masks_and_boxes), "-o", str(folder)]
    assert main(["report", f"multitask:{small_multitask}", *data, *FEW, "--pictures", "2"]) == 0
    return folder


def content(folder):
    return json.loads((folder / "report.json").read_text())


def test_every_row_is_there_and_runtimes_agree(classified):
    rows = content(classified)["rows"]
    assert [(row["model"], row["runs_on"]) for row in rows] == ROWS
    assert rows[2]["metrics"] == rows[3]["metrics"]
    assert rows[4]["metrics"] == rows[5]["metrics"]
    assert rows[2]["metrics"]["sqnr_db"] != rows[4]["metrics"]["sqnr_db"]
    assert set(rows[0]["metrics"]) == {"top1", "top5"}
    assert rows[1]["metrics"]["equal_classes"] >= 80
    assert [row["integer_share"] for row in rows] == [0, 100, 100, 100, 100, 100]
    for row in rows:
        assert bool(row["times"]) == (row["model"] != "mixed precision")
        assert (row["proofs"] is None) == (row["model"] in ("float32", "mixed precision"))
        assert row["macs"] == rows[0]["macs"] > 0
    for row in (rows[3], rows[5]):
        assert row["proofs"]["equal_images"] == 6
        assert row["proofs"]["instructions"] > 100
        assert row["proofs"]["float_instructions"] == 0


def test_metrics_are_those_of_eval(place, classified, tmp_path):
    data = ["--data", f"{place}/images", "--images", "6", "--exclude-calib", str(CALIBRATING)]
    told = tmp_path / "m.json"
    for row, model in ((0, f"{place}/net.py:model"), (2, f"{classified}/calibrated.iqv")):
        reference = ["--reference", f"{place}/net.py:model"]
        assert main(["eval", "imagenet", model, *data, *reference, "--json", str(told)]) == 0
        found, own = json.loads(told.read_text()), content(classified)["rows"][row]["metrics"]
        assert (own["top1"], own["top5"]) == (found["top1"], found["top5"])
    assert own["equal_classes"] == found["agreement"]
    assert own["sqnr_db"] == found["sqnr_db"]


def test_the_data_is_known_by_its_bytes(place, classified):
    made = content(classified)["provenance"]
    assert (made["images"], made["available"]) == (6, IMAGES - CALIBRATING)
    files = sorted((place / "images").iterdir())

    def checksum(chosen):
        lines = [f"{f.name}\t{hashlib.sha256(f.read_bytes()).hexdigest()}\n" for f in chosen]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    from iqvit.commands.quantize import calibration_images

    out = calibration_images(place / "images", CALIBRATING, 0)
    left = [file for file in files if file not in out]
    assert made["sha256"] == checksum([left[i * len(left) // 6] for i in range(6)])
    assert any(
        "3 images of" in note and "not scored" in note for note in content(classified)["notes"]
    )
    assert any("6 of 9 images" in note for note in content(classified)["notes"])


class Page(HTMLParser):
    """Collects what a page asks for, and whether its elements close."""

    VOID = frozenset(("meta", "img", "br", "circle", "rect", "polyline"))

    def __init__(self, text):
        super().__init__()
        self.asked, self.open, self.words, self.figures = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.asked += [known[name] for name in ("src", "href", "data") if name in known]
        assert tag not in ("script", "link", "iframe")
        if tag == "figure":
            self.figures.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if "figure" in self.open:
            self.figures[-1] += data


@pytest.mark.parametrize("kind", ["classified", "both_heads"])
def test_the_page_needs_nothing_and_every_figure_says_where_it_is_from(kind, request):
    folder = request.getfixturevalue(kind)
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.asked)
    assert "url(" not in text
    assert "@import" not in text
    made = content(folder)["provenance"]
    assert len(page.figures) >= 7
    for figure in page.figures:
        for part in ("iqvit report", made["sha256"][:12], made["machine"]["date"], "torch 2"):
            assert part in figure
        assert made["machine"]["cpu"] in figure
    assert "equal bits for all outputs" in " ".join(page.words)
    assert "An evaluation in PyTorch alone" in " ".join(page.words)


@pytest.mark.parametrize("kind", ["classified", "both_heads"])
def test_the_tables_hold_the_same(kind, request):
    folder = request.getfixturevalue(kind)
    found = content(folder)
    lines = (folder / "results.csv").read_text().splitlines()
    table = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert lines[0].startswith("# iqvit report")
    assert [(row["model"], row["runs_on"]) for row in table] == [
        (row["model"], row["runs_on"]) for row in found["rows"]
    ]
    for told, row in zip(table, found["rows"], strict=True):
        for key, value in row["metrics"].items():
            assert float(told[key]) == value
        assert int(told["params"]) == row["params"]
        assert told["median_ms@1"] == (
            "" if not row["times"] else str(row["times"][0]["median_ms"])
        )
    tex = (folder / "results.tex").read_text()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") >= 3
    bodies = re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", tex, re.DOTALL)
    for columns, body in bodies:
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(columns)}
        assert not re.search(r"(?<!\\)[%#_]", body)
    text = (folder / "results.md").read_text()
    groups = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(groups) == len(bodies)
    for group in groups:
        assert len({line.count("|") for line in group.splitlines()}) == 1
    assert found["provenance"]["command"] in text


def test_both_heads_are_scored_and_shown(both_heads):
    found = content(both_heads)
    for row in found["rows"]:
        assert {"mAP", "AP50", "mIoU"} <= set(row["metrics"])
        assert set(row["classes"]["iou"]) == {"ground", "red", "green"}
        assert set(row["classes"]["ap"]) == {"red", "green"}
    assert found["rows"][2]["metrics"] == found["rows"][3]["metrics"]
    assert 0 < found["rows"][1]["integer_share"] < 100
    assert found["rows"][1]["metrics"]["equal_pixels"] > 90
    names = sorted(path.name for path in (both_heads / "pictures").iterdir())
    assert names == [
        f"0{n + 1}_{image}.{kind}.jpg"
        for n, image in enumerate("01")
        for kind in ("annotated", "float32", "integers")
    ]
    with Image.open(both_heads / "pictures" / names[0]) as picture:
        assert picture.size == (360, 240)


@pytest.mark.parametrize("kind", ["classified", "both_heads"])
def test_plots_are_drawings_with_every_mark(kind, request):
    folder = request.getfixturevalue(kind)
    found = content(folder)
    drawn = {}
    for path in (folder / "plots").iterdir():
        root = ElementTree.fromstring(path.read_text())
        drawn[path.stem] = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert set(drawn) == {"accuracy", "sqnr", "operators"}
    assert drawn["sqnr"].count("circle") >= len(found["nodes"])
    assert drawn["operators"].count("rect") >= min(12, len(found["operators"]))
    timed = [r for r in found["rows"] if r["times"] and r["runs_on"] != "PyTorch, interpreter"]
    assert drawn["accuracy"].count("circle") >= len(timed)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_memory_is_that_of_a_process_without_python(classified):
    rows = content(classified)["rows"]
    assert all(1000 < rows[place]["memory_kb"] < 100_000 for place in (3, 5))
    assert rows[0]["dashes"]["memory_kb"] == "runs in Python"


def test_without_a_compiler_memory_is_a_dash_with_its_reason(place, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    from iqvit.commands.report_measure import memory_of
    from iqvit.commands.report_models import Contender
    from iqvit.commands.subject import open_graph

    subject = open_graph(place / "trained.iqv")
    object.__setattr__(subject, "folder", place)
    found = memory_of([Contender("a", "TVM", subject)], 1)
    assert "the runner does not build" in found["a (TVM)"]


@pytest.mark.parametrize("lacking", ["masks", "boxes"])
def test_what_the_data_lacks_is_not_scored_and_that_is_said(
    lacking, masks_and_boxes, small_multitask, tmp_path
):
    from iqvit.commands.report_data import Asked, outcome, read_material
    from iqvit.commands.subject import float_subject, load_float
    from iqvit.eval.shards import score_all

    kept = {"masks": ["annotations", "val/images"], "boxes": ["val/images", "val/annotations"]}
    (tmp_path / "val").mkdir()
    for part in (*kept[lacking], "classes.txt"):
        (tmp_path / part).symlink_to(masks_and_boxes / part)
    subject = float_subject(load_float(f"multitask:{small_multitask}"))
    material = read_material(subject, Asked(tmp_path, "val", None, 2))
    head = {"masks": "the class maps are", "boxes": "the detections are"}[lacking]
    assert material.notes == (f"{tmp_path / 'val'} has no {lacking}: {head} not scored.",)
    job = material.job(subject, None)
    metrics, classes = outcome(job, score_all(job))
    assert ("mIoU" in metrics, "mAP" in metrics) == (lacking == "boxes", lacking == "masks")
    assert set(classes) == {"iou" if lacking == "boxes" else "ap"}


def test_mistakes_are_told_before_anything_is_made(place, tmp_path, capsys):
    before = sorted(place.iterdir())
    (place / "there").mkdir()
    cases = [
        ([*command(place)[:-1], "x"], "-o", f"{place}/there", "exists already; remove it"),
        (command(place), "--data", f"{tmp_path}/no", "no folder"),
        (command(place), "--trained", f"{place}/no.iqv", "no.iqv"),
        (command(place), "--trained", f"{place}/wide.iqv", "is no program of"),
        (command(place), "--calibrated", f"{place}/wide.iqv", "wide made them, not of"),
        (command(place), "--weights", f"{place}/trained.iqv", "trained.iqv"),
        (command(place), "--threads", "0", "no list of thread counts"),
    ]
    for words, option, value, message in cases:
        left_out = FEW[2:4] if option == "--calibrated" else []
        output = [] if option == "-o" else ["-o", f"{place}/out2"]
        capsys.readouterr()
        given = [word for word in words if word not in left_out]
        assert main([*given, *output, option, value]) == 2, option
        assert message in capsys.readouterr().err
    (place / "there").rmdir()
    assert sorted(place.iterdir()) == before


def test_a_program_that_exists_is_not_made_again(place):
    from iqvit.commands.report_calibration import by_program
    from iqvit.serialize import load

    graph = load(place / "trained.iqv")
    known = by_program(graph, place / "images")
    assert known.graph is graph
    assert len(known.paths) == 1
    other = by_program(graph, place / "images" / "..")
    assert (other.paths, other.told) == ((), "1 images, which ones is not known")


def test_options_that_would_make_another_are_refused(place, capsys):
    capsys.readouterr()
    given = ["--calibrated", f"{place}/trained.iqv", "-o", f"{place}/out2"]
    assert main([*command(place), *given]) == 2
    assert "--calib-images is for calibrating" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(place, monkeypatch, capsys):
    before = sorted(place.iterdir())

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(report_folder, "page", lambda report, drawn: "whole")
    monkeypatch.setattr(Path, "write_bytes", full)
    assert main([*command(place), "--images", "2", "-o", f"{place}/full"]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == f"error: cannot write {place}/full: No space left on device"
    assert sorted(place.iterdir()) == before
