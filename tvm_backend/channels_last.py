"""Operators over images whose channels lie together: `[1, H, W, C]` instead of `[1, C, H, W]`."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from iqvit.inttype import IntType
from iqvit.ops.base import Op

TO_LAST = (0, 2, 3, 1)
TO_FIRST = (0, 3, 1, 2)


@dataclass(frozen=True)
class ChannelsLast(Op):
    """`inner` with its first input and its result channels-last; the other inputs as they are.

    With `planes` the first input too is as it is. The operator exists while a program is compiled
    only, and so is none of the text format.
    """

    inner: Op
    planes: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "NAME", self.inner.NAME)

    def infer(self, *args: IntType) -> IntType:
        return _moved(self.inner.infer(*self._first(args)), TO_LAST)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x, *others = args
        x = x if self.planes else x.permute(TO_FIRST)
        return self.inner.run(x, *others).permute(TO_LAST).contiguous()

    def macs(self, *args: IntType) -> int:
        return self.inner.macs(*self._first(args))

    def wide_macs(self, *args: IntType) -> int:
        return self.inner.wide_macs(*self._first(args))

    def accumulator(self, *args: IntType) -> tuple[int, int] | None:
        return self.inner.accumulator(*self._first(args))

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from tvm import topi

        x = args[0]
        if not self.planes:
            x = bb.emit(bb.emit_te(topi.transpose, x, TO_FIRST, primfunc_name_hint="first"))
        types = self._first(tuple(types))
        y = self.inner.lower(bb, [x, *args[1:]], types, _moved(out, TO_FIRST))
        return bb.emit_te(topi.transpose, bb.emit(y), TO_LAST, primfunc_name_hint="last")

    def _first(self, args: tuple[IntType, ...]) -> list[IntType]:
        if self.planes:
            return list(args)
        return [_moved(args[0], TO_FIRST), *args[1:]]


def _moved(kind: IntType, dims: tuple[int, ...]) -> IntType:
    return replace(kind, shape=tuple(kind.shape[d] for d in dims))
