"""`torchrun ... iqvit eval`: the numbers of one process, to the last digit, also after a fall."""

import json
import os
import re
import subprocess
import sys

import pytest

from iqvit.cli import main

MODEL = '''
import os, signal
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)

    def forward(self, x):
        return self.last(self.first(x).relu().mean((2, 3)))

class Dying(Net):
    """Ends its own process in its second call where it is told to, as a lost machine does."""
    calls = 0

    def forward(self, x):
        self.calls += 1
        if os.environ.get("DIES") and os.environ.get("RANK") == "1" and self.calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)

def model(kind=Net):
    torch.manual_seed(0)
    return kind().eval(), {"input_size": 16, "mean": (0.5,) * 3, "std": (0.25,) * 3}

def dying():
    return model(Dying)
'''
SCRIPT = """
import json, os, sys
from iqvit.cli import main
for port, arguments in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(port)
    code = main(arguments)
    if code:
        sys.exit(code)
"""
IMAGES = 41


@pytest.fixture(scope="module")
def place(tmp_path_factory, labelled_images):
    """images/ of five classes, one of them damaged, net.py, its integers net.iqv, and net/."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "net.py").write_text(MODEL)
    labelled_images(folder / "images", IMAGES)
    spec, program = f"{folder}/net.py:model", f"{folder}/net.iqv"
    calib = ["--calib", f"{folder}/images", "--images", "8"]
    assert main(["quantize", spec, *calib, "-o", program]) == 0
    assert main(["compile", program, "-o", f"{folder}/net", "--target", "portable"]) == 0
    (folder / "images" / "3_3.png").write_bytes(b"no image")
    return folder


def imagenet(place, model, *more):
    data = ["--data", f"{place}/images", "--skip-bad", "--threads", "1"]
    return ["eval", "imagenet", f"{place}/{model}", *data, *more]


def both_heads(root, model, task):
    data = ["--data", str(root), "--threads", "1", "--reference", model]
    return ["eval", task, model, *data]


def told(path):
    found = json.loads(path.read_text())
    assert found.pop("seconds") >= 0
    return found


def test_two_processes_give_the_numbers_of_one(
    place, tmp_path, masks_and_boxes, small_multitask, free_port
):
    reference = ["--reference", f"{place}/net.py:model"]
    real = f"multitask:{small_multitask}"
    commands = [
        imagenet(place, "net.iqv", *reference),
        imagenet(place, "net", *reference, "--images", "17"),
        imagenet(place, "net.py:dying"),
        *(both_heads(masks_and_boxes, real, task) for task in ("segmentation", "coco")),
        both_heads(masks_and_boxes, real, "multitask"),
    ]
    for number, command in enumerate(commands):
        assert main([*command, "--json", str(tmp_path / f"one{number}")]) == 0
    given = [
        (free_port(), [*command, "--json", str(tmp_path / f"two{number}")])
        for number, command in enumerate(commands)
    ]
    results = ["--results", str(tmp_path / "results.json")]
    given[4][1].extend(results)
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps(given)],
            env={**environment, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    out = [process.communicate(timeout=500)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    for number in range(len(commands)):
        assert told(tmp_path / f"two{number}") == told(tmp_path / f"one{number}")
    assert told(tmp_path / "two0")["sqnr_db"] > 10
    assert told(tmp_path / "two0")["skipped"] == 1
    assert (len(re.findall(r"^top1\t", out[0], re.MULTILINE)), out[1]) == (3, "")
    assert json.loads((tmp_path / "results.json").read_bytes())


def test_a_process_that_dies_leaves_no_result_but_what_it_had_scored(place, tmp_path):
    command = imagenet(place, "net.py:dying", "--json", "found.json", "--resume", "kept")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "DIES": "yes", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, "-m", "iqvit", *command],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "top1" not in done.stdout
    assert not (tmp_path / "found.json").exists()
    assert "there is no result" in done.stderr
    assert "SIGKILL" in done.stderr
    kept = {p.name: p.read_bytes().count(b'"unit"') for p in (tmp_path / "kept").iterdir()}
    assert kept["part-00001.jsonl"] == 1

    assert main(imagenet(place, "net.py:dying", "--json", f"{tmp_path}/whole.json")) == 0
    going_on = ["--json", f"{tmp_path}/found.json", "--resume", f"{tmp_path}/kept"]
    assert main(imagenet(place, "net.py:dying", *going_on)) == 0
    assert told(tmp_path / "found.json") == told(tmp_path / "whole.json")


def test_results_are_not_taken_from_another_evaluation(place, tmp_path, capsys):
    resume = ["--resume", str(tmp_path / "kept")]
    assert main(imagenet(place, "net.iqv", *resume)) == 0
    assert main(imagenet(place, "net.iqv", *resume)) == 0
    for model, more, names in (
        ("net", [], "model, kind of model"),
        ("net.iqv", ["--images", "9"], "images, labels"),
        ("net.iqv", ["--reference", f"{place}/net.py:model"], "reference"),
    ):
        assert main(imagenet(place, model, *resume, *more)) == 2
        assert f"another evaluation: it differs in {names}" in capsys.readouterr().err


def test_a_file_where_results_are_to_be_kept(place, tmp_path, capsys):
    (tmp_path / "kept").write_text("mine")
    assert main(imagenet(place, "net.iqv", "--resume", str(tmp_path / "kept"))) == 2
    assert "it is a file where a folder is needed" in capsys.readouterr().err
    assert (tmp_path / "kept").read_text() == "mine"
