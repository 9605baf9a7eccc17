"""`layernorm`: LayerNorm with an exact integer square root."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from iqvit.arith import clamp_range, isqrt, multipliers, requantise, require_int32, saturate
from iqvit.errors import GraphError
from iqvit.inttype import LIMITS, IntType, QParams, constant_type
from iqvit.ops.base import Op, Sample, want

NORM_BITS = 12  # fractional bits of the normalised value
ROOT_BITS = 62  # the variance is scaled up to just below 2**62 before its root is taken


def spread_bound(x: IntType) -> int:
    """The largest `n*sum(q^2) - sum(q)^2` (Popoviciu's inequality on variances)."""
    count = x.shape[-1]
    return (count * count * (x.hi - x.lo) ** 2 + 3) // 4


def _norm_bound(count: int, extra: int) -> int:
    """The largest |t|: |d| <= sqrt(n * V); the root may be one too small at `extra` more bits."""
    bound = math.isqrt(count << 2 * NORM_BITS) + 2
    return bound + (bound >> extra) + 1


def _affine_integers(
    ratio: np.ndarray, offset: np.ndarray, bound: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Gain, bias and shift with the most bits for which `t * gain + bias` stays in int32.

    A gain that is vanishing beside the bias loses its bits to it, down to none.
    """
    _, most = multipliers(ratio, 24)
    for shift in range(most if np.any(ratio) else 62, 0, -1):
        g = np.floor(ratio * 2.0**shift + 0.5)
        b = np.floor(offset * 2.0**shift + 0.5)
        if np.max(np.abs(b) + bound * np.abs(g)) + 2.0 ** (shift - 1) < 2**31:
            return g.astype(np.int32), b.astype(np.int32), shift
    raise GraphError("the bias of a LayerNorm is too large for its output scale")


@dataclass(frozen=True)
class LayerNorm(Op):
    """LayerNorm over the last axis (Ba et al., arXiv 1607.06450), scale and bias per channel.

    With `d = n*q - sum(q)` and `V = n*sum(q^2) - sum(q)^2 + epsilon`, both exact:

        root = floor(sqrt(V << 2*extra)),  inverse = 2**reciprocal // root
        t = (d * inverse + half) >> norm_shift            # normalised, 12 fractional bits
        out = clamp((t * g + b + half) >> shift)

    Inputs: x `[..., n]` of any width, g int32 `[n]`, b int32 `[n]` (which holds the zero point).
    `epsilon` is the float one in units of V. Error: half an output step for the last rounding, and
    about 2**-12 * max|g| / 2**shift for the rounding of t.
    """

    NAME: ClassVar[str] = "layernorm"
    epsilon: int
    extra: int
    reciprocal: int
    norm_shift: int
    shift: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(
        x: IntType,
        qin: QParams,
        gain: np.ndarray,
        bias: np.ndarray,
        eps: float,
        qout: QParams,
        dtype: str,
    ) -> tuple["LayerNorm", np.ndarray, np.ndarray]:
        """The operator with its integer gain and bias; `qout` may be per channel."""
        count = x.shape[-1]
        epsilon = max(1, round(count * count * eps / float(qin.scale) ** 2))
        largest = spread_bound(x) + epsilon
        extra = (ROOT_BITS - largest.bit_length()) // 2
        if extra < 1:
            raise GraphError(
                f"a LayerNorm over {count} values of {x.lo}..{x.hi} needs over 62 bits"
            )
        smallest_root = math.isqrt(epsilon << 2 * extra)
        reciprocal = min(29 + smallest_root.bit_length(), 62)
        norm_shift = reciprocal - extra - NORM_BITS
        ratio = np.broadcast_to(np.asarray(gain / qout.scale) / 2**NORM_BITS, (count,))
        offset = np.broadcast_to(bias / qout.scale + qout.zero_point, (count,))
        g, b, shift = _affine_integers(ratio, offset, _norm_bound(count, extra))
        op = LayerNorm(epsilon, extra, reciprocal, norm_shift, shift, dtype, *LIMITS[dtype])
        return op, g, b

    def infer(self, *args: IntType) -> IntType:
        x, gain, bias = args
        count = x.shape[-1]
        for kind in (gain, bias):
            want(kind.shape == (count,) and kind.dtype == "int32", f"{kind} is not int32[{count}]")
        largest = (spread_bound(x) + self.epsilon) << (2 * self.extra)
        want(largest < 1 << ROOT_BITS, "the variance leaves 62 bits")
        require_int32(min(x.lo * count, -1), x.hi * count, "sum")
        require_int32(-count * (x.hi - x.lo), count * (x.hi - x.lo), "centred value")
        inverse = (1 << self.reciprocal) // math.isqrt(self.epsilon << (2 * self.extra))
        want(inverse < 1 << 31, "the reciprocal leaves 31 bits")
        want(self.norm_shift >= 1, "the normalised value has no bits to round")
        bound = _norm_bound(count, self.extra)
        ends = [s * bound * int(g) + int(b) for s in (-1, 1) for g, b in self._affine(gain, bias)]
        half = (1 << self.shift) >> 1
        require_int32(min(ends), max(ends) + half)
        lo, hi = (min(ends) + half) >> self.shift, (max(ends) + half) >> self.shift
        return IntType(self.dtype, x.shape, *clamp_range(lo, hi, self.lo, self.hi))

    @staticmethod
    def _affine(gain: IntType, bias: IntType) -> list[tuple[int, int]]:
        if gain.value is None or bias.value is None:
            raise GraphError("gain and bias must be constants")
        return list(zip(gain.value.tolist(), bias.value.tolist(), strict=True))

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x, gain, bias = (t.to(torch.int64) for t in args)
        count = x.shape[-1]
        total = x.sum(-1, keepdim=True)
        spread = count * (x * x).sum(-1, keepdim=True) - total * total + self.epsilon
        inverse = (1 << self.reciprocal) // isqrt(spread << (2 * self.extra))
        t = requantise((count * x).sub_(total), inverse, self.norm_shift)
        bias = bias + ((1 << self.shift) >> 1)
        out = (t * gain).add_(bias).bitwise_right_shift_(self.shift)
        return saturate(out, self.dtype, self.lo, self.hi)

    def macs(self, *args: IntType) -> int:
        return 0

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tirx, tvm_te

        count = types[0].shape[-1]
        rows = (*types[0].shape[:-1], 1)

        def body(x: Any, gain: Any, bias: Any) -> Any:
            k, j = (tvm_te.reduce_axis((0, count), name) for name in "kj")
            total = tvm_te.compute(
                rows, lambda *i: tvm_te.sum(te.i64(x(*i[:-1], k)), axis=k), "total"
            )
            squares = tvm_te.compute(
                rows,
                lambda *i: tvm_te.sum(te.i64(x(*i[:-1], j)) * te.i64(x(*i[:-1], j)), axis=j),
                "squares",
            )
            scaled = tvm_te.compute(
                rows,
                lambda *i: (
                    (
                        te.const64(count) * squares(*i)
                        - total(*i) * total(*i)
                        + te.const64(self.epsilon)
                    )
                    << te.const64(2 * self.extra)
                ),
                "spread",
            )
            root = te.isqrt(scaled)
            inverse = tvm_te.compute(
                rows,
                lambda *i: tirx.truncdiv(te.const64(1 << self.reciprocal), root(*i)),
                "inverse",
            )

            def element(*i: Any) -> Any:
                row = (*i[:-1], tirx.const(0, "int64"))
                centred = te.const64(count) * te.i64(x(*i)) - total(*row)
                t = te.requantise(centred, inverse(*row), self.norm_shift)
                acc = t * te.i64(gain(i[-1])) + te.i64(bias(i[-1]))
                return te.saturate(
                    te.requantise(acc, te.const64(1), self.shift), self.dtype, self.lo, self.hi
                )

            return tvm_te.compute(out.shape, element, "normalised")

        return bb.emit_te(body, *args, primfunc_name_hint="layernorm")

    @classmethod
    def samples(cls) -> list[Sample]:
        rng = np.random.default_rng(2)
        cases = [
            (48, "int16", QParams.of(0.002), "int8", QParams.of(0.04, -3), 1e-6),
            (
                192,
                "int16",
                QParams.of(0.0007),
                "uint8",
                QParams.of(rng.uniform(0.01, 0.1, 192), 128.0, -1),
                1e-5,
            ),
            (64, "int8", QParams.of(0.05), "int16", QParams.of(0.001), 1e-12),
        ]
        # Few channels (a mask decoder's classes), gains that vanish or dwarf their biases.
        few = [
            (11, 1.0, 1.0, QParams.of(0.0005)),
            (19, 1e-7, 10.0, QParams.of(0.0005)),
            (150, 0.0, 3.0, QParams.of(0.0005)),
            (2, 1e4, 1.0, QParams.of(1.0)),
        ]
        return [
            *(_sample(rng, *case) for case in cases),
            *(
                _sample(rng, count, "int16", QParams.of(0.00005), "int16", qout, 1e-5, gain, bias)
                for count, gain, bias, qout in few
            ),
        ]


def _sample(rng, count, kind, qin, dtype, qout, eps, gains=1.0, biases=1.0) -> Sample:
    gain, bias = rng.uniform(-2, 2, count) * gains, rng.uniform(-1, 1, count) * biases
    x = IntType(kind, (1, 40, count), *LIMITS[kind])
    op, g, b = LayerNorm.of(x, qin, gain, bias, eps, qout, dtype)
    weight, offset = torch.from_numpy(gain), torch.from_numpy(bias)

    def real(x, _g, _b):
        return torch.nn.functional.layer_norm(x, (count,), weight, offset, eps)

    inputs = (x, constant_type(g), constant_type(b))
    return Sample(op, inputs, real, (qin, None, None), qout, error=0.6 if dtype != "int16" else 4.0)
