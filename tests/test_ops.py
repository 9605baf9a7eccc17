"""The generic tests of every operator: they walk the registry and its samples."""

import ast
import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import iqvit.ops
from iqvit.errors import GraphError
from iqvit.intgraph import GraphBuilder
from iqvit.inttype import LIMITS, TORCH_DTYPES, IntType, QParams, constant_type
from iqvit.ops import REGISTRY, Input, Linear, Rectified, Sample
from iqvit.ops.constant import Constant
from iqvit.text import parse_graph, print_graph

WITHOUT_SAMPLES = {"input", "constant"}  # supplied by whoever evaluates the graph
# Operators whose proved output range is reached by inputs that are constant tensors.
TIGHT = {
    "add", "amax", "concat", "gather", "lookup", "matmul", "max_pool", "mean",
    "multiply", "permute", "requantise", "reshape", "slice",
    "upsample_bilinear", "upsample_nearest",
}  # fmt: skip
MOST_SWEPT = (
    256  # tensors of a sweep: all of an 8-bit domain, a part of a 16-bit one in small tensors
)
OPS = Path(iqvit.ops.__file__).parent


def named_samples() -> dict[str, Sample]:
    return {
        f"{name}_{index}": sample
        for name, op in sorted(REGISTRY.items())
        for index, sample in enumerate(op.samples())
    }


SAMPLES = named_samples()
every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)


def test_every_operator_has_samples():
    missing = sorted(
        n for n, op in REGISTRY.items() if n not in WITHOUT_SAMPLES and not op.samples()
    )
    assert not missing, f"add `samples()` to these operators: {missing}"


def test_every_operator_file_is_imported():
    imported = {
        node.module.rpartition(".")[2]
        for node in ast.parse((OPS / "__init__.py").read_text()).body
        if isinstance(node, ast.ImportFrom) and node.module is not None
    }
    files = {path.stem for path in OPS.glob("*.py") if "(Op):" in path.read_text()}
    missing = sorted(files - imported)
    assert not missing, f"add an import line to iqvit/ops/__init__.py for: {missing}"
    assert files == set(REGISTRY), "an operator's file has the operator's name"


def full(kind: IntType, value: int) -> torch.Tensor:
    return torch.full(kind.shape, value, dtype=TORCH_DTYPES[kind.dtype])


def sweep(kind: IntType) -> list[torch.Tensor]:
    """Every value of a range of at most 16 bits, scattered over as many tensors as needed."""
    span = kind.hi - kind.lo + 1
    stride = next(s for s in range(40503, 50000, 2) if math.gcd(s, span) == 1)
    count = math.ceil(span / kind.size) * kind.size
    values = kind.lo + torch.arange(count) * stride % span
    shape = (-1, *kind.shape)
    return list(values.to(TORCH_DTYPES[kind.dtype]).reshape(shape))


def draws(sample: Sample) -> list[list[torch.Tensor]]:
    """Arguments: random, all combinations of constant extremes, mixed extremes, sweeps."""
    generator = torch.Generator().manual_seed(0)
    free = [kind for kind in sample.inputs if kind.value is None]

    def random(kind: IntType) -> torch.Tensor:
        values = torch.randint(kind.lo, kind.hi + 1, kind.shape, generator=generator)
        return values.to(TORCH_DTYPES[kind.dtype])

    def ends(kind: IntType) -> torch.Tensor:
        high = torch.randint(0, 2, kind.shape, generator=generator).bool()
        return torch.where(high, full(kind, kind.hi), full(kind, kind.lo))

    drawn = [[random(kind) for kind in free] for _ in range(4)]
    drawn += [[ends(kind) for kind in free] for _ in range(2)]
    corners = itertools.product(*((kind.lo, kind.hi) for kind in free))
    drawn += [[full(k, v) for k, v in zip(free, c, strict=True)] for c in corners]
    if len(free) == 1 and free[0].hi - free[0].lo < 2**16:
        drawn += [[x] for x in sweep(free[0])[:MOST_SWEPT]]
    return [arguments(sample, free_values) for free_values in drawn]


def arguments(sample: Sample, free: list[torch.Tensor]) -> list[torch.Tensor]:
    """The free values with the constants between them."""
    values = iter(free)
    return [
        next(values) if kind.value is None else torch.from_numpy(kind.value.copy())
        for kind in sample.inputs
    ]


@every_sample
def test_inferred_type_holds(sample: Sample):
    out = sample.op.infer(*sample.inputs)
    for args in draws(sample):
        result = sample.op.run(*args)
        assert result.dtype == TORCH_DTYPES[out.dtype]
        assert tuple(result.shape) == out.shape
        assert out.lo <= int(result.min())
        assert int(result.max()) <= out.hi


@pytest.mark.parametrize(
    "sample", [s for s in SAMPLES.values() if s.op.NAME in TIGHT], ids=lambda s: s.op.NAME
)
def test_proved_range_is_reached(sample: Sample):
    out = sample.op.infer(*sample.inputs)
    results = [sample.op.run(*args) for args in draws(sample)]
    assert min(int(r.min()) for r in results) == out.lo
    assert max(int(r.max()) for r in results) == out.hi


# Operators that look their results up where there are more values than results.
TABLES = ("igelu", "isoftmax", "lambda_shiftgelu", "rectified", "shiftgelu", "shiftmax", "softmax")
LOOKED_UP, COMPUTED = 80_000, 250  # values: more than 16 bits have, and fewer than 8 bits have


@pytest.mark.parametrize(
    "sample", [s for s in SAMPLES.values() if s.op.NAME in TABLES], ids=lambda s: s.op.NAME
)
def test_results_that_are_looked_up_are_those_that_are_computed(sample: Sample):
    kind, channels = sample.inputs[0], sample.inputs[0].shape[-1]
    rows, few = LOOKED_UP // channels, COMPUTED // channels
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(kind.lo, kind.hi + 1, (rows, channels), generator=generator)
    drawn[:10], drawn[10:20] = kind.lo, kind.hi
    x = drawn.to(TORCH_DTYPES[kind.dtype])
    constants = [torch.from_numpy(k.value.copy()) for k in sample.inputs if k.value is not None]
    found = sample.op.run(x, *constants)
    for first in range(0, rows, max(rows // 40, few)):
        part = slice(first, first + few)
        assert torch.equal(found[part], sample.op.run(x[part], *constants))


@pytest.mark.parametrize("sample", Linear.samples(), ids=lambda s: s.op.dtype)
def test_accumulator_range_of_linear_is_reached(sample: Sample):
    x, weight, bias, _ = sample.inputs
    raw = dataclasses.replace(sample.op, shift=0, zero_point=0, dtype="int32", **limits("int32"))
    one = constant_type(np.ones(bias.shape, np.int32))
    assert weight.value is not None
    assert bias.value is not None
    found = []
    for least, most in ((x.lo, x.hi), (x.hi, x.lo)):
        rows = np.where(weight.value > 0, most, least).astype(x.dtype)
        tensors = (rows, weight.value.copy(), bias.value.copy(), np.array(one.value))
        result = raw.run(*map(torch.from_numpy, tensors))
        found.append(result.diagonal())
    proved = sample.op.accumulator(*sample.inputs)
    assert (int(found[1].min()), int(found[0].max())) == proved
    inferred = raw.infer(x, weight, bias, one)
    assert (inferred.lo, inferred.hi) == proved


def limits(dtype: str) -> dict[str, int]:
    return dict(zip(("lo", "hi"), LIMITS[dtype], strict=True))


@pytest.mark.parametrize(
    "sample",
    [s for s in SAMPLES.values() if s.op.accumulator(*s.inputs) is not None],
    ids=lambda s: s.op.NAME,
)
def test_accumulators_fit_int32(sample: Sample):
    proved = sample.op.accumulator(*sample.inputs)
    assert proved is not None
    lo, hi = proved
    assert LIMITS["int32"][0] <= lo <= hi <= LIMITS["int32"][1]


def dequantized(sample: Sample, args: list[torch.Tensor]) -> list[torch.Tensor]:
    qparams = sample.qin or (None,) * len(args)
    return [
        x.to(torch.float64) if q is None else q.dequantize(x)
        for x, q in zip(args, qparams, strict=True)
    ]


def steps(real: torch.Tensor, sample: Sample, out: IntType) -> torch.Tensor:
    """The real result in output steps, saturated as the operator saturates."""
    qout = sample.qout or QParams.of(1.0)
    shape = [1] * real.ndim
    if qout.axis is not None:
        shape[qout.axis] = -1
    scale = torch.from_numpy(np.array(qout.scale)).reshape(shape)
    zero = torch.from_numpy(np.array(qout.zero_point)).reshape(shape)
    attributes = sample.op.attributes()
    least, most = LIMITS[out.dtype]
    return (real / scale + zero).clamp(attributes.get("lo", least), attributes.get("hi", most))


@pytest.mark.parametrize(
    "sample",
    [s for s in SAMPLES.values() if s.real is not None],
    ids=[name for name, s in SAMPLES.items() if s.real is not None],
)
def test_error_is_within_its_bound(sample: Sample):
    assert sample.real is not None
    out = sample.op.infer(*sample.inputs)
    worst = 0.0
    for args in draws(sample):
        real = sample.real(*dequantized(sample, args))
        wanted = steps(real.reshape(out.shape), sample, out)
        error = (sample.op.run(*args) - wanted).abs()
        # 0/0 where a published form has no epsilon: it approximates nothing there
        worst = max(worst, float(error.nan_to_num(0.0).max()))
    assert worst <= sample.error


@every_sample
def test_results_lie_where_the_inputs_do(sample: Sample):
    """What an operator makes itself is on the device of its inputs, not on the usual one."""
    args = next(iter(draws(sample)))
    wanted = sample.op.run(*args)
    with torch.device("meta"):
        found = sample.op.run(*args)
    assert torch.equal(found, wanted)


@every_sample
def test_a_batch_has_the_results_of_its_members(sample: Sample):
    drawn = [args for args, _ in zip(draws(sample), range(3), strict=False)]
    varying = [kind.value is None for kind in sample.inputs]
    batch = [
        torch.stack(t) if v else t[0]
        for t, v in zip(zip(*drawn, strict=True), varying, strict=True)
    ]
    if not any(varying):
        return
    found = torch.vmap(sample.op.run, in_dims=tuple(0 if v else None for v in varying))(*batch)
    for one, args in zip(found, drawn, strict=True):
        assert torch.equal(one, sample.op.run(*args))


@every_sample
def test_macs_equal_the_hand_count(sample: Sample):
    assert sample.op.macs(*sample.inputs) == sample.macs
    assert 0 <= sample.op.wide_macs(*sample.inputs) <= sample.macs


@every_sample
def test_text_round_trip(sample: Sample):
    builder = GraphBuilder()
    builder.add("image", Input((1, 1)), [])
    nodes = [builder.constant("x", values_of(kind)) for kind in sample.inputs]
    node = builder.add("y", sample.op, nodes, origin="blocks.0", source="blocks.0, vit.py:3")
    graph = builder.finish({"out": node.name})
    text = print_graph(graph)
    again = parse_graph(text, graph.constants)
    assert again == graph
    assert again["y"].op == sample.op
    assert print_graph(again) == text


def values_of(kind: IntType) -> np.ndarray:
    if kind.value is not None:
        return kind.value
    values = np.full(kind.size, kind.lo, dtype=kind.dtype)
    values[-1] = kind.hi
    return values.reshape(kind.shape)


@pytest.fixture(scope="module")
def library():
    """All samples' plain lowerings, compiled into one library."""
    tvm = pytest.importorskip("tvm")
    from tvm import relax

    builder = relax.BlockBuilder()
    for name, sample in SAMPLES.items():
        emit(builder, name, sample)
    return tvm.compile(builder.get(), tvm.target.Target({"kind": "llvm"}))


@pytest.fixture(scope="module")
def machine(library):
    import tvm
    from tvm import relax

    return relax.VirtualMachine(library, tvm.cpu())


def emit(builder, name: str, sample: Sample) -> None:
    """One Relax function: free inputs are its parameters, constants are constants."""
    from tvm import relax

    free = {
        i: relax.Var(f"x{i}", relax.TensorType(kind.shape, kind.dtype))
        for i, kind in enumerate(sample.inputs)
        if kind.value is None
    }
    with builder.function(name, list(free.values())):
        with builder.dataflow():
            args = [
                free[i] if kind.value is None else relax.const(kind.value.copy())
                for i, kind in enumerate(sample.inputs)
            ]
            out = sample.op.infer(*sample.inputs)
            value = builder.emit_output(sample.op.lower(builder, args, list(sample.inputs), out))
        builder.emit_func_output(value)


@pytest.mark.parametrize("name", SAMPLES)
def test_lowering_is_bit_exact(machine, name: str):
    import tvm

    sample = SAMPLES[name]
    for args in draws(sample)[:80]:
        free = [
            tvm.runtime.tensor(x.numpy())
            for x, kind in zip(args, sample.inputs, strict=True)
            if kind.value is None
        ]
        result = machine[name](*free).numpy()
        wanted = sample.op.run(*args).numpy()
        assert result.dtype == wanted.dtype
        np.testing.assert_array_equal(result, wanted)


def test_lowerings_hold_no_float_instruction(library, tmp_path):
    # A compiler may well make one of integers: LLVM takes powers of two from the exponents of
    # floats where the CPU has no vector shift for them.
    from iqvit.tvm_backend.machine_code import assert_no_float_code

    library.export_library(str(tmp_path / "lowerings.so"))
    assert assert_no_float_code(tmp_path / "lowerings.so").functions > len(SAMPLES)


def test_supplied_operators_refuse_to_run():
    for op in (Constant(), Input((1, 1))):
        with pytest.raises(TypeError):
            op.run()


def test_rectified_proves_its_int32_intermediates():
    sample = REGISTRY["rectified"].samples()[0]
    assert isinstance(sample.op, Rectified)
    for change in ({"fraction": 17}, {"step": 15}):
        with pytest.raises(GraphError):
            dataclasses.replace(sample.op, **change).infer(*sample.inputs)
