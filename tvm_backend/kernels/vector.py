"""Small vector expressions that the kernel generators share. All build TIR; none computes."""

from collections.abc import Iterator

from iqvit.tvm_backend.kernels.script import Expr, T

KERNEL = "iqvit.kernel"
"""The attribute of functions that are written out, without blocks to be scheduled."""
HALVES = 4
"""int32 lanes whose 64-bit products are taken by halves, as ARM's instructions do; those of more
lanes by even and odd lanes, as x86's do."""


def function_attributes(name: str) -> dict[str, object]:
    """The attributes that every kernel has; its buffers never overlap."""
    return {"global_symbol": name, "tirx.noalias": True, KERNEL: True}


STACK = 1024
"""Bytes from which on TVM takes a buffer from a pool, and not from the stack."""


def splat(value: int | Expr, dtype: str, lanes: int) -> Expr:
    """`value` of type `dtype` in every one of `lanes` lanes; a plain scalar for one lane."""
    scalar = getattr(T, dtype)(value) if isinstance(value, int) else value
    return scalar if lanes == 1 else T.broadcast(scalar, lanes)


def span(start: Expr | int, lanes: int) -> Expr | int:
    """The index of `lanes` neighbouring elements from `start`."""
    return start if lanes == 1 else T.ramp(start, 1, lanes)


def lanes_of(value: Expr) -> int:
    """How many lanes the expression has."""
    return value.ty.dtype.lanes


def element_of(value: Expr) -> str:
    """The type of one lane of the expression, for example `int32`."""
    return str(value.ty.dtype).split("x", maxsplit=1)[0]


def typed(dtype: str, lanes: int) -> str:
    """The name of the vector type: `int32x16`, or `int32` for one lane."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def bits_of(dtype: str) -> int:
    """Bits of an integer type."""
    return int(dtype.lstrip("uint"))


def limits(dtype: str) -> tuple[int, int]:
    """The smallest and largest value of an integer type, both included."""
    bits = bits_of(dtype)
    if dtype.startswith("u"):
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def clamp(value: Expr, lo: int, hi: int) -> Expr:
    """`value` limited to `lo..hi` in its own type; bounds of the type itself cost nothing."""
    dtype, lanes = element_of(value), lanes_of(value)
    least, greatest = limits(dtype)
    if lo > least:
        value = T.max(value, splat(lo, dtype, lanes))
    if hi < greatest:
        value = T.min(value, splat(hi, dtype, lanes))
    return value


def pieces(length: int, widest: int) -> Iterator[tuple[int, int]]:
    """`(offset, width)` of power-of-two pieces that cover `0..length` exactly, widest first.

    They let the end of a row be read and written by vectors without leaving the row.
    """
    offset, width = 0, widest
    while offset < length:
        while width > length - offset:
            width //= 2
        yield offset, width
        offset += width
