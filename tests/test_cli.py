"""Every command, and every bad input, through `iqvit.cli.main` on a tiny model."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from iqvit.cli import main
from iqvit.commands import quantize as quantize_command
from iqvit.commands import screen
from iqvit.commands.outputs import write_metrics
from iqvit.models.vit import ViT, ViTConfig

USER = """
import torch
from torch import nn
from iqvit.models.vit import ViT, ViTConfig

CARD = {"input_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3, "labels": tuple("abcdefgh")}

def tiny():
    sizes = dict(image_size=32, patch_size=8, width=32, depth=1, heads=2, mlp_ratio=2, classes=8)
    return ViT(ViTConfig(**sizes)), CARD

class Odd(nn.Module):
    def forward(self, x):
        y = torch.fft.fft(x).real
        return torch.special.bessel_j0(y).mean((2, 3)).erfinv()

class Branches(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

def odd():
    return Odd(), CARD

def branches():
    return Branches(), CARD
"""


def write_images(folder):
    """Two 64x64 images of each of eight classes, which their names begin with: slopes and noise."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(16):
        slope = np.linspace(0, 1, 64)[:, None, None] * random.uniform(60, 220, 3)
        pixels = slope + random.uniform(0, 35, (64, 64, 3))
        name = f"{index % 8:02d}_{index:05d}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """user.py, images/ of eight classes, model.iqv, artifact/ and weights; not to be changed."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "user.py").write_text(USER)
    write_images(folder / "images")
    sizes = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 1, "heads": 2, "classes": 8}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = ViT(ViTConfig(mlp_ratio=2, **sizes))
    save_file(network.state_dict(), folder / "w.safetensors")
    spec, calib = f"{folder / 'user.py'}:tiny", str(folder / "images")
    made = ["quantize", spec, "--calib", calib, "--weights", str(folder / "w.safetensors")]
    made += ["--images", "8", "-o", str(folder / "model.iqv"), "--json", str(folder / "q.json")]
    assert main(made) == 0
    compiled = ["compile", str(folder / "model.iqv"), "--target", "portable"]
    compiled += ["-o", str(folder / "artifact"), "--json", str(folder / "c.json")]
    assert main(compiled) == 0
    return folder


@pytest.fixture
def call(place, tmp_path, monkeypatch, capsys):
    """call(*arguments) -> (exit code, stdout, stderr), in an empty folder; {} is the place."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument).replace("{}", str(place)) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def refused(result, tmp_path, *words, left=()):
    """One message with all of the words, exit code 2, nothing on stdout, nothing left behind."""
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert sorted(os.listdir(tmp_path)) == sorted(left)


def read(path):
    return json.loads(Path(path).read_text())


def rows(text):
    return [line.split("\t") for line in text.splitlines()]


def test_quantize_reports_flat_metrics(place):
    found = json.loads((place / "q.json").read_text())
    assert all(isinstance(value, int | float | str) for value in found.values())
    assert found["images"] == 8
    assert found["sqnr_db"] > 15
    assert found["params"] > 10_000
    assert {"macs", "bytes", "seconds", "worst_node", "graph_hash"} <= found.keys()
    compiled = json.loads((place / "c.json").read_text())
    for key in ("macs", "params", "bytes", "graph_hash"):
        assert compiled[key] == found[key]


def test_quantize_is_repeatable(call, tmp_path):
    given = ["--calib", "{}/images", "--weights", "{}/w.safetensors", "--images", "8"]
    assert call("quantize", "{}/user.py:tiny", *given, "-o", "once.iqv")[0] == 0
    code, out, err = call("quantize", "{}/user.py:tiny", *given, "-o", "again.iqv")
    assert (code, err) == (0, "")
    assert (tmp_path / "again.iqv").read_bytes() == (tmp_path / "once.iqv").read_bytes()
    assert ["worst nodes", "sqnr_db", "largest_steps", "operator", "source"] in rows(out)


def test_inspect(call):
    code, out, _ = call("inspect", "{}/model.iqv", "--json", "i.json")
    found = dict(row for row in rows(out) if len(row) == 2)
    assert (code, found["float types"], found["output logits"][:10]) == (0, "none", "int16[1,8]")
    assert read("i.json")["float_types"] == 0
    nodes = rows(call("inspect", "{}/model.iqv", "--nodes")[1])
    assert nodes[0][:3] == ["node", "operator", "type"]
    assert len(nodes) > 30
    text = call("inspect", "{}/model.iqv", "--text")[1]
    assert text.startswith("iqvit graph")
    code, out, _ = call("inspect", "{}/artifact")
    assert dict(row for row in rows(out) if len(row) == 2)["target"] == "portable"


def test_predict_is_the_same_for_interpreter_and_library(call, place):
    images = sorted((place / "images").iterdir())[:2]
    code, library, _ = call("predict", "{}/artifact", *images, "--top", "3", "--json", "p.json")
    assert code == 0
    assert call("predict", "{}/model.iqv", *images, "--top", "3")[1] == library
    table = rows(library)
    assert table[0] == ["image", "rank", "class", "label", "score", "value"]
    assert len(table) == 7
    assert table[1][3] == "abcdefgh"[int(table[1][2])]
    assert int(table[1][4]) >= int(table[2][4]) >= int(table[3][4])
    assert read("p.json")["images"] == 2


def test_eval_of_all_kinds_of_models(call):
    given = ["eval", "imagenet", "--data", "{}/images", "--exclude-calib", "8", "--threads", "1"]
    against = ["--reference", "{}/user.py:tiny", "--reference-weights", "{}/w.safetensors"]
    found = {}
    for model in ("{}/model.iqv", "{}/artifact"):
        code, _, err = call(*given, model, *against, "--json", "e.json")
        assert (code, err) == (0, "")
        found[model] = read("e.json")
    code, out, _ = call(*given, "{}/user.py:tiny", "--weights", "{}/w.safetensors")
    assert code == 0
    first, second = found.values()
    same = ("top1", "top5", "agreement", "sqnr_db", "images", "excluded", "macs", "params")
    assert all(first[key] == second[key] for key in same)
    assert first["images"] == first["excluded"] == 8
    assert first["sqnr_db"] > 10
    assert float(dict(rows(out))["top1"]) == first["float_top1"]


def test_bench(call):
    given = ["--runs", "2", "--threads", "1", "--json", "b.json"]
    code, out, err = call("bench", "{}/artifact", "{}/user.py:tiny", *given, "--profile")
    assert code == 0
    found = read("b.json")
    assert found["latency_ms"] > 0
    assert found["fps"] == pytest.approx(1000 / found["latency_ms"])
    assert found["macs"] > 0
    assert found["cores"] >= 1
    assert sum(key.startswith("latency_ms@") for key in found) == 2
    table = rows(out)
    assert ["function", "operators", "calls", "ms", "share"] in [row[:5] for row in table]
    assert [row[0] for row in table[-3:]] == ["kernels", "between", "whole"]
    assert found["profile_macs@kernels"] == found["macs"]
    assert found["profile_ms@whole"] == pytest.approx(
        found["profile_ms@kernels"] + found["profile_ms@between"]
    )
    assert found["profile_operators@attention"].startswith("attention")
    assert "weights are as" not in err


def test_recipe_and_targets(call):
    assert call("recipe")[1].startswith("seed = 0")
    table = rows(call("targets")[1])
    assert table[-1][0] == "portable"
    assert sum(row[1] == "host" for row in table) == 1


def test_help_teaches(call):
    code, out, _ = call("--help")
    assert code == 0
    for name in ("demo", "quantize", "inspect", "compile", "predict", "eval", "bench"):
        assert name in out
        assert "Example" in call(name, *(["imagenet"] if name == "eval" else []), "--help")[1]
    assert call("--version")[1].startswith("iqvit ")
    assert call("quantize")[0] == 2
    assert call("bench", "{}/artifact", "--threads", "two")[0] == 2


def test_the_command_line_starts_without_torch():
    code = "import sys, iqvit.cli; sys.exit('torch' in sys.modules or 'tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_on_a_terminal_tables_are_drawn(monkeypatch, capsys):
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    long = "blocks.0.attn[0]." * 9
    screen.table(("name", "macs"), [("b", None), (long, 1234567)], "Title")
    screen.facts({"name": "[bold]", "share": 0.5, "few": 1e-9, "yes": True})
    out = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert long in "".join(out.replace("1,234,567", "").split())  # folded, not cut
    for text in ("Title", "1,234,567", "[bold]", "0.50", "1e-09", "yes"):
        assert text in out
    with screen.progress() as report, screen.staged(report) as begin:
        report("counting", 1, 2)
        begin("building")
        begin("writing")
    assert "counting" in capsys.readouterr().err


def test_metrics_that_are_no_numbers_become_null(tmp_path):
    write_metrics(tmp_path / "m.json", {"sqnr_db": math.inf, "top1": 1.5, "none": None})
    assert read(tmp_path / "m.json") == {"sqnr_db": None, "top1": 1.5}


# Bad input: a message, exit code 2, nothing left behind.

QUANTIZE = ("quantize", "{}/user.py:tiny", "-o", "out.iqv")


def test_missing_and_corrupt_images_are_named(call, place, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(place / "images", images)
    bad = sorted(images.iterdir())[2]
    bad.write_bytes(bad.read_bytes()[:99])
    refused(call(*QUANTIZE, "--calib", images), tmp_path, bad.name, left=["images"])
    refused(call("predict", "{}/model.iqv", "no.png"), tmp_path, "no.png", left=["images"])
    refused(call("predict", "{}/model.iqv", bad), tmp_path, bad.name, left=["images"])
    given = ["eval", "imagenet", "--data", images, "{}/model.iqv"]
    refused(call(*given), tmp_path, bad.name, left=["images"])

    assert call(*given, "--skip-bad", "--json", "e.json")[0] == 0
    assert read("e.json")["skipped"] == 1
    code, _, err = call(*QUANTIZE, "--calib", images, "--skip-bad", "--json", "q.json")
    found = read("q.json")
    assert (code, found["skipped"], found["images"]) == (0, 1, 15)
    assert bad.name in err
    good = sorted(images.iterdir())[0]
    code, out, err = call("predict", "{}/model.iqv", bad, good, "--top", "1", "--skip-bad")
    assert (code, rows(out)[1][0]) == (0, str(good))
    assert bad.name in err


def test_empty_folder(call, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(call(*QUANTIZE, "--calib", "empty"), tmp_path, "empty", "no images", left=["empty"])
    given = ["eval", "imagenet", "--data", "empty", "{}/model.iqv"]
    refused(call(*given), tmp_path, "no images", left=["empty"])
    refused(call(*QUANTIZE, "--calib", "nowhere"), tmp_path, "nowhere", left=["empty"])


def test_more_images_than_there_are(call, tmp_path):
    refused(call(*QUANTIZE, "--calib", "{}/images", "--images", "17"), tmp_path, "17", "16")


def test_weights_that_do_not_fit(call, tmp_path):
    save_file({"head.weight": torch.zeros(3, 3), "what": torch.zeros(1)}, "w.safetensors")
    result = call(*QUANTIZE, "--calib", "{}/images", "--weights", "w.safetensors")
    refused(result, tmp_path, "missing", "what", "head.weight: [3, 3]", left=["w.safetensors"])


def test_unsupported_operators_are_named_at_once(call, tmp_path):
    result = call("quantize", "{}/user.py:odd", "--calib", "{}/images", "-o", "out.iqv")
    refused(result, tmp_path, "bessel_j0", "erfinv", "fft", "user.py:")


def test_data_dependent_control_flow(call, tmp_path):
    result = call("quantize", "{}/user.py:branches", "--calib", "{}/images", "-o", "out.iqv")
    refused(result, tmp_path, "data-dependent", "user.py:")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[default]\nwieght_bits = 8\n", "wieght_bits"),
        ("[default]\nweight_bits = 9\n", "weight_bits = 9"),
        ("[default]\nbits = 7\n", "bits = 7"),
        ("[default\n", "not valid TOML"),
    ],
)
def test_impossible_recipes(call, tmp_path, text, word):
    (tmp_path / "r.toml").write_text(text)
    result = call(*QUANTIZE, "--calib", "{}/images", "--recipe", "r.toml")
    refused(result, tmp_path, "r.toml", word, left=["r.toml"])


def test_truncated_and_altered_programs(call, place, tmp_path):
    data = (place / "model.iqv").read_bytes()
    (tmp_path / "short.iqv").write_bytes(data[:-9])
    (tmp_path / "other.iqv").write_bytes(data[:-9] + b"?" + data[-8:])
    left = ["short.iqv", "other.iqv"]
    for command in (["inspect"], ["compile", "-o", "a"], ["bench"]):
        refused(call(*command, "short.iqv"), tmp_path, "truncated", left=left)
        refused(call(*command, "other.iqv"), tmp_path, "altered", left=left)
    refused(call("inspect", "none.iqv"), tmp_path, "none.iqv", left=left)
    refused(call("bench", "nothing"), tmp_path, "no file or folder nothing", left=left)


def spoil(place, tmp_path, change):
    """A copy of the artifact whose manifest is changed."""
    folder = tmp_path / "art"
    shutil.copytree(place / "artifact", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_an_artifact_for_another_cpu(call, place, tmp_path):
    spoil(place, tmp_path, lambda m: m["target"].update(name="moon", features=["moonbeam"]))
    for command in (["predict", "art", "x.png"], ["bench", "art"]):
        refused(call(*command), tmp_path, "moonbeam", "moon", left=["art"])
    assert "moonbeam" in call("inspect", "art")[1]


def test_a_manifest_of_another_library(call, place, tmp_path):
    spoil(place, tmp_path, lambda m: m.update(sha256="0" * 64))
    for command in (["predict", "art", "x.png"], ["bench", "art"], ["inspect", "art"]):
        refused(call(*command), tmp_path, "SHA-256", left=["art"])


def test_unwritable_outputs_are_found_before_the_work(call, tmp_path, monkeypatch):
    def work(*_):
        raise AssertionError("the work began")

    monkeypatch.setattr(quantize_command, "calibration_images", work)
    (tmp_path / "file").write_text("x")
    spec = ["quantize", "{}/user.py:tiny", "--calib", "{}/images"]
    for path in ("none/out.iqv", "file/out.iqv", "/proc/out.iqv", "."):
        refused(call(*spec, "-o", path), tmp_path, "cannot write", left=["file"])
    refused(call(*spec, "-o", "m", "--json", "none/j"), tmp_path, "none", left=["file"])
    compiled = ["compile", "{}/model.iqv", "-o"]
    refused(
        call(*compiled, "file"), tmp_path, "it is a file where a folder is needed", left=["file"]
    )
    refused(call(*compiled, "file/a"), tmp_path, "cannot write", left=["file"])
    refused(call(*compiled, "/proc/a"), tmp_path, "cannot write", left=["file"])
    refused(call("demo", "-o", "file"), tmp_path, "it is a file where", left=["file"])
    refused(call("demo", "-o", "."), tmp_path, "exists already", left=["file"])
    refused(call(*compiled, "a", "--target", "moon"), tmp_path, "moon", left=["file"])


def test_models_that_do_not_exist(call, tmp_path):
    spec = ["--calib", "{}/images", "-o", "out.iqv"]
    refused(call("quantize", "moon:vit", *spec), tmp_path, "moon:vit")
    refused(call("quantize", "{}/user.py:no", *spec), tmp_path, "no function 'no'")
    refused(call("bench", "{}/artifact", "{}/artifact"), tmp_path, "named twice")
    result = call("predict", "{}/artifact", "x.png", "--weights", "w.safetensors")
    refused(result, tmp_path, "--weights")


def test_ctrl_c_while_quantising(call, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize_command, "quantize_model", interrupt)
    code, out, err = call(*QUANTIZE, "--calib", "{}/images", "--json", "q.json")
    assert (code, out) == (130, "")
    assert len(err.splitlines()[-1:]) == 1
    assert err.splitlines()[-1].startswith("interrupted")
    assert os.listdir(tmp_path) == []


def test_ctrl_c_leaves_no_demo_behind(tmp_path):
    # A shell that runs the tests in the background has all that they start ignore Ctrl-C.
    heed = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", heed + "from iqvit.cli import main; sys.exit(main())"]
    process = subprocess.Popen(
        [*command, "demo", "-o", "d"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".d-*/scenes/calib")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err) == ("", "interrupted; nothing was written\n")
    assert os.listdir(tmp_path) == []


def test_a_bug_keeps_its_traceback(call, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(quantize_command, "quantize_model", broken)
    with pytest.raises(ZeroDivisionError):
        call(*QUANTIZE, "--calib", "{}/images")


def test_a_reader_that_goes_away(place):
    command = [sys.executable, "-c", "import sys; from iqvit.cli import main; sys.exit(main())"]
    whole = [*command, "inspect", str(place / "model.iqv"), "--text"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(whole, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
