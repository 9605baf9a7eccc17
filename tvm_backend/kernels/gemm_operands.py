"""Activations as a GEMM's dot products read them, where they do not lie so."""

from iqvit.tvm_backend.kernels.gemm_form import Kernel
from iqvit.tvm_backend.kernels.integers import keep
from iqvit.tvm_backend.kernels.row_scale import Read, Rows, Write, emit_scaled
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.vector import pieces, span, splat, typed


def scratch_of(kernel: Kernel, rows: int) -> Buffer:
    """Where `emit_copy` puts a block."""
    width = kernel.groups * kernel.isa.k_group
    return T.alloc_buffer((rows, width), kernel.isa.stored, scope="global")


def emit_copy(kernel: Kernel, scratch: Buffer, rows: int, row0: Expr) -> None:
    """A block of x as `dot` reads it; the padding is zero and so are the weights against it."""
    if kernel.scaling is not None:
        _emit_scaled(kernel, scratch, rows, row0, *kernel.scaling)
        return
    gemm, isa = kernel.gemm, kernel.isa
    widest = isa.slots
    whole = gemm.k // widest

    def move(row: Expr, start: Expr | int, lanes: int) -> None:
        value = kernel.x[T.min(row0 + row, gemm.m - 1), span(start, lanes)]
        T.buffer_store(scratch, operand(value, kernel, lanes), [row, span(start, lanes)])

    with T.serial(rows) as row:
        _emit_padding(kernel, scratch, row)
        if whole:
            with T.serial(whole) as chunk:
                move(row, chunk * widest, widest)
        for offset, lanes in pieces(gemm.k - whole * widest, widest):
            move(row, whole * widest + offset, lanes)


def _emit_padding(kernel: Kernel, scratch: Buffer, row: Expr) -> None:
    group, width = kernel.isa.k_group, int(scratch.shape[1])
    if width != kernel.gemm.k:
        zeros = splat(0, kernel.isa.stored, group)
        T.buffer_store(scratch, zeros, [row, span(width - group, group)])


def _emit_scaled(
    kernel: Kernel, scratch: Buffer, rows: int, row0: Expr, offset: Buffer, peak: Buffer
) -> None:
    """The same of rows that get their own scales, and their peaks."""
    gemm = kernel.gemm

    def at(row: Expr) -> Expr:
        return T.min(row0 + row, gemm.m - 1)

    def read(row: Expr) -> Read:
        return lambda start, lanes: kernel.x[at(row), span(start, lanes)]

    def write(row: Expr) -> Write:
        _emit_padding(kernel, scratch, row)
        return lambda value, start, lanes: T.buffer_store(
            scratch, operand(value, kernel, lanes), [row, span(start, lanes)]
        )

    def store(row: Expr, found: Expr) -> None:
        T.buffer_store(peak, found, [at(row)])

    if gemm.scale is not None:
        source = Rows(gemm.k, keep(offset[0]), read, write)
        emit_scaled(gemm.scale, source, rows, store, kernel.isa)


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
