"""One frozen description per instruction set; the kernels are generated from it."""

from dataclasses import dataclass, replace

__all__ = [
    "ARM_DOTPROD",
    "ARM_I8MM",
    "ARM_NEON",
    "AVX2",
    "AVX512_VBMI",
    "AVX512_VNNI",
    "AVX_VNNI",
    "ISAS",
    "OFFSET",
    "Isa",
]

OFFSET = 128
"""What makes a signed byte unsigned, and back."""


@dataclass(frozen=True)
class Isa:
    """What a kernel generator needs to know about one vector instruction set.

    An accumulator is a vector of `lanes` int32. `dot` multiplies `group` activations of type
    `operand` with as many weights of type `weight` into every lane.
    """

    name: str
    lanes: int
    """int32 lanes of one vector register."""
    group: int
    """Products summed into one lane by one `dot`."""
    operand: str
    """Type of the activations as `dot` reads them: `uint8` or `int8` (those of the other sign are
    offset), or `int16`."""
    weight: str
    """Type of the packed weights as `dot` reads them."""
    dot: str
    """LLVM name of the dot instruction."""
    dot_accumulates: bool
    """Whether `dot` takes and adds the accumulator itself."""
    pack16: str
    """LLVM name of int32 -> int16 saturating pack of two vectors, per 128-bit lane; "" where LLVM
    makes the CPU's instruction of a plain saturation, as for the other packs."""
    pack_int8: str
    """LLVM name of int16 -> int8 saturating pack of two vectors, per 128-bit lane."""
    pack_uint8: str
    """LLVM name of int16 -> uint8 saturating pack of two vectors, per 128-bit lane."""
    rows: int
    """Rows of one register block (MR)."""
    vectors: int
    """Vectors across one register block (NR): the block is `rows` x `vectors * lanes`."""
    macs_per_cycle: int
    """Multiply-accumulates a cycle and core, of two dot instructions a cycle."""
    unroll: int = 2
    """Groups of K in one turn of a GEMM's inner loop: the counter and the branch of two are hardly
    noticed, but LLVM runs out of registers where a group needs all of them."""
    widens: bool = False
    """Whether `dot` only multiplies 8-bit lanes to 16-bit ones, which are then added up."""
    byte_tables: bool = False
    """Whether a permutation picks from 128 bytes, so that tables are looked up by bytes."""
    woven: int = 0
    """Rows of a block of a GEMM whose products are computed among the results of the block before;
    0: one after the other."""
    matrix: str = ""
    """LLVM name of the instruction that multiplies two rows of activations, `k_group` of each, with
    two columns of weights into the 2 x 2 lanes of an accumulator; "" where there is none."""

    @property
    def tile(self) -> int:
        """Rows (and columns) of an accumulator: GEMMs compute them together."""
        return 2 if self.matrix else 1

    @property
    def k_group(self) -> int:
        """Products that an instruction of a GEMM sums into one lane; K is packed in such groups."""
        return self.group * self.tile

    @property
    def rowwise(self) -> "Isa":
        """The description for GEMMs of single rows: by `dot`."""
        return replace(self, matrix="")

    @property
    def stored(self) -> str:
        """The type in which activations are kept for `dot`: bytes of either sign as int8."""
        return "int8" if self.operand == "uint8" else self.operand

    def offset(self, x_dtype: str) -> int:
        """What is added to 8-bit activations so that `dot` reads them as `operand`."""
        if self.operand in ("int16", x_dtype):
            return 0
        return OFFSET if x_dtype == "int8" else -OFFSET

    @property
    def panel(self) -> int:
        """Output columns of one weight panel."""
        return self.vectors * self.lanes

    @property
    def slots(self) -> int:
        """Weight elements in one vector register."""
        return self.lanes * self.group

    @property
    def group_weights(self) -> int:
        """Weights of `lanes` columns in one group of K."""
        return self.lanes * self.k_group


# 24 accumulators, 4 weight vectors and one broadcast fill 29 of 32 registers; a 6 x 4 block needs
# 10 loads for 24 dot products, so two load ports keep two dot ports busy.
AVX512_VNNI = Isa(
    name="avx512-vnni",
    lanes=16,
    group=4,
    operand="uint8",
    weight="int8",
    dot="llvm.x86.avx512.vpdpbusd.512",
    dot_accumulates=True,
    pack16="llvm.x86.avx512.packssdw.512",
    pack_int8="llvm.x86.avx512.packsswb.512",
    pack_uint8="llvm.x86.avx512.packuswb.512",
    rows=6,
    vectors=4,
    macs_per_cycle=128,
)

# Ice Lake and Zen 4 on: bytes are permuted as well. Registers are left for the results with which
# products are woven.
AVX512_VBMI = replace(AVX512_VNNI, name="avx512-vbmi", byte_tables=True, woven=5)

# 16 registers: 12 accumulators, 2 weight vectors, one broadcast. LLVM has one intrinsic for the
# 256-bit instruction and picks the VEX (AVX-VNNI) or EVEX (AVX-512 VL) encoding by the target.
AVX_VNNI = Isa(
    name="avx-vnni",
    lanes=8,
    group=4,
    operand="uint8",
    weight="int8",
    dot="llvm.x86.avx512.vpdpbusd.256",
    dot_accumulates=True,
    pack16="llvm.x86.avx2.packssdw",
    pack_int8="llvm.x86.avx2.packsswb",
    pack_uint8="llvm.x86.avx2.packuswb",
    rows=6,
    vectors=2,
    macs_per_cycle=64,
)

# vpmaddubsw would take bytes, but it saturates its int16 sums and so is not exact: both operands
# are widened to int16 (weights when they are packed, activations once per block) for vpmaddwd.
AVX2 = replace(
    AVX_VNNI,
    name="avx2",
    group=2,
    operand="int16",
    weight="int16",
    dot="llvm.x86.avx2.pmadd.wd",
    dot_accumulates=False,
    macs_per_cycle=32,
)

# 32 registers: 24 accumulators, 4 weight vectors, and rows of x that are read into all lanes.
ARM_DOTPROD = Isa(
    name="arm-dotprod",
    lanes=4,
    group=4,
    operand="int8",
    weight="int8",
    dot="llvm.aarch64.neon.sdot.v4i32.v16i8",
    dot_accumulates=True,
    pack16="",
    pack_int8="",
    pack_uint8="",
    rows=6,
    vectors=4,
    macs_per_cycle=32,
)

# The i8mm extension multiplies unsigned with signed bytes, so nothing is offset, and two rows with
# two columns at once: a block takes 3 pairs of rows, 24 accumulators and a weight at a time.
ARM_I8MM = replace(
    ARM_DOTPROD,
    name="arm-i8mm",
    operand="uint8",
    dot="llvm.aarch64.neon.usdot.v4i32.v16i8",
    matrix="llvm.aarch64.neon.usmmla.v4i32.v16i8",
    macs_per_cycle=64,
    unroll=1,
)

# Without a dot product: 8-bit products, of which GEMMs add two before they widen them. The pairs of
# activations and the products take registers, which leaves room for 16 accumulators.
ARM_NEON = replace(
    ARM_DOTPROD,
    name="arm-neon",
    dot="llvm.aarch64.neon.smull.v8i16",
    dot_accumulates=False,
    rows=4,
    macs_per_cycle=8,
    unroll=1,
    widens=True,
)

_ALL = (AVX512_VBMI, AVX512_VNNI, AVX_VNNI, AVX2, ARM_I8MM, ARM_DOTPROD, ARM_NEON)
ISAS = {isa.name: isa for isa in _ALL}
