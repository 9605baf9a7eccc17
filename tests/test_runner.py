"""Artifacts on a board: the runner in C, ARM under an emulator, and Python without torch.

ARM runs need `qemu-aarch64-static` (or `qemu-aarch64`), a C library for it under
/usr/aarch64-linux-gnu, and in IQVIT_ARM_RUNTIME a folder with the unpacked aarch64 wheels of
apache-tvm and apache-tvm-ffi; `.ci/run` prepares that. Without them they are skipped.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
import tvm_ffi
from growing import drawn_images, grow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loose import one_node
from tvm import relax

from iqvit import tvm_backend
from iqvit.calibration.quantize import quantize
from iqvit.errors import GraphError, TargetError
from iqvit.interpret import run
from iqvit.models.vit import ViT, ViTConfig
from iqvit.ops.base import REGISTRY
from iqvit.tvm_backend import linker
from iqvit.tvm_backend.artifact import read_manifest, tensors_text
from iqvit.tvm_backend.channels_last import TO_LAST, ChannelsLast
from iqvit.tvm_backend.kernels.conv import OFFERS
from iqvit.tvm_backend.lower import Lowering
from iqvit.tvm_backend.machine_code import machine_code
from iqvit.tvm_backend.pipeline import build
from iqvit.tvm_backend.plan import FAST, Step, plain_nodes, plan
from iqvit.tvm_backend.targets import TARGETS, missing_features

HERE = {"tvm": Path(tvm.__file__).parent, "tvm_ffi": Path(tvm_ffi.__file__).parent}
ARM = [name for name, target in TARGETS.items() if target.machine == "aarch64"]


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(3)
    sizes = {"image_size": 24, "patch_size": 8, "width": 40, "depth": 1, "heads": 2, "classes": 7}
    model = ViT(ViTConfig(mlp_ratio=2, **sizes)).eval()
    return quantize(model, torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(5)
    found = rng.integers(0, 256, (4, 3, 24, 24)).astype(np.uint8)
    found[2], found[3] = 0, rng.choice([0, 255], found[3].shape)
    return found


@pytest.fixture(scope="module")
def emulated_board(benchmark_script):
    """The script of that name, which builds and runs the runner."""
    return benchmark_script("emulated_board")


@pytest.fixture(scope="module")
def answer(emulated_board, graph, images):
    """The bytes that the runner should write."""
    return b"".join(emulated_board.answer(graph, images))


def call(*command, stdin=None):
    return subprocess.run([str(c) for c in command], capture_output=True, input=stdin, check=False)


@pytest.fixture(scope="module")
def here(emulated_board, graph, tmp_path_factory):
    """A runner for this machine and an artifact that takes frames of a camera."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    place = tmp_path_factory.mktemp("here")
    artifact = tvm_backend.compile(graph, place / "artifact", input_layout="nhwc")
    return emulated_board.build_runner(place, ["gcc"], HERE), artifact


def test_frames_of_a_camera_give_the_integers_of_the_interpreter(here, answer, images, tmp_path):
    runner, artifact = here
    (tmp_path / "frames").write_bytes(images.transpose(0, 2, 3, 1).tobytes())
    options = ["-t", "1", "-r", "3", "-o", tmp_path / "out"]
    done = call(runner, *options, artifact, tmp_path / "frames")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_bytes() == answer
    lines = dict(line.split() for line in done.stderr.decode().splitlines())
    assert lines["frames"] == "4"
    assert 0 < float(lines["latency_min_ms"]) <= float(lines["latency_ms"])


def test_frames_from_a_pipe_and_results_into_one(here, answer, images):
    runner, artifact = here
    frames = images.transpose(0, 2, 3, 1).tobytes()
    done = call(runner, "-o", "-", artifact, "-", stdin=frames)
    assert (done.returncode, done.stdout) == (0, answer)


@pytest.mark.parametrize(
    ("arguments", "frames", "message"),
    [
        (["-t", "0", "{}", "-"], b"", "error: -t needs a number of at least 1"),
        (["-x", "1", "{}", "-"], b"", "error: unknown option -x"),
        (["{}"], b"", "error: usage: runner"),
        (["{}/absent", "-"], b"", "model.txt: is "),
        (["{}", "/absent"], b"", "error: cannot open /absent"),
        (["{}", "-"], b"", "error: - holds no frame"),
        (["{}", "-"], b"12345", "error: the last frame has 5 bytes where 1728 are wanted"),
    ],
)
def test_the_runner_says_what_is_wrong(here, arguments, frames, message):
    runner, artifact = here
    done = call(runner, *(a.replace("{}", str(artifact)) for a in arguments), stdin=frames)
    assert done.returncode == 2
    assert message in done.stderr.decode()


def test_python_takes_either_layout(here, graph, images):
    _, folder = here
    manifest = read_manifest(folder)
    assert manifest["input_layout"] == "nhwc"
    assert manifest["inputs"][0]["shape"] == [1, 24, 24, 3]
    assert manifest["graph_hash"] == graph.hash
    artifact = tvm_backend.load(folder)
    assert artifact.input_shape == (1, 3, 24, 24)
    expected = run(graph, torch.from_numpy(images))
    for name, value in artifact(images).items():
        assert np.array_equal(value, expected[name].numpy())


def test_an_unknown_layout_is_refused(graph, tmp_path):
    with pytest.raises(GraphError, match=r"layout 'hwc' is none of nchw, nhwc"):
        tvm_backend.compile(graph, tmp_path / "artifact", "portable", input_layout="hwc")


def test_a_board_needs_no_torch(here, graph, images, tmp_path):
    _, folder = here
    np.save(tmp_path / "images.npy", images)
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"  # an import of it raises
        "import numpy\n"
        "from iqvit.tvm_backend import load\n"
        f"results = load({str(folder)!r})(numpy.load({str(tmp_path / 'images.npy')!r}))\n"
        f"numpy.save({str(tmp_path / 'out.npy')!r}, results['logits'])\n"
    )
    done = call(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    expected = run(graph, torch.from_numpy(images))["logits"].numpy()
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)


def cross_compiler():
    try:
        return linker.cross_compiler("aarch64")
    except TargetError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def for_arm(graph, tmp_path_factory):
    """The artifacts for ARM that take frames of a camera, by target."""
    cross_compiler()
    place = tmp_path_factory.mktemp("arm")
    return {
        name: tvm_backend.compile(graph, place / name, name, input_layout="nhwc") for name in ARM
    }


@pytest.mark.parametrize("target", ARM)
def test_libraries_for_arm_hold_no_float_instruction(target, graph, for_arm):
    folder = for_arm[target]
    found = machine_code(folder / "model.so")
    assert (found.machine, found.found) == ("aarch64", ())
    assert read_manifest(folder)["machine_code"]["float_instructions"] == 0
    assert plain_nodes(plan(graph, TARGETS[target])) == []
    if linker.machine() != "aarch64":
        with pytest.raises(TargetError, match=rf"{target} on aarch64; this machine is x86_64"):
            tvm_backend.load(folder)


def test_without_a_cross_compiler_it_is_said_what_to_install(graph, tmp_path, monkeypatch):
    if linker.machine() == "aarch64":
        pytest.skip("this is ARM")
    monkeypatch.setattr(linker.shutil, "which", lambda _: None)
    monkeypatch.setattr(linker.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(TargetError, match="pip install ziglang"):
        tvm_backend.compile(graph, tmp_path / "artifact", "arm64-neon")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def board(emulated_board, tmp_path_factory):
    """An emulated ARM with the runner."""
    if not (Path(os.environ.get("IQVIT_ARM_RUNTIME", "")) / "tvm" / "lib").is_dir():
        pytest.skip("IQVIT_ARM_RUNTIME names no folder with TVM's runtime for ARM")
    try:
        return emulated_board.board(tmp_path_factory.mktemp("board"))
    except TargetError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("target", ARM)
def test_arm_gives_the_integers_of_the_interpreter(
    target, emulated_board, board, answer, images, for_arm
):
    frames = images.transpose(0, 2, 3, 1).tobytes()
    assert board.results(emulated_board.CPUS[target], for_arm[target], frames) == answer


def samples():
    """Those of all operators, and of operators over images also with the channels last."""
    for kind in REGISTRY.values():
        for sample in kind.samples():
            yield sample
            if kind in OFFERS:
                x, *constants = sample.inputs
                last = replace(x, shape=tuple(x.shape[d] for d in TO_LAST))
                yield replace(sample, op=ChannelsLast(sample.op), inputs=(last, *constants))


def samples_library(target, folder):
    """Every sample that a fast kernel takes, in one library; the samples and their free inputs."""
    builder, functions, taken = relax.BlockBuilder(), {}, []
    for sample in samples():
        graph, group, values = one_node(sample)
        offer = FAST.get(type(sample.op))
        call = None if offer is None else offer(graph, group, target.isa)
        if call is not None:
            free = [value for value in values if value.type.value is None]
            taken.append((sample, graph, Step(group, call), free))
    tensors = [
        [relax.Var(f"s{i}_{n.name}", relax.TensorType(n.type.shape, n.type.dtype)) for n in free]
        for i, (_, _, _, free) in enumerate(taken)
    ]
    with builder.function("main", [variable for row in tensors for variable in row]):
        with builder.dataflow():
            results = []
            for (_, graph, step, free), row in zip(taken, tensors, strict=True):
                known = {node.name: variable for node, variable in zip(free, row, strict=True)}
                lowering = Lowering(graph, builder, known, functions)
                lowering.emit(step)
                results.append(lowering.value("out"))
            everything = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(everything)
    folder.mkdir()
    link = linker.linker(target.machine, folder)
    build(builder.get(), target).export_library(str(folder / "model.so"), fcompile=link)
    kinds = [node.type for _, _, _, free in taken for node in free]
    outs = [step.group.head.type for _, _, step, _ in taken]
    described = {
        key: [{"name": "t", "dtype": k.dtype, "shape": k.shape} for k in listed]
        for key, listed in (("inputs", kinds), ("outputs", outs))
    }
    (folder / "model.txt").write_text(tensors_text(described))
    return [(sample, free) for sample, _, _, free in taken]


def test_instructions_of_an_inference_are_counted(emulated_board, board, images, for_arm):
    frame = images[0].transpose(1, 2, 0).tobytes()
    folder, cpu = for_arm["arm64-dotprod"], emulated_board.CPUS["arm64-dotprod"]
    one, two, three = (board.instructions(cpu, folder, frame * n) for n in (1, 2, 3))
    assert 10_000 < two - one < one
    assert abs((three - two) - (two - one)) < 0.05 * (two - one)


def test_instructions_of_a_log(emulated_board):
    block = "----------------\nIN: main\n0x{at:08x}:  d503201f  nop\n0x{then:08x}:  d65f03c0  ret\n"
    trace = "Trace 0: 0x7f94f8a00100 [0000000001009331/{at:016x}/00000001/00000200] main\n"
    first, second = (block.format(at=at, then=at + 4) for at in (64, 96))
    short = "IN: main\n0x00000044:  d65f03c0  ret\n"
    traces = {at: trace.format(at=at) for at in (64, 68, 96)}
    log = first + traces[64] * 3 + second + traces[96] + short + traces[68] + traces[64]
    assert emulated_board.executed(log.splitlines(keepends=True)) == 2 * 5 + 1


def draw(kind, mode, rng):
    if mode == "extreme":
        return rng.choice([kind.lo, kind.hi], kind.shape).astype(kind.dtype)
    return rng.integers(kind.lo, kind.hi + 1, kind.shape).astype(kind.dtype)


@pytest.mark.parametrize("target", ARM)
def test_every_kernel_on_arm_gives_the_integers_of_its_operator(
    target, emulated_board, board, tmp_path
):
    taken = samples_library(TARGETS[target], tmp_path / "samples")
    assert machine_code(tmp_path / "samples" / "model.so").found == ()
    assert {sample.op.NAME for sample, _ in taken} >= {"attention", "conv2d", "layernorm", "linear"}
    rng = np.random.default_rng(0)
    frames = b""
    expected = []
    for mode in ("random", "extreme", "random"):
        for sample, free in taken:
            drawn = {node.name: draw(node.type, mode, rng) for node in free}
            frames += b"".join(value.tobytes() for value in drawn.values())
            args = [
                torch.from_numpy(drawn[f"x{i}"] if kind.value is None else kind.value.copy())
                for i, kind in enumerate(sample.inputs)
            ]
            expected.append((sample, sample.op.run(*args).numpy()))
    written = board.results(emulated_board.CPUS[target], tmp_path / "samples", frames)
    at = 0
    for sample, value in expected:
        found = np.frombuffer(written, value.dtype, value.size, at).reshape(value.shape)
        np.testing.assert_array_equal(found, value, err_msg=str(sample.op))
        at += value.nbytes
    assert at == len(written)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_programs_on_arm_give_the_integers_of_the_interpreter(emulated_board, board, data):
    target = data.draw(st.sampled_from(ARM))
    graph = grow(data)
    images = drawn_images(graph.input.type.shape)
    with tempfile.TemporaryDirectory() as place:
        folder = tvm_backend.compile(graph, Path(place) / "artifact", target)
        written = board.results(emulated_board.CPUS[target], folder, images.tobytes())
    assert written == b"".join(emulated_board.answer(graph, images))


def test_features_of_arm_are_what_the_targets_need():
    assert missing_features(TARGETS["arm64-neon"].features, {"asimd"}) == []
    assert missing_features(TARGETS["arm64-i8mm"].features, {"asimd"}) == ["asimddp", "i8mm"]
