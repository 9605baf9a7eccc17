"""Activations as a GEMM's dot products read them, where they do not lie so."""

from iqvit.tvm_backend.kernels.gemm_form import Kernel
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.vector import pieces, span, splat, typed


def scratch_of(kernel: Kernel, rows: int) -> Buffer:
    """Where `emit_copy` puts a block."""
    width = kernel.groups * kernel.isa.k_group
    return T.alloc_buffer((rows, width), kernel.isa.stored, scope="global")


def emit_copy(kernel: Kernel, scratch: Buffer, rows: int, row0: Expr) -> None:
    """A block of x as `dot` reads it; the padding is zero and so are the weights against it."""
    gemm, isa = kernel.gemm, kernel.isa
    width = kernel.groups * isa.k_group
    dtype = isa.stored
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
