"""The comparisons with other toolchains: what they count, and what happens where a peer fails."""

import json
import re
import time
from contextlib import ExitStack
from typing import ClassVar

import pytest
import torch
from torch import nn

from iqvit.errors import DataError, IqvitError


@pytest.fixture(autouse=True)
def _scripts(request, monkeypatch):
    """The folder of the scripts, as when one of them is run."""
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")


class Small(nn.Module):
    """Two convolutions, one of them in groups, and products with weights and with each other.

    16 channels, as ONNX Runtime pads those of a float convolution to a multiple of that.
    """

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 1, 0, groups=4)
        self.linear = nn.Linear(32, 5)

    def forward(self, x):
        x = self.second(self.first(x).relu()).flatten(2)
        return self.linear((x @ x.transpose(1, 2)).softmax(-1) / 2)


SMALL_SHAPE = (1, 3, 20, 28)
SMALL_MACS = 16 * 140 * 27 + 32 * 96 * 36 + 32 * 32 * 96 + 32 * 32 * 5


def test_macs_of_products_do_not_depend_on_transposition():
    from executed import convolution_macs, product_macs

    assert product_macs([7, 3], [3, 5], [7, 5]) == 105
    assert product_macs([2, 7, 3], [5, 3], [2, 7, 5]) == 210
    assert product_macs([2, 4, 7, 3], [2, 4, 3, 5], [2, 4, 7, 5]) == 840
    assert product_macs([2, 4, 7, 3], [2, 4, 5, 3], [2, 4, 7, 5]) == 840
    assert convolution_macs([12, 2, 3, 3], [1, 12, 8, 12], 12) == 12 * 96 * 18


@pytest.mark.parametrize(
    ("kind", "inputs", "output", "expected"),
    [
        (
            "QLinearMatMul",
            [{"uint8": [3, 4, 6]}, {"float": []}, {"uint8": []}, {"uint8": [3, 6, 5]}],
            {"uint8": [3, 4, 5]},
            (False, 1, 360),
        ),
        (
            "DynamicQuantizeMatMul",
            [{"float": [4, 6]}, {"int8": [6, 5]}, {"float": [5]}],
            {"float": [4, 5]},
            (False, 1, 120),
        ),
        ("FusedMatMul", [{"float": [4, 6]}, {"float": [5, 6]}], {"float": [4, 5]}, (True, 1, 120)),
        (
            "QLinearConv",
            [{"uint8": [1, 8, 8, 4]}, {"float": []}, {"uint8": []}, {"int8": [6, 2, 3, 3]}],
            {"uint8": [1, 8, 8, 6]},
            (False, 1, 6912),
        ),
        ("QLinearConcat", [{"float": []}, {"uint8": []}], {"uint8": [4]}, (False, 0, 0)),
        ("Softmax", [{"float": [4, 6]}], {"float": [4, 6]}, (True, 0, 0)),
        ("Div", [{"int64": [4]}, {"int64": []}], {"int64": [4]}, (False, 0, 0)),
    ],
)
def test_a_step_of_onnx_runtime(kind, inputs, output, expected):
    from executed import ort_step

    step = ort_step(kind, inputs, [output])
    assert step is not None
    assert (step.in_float, step.products, step.macs) == expected


@pytest.mark.parametrize("kind", ["Reshape", "ReorderInput", "DequantizeLinear"])
def test_moves_and_changes_of_format_are_no_steps(kind):
    from executed import ort_step

    assert ort_step(kind, [{"float": [4, 6]}], [{"float": [6, 4]}]) is None


def test_what_stays_in_float():
    from executed import Step, in_float

    steps = [
        Step("QGemm", False, 1, 300),
        Step("MatMul", True, 1, 100),
        Step("Softmax", True),
        Step("Softmax", True),
        Step("QLinearAdd", False),
        Step("GridSample", True),
    ]
    assert in_float(steps) == {
        "products": 2,
        "float_products": 1,
        "macs": 400,
        "float_macs_share": 25.0,
        "float_ops": 3,
        "float_kinds": "2 Softmax, 1 GridSample",
    }


def test_products_that_a_fused_piece_of_openvino_holds():
    from executed import held_products

    known = {"/a/MatMul": 5, "/a/MatMul_1": 7, "/b/MatMul": 9}
    names = "/a/MatMul/DequantizationMultiply,/a/Softmax,/a/MatMul_1,/b/MatMul/fq_input_0"
    assert held_products(names, known) == {"/a/MatMul", "/a/MatMul_1"}


def export(path):
    pytest.importorskip("onnx")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Small().eval()
    torch.onnx.export(
        module, (torch.zeros(SMALL_SHAPE),), str(path), input_names=["pixels"], dynamo=False
    )


def test_macs_in_eager_pytorch():
    from executed import eager_macs

    assert eager_macs(Small().eval(), torch.zeros(SMALL_SHAPE)) == SMALL_MACS


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_macs_in_a_runtime_are_those_of_the_model(runtime, tmp_path):
    pytest.importorskip(runtime)
    export(tmp_path / "small.onnx")
    from executed import in_float
    from runtimes import ONNX_RUNTIME, OPENVINO_F32

    chosen = {"onnxruntime": ONNX_RUNTIME, "openvino": OPENVINO_F32}[runtime]
    left = in_float(chosen.steps(tmp_path / "small.onnx", torch.zeros(SMALL_SHAPE).numpy()))
    assert (left["products"], left["float_products"]) == (4, 4)
    assert left["macs"] == SMALL_MACS
    assert left["float_macs_share"] == 100


@pytest.mark.parametrize(
    ("name", "stays"),
    [
        ("/module/detector/decoder/layers.0/cross_attn/GridSample", True),
        ("/module/detector/model/enc_output/enc_output.0/MatMul", True),
        ("/module/TopK", True),
        ("/module/detector/encoder/aifi.0/ffn/fc1/MatMul", False),
        ("/module/detector/model/encoder_input_proj.0/Conv", False),
        ("/module/detector/backbone/vit/blocks/blocks.0/attn/MatMul_1", False),
        ("gemm_input_reshape", False),
    ],
)
def test_names_of_what_is_behind_the_encoder(name, stays):
    from detection_peers import DECODER

    assert bool(re.match(DECODER, name)) is stays


def test_a_peer_that_is_not_known():
    from comparing import chosen

    assert chosen("b,a,b", {"a": 1, "b": 2, "c": 3}) == ["b", "a"]
    assert chosen("") == []
    with pytest.raises(IqvitError, match="no peer nonesuch; there are a, b"):
        chosen("a,nonesuch", {"a": 1, "b": 2})


def test_a_peer_that_fails_has_the_reason_in_its_row():
    from comparing import Job, compare

    def fail():
        raise RuntimeError("no kernel for Foo\nsecond line")

    def mistake():
        raise DataError("x.jpg cannot be read")

    rows = compare([Job({"peer": "a", "note": ""}, fail)], None, [1], 3, lambda *_: None)
    assert rows == [{"peer": "a", "note": "", "error": "RuntimeError: no kernel for Foo"}]
    with pytest.raises(DataError):
        compare([Job({"peer": "b", "note": ""}, mistake)], None, [1], 3, lambda *_: None)


def test_a_library_that_is_missing_is_named_with_what_installs_it():
    from comparing import reason

    missing = ModuleNotFoundError("No module named 'executorch.exir'", name="executorch.exir")
    assert reason(missing) == "executorch is not installed: pip install -e '.[executorch]'"
    missing = ModuleNotFoundError("No module named 'nonesuch'", name="nonesuch")
    assert reason(missing) == "ModuleNotFoundError: No module named 'nonesuch'"
    assert reason(RuntimeError()) == "RuntimeError: "


class Napping:
    """A peer as far as timing goes: every call takes so many seconds."""

    facts: ClassVar[dict] = {}

    def __init__(self, seconds):
        self.seconds, self.threads = seconds, []

    def set_threads(self, threads):
        self.threads.append(threads)

    def example(self):
        return None

    def call(self, x):
        time.sleep(self.seconds)


def test_a_slow_peer_has_fewer_runs_and_the_others_all():
    from comparing import Job, compare

    slow, usual, failing = Napping(0.02), Napping(0), {"peer": "failing", "note": ""}

    def fail():
        raise RuntimeError("no")

    jobs = [
        Job({"peer": "slow", "note": ""}, lambda: slow, 0.05),
        Job({"peer": "usual", "note": ""}, lambda: usual),
        Job(failing, fail, 1.0),
    ]
    rows = compare(jobs, None, [2, 1], 4, lambda *_: None)
    assert [row.get("runs@2") for row in rows] == [2, 4, None]
    assert rows[0]["latency_ms@1"] >= 20
    assert failing == {"peer": "failing", "note": "", "error": "RuntimeError: no"}
    assert slow.threads[:3] == [2, 1, 1]


OURS = {"peer": "iqvit", "macs": 3_000_000, "latency_ms@1": 2.0, "peak_gmacs@1": 3.0}
FAST = {"peer": "openvino-float32", "latency_ms@1": 1.5}
FAILED = {"peer": "tvm-float32", "error": "OpNotImplemented: TopK"}


def test_a_line_of_the_table_of_speed():
    from speed import line

    peers = ["openvino-float32", "tvm-float32", "absent"]
    assert line("m", [OURS, FAST, FAILED], 1, peers) == (
        "| m | 1 | 2.0 | 50 % | 0.75x (1.5) | – |  |"
    )
    broken = {"peer": "iqvit", "error": "RuntimeError: no"}
    assert line("m", [broken, FAST, FAILED], 1, peers) == "| m | 1 | – | – | 1.5 | – |  |"
    # Timed at other numbers of threads only, which is no failure.
    assert line("m", [OURS | {"latency_ms@2": 1.0, "peak_gmacs@2": 6.0}, FAST], 2, peers) == (
        "| m | 2 | 1.0 | 50 % |  |  |  |"
    )


def test_shares_are_of_the_largest_peak_of_all_rows(tmp_path):
    from speed import OURS, write_report

    for name, peak in (("deit-tiny-224", 100.0), ("deit-small-224", 200.0)):
        row = {"peer": OURS, "macs": 10**9, "latency_ms@1": 20.0, "peak_gmacs@1": peak}
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": [row]}))
    write_report(tmp_path, [1])
    assert (tmp_path / "speed.md").read_text().count("| 25 % |") == 2


def test_the_table_of_speed_says_why_a_peer_failed():
    from speed import table

    other = {"peer": "mine", "latency_ms@1": 4.0}
    assert table({"a": [OURS, FAILED], "b": [OURS, other, FAST]}, [1]) == (
        "| model | threads | iqvit, ms | share of peak | against OpenVINO float32 "
        "| against TVM float32, stock | against mine |\n"
        "|---|---|---|---|---|---|---|\n"
        "| a | 1 | 2.0 | 50 % |  | – |  |\n"
        "| b | 1 | 2.0 | 50 % | 0.75x (1.5) |  | 2.00x (4.0) |\n"
        "\n"
        "–: failed.\n"
        "\n"
        "- a, TVM float32, stock: OpNotImplemented: TopK\n"
    )


def test_usual_peers_of_the_table_of_speed_are_known():
    from comparing import chosen
    from speed import TITLES, USUAL
    from speed_peers import SPEED_PEERS

    assert chosen(USUAL, SPEED_PEERS) == list(TITLES)


@pytest.mark.parametrize("mask", ["none", "keys", "bias"])
def test_attention_in_plain_operators_is_the_same(mask):
    from speed_peers import PlainAttention

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8, generator=generator) for length in (5, 7, 7))
    bias = torch.randn(5, 7, generator=generator)
    attn_mask = {"none": None, "keys": bias > -1, "bias": bias}[mask]
    with PlainAttention():
        found = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask, scale=0.3)
        exported = torch.export.export(Attention(), (q, k, v)).graph_module.code
    wanted = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask, scale=0.3)
    torch.testing.assert_close(found, wanted)
    assert "softmax" in exported
    assert "scaled_dot_product" not in exported


class Attention(nn.Module):
    def forward(self, q, k, v):
        return nn.functional.scaled_dot_product_attention(q, k, v)


@pytest.fixture
def shop(tmp_path):
    """The small model with two images."""
    from workshop import Workshop

    from iqvit.models.float_model import FloatModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(Small(), nn.Flatten(1)).eval()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    model = FloatModel(module, "small", SMALL_SHAPE, mean, std, SMALL_SHAPE[2:])
    images = torch.randint(0, 256, (2, *SMALL_SHAPE[1:]), dtype=torch.uint8)
    return Workshop(model, images, 2, tmp_path)


@pytest.mark.parametrize(
    ("name", "needs", "error"),
    [
        ("tvm-float32", "onnx", 1e-5),
        pytest.param("pytorch-compiled", "torch", 1e-5, marks=pytest.mark.slow),
        pytest.param("executorch-int8", "executorch", 0.2, marks=pytest.mark.slow),
    ],
)
def test_a_peer_of_the_table_of_speed_computes_the_model(name, needs, error, shop):
    pytest.importorskip(needs)
    from comparing import quiet
    from speed_peers import SPEED_PEERS
    from toolchains import open_peer

    x = next(shop.inputs(1))
    with quiet():
        subject = open_peer(name, SPEED_PEERS[name], shop)
        wanted = shop.model.module(torch.from_numpy(x)).detach()
        for threads in (2, 1):
            subject.set_threads(threads)
            found = torch.as_tensor(subject.call(x if needs != "torch" else torch.from_numpy(x))[0])
            assert (found - wanted).square().mean() <= error**2 * wanted.var()


def test_answers_are_remembered_by_the_pixels():
    from comparing import remembered

    asked = []

    def answer(images):
        asked.append(images)
        return int(images.sum())

    recall = remembered(answer)
    one, two = torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.ones(1, 3, 2, 2, dtype=torch.uint8)
    assert [recall(one), recall(two), recall(one.clone())] == [0, 12, 0]
    assert len(asked) == 2


@pytest.mark.slow
def test_integers_up_to_the_maps_then_the_float_decoder(tmp_path):
    from mixed_detector import MAPS, Mixed, in_pytorch
    from workshop import Workshop

    from iqvit.calibration.recipe import Recipe
    from iqvit.interpret import run
    from iqvit.models.float_model import FloatModel
    from iqvit.models.initialise import normalise_layers
    from iqvit.models.rtdetr.config import ResNetConfig, rtdetr_vit_tiny
    from iqvit.models.rtdetr.model import Detections, RTDetr
    from iqvit.serialize import load

    backbone = ResNetConfig(stem=8, channels=(8, 12, 16, 24), depths=(1, 1, 1, 1))
    sizes = {"image_size": (64, 96), "classes": 3, "width": 32, "queries": 10}
    images = torch.randint(0, 256, (3, 3, 64, 96), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    with torch.random.fork_rng(devices=[]), ExitStack() as stack:
        torch.manual_seed(0)
        detector = RTDetr(rtdetr_vit_tiny(backbone=backbone, **sizes)).eval()
        normalise_layers(detector, images / 255)
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        module = Detections(detector, 20).eval()
        model = FloatModel(
            module, "small", (1, 3, 64, 96), mean, std, (64, 96), "squash", task="detection"
        )
        mixed = Mixed(Workshop(model, images, 3, tmp_path), Recipe(), stack, lambda *_: None)
        found = mixed.subject("mixed", in_pytorch).outputs(images)
        program = load(mixed.folder / "encoder.iqv")
    maps = {name: program[node].qparams for name, node in program.outputs.items()}
    assert len(maps) == len(MAPS)
    values = run(program, images)
    real = [qparams.dequantize(values[name]).float() for name, qparams in maps.items()]
    with torch.no_grad():
        wanted = detector.features(images / 255)
        logits = detector.decoder(real)[1]
    for part, other in zip(real, wanted, strict=True):
        # Quantisation noise of a small random network; a wrong scale or order gives 1 or more.
        assert (part - other).square().mean() < 0.1 * other.square().mean()
    best = logits.flatten(1).topk(20, dim=1).values.sigmoid()
    torch.testing.assert_close(found["scores"], best, atol=1e-4, rtol=0)
