"""`concat`: tensors of one scale joined along an axis."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.inttype import LIMITS, IntType
from iqvit.ops.base import Op, Sample, want


@dataclass(frozen=True)
class Concat(Op):
    """`out = cat(inputs, axis)`; exact. Inputs have one dtype and, by construction, one scale."""

    NAME: ClassVar[str] = "concat"
    axis: int

    def infer(self, *args: IntType) -> IntType:
        want(len(args) > 0, "nothing to join")
        want(len({x.dtype for x in args}) == 1, "inputs differ in dtype")
        rests = {(*x.shape[: self.axis], *x.shape[self.axis + 1 :]) for x in args}
        want(len(rests) == 1, f"shapes {[x.shape for x in args]} do not join on axis {self.axis}")
        shape = list(args[0].shape)
        shape[self.axis] = sum(x.shape[self.axis] for x in args)
        lo, hi = min(x.lo for x in args), max(x.hi for x in args)
        return IntType(args[0].dtype, tuple(shape), lo, hi)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        return torch.cat(args, dim=self.axis)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from tvm import topi

        def body(*tensors: Any) -> Any:
            return topi.concatenate(tensors, self.axis)

        return bb.emit_te(body, *args, primfunc_name_hint="concat")

    @classmethod
    def samples(cls) -> list[Sample]:
        types = tuple(IntType("int16", (1, n, 4), *LIMITS["int16"]) for n in (1, 5, 2))
        return [Sample(cls(1), types, lambda *x: torch.cat(x, 1))]
