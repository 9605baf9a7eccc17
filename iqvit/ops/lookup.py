"""`lookup`: any function of an 8-bit value, as a table (approximation `lut` of the activations)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from iqvit.inttype import LIMITS, IntType, QParams, constant_type
from iqvit.ops.base import Op, Sample, want


def make_table(
    function: Callable[[torch.Tensor], torch.Tensor],
    qin: QParams,
    qout: QParams,
    kind: str,
    dtype: str,
) -> np.ndarray:
    """The 256 outputs for the inputs of `kind` in ascending order, correctly rounded."""
    least, most = LIMITS[kind]
    reals = qin.dequantize(torch.arange(least, most + 1))
    return qout.quantize(function(reals), *LIMITS[dtype]).numpy().astype(dtype)


@dataclass(frozen=True)
class Lookup(Op):
    """`out = table[x - least(dtype of x)]`; the table has 256 entries of any dtype.

    The table is filled with the correctly rounded real function when the graph is built, so the
    error is that rounding: half an output step.
    """

    NAME: ClassVar[str] = "lookup"
    MADE: ClassVar[tuple[int, ...]] = (1,)

    def infer(self, *args: IntType) -> IntType:
        x, table = args
        want(x.dtype in ("int8", "uint8"), f"a table is for 8-bit values, x is {x.dtype}")
        want(table.shape == (256,), f"a table has 256 entries, not {table.shape}")
        want(table.value is not None, "the table must be a constant")
        least = LIMITS[x.dtype][0]
        reached = np.asarray(table.value)[x.lo - least : x.hi - least + 1]
        return IntType(table.dtype, x.shape, int(reached.min()), int(reached.max()))

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x, table = args
        least = -128 if x.dtype == torch.int8 else 0
        return table[x.to(torch.int64) - least]

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops import te
        from iqvit.ops.te import tvm_te

        least = LIMITS[types[0].dtype][0]

        def body(x: Any, table: Any) -> Any:
            return tvm_te.compute(out.shape, lambda *i: table(te.i32(x(*i)) - least), "looked_up")

        return bb.emit_te(body, *args, primfunc_name_hint="lookup")

    @classmethod
    def samples(cls) -> list[Sample]:
        cases = [
            ("int8", "int8", torch.tanh, QParams.of(0.04), QParams.of(1 / 127)),
            ("uint8", "int16", torch.sigmoid, QParams.of(0.05, 140), QParams.of(2**-15)),
            ("int8", "uint8", torch.nn.functional.silu, QParams.of(0.06, -9), QParams.of(0.03, 10)),
        ]
        return [
            Sample(
                cls(),
                (
                    IntType(kind, (1, 4, 64), *LIMITS[kind]),
                    constant_type(make_table(function, qin, qout, kind, dtype)),
                ),
                lambda x, _table, function=function: function(x),
                (qin, None),
                qout,
                error=0.5,
            )
            for kind, dtype, function, qin, qout in cases
        ]
