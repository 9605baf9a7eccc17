"""Types of integer tensors: dtype, shape and proved range; and what the integers stand for."""

from dataclasses import dataclass, field

import numpy as np
import torch

from iqvit.errors import GraphError, OverflowProofError

__all__ = [
    "LIMITS",
    "TORCH_DTYPES",
    "IntType",
    "QParams",
    "constant_type",
]

LIMITS: dict[str, tuple[int, int]] = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1),
}
TORCH_DTYPES: dict[str, torch.dtype] = {
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
}


@dataclass(frozen=True)
class IntType:
    """An integer tensor: every element is proved to lie in `lo..hi`, which lies in the dtype.

    `value` is the tensor itself where it is known when the graph is built (a constant); it takes no
    part in comparisons. Raises `OverflowProofError` when the range leaves the dtype.
    """

    dtype: str
    shape: tuple[int, ...]
    lo: int
    hi: int
    value: np.ndarray | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.dtype not in LIMITS:
            raise GraphError(f"dtype {self.dtype!r} is none of {', '.join(LIMITS)}")
        if self.lo > self.hi:
            raise GraphError(f"empty range {self.lo}..{self.hi}")
        least, most = LIMITS[self.dtype]
        if self.lo < least or self.hi > most:
            raise OverflowProofError(
                f"the value range {self.lo}..{self.hi} leaves {self.dtype} ({least}..{most})"
            )

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in memory."""
        return self.size * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        shape = ",".join(map(str, self.shape))
        return f"{self.dtype}[{shape}] {self.lo}..{self.hi}"


def constant_type(value: np.ndarray) -> IntType:
    """The type of a known tensor: its range is the one of its elements.

    Raises `GraphError` for an empty tensor or one that is not of integers.
    """
    name = value.dtype.name
    if value.size == 0:
        raise GraphError("a constant needs at least one element")
    frozen = np.ascontiguousarray(value).reshape(value.shape)
    frozen.setflags(write=False)
    return IntType(name, tuple(value.shape), int(value.min()), int(value.max()), frozen)


@dataclass(frozen=True, eq=False)
class QParams:
    """What integers stand for: `real = scale * (q - zero_point)`; metadata, never used at run time.

    `scale` (positive, float64) and `zero_point` (float64) are scalars, or vectors along `axis`.
    A zero point may be fractional where it only ever folds into biases (the mean of the pixels).
    """

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None = None

    @staticmethod
    def of(
        scale: float | np.ndarray, zero_point: float | np.ndarray = 0.0, axis: int | None = None
    ):
        """Build from anything array-like; scalars and vectors may be mixed."""
        scales = np.asarray(scale, dtype=np.float64)
        zeros = np.asarray(zero_point, dtype=np.float64)
        if not np.all(np.isfinite(scales)) or np.any(scales <= 0):
            raise GraphError(f"scales must be positive and finite, got {scales.min()}")
        if axis is None and (scales.ndim or zeros.ndim):
            raise GraphError("per-channel scales need an axis")
        if axis is not None:
            scales, zeros = np.broadcast_arrays(np.atleast_1d(scales), np.atleast_1d(zeros))
        return QParams(scales, zeros, axis)

    @property
    def per_channel(self) -> bool:
        """Whether scale and zero point are vectors."""
        return self.axis is not None

    def _shaped(self, vector: np.ndarray, ndim: int) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(vector))
        if self.axis is None:
            return tensor
        shape = [1] * ndim
        shape[self.axis] = -1
        return tensor.reshape(shape)

    def dequantize(self, q: torch.Tensor) -> torch.Tensor:
        """Integers to the reals they stand for, as float64."""
        x = q.to(torch.float64)
        return self._shaped(self.scale, x.ndim) * (x - self._shaped(self.zero_point, x.ndim))

    def quantize(self, x: torch.Tensor, lo: int, hi: int) -> torch.Tensor:
        """Reals to int64, rounded half up and saturated to `lo..hi`. Only for building."""
        scaled = x.to(torch.float64) / self._shaped(self.scale, x.ndim)
        q = torch.floor(scaled + self._shaped(self.zero_point, x.ndim) + 0.5)
        return q.clamp(lo, hi).to(torch.int64)

    def same_as(self, other: "QParams") -> bool:
        """Whether both describe the same reals, exactly."""
        return (
            self.axis == other.axis
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )
