"""`isoftmax`: I-BERT's integer softmax (Kim et al., arXiv 2101.01321, section 3.5)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.arith import clamp_range, looked_up, multipliers
from iqvit.errors import OverflowProofError
from iqvit.inttype import LIMITS, IntType, QParams
from iqvit.ops.base import Op, Sample, want

# exp(p) on (-ln2, 0] as A*(p^2 + B*p + C), as in the authors' code
A = 0.35815147
B, C = 0.96963238 / A, 1.0 / A
OCTAVES = 30  # n of the paper
MULTIPLIER_BITS = 15
MOST_PLACES = 62  # a value below 2**61 shifted by more is 0 all the same


@dataclass(frozen=True)
class ISoftmax(Op):
    """Normalised 16-bit softmax over the last axis, out int16 at scale 2**-15.

    `x -= max(x)`, clipped at `-30 ln2`; `z = x // -ln2`, `p = x + z*ln2`; `e = (p*(p+b) + c) >> z`
    requantised to 16 bits (the paper's QuantAct; here with the octave in the same rounding);
    `out = e * (2**32 // sum(e)) >> 17`. Error of the exponential 2.1e-3, and the truncations lose
    up to 1 % of the sum at 1000 tokens.
    """

    NAME: ClassVar[str] = "isoftmax"
    ln2: int
    b: int
    c: int
    multiplier: int
    shift: int

    @staticmethod
    def of(qin: QParams) -> "ISoftmax":
        """The operator for a per-tensor input scale."""
        scale = float(qin.scale)
        m, shift = multipliers(A * scale * scale * 32767, bits=MULTIPLIER_BITS)
        return ISoftmax(
            math.floor(math.log(2) / scale),
            math.floor(B / scale),
            math.floor(C / scale**2),
            int(m),
            shift,
        )

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        want(self.ln2 >= 1, "the input scale is above ln 2: the logits are too coarse")
        largest = self.c * self.multiplier
        if largest >= 1 << (MOST_PLACES - 1):
            raise OverflowProofError(f"the exponential {largest} leaves {MOST_PLACES - 1} bits")
        want(65536 * x.shape[-1] < 1 << 32, "the sum of exponentials leaves 32 bits")
        return IntType("int16", x.shape, *clamp_range(0, 32768, *LIMITS["int16"]))

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x, last = args[0].to(torch.int64), OCTAVES * self.ln2
        below = (x.amax(-1, keepdim=True) - x).clamp(max=last)
        if below.numel() > last:
            every = torch.arange(last + 1, device=x.device)
            e = looked_up(self._exponential(every), below)
        else:
            e = self._exponential(below)
        factor = (1 << 32) // e.sum(-1, keepdim=True)
        return ((e * factor) >> 17).clamp(max=32767).to(torch.int16)

    def _exponential(self, below: torch.Tensor) -> torch.Tensor:
        """`e` for int64 distances below the maximum, in 0..30 ln2."""
        z = below // self.ln2
        p = z * self.ln2 - below
        polynomial = (p * (p + self.b) + self.c).clamp(min=0)
        places = (self.shift + z).clamp(max=MOST_PLACES)
        one = torch.ones_like(places)
        return (polynomial * self.multiplier + (one << (places - 1))) >> places

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        rows = (*out.shape[:-1], 1)
        zero = tirx.const(0, "int64")

        def body(x: Any) -> Any:
            m, n = (tvm_te.reduce_axis((0, out.shape[-1]), name) for name in "mn")
            top = tvm_te.compute(rows, lambda *i: tvm_te.max(te.i64(x(*i[:-1], m)), axis=m), "top")

            def exponential(*i: Any) -> Any:
                y = tirx.max(te.i64(x(*i)) - top(*i[:-1], zero), te.const64(-OCTAVES * self.ln2))
                z = tirx.truncdiv(-y, te.const64(self.ln2))
                p = y + z * te.const64(self.ln2)
                polynomial = tirx.max(p * (p + te.const64(self.b)) + te.const64(self.c), zero)
                places = tirx.min(te.const64(self.shift) + z, te.const64(MOST_PLACES))
                half = tirx.shift_left(te.const64(1), places - te.const64(1))
                return tirx.shift_right(polynomial * te.const64(self.multiplier) + half, places)

            e = tvm_te.compute(out.shape, exponential, "e")
            total = tvm_te.compute(rows, lambda *i: tvm_te.sum(e(*i[:-1], n), axis=n), "row_sum")

            def element(*i: Any) -> Any:
                factor = tirx.truncdiv(te.const64(1 << 32), total(*i[:-1], zero))
                return te.saturate((e(*i) * factor) >> te.const64(17), "int16", 0, 32767)

            return tvm_te.compute(out.shape, element, "isoftmax")

        return bb.emit_te(body, *args, primfunc_name_hint="isoftmax")

    @classmethod
    def samples(cls) -> list[Sample]:
        samples = []
        for shape, scale, limit in (((2, 4, 20), 0.0007, 9000), ((1, 3, 9), 0.01, 900)):
            samples.append(
                Sample(
                    cls.of(QParams.of(scale)),
                    (IntType("int32", shape, -limit, limit),),
                    lambda x: torch.softmax(x, -1),
                    (QParams.of(scale),),
                    QParams.of(2**-15),
                    error=220.0,
                )
            )
        return samples
