"""Tensor expressions that the plain lowerings share; imported inside `lower` only, so tvm stays out
of `import iqvit`. Each function mirrors a function of `iqvit.arith` bit for bit."""

from typing import Any

import tvm.te
import tvm.tirx

from iqvit.inttype import LIMITS, IntType

# Their results are typed as unions of a tensor and a tuple, which no caller could use; hence Any.
tvm_te: Any = tvm.te
tirx: Any = tvm.tirx


def i32(x: Any) -> Any:
    """An int32 expression."""
    return x.astype("int32")


def i64(x: Any) -> Any:
    """An int64 expression."""
    return x.astype("int64")


def const64(value: int) -> Any:
    """An int64 constant."""
    return tirx.const(int(value), "int64")


def requantise(acc: Any, multiplier: Any, shift: int) -> Any:
    """`iqvit.arith.requantise` of scalar expressions."""
    product = i64(acc) * i64(multiplier)
    if shift == 0:
        return product
    return (product + const64(1 << (shift - 1))) >> const64(shift)


def saturate(x: Any, dtype: str, lo: int, hi: int) -> Any:
    """`iqvit.arith.saturate` of an int64 expression."""
    return tirx.max(tirx.min(x, const64(hi)), const64(lo)).astype(dtype)


def fits32(lo: int, hi: int) -> bool:
    """Whether a proved range fits in int32."""
    return LIMITS["int32"][0] <= lo and hi <= LIMITS["int32"][1]


def product(x: Any, weight: Any) -> Any:
    """`acc[..., n] = sum_k x[..., k] * weight[n, k]` in int32; both operands have K innermost, so
    that LLVM vectorises the sum."""
    k = tvm_te.reduce_axis((0, x.shape[-1]), "k")
    return tvm_te.compute(
        (*x.shape[:-1], weight.shape[0]),
        lambda *i: tvm_te.sum(i32(x(*i[:-1], k)) * i32(weight(i[-1], k)), axis=k),
        "acc",
    )


def epilogue(acc: Any, bias: Any, multiplier: Any, axis: int, op: Any, out: IntType) -> Any:
    """Bias, requantise and saturation of an int32 accumulator; channels lie along `axis`."""

    def element(*i: Any) -> Any:
        n = i[axis]
        value = requantise(acc(*i) + bias(n), multiplier(n), op.shift)
        return saturate(value + const64(op.zero_point), op.dtype, op.lo, op.hi)

    return tvm_te.compute(out.shape, element, "requantised")


def isqrt(n: Any, bits: int = 31) -> Any:
    """`iqvit.arith.isqrt`: one compute stage a bit of the root, from the highest."""
    root = tvm_te.compute(n.shape, lambda *i: const64(0), "root")
    for bit in reversed(range(bits)):
        root = _isqrt_bit(n, root, bit)
    return root


def _isqrt_bit(n: Any, root: Any, bit: int) -> Any:
    def element(*i: Any) -> Any:
        trial = root(*i) | const64(1 << bit)
        return tirx.if_then_else(trial * trial <= n(*i), trial, root(*i))

    return tvm_te.compute(n.shape, element, f"root_{bit}")


def broadcast_index(index: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The index into an operand of `shape` for an output index, by the rules of broadcasting."""
    tail = index[len(index) - len(shape) :]
    return tuple(tirx.const(0, "int64") if d == 1 else i for d, i in zip(shape, tail, strict=True))
