"""`attention`: scaled dot-product attention as one operator, probabilities kept unnormalised."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.arith import clamp_range, exact_matmul, requantise, require_int32, saturate
from iqvit.errors import OverflowProofError
from iqvit.inttype import LIMITS, IntType, QParams
from iqvit.ops.base import Op, Sample, want
from iqvit.ops.exp2 import Exp2, full_scale
from iqvit.ops.matmul import product_range


@dataclass(frozen=True)
class Attention(Op):
    """`softmax(q @ k.T * scale) @ v` (Vaswani et al., arXiv 1706.03762, equation 1) in integers.

        s = q @ k.T                       int32
        p = full * 2**-t(max(s) - s)      unsigned, the row maximum is full scale (see `Exp2`)
        r = numerator // sum(p)           one division a row
        out = clamp(((p @ v) * r + offset + 2**(shift-1)) >> shift)

    q, k, v int8 `[1, H, N, D]`, k and v with their own N; zero points of q and k are 0, that of v
    is in `offset`. `full` is 255 for `bits` 8 (every product then has 8-bit operands) or 32767 for
    16. Probabilities relative to the row maximum can tell 1/1025 from 0, normalised 8-bit ones
    cannot. Error: half an output step, and the rounding of p: below
    `N * (0.5/full + 1.3e-4) * max|v|` for adverse logits, far less for real ones.
    """

    NAME: ClassVar[str] = "attention"
    pre: int
    cap: int
    exp_multiplier: int
    exp_shift: int
    bits: int
    numerator: int
    offset: int
    shift: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(
        qq: QParams, qk: QParams, qv: QParams, qout: QParams, scale: float, bits: int, dtype: str
    ) -> "Attention":
        """The operator for per-tensor scales; `scale` is the factor of the logits."""
        exp = Exp2.of(float(qq.scale * qk.scale) * scale)
        ratio = float(qv.scale / qout.scale)
        # The reciprocal of the smallest row sum (one full-scale term) must stay below 2**31.
        shift = 31 + math.floor(math.log2(full_scale(bits) / ratio))
        shift = min(shift, 46)
        numerator = round(ratio * 2**shift)
        offset = round(float(qout.zero_point) * 2**shift - float(qv.zero_point) * numerator)
        return Attention(
            exp.pre,
            exp.cap,
            exp.multiplier,
            exp.shift,
            bits,
            numerator,
            offset,
            shift,
            dtype,
            *LIMITS[dtype],
        )

    @property
    def exp(self) -> Exp2:
        """The exponential of the probabilities."""
        return Exp2(self.pre, self.cap, self.exp_multiplier, self.exp_shift)

    def infer(self, *args: IntType) -> IntType:
        q, k, v = args
        for x in args:
            want(x.dtype == "int8" and len(x.shape) == 4, f"{x} is not int8[1,H,N,D]")
        want(k.shape[-2] == v.shape[-2], f"{k.shape[-2]} keys, {v.shape[-2]} values")
        want(q.shape[-1] == k.shape[-1], f"q {q.shape} and k {k.shape} do not multiply")
        want(q.shape[:2] == k.shape[:2] == v.shape[:2], "q, k and v have the same heads")
        self.accumulator(*args)
        full = full_scale(self.bits)
        want(self.numerator // full < 1 << 31, "the reciprocal of a row sum leaves 31 bits")
        half = (1 << self.shift) >> 1
        lo = min(v.lo, 0) * self.numerator + self.offset + half
        hi = max(v.hi, 0) * self.numerator + self.offset + half
        if max(abs(lo), abs(hi)) >= 1 << 62:
            raise OverflowProofError(f"the output range {lo}..{hi} leaves 62 bits")
        lo, hi = clamp_range(lo >> self.shift, hi >> self.shift, self.lo, self.hi)
        return IntType(self.dtype, (*q.shape[:-1], v.shape[-1]), lo, hi)

    def accumulator(self, *args: IntType) -> tuple[int, int]:
        q, k, v = args
        lo, hi = product_range(q, k, q.shape[-1])
        require_int32(lo, hi, "logit")
        require_int32(0, hi - lo, "logit difference")
        terms = full_scale(self.bits) * k.shape[-2]
        weighted = min(v.lo, 0) * terms, max(v.hi, 0) * terms
        require_int32(*weighted, "probability-weighted sum")
        return min(lo, weighted[0]), max(hi - lo, hi, weighted[1])

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        q, k, v = args
        largest = q.shape[-1] * 128 * 128
        logits = exact_matmul(q, k.transpose(-1, -2), largest, torch.int32)
        full = full_scale(self.bits)
        p = self.exp.run(logits.amax(-1, keepdim=True) - logits, full)
        reciprocal = self.numerator // p.sum(-1, keepdim=True, dtype=torch.int32).to(torch.int64)
        acc = exact_matmul(p, v, full * 128 * k.shape[-2])
        out = requantise((acc * reciprocal).add_(self.offset), 1, self.shift)
        return saturate(out, self.dtype, self.lo, self.hi)

    def macs(self, *args: IntType) -> int:
        q, k, v = args
        return q.size * k.shape[-2] + v.size * q.shape[-2]

    def wide_macs(self, *args: IntType) -> int:
        return args[2].size * args[0].shape[-2] if self.bits > 8 else 0

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        heads, rows, depth = types[0].shape[1:]
        keys = types[1].shape[2]
        full = full_scale(self.bits)

        def body(q: Any, k: Any, v: Any) -> Any:
            d, m, n, t = (
                tvm_te.reduce_axis((0, size), name)
                for size, name in ((depth, "d"), (keys, "m"), (keys, "n"), (keys, "t"))
            )
            logits = tvm_te.compute(
                (1, heads, rows, keys),
                lambda b, h, i, j: tvm_te.sum(
                    te.i32(q(b, h, i, d)) * te.i32(k(b, h, j, d)), axis=d
                ),
                "logits",
            )
            top = tvm_te.compute(
                (1, heads, rows), lambda b, h, i: tvm_te.max(logits(b, h, i, m), axis=m), "top"
            )
            p = tvm_te.compute(
                (1, heads, rows, keys),
                lambda b, h, i, j: self.exp.te(top(b, h, i) - logits(b, h, i, j), full),
                "p",
            )
            reciprocal = tvm_te.compute(
                (1, heads, rows), lambda b, h, i: tvm_te.sum(p(b, h, i, n), axis=n), "row_sum"
            )
            acc = tvm_te.compute(
                out.shape,
                lambda b, h, i, e: tvm_te.sum(p(b, h, i, t) * te.i32(v(b, h, t, e)), axis=t),
                "acc",
            )

            def element(b: Any, h: Any, i: Any, e: Any) -> Any:
                r = tirx.truncdiv(te.const64(self.numerator), te.i64(reciprocal(b, h, i)))
                value = te.i64(acc(b, h, i, e)) * r + te.const64(self.offset)
                value = te.requantise(value, te.const64(1), self.shift)
                return te.saturate(value, self.dtype, self.lo, self.hi)

            return tvm_te.compute(out.shape, element, "attended")

        return bb.emit_te(body, *args, primfunc_name_hint="attention")

    @classmethod
    def samples(cls) -> list[Sample]:
        cases = [
            # heads, queries, keys, depth, scale of q and k, v, out
            (2, 7, 7, 8, 0.04, QParams.of(0.02), QParams.of(0.025, 4), 8, "int8"),
            (1, 5, 40, 12, 0.02, QParams.of(0.03, -20), QParams.of(0.03), 8, "int8"),
            (3, 9, 33, 4, 0.2, QParams.of(0.01), QParams.of(0.0001), 16, "int16"),
        ]
        samples = []
        for heads, rows, keys, depth, s, qv, qout, bits, dtype in cases:
            scale = depth**-0.5
            types = tuple(
                IntType("int8", (1, heads, n, depth), -127, 127) for n in (rows, keys, keys)
            )
            largest = 127 + abs(float(qv.zero_point))
            adverse = keys * (0.5 / full_scale(bits) + 1.3e-4) * 2 * largest
            samples.append(
                Sample(
                    cls.of(QParams.of(s), QParams.of(s), qv, qout, scale, bits, dtype),
                    types,
                    lambda q, k, v, scale=scale: (
                        torch.softmax(q @ k.transpose(-1, -2) * scale, -1) @ v
                    ),
                    (QParams.of(s), QParams.of(s), qv),
                    qout,
                    error=0.6 + adverse * float(qv.scale / qout.scale),
                    macs=heads * rows * keys * depth * 2,
                )
            )
        return samples
