"""TVM's builder of TIR, without TVM's annotations, which are narrower than what it takes.

They ask for lists of expressions where integers and tuples are meant to be given (extents, shapes,
indices), and call the result of a builder a plain object. So the builder's names are `Any` here,
and its users annotate what they make with the classes: `Expr`, `Buffer`, `PrimFunc`.
"""

from typing import Any

from tvm.ir import Expr
from tvm.script import ir_builder
from tvm.tirx import Buffer, PrimFunc
from tvm.tirx.script import builder

__all__ = ["Buffer", "Expr", "IRBuilder", "PrimFunc", "T"]

T: Any = builder
IRBuilder: Any = ir_builder.IRBuilder
