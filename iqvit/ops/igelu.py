"""`igelu`: I-BERT's integer GELU (Kim et al., arXiv 2101.01321, section 3.4)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from iqvit.arith import clamp_range, multipliers, requantise_range
from iqvit.inttype import LIMITS, IntType, QParams, constant_type
from iqvit.ops.base import Op, Sample, want
from iqvit.ops.unary import unary

# erf(x) as sign(x) * (A * (min(|x|, -B) + B)**2 + 1), as published
A, B = -0.2888, -1.769
KEPT_BITS = (
    14  # the authors drop 14 bits of erf for their 32-bit inputs; we keep at least this many
)


@dataclass(frozen=True)
class IGelu(Op):
    """`out[..., c] = clamp((x * (erf + one) * m[c] + half >> shift) + z[c])`,
    `erf = sign(x) * ((min(|x|, -b) + b)**2 + c) >> drop`.

    Inputs: x int8 or int16 with zero point 0; m and z int32 `[C]` or `[1]` along the last axis (m
    is negative, as the published scale of erf is). Error against GELU: 0.0182.
    """

    NAME: ClassVar[str] = "igelu"
    MADE: ClassVar[tuple[int, ...]] = (1, 2)
    b: int
    c: int
    drop: int
    one: int
    shift: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(qin: QParams, qout: QParams, dtype: str) -> tuple["IGelu", np.ndarray, np.ndarray]:
        """The operator with its multipliers and zero points."""
        scale = float(qin.scale) / math.sqrt(2)
        b, c = math.floor(B / scale), math.floor(1 / A / scale**2)
        drop = max(0, abs(c).bit_length() - KEPT_BITS)
        erf_scale = A * scale**2 * 2**drop
        one = math.floor(1 / erf_scale)
        m, shift = multipliers(np.atleast_1d(float(qin.scale) * erf_scale / 2 / qout.scale))
        zero = np.atleast_1d(qout.zero_point).astype(np.int32)
        op = IGelu(b, c, drop, one, shift, dtype, *LIMITS[dtype])
        return op, m.astype(np.int32), zero

    def infer(self, *args: IntType) -> IntType:
        x, multiplier, zero = args
        want(x.dtype in ("int8", "int16"), f"x is {x.dtype}, not int8 or int16")
        for kind in (multiplier, zero):
            want(kind.shape in ((1,), (x.shape[-1],)), f"{kind.shape} does not fit {x.shape}")
        erf = (abs(self.b) ** 2 + abs(self.c) >> self.drop) + 1 + abs(self.one)
        bound = max(abs(x.lo), abs(x.hi)) * erf
        lo, hi = requantise_range(-bound, bound, [multiplier.lo, multiplier.hi], self.shift)
        lo, hi = clamp_range(lo + zero.lo, hi + zero.hi, self.lo, self.hi)
        return IntType(self.dtype, x.shape, lo, hi)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        def value(x: torch.Tensor) -> torch.Tensor:
            clipped = x.abs().clamp(max=-self.b) + self.b
            erf = (x.sign() * (clipped * clipped + self.c)) >> self.drop
            return x * (erf + self.one)

        q, multiplier, zero = args
        return unary(value, q, multiplier, zero, self)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        def body(x: Any, multiplier: Any, zero: Any) -> Any:
            def element(*i: Any) -> Any:
                q = te.i64(x(*i))
                clipped = tirx.min(tirx.max(q, -q), te.const64(-self.b)) + te.const64(self.b)
                erf = clipped * clipped + te.const64(self.c)
                none = te.const64(0)
                signed = tirx.Select(q > none, erf, tirx.Select(q < none, -erf, none))
                value = q * ((signed >> te.const64(self.drop)) + te.const64(self.one))
                c = [te.broadcast_index(i, t.shape) for t in types[1:]]
                scaled = te.requantise(value, multiplier(*c[0]), self.shift)
                return te.saturate(scaled + te.i64(zero(*c[1])), self.dtype, self.lo, self.hi)

            return tvm_te.compute(out.shape, element, "igelu")

        return bb.emit_te(body, *args, primfunc_name_hint="igelu")

    @classmethod
    def samples(cls) -> list[Sample]:
        samples = []
        for kind, qin, qout, dtype in (
            ("int16", QParams.of(0.0004), QParams.of(0.05, 4), "uint8"),
            ("int16", QParams.of(0.0004), QParams.of(np.linspace(0.02, 0.1, 6), 3.0, -1), "uint8"),
            ("int8", QParams.of(0.03), QParams.of(0.03), "int8"),
        ):
            op, m, zero = cls.of(qin, qout, dtype)
            worst = 0.0182 + (0.005 if kind == "int16" else 0.03)
            samples.append(
                Sample(
                    op,
                    (
                        IntType(kind, (1, 50, 6), *LIMITS[kind]),
                        constant_type(m),
                        constant_type(zero),
                    ),
                    lambda x, _m, _z: torch.nn.functional.gelu(x),
                    (qin, None, None),
                    qout,
                    error=0.5 + worst / float(qout.scale.min()),
                )
            )
        return samples
