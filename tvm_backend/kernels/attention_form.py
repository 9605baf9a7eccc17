"""What the code of an `attention` depends on, and what all of its parts read."""

from dataclasses import dataclass

from iqvit.tvm_backend.kernels.instructions import dot
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.vector import typed


@dataclass(frozen=True)
class Place:
    """Where a tensor `[heads, tokens, depth]` lies: in which parameter, and how."""

    parameter: int
    offset: int
    head: int
    token: int

    def at(self, head: Expr, token: Expr | int) -> Expr:
        """The address of the first element of a token."""
        return head * self.head + token * self.token + self.offset


SCALARS = ("pre", "cap", "multiplier", "exp_shift", "numerator", "offset", "shift")
"""What the function is given as int64, so that all layers of a shape share it: the attributes of
the operator, with the rounding constant in the offset."""


TURN = 8
"""Keys whose products are woven with the probabilities of as many."""
NOTHING = -(2**30)
"""The product of queries with a key that is none: far below all others."""


@dataclass(frozen=True)
class Problem:
    """What the generated code depends on: types, sizes, and where everything lies."""

    bits: int
    dtype: str
    lo: int
    hi: int
    heads: int
    queries: int
    keys: int
    depth: int
    width: int
    """Depth of v and of the result."""
    shapes: tuple[tuple[int, int], ...]
    """Of every parameter, as rows."""
    out_shape: tuple[int, int]
    q: Place
    k: Place
    v: Place
    out: Place
    fits: bool
    """Whether the result fits int32 before it saturates."""
    words: bool
    """Whether exponentials fit 16-bit lanes (`takes_words`)."""
    vanishes: bool
    """Whether a product of `NOTHING` has no probability beside any other."""
    upper: bool
    """Whether the offset and the shift are those of upper halves: `(high + offset) >> 1` of the
    products of accumulators that are raised by the shift."""


@dataclass(frozen=True)
class Kernel:
    problem: Problem
    isa: Isa
    inputs: tuple[Buffer, ...]
    scalars: Buffer
    out: Buffer

    def scalar(self, name: str) -> Expr:
        """One of `SCALARS`."""
        return self.scalars[SCALARS.index(name)]

    @property
    def lanes(self) -> int:
        return self.isa.lanes

    @property
    def bits(self) -> int:
        """Bits of one of the `group` values that lie in an int32 lane."""
        return 32 // self.isa.group

    @property
    def signed(self) -> bool:
        """Whether `dot` takes both operands signed; else the left one is offset by 128."""
        return self.isa.operand != "uint8"

    @property
    def lowers(self) -> bool:
        """Whether `dot` takes bytes signed, so that 128 is taken off the probabilities."""
        return self.isa.operand == "int8"

    @property
    def groups(self) -> int:
        """Groups of keys."""
        return -(-self.problem.keys // self.isa.group)

    @property
    def block(self) -> int:
        """Accumulators of one register block."""
        return self.isa.lanes

    @property
    def weaves(self) -> bool:
        """Whether products and probabilities are woven; what undoes an offset of the queries then
        keeps keys that are none out."""
        fits = self.problem.words and self.problem.vanishes
        return self.isa.woven > 0 and fits and not self.signed

    @property
    def keys(self) -> int:
        """Keys, where products are woven with those that fill up the last turn."""
        keys = self.problem.keys
        return -(-keys // TURN) * TURN if self.weaves else keys

    def dot(self, acc: Expr, left: Expr, right: Expr) -> Expr:
        """`acc` plus the dot products of lanes of packed int32."""
        isa = self.isa
        a, b = (T.reinterpret(typed(isa.stored, isa.slots), x) for x in (left, right))
        return dot(isa, acc, a, b)
