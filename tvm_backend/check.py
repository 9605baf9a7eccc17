"""The check that a lowered module computes on integers only."""

from typing import Any

from tvm.ir import Expr, IRModule, PrimType
from tvm_ffi import VisitInterrupt, structural_walk

from iqvit.errors import GraphError

SCALAR: Any = PrimType  # its annotations leave out that it has a dtype
SHOWN = 200
"""Characters of an offending expression that a message quotes."""


def assert_no_float(module: IRModule) -> None:
    """Raise `GraphError`, naming function and expression, if any float type occurs in `module`.

    Looks at everything that a TIR or Relax function holds: parameters and buffers, every variable,
    every expression and every constant. Any type that is neither integer, boolean nor a pointer
    to such counts (float of any width, bfloat, the 8-bit and smaller floats).
    """
    for name, function in module.functions_items():
        found = _first_float(function)
        if found is not None:
            where, dtype = found
            text = " ".join(str(where).split())
            shown = text if len(text) <= SHOWN else text[:SHOWN] + " ..."
            raise GraphError(
                f"float in the lowered program\n  function    {name.name_hint}\n"
                f"  type        {dtype}\n  expression  {shown}\n"
                "  remedy      lower this operator to integer expressions only"
            )


def _first_float(function: Any) -> tuple[Any, str] | None:
    def at(expression: Expr) -> VisitInterrupt | None:
        for dtype in _dtypes(expression.ty):
            if "float" in dtype:
                return VisitInterrupt((expression, dtype))
        return None

    stopped = structural_walk(function, (Expr, at))
    return None if stopped is None else tuple(stopped.value)


def _dtypes(kind: Any) -> list[str]:
    """Every element type that a type names: of a scalar or vector, a buffer, a tensor, a tuple."""
    if isinstance(kind, SCALAR):
        return [str(kind.dtype)]
    found: list[str] = []
    structural_walk(kind, (SCALAR, lambda scalar: found.append(str(scalar.dtype))))
    return found
