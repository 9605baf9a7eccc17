"""Look-ups in small tables; where registers can be permuted, the table lies in them."""

import numpy as np

from iqvit.tvm_backend.kernels.instructions import pack
from iqvit.tvm_backend.kernels.integers import gather, keep
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.vector import lanes_of, span, splat

ENTRIES = 256
"""The largest table that is kept in registers."""
_HALF = 16  # int32 in a register; a permutation picks from two
_PERMUTE = "llvm.x86.avx512.vpermi2var.d.512"
TOGETHER = 4
"""Vectors of indices that `entries_of_bytes` takes."""
_BYTES = 64  # in a register; a permutation picks from two
_LANE = 16  # bytes of a register within which packs and unpacks move them
_PERMUTE_BYTES = "llvm.x86.avx512.vpermi2var.qi.512"


def padded(used: int) -> int:
    """The entries of a table that holds `used`: whole pairs of registers."""
    return -(-used // (2 * _HALF)) * 2 * _HALF


def entry_or_zero(table: Buffer, entries: int, index: Expr, isa: Isa) -> Expr:
    """`table[index]` of `entries` int32 for index >= 0, and 0 for an index beyond them.

    For 256 entries, 8 permutations and 7 blends took half the time of a gather on a Cascade Lake.
    """
    lanes = lanes_of(index)
    index = keep(index)
    if lanes == _HALF and isa.lanes == _HALF:
        found = _permuted(table, index, entries)
    else:
        found = gather(table, T.min(index, splat(entries - 1, "int32", lanes)), isa)
    inside = index < splat(entries, "int32", lanes)
    return T.Select(inside, found, splat(0, "int32", lanes))


def byte_entry(table: Buffer, index: Expr, dtype: str, isa: Isa) -> Expr:
    """`table[index]` of 256 entries of type int8 or uint8, four in an int32, as int32."""
    lanes = lanes_of(index)
    word = index >> splat(2, "int32", lanes)
    words = keep(_permuted(table, word, 64) if lanes == _HALF else gather(table, word, isa))
    # The entry goes to the top byte, from where a shift brings its sign along.
    three = splat(3, "int32", lanes)
    left = (three - (index & three)) << three
    top, right = words << left, splat(24, "int32", lanes)
    if dtype == "int8":
        return top >> right
    return (top >> right) & splat(0xFF, "int32", lanes)


def planes_of(table: np.ndarray) -> np.ndarray:
    """int32 `[n]`, n <= `ENTRIES`, as int8 `[4 * ENTRIES]` for `entries_of_bytes`: the lowest bytes
    of all entries, and so on; zeros behind the last one."""
    filled = np.zeros(ENTRIES, np.int32)
    filled[: table.size] = table
    return np.ascontiguousarray(filled.view(np.int8).reshape(ENTRIES, 4).T).reshape(-1)


def entries_of_bytes(planes: Buffer, values: list[Expr], step: Expr, isa: Isa) -> list[Expr]:
    """`table[value >> step]` of `TOGETHER` vectors of int32 values in 0..2**15, from what
    `planes_of` made of the table: the last of `ENTRIES` for an index beyond them, and what 2**15-1
    has for 2**15, as packing saturates.

    A byte of 64 entries takes two permutations and a blend: 6 instructions for 16 entries, where
    permutations of int32 take 20.
    """
    shift = splat(T.Cast("int16", step), "int16", _BYTES // 2)
    pairs = zip(values[::2], values[1::2], strict=True)
    low, high = (keep(pack(isa, a, b, "int16") >> shift) for a, b in pairs)
    index = keep(T.reinterpret("int8x64", pack(isa, low, high, "uint8")))
    upper = index < splat(0, "int8", _BYTES)
    found = [_byte_plane(planes, plane * ENTRIES, index, upper) for plane in range(4)]
    halves = [_unpacked(found[i], found[i + 1], "int8") for i in (0, 2)]
    words = [_unpacked(halves[0][side], halves[1][side], "int16") for side in (0, 1)]
    return [keep(T.reinterpret("int32x16", vector)) for pair in words for vector in pair]


def _byte_plane(planes: Buffer, start: int, index: Expr, upper: Expr) -> Expr:
    parts = [planes[span(start + i * _BYTES, _BYTES)] for i in range(4)]
    low, high = (
        T.call_llvm_pure_intrin("int8x64", _PERMUTE_BYTES, parts[i], index, parts[i + 1])
        for i in (0, 2)
    )
    return keep(T.Select(upper, high, low))


def _unpacked(a: Expr, b: Expr, dtype: str) -> tuple[Expr, Expr]:
    """The elements of both in turns, of the lower and of the upper halves of their lanes."""
    count = _BYTES if dtype == "int8" else _BYTES // 2
    lane = _LANE * count // _BYTES
    both = [T.reinterpret(f"{dtype}x{count}", value) for value in (a, b)]
    order = [
        [first + i + side for first in range(0, count, lane) for i in part for side in (0, count)]
        for part in (range(lane // 2), range(lane // 2, lane))
    ]
    low, high = (keep(T.Shuffle(both, places)) for places in order)
    return low, high


def _permuted(table: Buffer, index: Expr, entries: int) -> Expr:
    """`table[index]` of int32 held in registers, by the bits of the index that count the entries:
    5 for a permutation of two registers, one for each blend."""
    index = keep(index)
    parts = [table[span(i, _HALF)] for i in range(0, entries, _HALF)]
    found = [
        keep(T.call_llvm_pure_intrin("int32x16", _PERMUTE, parts[i], index, parts[i + 1]))
        for i in range(0, len(parts), 2)
    ]
    bit = 2 * _HALF
    while len(found) > 1:
        zero = splat(0, "int32", _HALF)
        upper = keep(index & splat(bit, "int32", _HALF))
        pairs = zip(found[::2], found[1::2], strict=False)
        odd = found[len(found) // 2 * 2 :]  # nothing is above it
        found = [keep(T.Select(upper == zero, low, high)) for low, high in pairs] + odd
        bit *= 2
    return found[0]
