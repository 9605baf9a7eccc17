"""`constant`: a tensor that is known when the graph is built."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.inttype import IntType
from iqvit.ops.base import Op, Sample


@dataclass(frozen=True)
class Constant(Op):
    """A known tensor; its value is kept in its type, its range is the one of its elements."""

    NAME: ClassVar[str] = "constant"

    def infer(self, *args: IntType) -> IntType:
        raise TypeError("the type of a constant comes from its value")

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        raise TypeError("the interpreter supplies constants")

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        raise TypeError("the lowering supplies constants")

    @classmethod
    def samples(cls) -> list[Sample]:
        return []
