"""TVM's builder of TIR, without TVM's annotations, which do not fit what it takes and gives.

They ask for lists of expressions where integers and tuples are meant to be given (extents, shapes,
indices), call the result of a builder a plain object, and know neither the operators of an
expression nor the shape of a buffer, which are there at run time. So all of them are `Any` here;
the names of the classes remain, for the reader of a signature.
"""

from typing import Any, TypeAlias

from tvm.script import ir_builder
from tvm.tirx import PrimFunc
from tvm.tirx.script import builder

__all__ = ["Buffer", "Expr", "IRBuilder", "PrimFunc", "T"]

T: Any = builder
IRBuilder: Any = ir_builder.IRBuilder
Expr: TypeAlias = Any
"""`tvm.ir.Expr`: a scalar or a vector of TIR."""
Buffer: TypeAlias = Any
"""`tvm.tirx.Buffer`."""
