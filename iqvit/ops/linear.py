"""`linear`: int8 weights times 8-bit activations, bias, requantise."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from iqvit.arith import (
    clamp_range,
    exact_matmul,
    multipliers,
    requantise,
    requantise_range,
    require_int32,
    saturate,
)
from iqvit.errors import GraphError
from iqvit.inttype import LIMITS, IntType, QParams, constant_type
from iqvit.ops.base import Op, Sample, want


def weighted_range(x: IntType, weight: np.ndarray, bias: np.ndarray) -> tuple[int, int]:
    """Proved range of `sum_k x[k] * weight[n, k] + bias[n]` over all n, from the actual weights."""
    rows = weight.reshape(weight.shape[0], -1).astype(np.int16)
    total, size = rows.sum(axis=1, dtype=np.int64), np.abs(rows).sum(axis=1, dtype=np.int64)
    positive, negative = (size + total) // 2, (total - size) // 2
    highest = positive * x.hi + negative * x.lo + bias.astype(np.int64)
    lowest = positive * x.lo + negative * x.hi + bias.astype(np.int64)
    return int(lowest.min()), int(highest.max())


def largest_sum(x: torch.Tensor, weight: torch.Tensor) -> int:
    """A bound of the sums of |x| times |weight| `[N, K]`, by the weights' own where that of all
    weights is too large for float32."""
    most, least = (128 if x.dtype == torch.int8 else 255), weight.shape[1] * 127
    if most * least < 2**24:
        return most * least
    return most * int(weight.to(torch.int32).abs().sum(1, dtype=torch.int32).max())


def known(kind: IntType) -> np.ndarray:
    """The value of a constant's type; raises `GraphError` where it is not known."""
    if kind.value is None:
        raise GraphError(f"{kind} must be a constant")
    return kind.value


def check_epilogue(weight: IntType, bias: IntType, multiplier: IntType) -> None:
    """The constants of a product's epilogue: one int32 bias and multiplier per output channel."""
    channels = weight.shape[0]
    for what, kind in (("bias", bias), ("multiplier", multiplier)):
        want(kind.dtype == "int32", f"the {what} is {kind.dtype}, not int32")
        want(kind.shape == (channels,), f"the {what} has shape {kind.shape}, not ({channels},)")
    want(weight.dtype == "int8" and weight.lo >= -127, "weights are int8 in -127..127")


@dataclass(frozen=True)
class Linear(Op):
    """`out[..., n] = clamp(((sum_k x[..., k]*w[n, k] + b[n]) * m[n] + 2**(shift-1) >> shift) + z)`.

    Inputs: x int8 or uint8 `[..., K]`, w int8 `[N, K]` in -127..127, b int32 `[N]`, m int32 `[N]`.
    The int32 accumulator, bias included, is proved not to overflow. The input's zero point is
    folded into b. `lo..hi` is where the result saturates (a ReLU is `lo = z`).
    """

    NAME: ClassVar[str] = "linear"
    MADE: ClassVar[tuple[int, ...]] = (3,)
    shift: int
    zero_point: int
    dtype: str
    lo: int
    hi: int

    def infer(self, *args: IntType) -> IntType:
        x, weight, bias, multiplier = args
        want(x.dtype in ("int8", "uint8"), f"operands of products are 8-bit, x is {x.dtype}")
        want(len(weight.shape) == 2, f"the weight has shape {weight.shape}, not [N, K]")
        want(x.shape[-1] == weight.shape[1], f"x {x.shape} does not fit the weight {weight.shape}")
        check_epilogue(weight, bias, multiplier)
        lo, hi = self.accumulator(*args)
        lo, hi = requantise_range(lo, hi, [multiplier.lo, multiplier.hi], self.shift)
        lo, hi = clamp_range(lo + self.zero_point, hi + self.zero_point, self.lo, self.hi)
        return IntType(self.dtype, (*x.shape[:-1], weight.shape[0]), lo, hi)

    def accumulator(self, *args: IntType) -> tuple[int, int]:
        x, weight, bias = args[:3]
        lo, hi = weighted_range(x, known(weight), known(bias))
        require_int32(lo, hi)
        return lo, hi

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x, weight, bias, multiplier = args
        acc = exact_matmul(x, weight.T, largest_sum(x, weight)).add_(bias.to(torch.int64))
        out = requantise(acc, multiplier.to(torch.int64), self.shift).add_(self.zero_point)
        return saturate(out, self.dtype, self.lo, self.hi)

    def macs(self, *args: IntType) -> int:
        return args[0].size * args[1].shape[0]

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te

        x, weight, bias, multiplier = args
        acc = bb.emit_te(te.product, x, weight, primfunc_name_hint="linear_acc")

        def finish(acc: Any, bias: Any, multiplier: Any) -> Any:
            return te.epilogue(acc, bias, multiplier, -1, self, out)

        return bb.emit_te(finish, acc, bias, multiplier, primfunc_name_hint="linear_requantise")

    @classmethod
    def samples(cls) -> list[Sample]:
        rng = np.random.default_rng(0)
        return [
            _sample(rng, rows, k, n, kind, out, zero)
            for rows, k, n, kind, out, zero in (
                ((1, 5), 12, 7, "int8", "int8", 3),
                ((1, 2, 3), 33, 16, "uint8", "int16", 0),
                ((1,), 64, 40, "int8", "uint8", 128),
                ((13,), 40, 37, "uint8", "int8", -4),
            )
        ]


def _sample(rng, rows, k, n, kind, out, zero) -> Sample:
    weight = rng.integers(-127, 128, (n, k)).astype(np.int8)
    bias = rng.integers(-9999, 9999, n).astype(np.int32)
    scale_x, scale_w = 0.02, rng.uniform(0.001, 0.01, n)
    qout = QParams.of(0.4 if out != "int16" else 0.004, zero)
    m, shift = multipliers(scale_x * scale_w / qout.scale)
    x = IntType(kind, (*rows, k), *LIMITS[kind])
    op = Linear(shift, zero, out, *LIMITS[out])
    qin = (
        QParams.of(scale_x),
        QParams.of(scale_w, axis=0),
        QParams.of(scale_x * scale_w, axis=0),
        None,
    )
    inputs = (x, constant_type(weight), constant_type(bias), constant_type(m.astype(np.int32)))
    return Sample(
        op,
        inputs,
        lambda x, w, b, _m: torch.nn.functional.linear(x, w, b),
        qin,
        qout,
        error=0.501,
        macs=int(np.prod(rows)) * k * n,
    )
