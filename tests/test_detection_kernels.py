"""The kernels of a detector's decoder against their operators' definitions: equal integers."""

import numpy as np
import pytest
import torch
import tvm
from loose import Loose, needs
from tvm import relax

from iqvit.intgraph import GraphBuilder, Node
from iqvit.inttype import LIMITS, IntType, QParams, constant_type
from iqvit.ops import Concat, DeformAttention, GridSample, Multiply, Rectified, TakeRows, TopK
from iqvit.ops.base import Op
from iqvit.ops.input import Input
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.copies import CHUNK
from iqvit.tvm_backend.lower import Lowering
from iqvit.tvm_backend.pipeline import build
from iqvit.tvm_backend.plan import FAST, Step
from iqvit.tvm_backend.targets import TARGETS
from iqvit.tvm_backend.threads import prepare_threads, set_threads

targets = pytest.mark.parametrize("target", ["x86-vbmi", "x86-vnni", "x86-avx2"])


class Kernel:
    """The fast kernel of one operator as a function of its inputs that are not constant."""

    def __init__(self, op: Op, types: list[IntType], target: str) -> None:
        needs(target)
        self.op, self.types = op, types
        made = GraphBuilder()
        for i, kind in enumerate(types):
            if kind.value is None:
                made.nodes[f"x{i}"] = Node(f"x{i}", Input(kind.shape), (), kind)
            else:
                made.constant(f"x{i}", kind.value)
        node = made.add("out", op, [made.nodes[f"x{i}"] for i in range(len(types))])
        graph = Loose(made.nodes)
        call = FAST[type(op)](graph, Group(node), TARGETS[target].isa)
        assert call is not None
        builder = relax.BlockBuilder()
        free = {
            name: relax.Var(name, relax.TensorType(n.type.shape, n.type.dtype))
            for name, n in made.nodes.items()
            if name != "out" and n.type.value is None
        }
        lowering = Lowering(graph, builder, dict(free), {})
        with builder.function("main", list(free.values())):
            with builder.dataflow():
                lowering.emit(Step(Group(node), call))
                result = builder.emit_output(lowering.value("out"))
            builder.emit_func_output(result)
        self.machine = relax.VirtualMachine(build(builder.get(), TARGETS[target]), tvm.cpu())

    def check(self, *arrays: np.ndarray) -> None:
        """The kernel gives what the definition gives, on one thread and on two."""
        given = iter(arrays)
        every = [next(given) if kind.value is None else kind.value.copy() for kind in self.types]
        wanted = self.op.run(*map(torch.from_numpy, every)).numpy()
        for threads in range(1, min(2, prepare_threads()) + 1):
            set_threads(threads)
            found = self.machine["main"](*map(tvm.runtime.tensor, arrays)).numpy()
            np.testing.assert_array_equal(found, wanted)


def full(dtype: str, *shape: int) -> IntType:
    return IntType(dtype, shape, *LIMITS[dtype])


def drawn(rng: np.random.Generator, kind: IntType, lo: int | None = None, hi: int | None = None):
    lo, hi = (kind.lo if lo is None else lo), (kind.hi if hi is None else hi)
    return rng.integers(lo, hi + 1, kind.shape).astype(kind.dtype)


@targets
@pytest.mark.parametrize(
    ("dtype", "shape", "k"),
    [
        ("int16", (1, 2000), 300),
        ("int16", (3, 37), 37),
        ("int8", (2, 301), 1),
        ("uint8", (1, 2, 70), 69),
        ("int32", (1, 513), 40),
        ("int16", (1, 1), 1),
    ],
)
def test_topk(dtype, shape, k, target):
    rng = np.random.default_rng(0)
    kind = full(dtype, *shape)
    kernel = Kernel(TopK(k), [kind], target)
    kernel.check(drawn(rng, kind))
    middle = (kind.lo + kind.hi) // 2
    kernel.check(drawn(rng, kind, middle - 2, middle + 2))  # most elements tie
    kernel.check(np.full(shape, kind.lo, dtype))
    kernel.check(rng.choice(np.array([kind.lo, -1 % (kind.hi + 1), kind.hi], dtype), shape))
    kernel.check(np.sort(drawn(rng, kind), axis=-1))


@targets
@pytest.mark.parametrize(("dtype", "length"), [("int16", 1), ("uint8", 67), ("int32", 256)])
def test_take_rows(dtype, length, target):
    rng = np.random.default_rng(0)
    x, index = full(dtype, 1, 50, length), IntType("int32", (1, 33), 0, 49)
    picked = drawn(rng, index)
    picked[0, :3] = 0, 49, 49
    Kernel(TakeRows(), [x, index], target).check(drawn(rng, x), picked)


def deformable(
    *,
    queries: int = 7,
    heads: int = 2,
    depth: int = 16,
    shapes: tuple[int, ...] = (8, 12, 4, 6, 1, 1),
    points: tuple[int, ...] = (4, 4, 4),
    logits: str = "int16",
    **options,
) -> tuple[DeformAttention, list[IntType]]:
    options = {"mode": "bilinear", "dtype": "int8", **options}
    count = sum(points)
    scales = (0.02, 2.0**-15, 2.0**-10, 0.0007, 0.02 if options["dtype"] == "int8" else 1e-4)
    op = DeformAttention.of(
        *(QParams.of(s) for s in scales), list(shapes), list(points), [0.125] * count, **options
    )
    tokens = sum(h * w for h, w in zip(shapes[::2], shapes[1::2], strict=True))
    types = [
        IntType("int8", (1, tokens, heads * depth), -127, 127),
        IntType("int16", (1, queries, 4), -32768, 32767),
        full("int16", 1, queries, heads * count * 2),
        IntType(logits, (1, queries, heads * count), -9999 if logits == "int32" else -99, 99),
    ]
    return op, types


@targets
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"mode": "discrete"},
        {"mode": "nearest", "heads": 1},
        {"points": (1,), "shapes": (3, 5), "queries": 1},  # one sample a head
        {"points": (9, 8), "shapes": (3, 5, 2, 2)},  # more samples than AVX-512 has lanes
        {"points": (8, 8), "shapes": (3, 5, 2, 2), "heads": 1},  # exactly as many
        {"depth": 21, "heads": 3, "dtype": "int16"},
        {"depth": 1, "logits": "int8", "fraction": 1},
        {"depth": 40, "logits": "int32", "bits": 8, "dtype": "uint8", "fraction": 5},
    ],
    ids=str,
)
def test_deformable_attention(case, target):
    op, types = deformable(**case)
    kernel = Kernel(op, types, target)
    rng = np.random.default_rng(0)
    value, boxes, offsets, logits = (drawn(rng, kind) for kind in types)
    inside = drawn(rng, types[1], 0, 32767)
    small = drawn(rng, types[2], -3000, 3000)
    kernel.check(value, inside, small, logits)
    kernel.check(value, boxes, offsets, logits)
    kernel.check(value, inside, np.zeros_like(offsets), np.zeros_like(logits))
    for extreme in (types[2].lo, types[2].hi):  # far outside of every level
        kernel.check(value, np.full_like(boxes, 32767), np.full_like(offsets, extreme), logits)
    # On the borders, and the largest weight on one sample.
    corners = rng.choice(np.array([0, 32767], np.int16), boxes.shape)
    sharp = rng.choice(np.array([types[3].lo, types[3].hi], types[3].dtype), logits.shape)
    kernel.check(np.full_like(value, -127), corners, np.zeros_like(offsets), sharp)


def test_deformable_attention_of_step_factors_beyond_int32_is_left_to_the_plain_lowering():
    op, types = deformable()
    wide = DeformAttention(**{**vars(op), "step": tuple(2**31 for _ in op.step)})
    nodes = {f"x{i}": Node(f"x{i}", Input(k.shape), (), k) for i, k in enumerate(types)}
    node = Node("out", wide, tuple(nodes), full("int8", 1, 7, 32))
    isa = TARGETS["x86-avx2"].isa
    assert FAST[DeformAttention](Loose(nodes), Group(node), isa) is None


@targets
@pytest.mark.parametrize(
    ("kind", "size", "places", "grid", "mode", "fraction", "dtype"),
    [
        ("int8", (7, 5), (3, 37), "int16", "bilinear", 8, "int8"),
        ("int16", (1, 9), (1, 16), "int32", "bilinear", 4, "int16"),
        ("uint8", (6, 1), (5, 1), "int8", "nearest", 0, "uint8"),
    ],
)
def test_grid_sample(kind, size, places, grid, mode, fraction, dtype, target):
    rng = np.random.default_rng(0)
    step = {"int8": 2.0**-6, "int16": 2.0**-14, "int32": 2.0**-30}[grid]  # -2..2: half is outside
    scales = QParams.of(0.02, -5), QParams.of(step, 3), QParams.of(0.023, 9)
    op = GridSample.of(size, *scales, dtype, mode, fraction)
    types = [full(kind, 1, 3, *size), full(grid, 1, *places, 2)]
    kernel = Kernel(op, types, target)
    x, at = (drawn(rng, t) for t in types)
    kernel.check(x, at)
    kernel.check(x, np.full_like(at, types[1].lo))
    kernel.check(rng.choice(np.array(LIMITS[kind], kind), x.shape), at // 2)


@targets
def test_a_product_with_one_factor_a_row(target):
    rng = np.random.default_rng(0)
    op = Multiply.of(QParams.of(0.001), QParams.of(0.01, -7), QParams.of(0.001, 3), "int16")
    x, mask = full("int16", 1, 9, 37), full("int8", 1, 9, 1)
    Kernel(op, [x, constant_type(drawn(rng, mask))], target).check(drawn(rng, x))
    Kernel(op, [x, mask], target).check(drawn(rng, x), drawn(rng, mask))


@targets
def test_long_levels_are_joined_by_chunks(target):
    rng = np.random.default_rng(0)
    types = [full("int8", 2, n, 5) for n in (CHUNK // 5 + 3, 2, 2 * CHUNK // 5)]
    Kernel(Concat(1), types, target).check(*(drawn(rng, kind) for kind in types))


@targets
@pytest.mark.parametrize("entries", [2, 200, 256, 257, 300])
def test_tables_of_any_length(entries, target):
    """Zero at the end, as the converter makes them, and not."""
    op, _, m, zero = Rectified.of("silu", QParams.of(0.0007), QParams.of(0.03, 9), "uint8")
    rng = np.random.default_rng(0)
    x = np.arange(-(2**15), 2**15).astype(np.int16).reshape(1, -1, 64)
    for last in (0, 77):
        table = rng.integers(-99, 99, entries).astype(np.int16)
        table[-1] = last
        types = [full("int16", *x.shape), *map(constant_type, (table, m, zero))]
        Kernel(op, types, target).check(x)
