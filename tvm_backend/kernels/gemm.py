"""The int8 GEMM: register-blocked TIR from an instruction set, with a fused epilogue.

    out[m, n] = epilogue(clamp(((acc * mult[n] + 2**(shift-1)) >> shift) + zero_point, lo, hi))
    acc = sum_k x[m, k] * w[n, k] + bias[n]                                   (int32, wraps)

`x` is read where it lies, unless `dot` cannot take it so: signed bytes for an unsigned operand,
int16 operands and rows that are no whole number of groups go through a block-sized copy.
"""

from collections.abc import Callable
from dataclasses import dataclass

from iqvit.tvm_backend.kernels.balance import parts_of, slowness
from iqvit.tvm_backend.kernels.interleave import MARK, interleave
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.products import Products
from iqvit.tvm_backend.kernels.requant import (
    Requant,
    Scalars,
    constants_of,
    exact_int64,
    fits_high_half,
    high_half,
    narrow,
)
from iqvit.tvm_backend.kernels.script import Buffer, Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import (
    STACK,
    bits_of,
    function_attributes,
    lanes_of,
    pieces,
    span,
    splat,
    typed,
)

Epilogue = Callable[[list[Expr], Expr, Expr, tuple[Buffer, ...]], list[Expr]]
"""`epilogue(values, m, n, extras) -> stored`: `values` are the requantised results of row `m` from
column `n` on, vectors of equally many lanes (any power of two, also one) that follow each other; so
are the results, of `out_dtype`."""

PANEL_BYTES = 512 * 1024
"""Weights that the tasks of one stretch share: about half of the L2 cache of current x86 cores."""
TASK_COST = 0.2
"""What a task costs beside its panels, in panels."""


@dataclass(frozen=True)
class Gemm:
    """What is computed: shapes, types and requantisation of one int8 GEMM."""

    m: int
    n: int
    k: int
    x_dtype: str
    """uint8 or int8."""
    requant: Requant | None
    """None: the epilogue (or the output) gets the int32 accumulators including the bias."""
    out_dtype: str
    """Type of the stored output; differs from `requant.dtype` only by an epilogue."""
    given: bool = False
    """Whether the function is given the numbers of `requant` (`requant.scalars_of`), after the
    multipliers, so that GEMMs of one `requant.form_of` share it."""

    @property
    def value_dtype(self) -> str:
        """Type of the value that the epilogue gets."""
        return "int32" if self.requant is None else self.requant.dtype


@dataclass(frozen=True)
class Extra:
    """A further input of the kernel, for its epilogue."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Kernel:
    """A kernel that is being written: what it computes, for what, and its parameters."""

    gemm: Gemm
    isa: Isa
    x: Buffer
    weight: Buffer
    bias: Buffer
    mult: Buffer | None
    scalars: Scalars | None
    extras: tuple[Buffer, ...]
    out: Buffer
    epilogue: Epilogue | None

    @property
    def groups(self) -> int:
        """Groups of K."""
        return -(-self.gemm.k // self.isa.k_group)

    @property
    def panels(self) -> int:
        """Panels of columns."""
        return -(-self.gemm.n // self.isa.panel)

    def products(self, panel: Expr, rows: int) -> Products:
        """Those of a block of rows with a panel."""
        isa = self.isa
        shape = (isa.vectors, isa.lanes)
        sums = [T.alloc_buffer(shape, "int32", scope="global") for _ in range(rows)]
        return Products(isa, self.weight, self.bias, panel, sums)

    @property
    def copies(self) -> bool:
        """Whether `dot` cannot read x where it lies."""
        return self.gemm.x_dtype != self.isa.operand or self.gemm.k % self.isa.k_group != 0


def gemm_kernel(
    gemm: Gemm,
    isa: Isa,
    name: str,
    extras: tuple[Extra, ...] = (),
    epilogue: Epilogue | None = None,
) -> PrimFunc:
    """The GEMM as a TIR function `name(x, weight, bias, [mult, [scalars,]] *extras, out)`.

    x `gemm.x_dtype` [m, k]; weight, bias and mult as `packing.pack_weights` makes them for
    `dtype=gemm.value_dtype`; out `gemm.out_dtype` [m, n]. Parallel over blocks of the output.
    """
    groups, panels = -(-gemm.k // isa.k_group), -(-gemm.n // isa.panel)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer((gemm.m, gemm.k), gemm.x_dtype))
        weight_shape = (panels, groups, isa.vectors, isa.group_weights)
        weight = T.arg("weight", T.buffer(weight_shape, isa.weight))
        bias = T.arg("bias", T.buffer((panels, isa.vectors, isa.lanes), "int32"))
        mult = scalars = None
        if gemm.requant is not None:
            shape = (panels, isa.vectors, 3, isa.lanes)
            mult = T.arg("mult", T.buffer(shape, "int32"))
            scalars = scalars_arg(gemm, gemm.requant)
        buffers = tuple(T.arg(e.name, T.buffer(e.shape, e.dtype)) for e in extras)
        out = T.arg("out", T.buffer((gemm.m, gemm.n), gemm.out_dtype))
        kernel = Kernel(gemm, isa, x, weight, bias, mult, scalars, buffers, out, epilogue)
        _emit_tasks(kernel)
    return interleave(builder.get())


def scalars_arg(gemm: Gemm, requant: Requant) -> Scalars:
    """The numbers of the requantisation: constants, or a parameter that is declared here."""
    if not gemm.given:
        return constants_of(requant)
    numbers = T.arg("scalars", T.buffer((3,), "int64"))
    return Scalars(numbers[0], numbers[1], numbers[2])


def _emit_tasks(kernel: Kernel) -> None:
    # A task is one block of rows against one stretch of panels. All blocks of rows pass over a
    # stretch before the next begins, so its weights are read from L2, not from L3.
    tile = kernel.isa.tile
    rows = min(-(-kernel.gemm.m // tile) * tile, kernel.isa.rows)
    blocks = -(-kernel.gemm.m // rows)
    stretch = stretch_of(kernel, blocks)
    stretches = -(-kernel.panels // stretch)
    with T.parallel(blocks * stretches) as task:
        row0 = T.Bind(task % blocks * rows)
        first = T.Bind(task // blocks * stretch)
        count = stretch if kernel.panels % stretch == 0 else T.min(stretch, kernel.panels - first)
        _emit_block(kernel, rows, row0, first, count)


def stretch_of(kernel: Kernel, blocks: int) -> int:
    """How many panels a task takes of which there are `blocks` for each panel: what threads share
    most evenly of what the cache holds."""
    isa = kernel.isa
    panel_bytes = kernel.groups * isa.vectors * isa.group_weights * bits_of(isa.weight) // 8
    most = min(kernel.panels, max(1, PANEL_BYTES // panel_bytes))

    def cost(stretch: int) -> float:
        counts = parts_of(kernel.panels, stretch)
        return slowness([count + TASK_COST for count in counts for _ in range(blocks)])

    return min(range(most, 0, -1), key=cost)


def _emit_block(kernel: Kernel, rows: int, row0: Expr, first: Expr, count: Expr | int) -> None:
    # Rows past the last one repeat it; their results are not stored.
    places = [T.Bind(T.min(row0 + r, kernel.gemm.m - 1)) for r in range(rows)]
    source = kernel.x
    if kernel.copies:
        source, places = _emit_copy(kernel, rows, row0), list(range(rows))
    group = kernel.isa.k_group
    with T.serial(count) as step:
        panel = T.Bind(first + step)
        products = kernel.products(panel, rows)
        products.begin()
        products.add(0, kernel.groups, lambda r, k: source[places[r], span(k * group, group)])
        emit_stores(kernel, products, row0)


def _emit_copy(kernel: Kernel, rows: int, row0: Expr) -> Buffer:
    """A block of x as `dot` reads it; the padding is zero and so are the weights against it."""
    gemm, isa = kernel.gemm, kernel.isa
    width = kernel.groups * isa.k_group
    dtype = isa.stored
    scratch = T.alloc_buffer((rows, width), dtype, scope="global")
    widest = isa.slots
    whole = gemm.k // widest

    def move(row: Expr, start: Expr | int, lanes: int) -> None:
        value = kernel.x[T.min(row0 + row, gemm.m - 1), span(start, lanes)]
        T.buffer_store(scratch, operand(value, kernel, lanes), [row, span(start, lanes)])

    with T.serial(rows) as row:
        if width != gemm.k:
            T.buffer_store(
                scratch, splat(0, dtype, isa.k_group), [row, span(width - isa.k_group, isa.k_group)]
            )
        if whole:
            with T.serial(whole) as chunk:
                move(row, chunk * widest, widest)
        for offset, lanes in pieces(gemm.k - whole * widest, widest):
            move(row, whole * widest + offset, lanes)
    return scratch


def operand(value: Expr, kernel: Kernel, lanes: int) -> Expr:
    """Elements of x as `dot` reads them."""
    if kernel.isa.operand == "int16":
        return T.Cast(typed("int16", lanes), value)
    if kernel.gemm.x_dtype == "uint8":
        value = T.reinterpret(typed("int8", lanes), value)
    if kernel.isa.offset(kernel.gemm.x_dtype) == 0:
        return value
    # A byte with 128 added or taken off is that byte with its top bit flipped; the bias undoes it.
    return value ^ splat(-128, "int8", lanes)


def emit_stores(kernel: Kernel, products: Products, row0: Expr) -> None:
    """Requantise a block's sums and store them from row `row0` of the output on.

    Rows past the last one are left out. Row by row from the stack, in code for one row. Elements
    that are vectors make LLVM align the stack, and with it what it spills.
    """
    isa = kernel.isa
    lane = span(0, isa.lanes)
    products.finish()
    together = max(1, (STACK - 1) // (4 * isa.panel))
    for first in range(0, len(products.sums), together):
        count = min(together, len(products.sums) - first)
        sums = T.alloc_buffer((count * isa.vectors,), typed("int32", isa.lanes), scope="global")
        for r in range(count):
            for j in range(isa.vectors):
                T.buffer_store(sums, products.sums[first + r][j, lane], [r * isa.vectors + j])
        _emit_rows(kernel, sums, count, products.panel, row0 + first)


def _emit_rows(kernel: Kernel, sums: Buffer, rows: int, panel: Expr, row0: Expr) -> None:
    left = kernel.gemm.n % kernel.isa.panel
    if left == 0:
        _emit_full(kernel, sums, rows, panel, row0)
        return
    if kernel.gemm.n < kernel.isa.panel:
        _emit_partial(kernel, sums, rows, panel, row0, left)
        return
    with T.If(panel < kernel.panels - 1):
        with T.Then():
            _emit_full(kernel, sums, rows, panel, row0)
        with T.Else():
            _emit_partial(kernel, sums, rows, panel, row0, left)


def _emit_full(kernel: Kernel, sums: Buffer, rows: int, panel: Expr, row0: Expr) -> None:
    with T.serial(T.min(rows, kernel.gemm.m - row0), annotations={MARK: True}) as r:
        values = _values(kernel, sums, r, panel)
        _store(kernel, values, row0 + r, panel * kernel.isa.panel)


def _emit_partial(
    kernel: Kernel, sums: Buffer, rows: int, panel: Expr, row0: Expr, left: int
) -> None:
    # Through a buffer, so that the last columns leave in pieces and none beyond them.
    isa = kernel.isa
    buffer = T.alloc_buffer((isa.panel,), kernel.gemm.value_dtype, scope="global")
    with T.serial(T.min(rows, kernel.gemm.m - row0)) as r:
        values = _values(kernel, sums, r, panel)
        lanes = isa.panel // len(values)
        for i, value in enumerate(values):
            T.buffer_store(buffer, value, [span(i * lanes, lanes)])
        for offset, width in pieces(left, lanes):
            value = buffer[span(offset, width)]
            _store(kernel, [value], row0 + r, panel * isa.panel + offset)


def _values(kernel: Kernel, sums: Buffer, row: Expr, panel: Expr) -> list[Expr]:
    """The results of one row of a block: vectors of `value_dtype` that follow each other."""
    isa, requant = kernel.isa, kernel.gemm.requant
    lane = span(0, isa.lanes)
    found = [sums[row * isa.vectors + j] for j in range(isa.vectors)]
    if requant is None or kernel.mult is None or kernel.scalars is None:
        return found
    given = kernel.scalars
    if fits_high_half(requant):
        scaled = [
            high_half(s, [kernel.mult[panel, j, form, lane] for form in range(3)], given)
            for j, s in enumerate(found)
        ]
    else:
        scaled = [
            exact_int64(s, kernel.mult[panel, j, 0, lane], requant, given)
            for j, s in enumerate(found)
        ]
    return narrow([T.Bind(s) for s in scaled], requant.dtype, requant.lo, requant.hi, isa)


def _store(kernel: Kernel, values: list[Expr], m: Expr, n: Expr) -> None:
    if kernel.epilogue is not None:
        values = kernel.epilogue(values, m, n, kernel.extras)
    for i, value in enumerate(values):
        lanes = lanes_of(value)
        T.buffer_store(kernel.out, value, [m, span(n + i * lanes, lanes)])
