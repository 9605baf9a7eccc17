"""What a manifest says of the functions of its library, and where the time of a run goes."""

import json
import shutil

import numpy as np
import pytest
import tvm

from iqvit import tvm_backend
from iqvit.commands.bench_profile import lines_of
from iqvit.cost import cost
from iqvit.errors import FileFormatError
from iqvit.intgraph import GraphBuilder
from iqvit.inttype import LIMITS
from iqvit.ops import Add, Conv2d, Linear, Permute, Reshape
from iqvit.ops.input import Input
from iqvit.tvm_backend.artifact import MANIFEST, read_manifest
from iqvit.tvm_backend.functions import Function, read_functions
from iqvit.tvm_backend.kernels.linear import requant_of
from iqvit.tvm_backend.kernels.packing import pack_weights
from iqvit.tvm_backend.kernels.requant import scalars_of
from iqvit.tvm_backend.profile import Profile, Row, _record, profile
from iqvit.tvm_backend.runtime import open_library
from iqvit.tvm_backend.targets import HOST, resolve

ROWS, WIDTH = 12, 8
SAME = Add(2**29, 2**29, 0, 30, "int16", *LIMITS["int16"])


def operands(builder, *shape):
    rng = np.random.default_rng(0)
    return [
        builder.constant("weight", rng.integers(-127, 128, shape).astype(np.int8)),
        builder.constant("bias", rng.integers(-99, 99, shape[0]).astype(np.int32)),
        builder.constant("multiplier", np.full(shape[0], 2**30, np.int32)),
    ]


@pytest.fixture(scope="module")
def graph():
    """Two equal products of an image's rows; their sum, which is returned with its double."""
    builder = GraphBuilder()
    x = builder.add("pixels", Input((1, 2, 6, WIDTH)), [])
    rows = builder.add("rows", Reshape((1, ROWS, WIDTH)), [x])
    constants = operands(builder, 5, WIDTH)
    op = Linear(36, 1, "int16", *LIMITS["int16"])
    first, second = (builder.add(name, op, [rows, *constants]) for name in ("first", "second"))
    turned = builder.add("turned", Permute((0, 2, 1)), [first])
    back = builder.add("back", Permute((0, 2, 1)), [turned])
    both = builder.add("both", SAME, [back, second])
    double = builder.add("double", SAME, [both, both])
    return builder.finish({"both": both.name, "double": double.name})


@pytest.fixture(scope="module")
def folder(graph, tmp_path_factory):
    """The graph for any CPU; not to be changed."""
    return tvm_backend.compile(graph, tmp_path_factory.mktemp("portable") / "a", "portable")


def test_equal_products_share_a_function_that_reads_what_it_is_given(graph, folder):
    found = read_functions(read_manifest(folder))
    gemm = found["gemm_0"]
    assert gemm.operators == "linear"
    assert gemm.macs == 2 * ROWS * 5 * WIDTH == cost(graph).macs
    # uint8 x, int8 weight, int32 bias and multiplier, int16 result
    assert gemm.bytes == 2 * (ROWS * WIDTH + 5 * WIDTH + 2 * 4 * 5 + 2 * ROWS * 5)
    value = 2 * ROWS * 5
    # `both` reads two values, `double` one value twice.
    adds = [function for function in found.values() if function.operators == "add"]
    assert sum(function.bytes for function in adds) == 3 * value + 2 * value


def test_weights_count_as_they_are_packed(tmp_path):
    isa = resolve(HOST).isa
    if isa is None:
        pytest.skip("no fast kernels for this CPU")
    builder = GraphBuilder()
    x = builder.add("pixels", Input((1, 1, ROWS, WIDTH)), [])
    constants = operands(builder, 5, WIDTH)
    op = Linear(36, 1, "int16", *LIMITS["int16"])
    graph = builder.finish({"out": builder.add("out", op, [x, *constants]).name})
    found = read_functions(read_manifest(tvm_backend.compile(graph, tmp_path / "a")))
    arrays = [np.asarray(node.type.value) for node in constants]
    packed = pack_weights(*arrays, signed=False, dtype="int16", isa=isa)
    size = packed.weight.nbytes + packed.bias.nbytes + packed.mult.nbytes
    size += scalars_of(requant_of(op)).nbytes + ROWS * WIDTH + 2 * ROWS * 5
    assert found == {"gemm_0": Function("linear", cost(graph).macs, size)}


def test_of_several_functions_the_one_that_sums_has_the_products(tmp_path):
    builder = GraphBuilder()
    x = builder.add("pixels", Input((1, 2, 6, 6)), [])
    op = Conv2d((1, 1), (1, 1), (1, 1), 1, (3,), 36, 0, "int8", *LIMITS["int8"])
    made = builder.add("made", op, [x, *operands(builder, 4, 2, 3, 3)])
    graph = builder.finish({"out": made.name})
    folder = tvm_backend.compile(graph, tmp_path / "a", "portable")
    found = read_functions(read_manifest(folder))
    assert {name: function.macs for name, function in found.items()} == {
        "pad": 0,
        "conv2d_acc": cost(graph).macs,
        "conv2d_requantise": 0,
    }
    assert all(function.operators == "conv2d" for function in found.values())
    assert found["pad"].bytes == 2 * 6 * 6 + 2 * 8 * 8


@pytest.fixture(scope="module")
def host(graph, tmp_path_factory):
    """The graph for this CPU; not to be changed."""
    return tvm_backend.compile(graph, tmp_path_factory.mktemp("host") / "a")


def test_a_profile_has_every_function_and_every_call(host):
    seen = []
    found = profile(host, 3, lambda *progress: seen.append(progress))
    manifest = read_manifest(host)
    assert {row.name: row.about for row in found.rows} == read_functions(manifest)
    steps = {kernel: count for kernel, count in manifest["kernels"].items() if kernel != "alias"}
    assert sum(row.calls for row in found.rows) == sum(steps.values())
    assert all(row.ms > 0 for row in found.rows)
    assert [row.ms for row in found.rows] == sorted((row.ms for row in found.rows), reverse=True)
    assert found.ms == pytest.approx(found.kernels_ms + found.between_ms)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_recorded_calls_compute_the_same_again(host):
    machine = open_library(host)
    pixels = np.random.default_rng(1).integers(0, 256, (1, 2, 6, WIDTH)).astype(np.uint8)
    image = tvm.runtime.tensor(pixels)
    expected = [result.numpy().ravel() for result in machine["main"](image)]
    calls = _record(machine, image)
    outputs = [arguments[-1] for _, _, arguments in calls]
    for output in outputs:
        output.copyfrom(np.zeros_like(output.numpy()))
    for _, function, arguments in calls:
        function(*arguments)
    computed = [output.numpy().ravel() for output in outputs]
    for result in expected:
        assert result.any()
        assert any(np.array_equal(result, value) for value in computed)


def changed(folder, place, functions):
    """A copy of an artifact whose manifest has other `functions`; None: it has none."""
    copy = shutil.copytree(folder, place / "changed")
    manifest = json.loads((copy / MANIFEST).read_text())
    del manifest["functions"]
    told = {} if functions is None else {"functions": functions}
    (copy / MANIFEST).write_text(json.dumps({**manifest, **told}))
    return copy


def test_an_artifact_from_before_is_timed_without_what_it_does_not_tell(folder, tmp_path):
    found = profile(changed(folder, tmp_path, None), 1)
    assert found.rows
    assert all(row.about is None for row in found.rows)
    lines = lines_of(found, 100.0)
    assert [line["function"] for line in lines[-3:]] == ["kernels", "between", "whole"]
    for line in lines:
        told = [line.get(key) for key in ("operators", "macs", "bytes", "gmacs_per_s", "mb")]
        assert told == [None] * 5
    assert lines[-3]["calls"] == sum(row.calls for row in found.rows)


ENTRIES = [[], {"f": 1}, {"f": {"macs": 1}}, {"f": {"operators": 1, "macs": 1, "bytes": 1}}]


@pytest.mark.parametrize("functions", ENTRIES)
def test_a_damaged_entry_is_refused(folder, functions, tmp_path):
    with pytest.raises(FileFormatError, match="'functions'"):
        profile(changed(folder, tmp_path, functions), 1)


def test_lines_say_speed_and_share():
    rows = (
        Row("gemm_0", 3, 2.0, Function("linear", 400_000_000, 8_000_000)),
        Row("copy_0", 1, 1.0, Function("slice", 0, 1_000_000)),
    )
    gemm, copy, kernels, between, whole = lines_of(Profile(rows, 4.0), 400.0)
    assert (gemm["gmacs_per_s"], gemm["peak_share"], gemm["gb_per_s"]) == (200.0, 50.0, 4.0)
    assert (gemm["share"], gemm["mb"], gemm["operators"]) == (50.0, 8.0, "linear")
    assert copy["gmacs_per_s"] is None
    assert copy["peak_share"] is None
    assert (kernels["calls"], kernels["ms"], kernels["bytes"]) == (4, 3.0, 9_000_000)
    assert (between["ms"], between["share"]) == (1.0, 25.0)
    assert (whole["share"], whole["gmacs_per_s"], whole["peak_share"]) == (100.0, 100.0, 25.0)
    assert lines_of(Profile(rows, 4.0), None)[0]["peak_share"] is None
