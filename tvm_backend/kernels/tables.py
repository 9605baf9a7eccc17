"""Look-ups in small tables; where registers can be permuted, the table lies in them."""

from iqvit.tvm_backend.kernels.integers import gather, keep
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.vector import lanes_of, span, splat

ENTRIES = 256
"""The largest table that is kept in registers."""
_HALF = 16  # int32 in a register; a permutation picks from two
_PERMUTE = "llvm.x86.avx512.vpermi2var.d.512"


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
