"""The int8 GEMM: register-blocked TIR from an instruction set, with a fused epilogue.

    out[m, n] = epilogue(clamp(((acc * mult[n] + 2**(shift-1)) >> shift) + zero_point, lo, hi))
    acc = sum_k x[m, k] * w[n, k] + bias[n]                                   (int32, wraps)

`x` is read where it lies, unless `dot` cannot take it so: signed bytes for an unsigned operand,
int16 operands and rows that are no whole number of groups go through a block-sized copy.
"""

from iqvit.tvm_backend.kernels.balance import parts_of, slowness
from iqvit.tvm_backend.kernels.gemm_form import (
    Epilogue,
    Extra,
    Gemm,
    Kernel,
    groups_of,
    panels_of,
    scalars_arg,
)
from iqvit.tvm_backend.kernels.gemm_operands import emit_copy, scratch_of
from iqvit.tvm_backend.kernels.gemm_stores import Stash, emit_stores
from iqvit.tvm_backend.kernels.gemm_woven import emit_woven_tasks, weaves
from iqvit.tvm_backend.kernels.interleave import interleave
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import function_attributes, span

TASK_COST = 0.2
"""What a task costs beside its panels, in panels."""


def gemm_kernel(
    gemm: Gemm,
    isa: Isa,
    name: str,
    extras: tuple[Extra, ...] = (),
    epilogue: Epilogue | None = None,
) -> PrimFunc:
    """The GEMM as a TIR function `name(x, weight, bias, [mult, [scalars,]] [offset,] *extras, out,
    [peak])`.

    x `gemm.x_dtype` [m, k]; weight, bias and mult as `packing.pack_weights` makes them for
    `dtype=gemm.value_dtype`; out `gemm.out_dtype` [m, n]. Parallel over blocks of the output.

    With `gemm.scale` x is int16, and what is multiplied are its rows at their own scales: offset
    int32 [1] is taken off first, and peak int32 [m] is a further output, and the first of the
    epilogue's extras.
    """
    groups, panels = groups_of(gemm, isa), panels_of(gemm, isa)
    scaled = gemm.scale is not None
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer((gemm.m, gemm.k), "int16" if scaled else gemm.x_dtype))
        weight_shape = (panels, groups, isa.vectors, isa.group_weights)
        weight = T.arg("weight", T.buffer(weight_shape, isa.weight))
        bias = T.arg("bias", T.buffer((panels, isa.vectors, isa.lanes), "int32"))
        mult = scalars = None
        if gemm.requant is not None:
            shape = (panels, isa.vectors, 3, isa.lanes)
            mult = T.arg("mult", T.buffer(shape, "int32"))
            scalars = scalars_arg(gemm, gemm.requant)
        offset = T.arg("offset", T.buffer((1,), "int32")) if scaled else None
        buffers = tuple(T.arg(e.name, T.buffer(e.shape, e.dtype)) for e in extras)
        out = T.arg("out", T.buffer((gemm.m, gemm.n), gemm.out_dtype))
        scaling = None
        if offset is not None:
            peak = T.arg("peak", T.buffer((gemm.m,), "int32"))
            scaling, buffers = (offset, peak), (peak, *buffers)
        kernel = Kernel(gemm, isa, x, weight, bias, mult, scalars, buffers, out, epilogue, scaling)
        if weaves(gemm, isa):
            emit_woven_tasks(kernel)
        else:
            _emit_tasks(kernel)
    return interleave(builder.get())


def _emit_tasks(kernel: Kernel) -> None:
    # A task is one block of rows against one stretch of panels. All blocks of rows pass over a
    # stretch before the next begins, so its weights are read from L2, not from L3.
    tile = kernel.isa.tile
    rows = min(-(-kernel.gemm.m // tile) * tile, kernel.isa.rows)
    blocks = -(-kernel.gemm.m // rows)
    stretch = stretch_of(kernel, blocks)
    stretches = -(-kernel.panels // stretch)
    with T.parallel(blocks * stretches) as task:
        stash = Stash.of_block(kernel, rows)
        row0 = T.Bind(task % blocks * rows)
        first = T.Bind(task // blocks * stretch)
        count = stretch if kernel.panels % stretch == 0 else T.min(stretch, kernel.panels - first)
        _emit_block(kernel, stash, rows, row0, (first, count))


def stretch_of(kernel: Kernel, blocks: int) -> int:
    """How many panels a task takes of which there are `blocks` for each panel: what threads share
    most evenly of what the cache holds."""

    def cost(stretch: int) -> float:
        counts = parts_of(kernel.panels, stretch)
        return slowness([count + TASK_COST for count in counts for _ in range(blocks)])

    return min(range(kernel.longest_stretch, 0, -1), key=cost)


def _emit_block(
    kernel: Kernel, stash: Stash, rows: int, row0: Expr, panels: tuple[Expr, Expr | int]
) -> None:
    first, count = panels
    # Rows past the last one repeat it; their results are not stored.
    places = [T.Bind(T.min(row0 + r, kernel.gemm.m - 1)) for r in range(rows)]
    source = kernel.x
    if kernel.copies:
        source, places = scratch_of(kernel, rows), list(range(rows))
        emit_copy(kernel, source, rows, row0)
    group = kernel.isa.k_group
    with T.serial(count) as step:
        panel = T.Bind(first + step)
        products = kernel.products(panel, rows)
        products.begin()
        products.add(0, kernel.groups, lambda r, k: source[places[r], span(k * group, group)])
        emit_stores(kernel, stash, products, row0)
