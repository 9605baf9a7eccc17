"""Tables of 256 entries for the element-wise stages of kernels."""

from iqvit.tvm_backend.kernels.integers import gather, keep
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.vector import lanes_of, span, splat

ENTRIES = 256
_HALF = 16  # int32 in a register; a permutation picks from two
_PERMUTE = "llvm.x86.avx512.vpermi2var.d.512"


def entry_or_zero(table: Buffer, index: Expr, isa: Isa) -> Expr:
    """`table[index]` of 256 int32 for index >= 0, and 0 for an index beyond them.

    AVX-512 permutes registers: 8 permutations and 7 blends take half the time of 16 loads, and of
    a gather on CPUs whose microcode guards it.
    """
    lanes = lanes_of(index)
    index = keep(index)
    if lanes == _HALF and isa.lanes == _HALF:
        found = _permuted(table, index)
    else:
        found = gather(table, T.min(index, splat(ENTRIES - 1, "int32", lanes)), isa)
    inside = index < splat(ENTRIES, "int32", lanes)
    return T.Select(inside, found, splat(0, "int32", lanes))


def _permuted(table: Buffer, index: Expr) -> Expr:
    """`table[index]` by the low 8 bits of the index: 5 for a permutation, one for each blend."""
    parts = [table[span(i, _HALF)] for i in range(0, ENTRIES, _HALF)]
    found = [
        keep(T.call_llvm_pure_intrin("int32x16", _PERMUTE, parts[i], index, parts[i + 1]))
        for i in range(0, len(parts), 2)
    ]
    bit = 2 * _HALF
    while len(found) > 1:
        zero = splat(0, "int32", _HALF)
        upper = keep(index & splat(bit, "int32", _HALF))
        pairs = zip(found[::2], found[1::2], strict=True)
        found = [keep(T.Select(upper == zero, low, high)) for low, high in pairs]
        bit *= 2
    return found[0]
