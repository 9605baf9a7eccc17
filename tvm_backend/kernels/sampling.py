"""What the rules of `iqvit.ops.taps` need to know of int32 vectors."""

from typing import Any

from iqvit.tvm_backend.kernels.integers import keep
from iqvit.tvm_backend.kernels.script import Expr, T
from iqvit.tvm_backend.kernels.vector import lanes_of, splat


class VectorLib:
    """int32 vectors; every result is computed once."""

    @staticmethod
    def clamp(x: Any, lo: Any, hi: Any) -> Any:
        return keep(T.max(T.min(x, _like(x, hi)), _like(x, lo)))

    @staticmethod
    def where_equal(a: Any, b: Any, x: Any) -> Any:
        return keep(T.Select(a == b, _like(a, x), _like(a, 0)))


def _like(vector: Expr, value: Expr | int) -> Expr:
    """The value as a vector of as many lanes."""
    return splat(value, "int32", lanes_of(vector)) if isinstance(value, int) else value
