"""Artifacts: written whole, loaded only where they match and can run, called with batches."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from iqvit.errors import DataError, FileFormatError, GraphError, TargetError
from iqvit.tvm_backend.artifact import read_manifest, write_artifact
from iqvit.tvm_backend.check import assert_no_float
from iqvit.tvm_backend.pipeline import build
from iqvit.tvm_backend.runtime import load
from iqvit.tvm_backend.targets import TARGETS
from iqvit.tvm_backend.threads import prepare_threads, set_threads

SHAPE = (1, 3, 4, 5)
MANIFEST = {
    "graph_hash": "0" * 64,
    "target": {"name": "portable", "features": []},
    "inputs": [{"name": "pixels", "dtype": "uint8", "shape": list(SHAPE)}],
    "outputs": [
        {"name": "doubled", "dtype": "int16", "shape": list(SHAPE), "scale": 0.5, "zero_point": 0},
        {"name": "offset", "dtype": "int16", "shape": list(SHAPE), "scale": 1.0, "zero_point": 7},
    ],
    "labels": ["cat", "dog"],
    "preprocessing": {"resize": 256},
}


def elementwise(name, of, inner="int32"):
    """A function `name(x uint8, out int16)` that stores `of(x)`."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "global_symbol": name})
        x = T.arg("x", T.buffer(SHAPE, "uint8"))
        out = T.arg("out", T.buffer(SHAPE, "int16"))
        with T.grid(*SHAPE) as index:
            value = of(T.Cast(inner, x[tuple(index)]))
            T.buffer_store(out, T.Cast("int16", value), list(index))
    return builder.get()


def two_outputs(double=lambda x: x * 2, inner="int32"):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "uint8"))
    functions = [
        builder.add_func(elementwise("doubled", double, inner), "doubled"),
        builder.add_func(elementwise("offset", lambda x: x + 7), "offset"),
    ]
    out = relax.TensorType(SHAPE, "int16")
    with builder.function("main", [x]):
        with builder.dataflow():
            results = [builder.emit(relax.call_tir(f, [x], out)) for f in functions]
            both = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(both)
    return builder.get()


@pytest.fixture(scope="module")
def executable():
    return build(two_outputs(), TARGETS["portable"])


@pytest.fixture
def folder(executable, tmp_path):
    return write_artifact(tmp_path / "artifact", executable, MANIFEST)


def change(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_numpy_in_numpy_out_and_torch_in_torch_out(folder):
    artifact = load(folder)
    x = np.random.default_rng(0).integers(0, 256, (3, *SHAPE[1:])).astype(np.uint8)
    results = artifact(x)
    assert list(results) == ["doubled", "offset"] == list(artifact.output_names)
    assert results["doubled"].dtype == np.int16
    assert np.array_equal(results["doubled"], x.astype(np.int16) * 2)
    assert np.array_equal(results["offset"], x.astype(np.int16) + 7)
    same = artifact(torch.from_numpy(x))
    assert all(torch.equal(same[name], torch.from_numpy(results[name])) for name in results)


def test_inputs_in_any_memory_layout(folder):
    artifact = load(folder)
    x = np.random.default_rng(0).integers(0, 256, (2, *SHAPE[1:])).astype(np.uint8)
    expected = x.astype(np.int16) + 7
    shifted = np.zeros(x.size + 1, np.uint8)[1:].reshape(x.shape)
    shifted[...] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    for given in (shifted, frozen, np.asfortranarray(x), x[:, ::-1][:, ::-1]):
        assert np.array_equal(artifact(given)["offset"], expected)
    turned = torch.from_numpy(x).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert np.array_equal(artifact(turned)["offset"].numpy(), expected)


def test_results_do_not_change_with_the_next_call(folder):
    artifact = load(folder)
    first = artifact(np.zeros(SHAPE, np.uint8))["offset"]
    artifact(np.full(SHAPE, 9, np.uint8))
    assert (first == 7).all()


def test_threads_are_switched_within_one_process(folder):
    number = tvm.get_global_func("runtime.NumThreads")
    for threads in (1, prepare_threads(), 1):
        load(folder, threads=threads)
        assert number() == threads
    for wrong in (0, prepare_threads() + 1):
        with pytest.raises(TargetError, match=f"cannot run on {wrong} threads"):
            set_threads(wrong)


def test_manifest_says_what_was_written(folder):
    manifest = read_manifest(folder)
    assert manifest["labels"] == ["cat", "dog"]
    assert manifest["format_version"] == 1
    assert manifest["versions"].keys() == {"iqvit", "tvm", "tvm_ffi"}
    assert manifest["machine_code"]["float_instructions"] == 0
    files = ["manifest.json", "model.so", "model.txt", "runner.c"]
    assert sorted(p.name for p in folder.iterdir()) == files
    assert [p.name for p in folder.parent.iterdir()] == ["artifact"]


def test_an_artifact_is_replaced_and_anything_else_is_not(folder, executable):
    write_artifact(folder, executable, MANIFEST | {"labels": []})
    assert read_manifest(folder)["labels"] == []
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileFormatError, match="is not an artifact; remove it"):
        write_artifact(folder, executable, MANIFEST)
    assert (folder / "notes.txt").read_text() == "mine"


def test_an_artifact_made_anew_in_the_same_folder_is_the_one_that_is_loaded(folder):
    x = np.full(SHAPE, 3, np.uint8)
    assert load(folder)(x)["doubled"].max() == 6
    tripled = build(two_outputs(double=lambda x: x * 3), TARGETS["portable"])
    write_artifact(folder, tripled, MANIFEST)
    assert load(folder)(x)["doubled"].max() == 9


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    class Full:
        def export_library(self, file_name, fcompile):
            raise OSError(28, "No space left on device")

    with pytest.raises(FileFormatError, match=r"cannot write .*: No space left on device"):
        write_artifact(tmp_path / "artifact", Full(), MANIFEST)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileFormatError, match="cannot write"):
        write_artifact(tmp_path / "file" / "artifact", Full(), MANIFEST)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("key", ["graph_hash", "target", "inputs", "preprocessing"])
def test_an_incomplete_manifest_is_not_written(key, executable, tmp_path):
    manifest = {k: v for k, v in MANIFEST.items() if k != key}
    with pytest.raises(FileFormatError, match=f"'{key}' is missing"):
        write_artifact(tmp_path / "artifact", executable, manifest)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_whole_artifact_is_refused(folder, tmp_path):
    with pytest.raises(FileFormatError, match=r"it has no manifest\.json"):
        load(tmp_path)
    for text in ("{", "[]", '{"format": "other"}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(FileFormatError, match=r"manifest\.json"):
            load(tmp_path)
    (folder / "model.so").unlink()
    with pytest.raises(FileFormatError, match=r"it has no model\.so"):
        load(folder)


def test_an_unknown_version_is_refused(folder):
    change(folder, format_version=2)
    with pytest.raises(FileFormatError, match="format version 2; this iqvit reads version 1"):
        load(folder)


def test_a_missing_key_is_named(folder):
    change(folder, outputs=[{"name": "doubled"}])
    with pytest.raises(FileFormatError, match="'outputs' has an entry without"):
        load(folder)


def test_another_library_is_refused(folder):
    with (folder / "model.so").open("ab") as file:
        file.write(b"x")
    with pytest.raises(FileFormatError, match="is not the library that"):
        load(folder)


def test_missing_cpu_features_are_named(folder):
    change(folder, target={"name": "x86-amx", "features": ["amx_int8", "amx_tile_9"]})
    with pytest.raises(TargetError, match=r"compiled for x86-amx; this CPU lacks .*amx_tile_9"):
        load(folder)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 3, 4, 6), np.uint8), r"shape \(N, 3, 4, 5\) with N >= 1, got \(1, 3, 4, 6\)"),
        (np.zeros((0, 3, 4, 5), np.uint8), r"got \(0, 3, 4, 5\)"),
        (np.zeros((3, 4, 5), np.uint8), r"got \(3, 4, 5\)"),
        (np.zeros(SHAPE, np.int8), "must be uint8, got int8"),
        (torch.zeros(SHAPE), "must be uint8, got float32"),
        ([1], "must be a numpy array or torch tensor"),
    ],
)
def test_a_wrong_input_is_told(folder, x, message):
    with pytest.raises(DataError, match=message):
        load(folder)(x)


def test_loading_and_running_need_no_torch(folder):
    # TVM imports torch where it is installed; None makes it look as if it were not.
    program = (
        "import sys, numpy as np\n"
        "sys.modules['torch'] = None\n"
        "from iqvit.tvm_backend.runtime import load\n"
        f"load({str(folder)!r})(np.zeros({SHAPE}, np.uint8))\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_float_in_a_tir_function_is_named():
    module = two_outputs(lambda x: x * T.float32(2), "float32")
    with pytest.raises(GraphError, match=r"(?s)function\s+doubled.*float32"):
        assert_no_float(module)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", "float64"])
def test_float_in_a_relax_function_is_named(dtype):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "uint8"))
    with builder.function("main", [x]):
        real = builder.emit(relax.op.astype(x, dtype))
        builder.emit_func_output(builder.emit(relax.op.astype(real, "int16")))
    with pytest.raises(GraphError, match=rf"(?s)function\s+main.*{dtype}"):
        assert_no_float(builder.get())


def test_a_float_buffer_that_is_never_read_is_found():
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("f")
        out = T.arg("out", T.buffer((4,), "int32"))
        T.alloc_buffer((4,), "float32", scope="local")
        T.buffer_store(out, T.int32(0), [0])
    with pytest.raises(GraphError, match="float32"):
        assert_no_float(tvm.IRModule({"f": builder.get()}))
