"""Weights, biases and multipliers of a GEMM in the order in which its kernel reads them (numpy)."""

from dataclasses import dataclass

import numpy as np

from iqvit.errors import GraphError
from iqvit.tvm_backend.kernels.isa import Isa


@dataclass(frozen=True)
class PackedWeights:
    """The constant operands of one GEMM kernel. P panels of `isa.panel` columns, zero padded."""

    weight: np.ndarray
    """`isa.weight` [P, ceil(K / k_group), vectors, lanes * k_group]; for `isa.widens` first the
    first pairs of all lanes, then the second ones."""
    bias: np.ndarray
    """int32 [P, vectors, lanes], with the offset of the activations folded in."""
    mult: np.ndarray | None
    """int32 [P, vectors, 3, lanes]: natural, even lanes, odd lanes (see `requant.high_half`)."""


def column_order(dtype: str, isa: Isa) -> np.ndarray:
    """Which column of a panel sits in which lane: int64 [vectors, lanes].

    The inverse of what the saturating packs do to four (8-bit results) or two (16-bit) vectors
    per 128-bit lane; identity for int32 results.
    """
    group = _vectors_per_pack(dtype, isa)
    j = np.arange(isa.vectors)[:, None]
    lane = np.arange(isa.lanes)[None, :]
    if group == 1:
        return j * isa.lanes + lane
    first = (j // group) * group * isa.lanes
    return first + (lane // 4) * (4 * group) + (j % group) * 4 + lane % 4


def in_column_order(values: np.ndarray, dtype: str, isa: Isa) -> np.ndarray:
    """`[N]`, whole panels, as vectors that are read beside accumulators for results of `dtype`."""
    order = column_order(dtype, isa)
    return np.ascontiguousarray(values.reshape(-1, order.size)[:, order.reshape(-1)]).reshape(-1)


def pack_weights(
    weight: np.ndarray,
    bias: np.ndarray,
    mult: np.ndarray | None,
    *,
    signed: bool,
    dtype: str,
    isa: Isa,
) -> PackedWeights:
    """Pack `weight` int8 [N, K], `bias` int32 [N] and `mult` int32 [N] (or None: no requantise).

    `signed` says whether the activations are int8, `dtype` is the type of the requantised value
    (int32 where `mult` is None). Raises `GraphError` for operands of a wrong type or shape.
    """
    check_operands(weight, bias, mult)
    order = column_order(dtype, isa)
    n, k = weight.shape
    panels, groups = -(-n // isa.panel), -(-k // isa.k_group)
    padded = np.zeros((panels * isa.panel, groups * isa.k_group), isa.weight)
    padded[:n, :k] = weight
    # [P, panel, groups, k_group] -> lanes in column order -> [P, groups, vectors, lanes * k_group]
    blocks = padded.reshape(panels, isa.panel, groups, isa.k_group)[:, order]
    packed = blocks.transpose(0, 3, 1, 2, 4)
    if isa.widens:
        pairs = packed.reshape(*packed.shape[:-1], 2, isa.k_group // 2)
        packed = pairs.swapaxes(-2, -3)
    packed = np.ascontiguousarray(packed)
    packed = packed.reshape(panels, groups, isa.vectors, isa.group_weights)
    folded = fold_bias(weight, bias, isa.offset("int8" if signed else "uint8"))
    return PackedWeights(
        weight=packed,
        bias=_lanes(folded, order, panels),
        mult=None if mult is None else _multipliers(_lanes(mult, order, panels)),
    )


def fold_bias(weight: np.ndarray, bias: np.ndarray, offset: int = 128) -> np.ndarray:
    """`bias - offset * sum(weight)`: what undoes reading activations with `offset` added, as
    unsigned ones where they are signed, or with -128 the other way.

    Modulo 2**32, as the accumulator is; the sum that it completes is proved to fit int32.
    """
    wide = bias.astype(np.int64) - offset * weight.astype(np.int64).sum(axis=1)
    return wide.astype(np.uint32).view(np.int32)


def check_operands(weight: np.ndarray, bias: np.ndarray, mult: np.ndarray | None) -> None:
    """Raise `GraphError` unless the operands of a GEMM have the types and shapes they must have."""
    if weight.dtype != np.int8 or weight.ndim != 2:
        raise GraphError(f"GEMM weights must be int8 [N, K], got {weight.dtype} {weight.shape}")
    if weight.size and weight.min() < -127:
        raise GraphError("GEMM weights must be in -127..127, got -128")
    n = weight.shape[0]
    for name, operand in (("bias", bias), ("multipliers", mult)):
        if operand is not None and (operand.dtype != np.int32 or operand.shape != (n,)):
            raise GraphError(
                f"GEMM {name} must be int32 [{n}], got {operand.dtype} {operand.shape}"
            )
    if mult is not None and mult.size and mult.min() < 0:
        raise GraphError(f"GEMM multipliers must not be negative, got {mult.min()}")


def _vectors_per_pack(dtype: str, isa: Isa) -> int:
    if dtype == "int32":
        return 1
    return 4 if dtype in ("int8", "uint8") and isa.vectors % 4 == 0 else 2


def _lanes(values: np.ndarray, order: np.ndarray, panels: int) -> np.ndarray:
    padded = np.zeros(panels * order.size, np.int32)
    padded[: values.size] = values
    return np.ascontiguousarray(padded.reshape(panels, order.size)[:, order])


def _multipliers(natural: np.ndarray) -> np.ndarray:
    even = np.where(np.arange(natural.shape[-1]) % 2 == 0, natural, 0)
    odd = np.zeros_like(natural)
    odd[..., 0::2] = natural[..., 1::2]
    return np.ascontiguousarray(np.stack([natural, even, odd], axis=2))
