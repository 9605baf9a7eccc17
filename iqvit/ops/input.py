"""`input`: the image, as the camera gives it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.inttype import IntType
from iqvit.ops.base import Op, Sample, want


@dataclass(frozen=True)
class Input(Op):
    """The uint8 image `[1, C, H, W]`, 0..255. Mean and std fold into the operator that reads it."""

    NAME: ClassVar[str] = "input"
    shape: tuple[int, ...]

    def infer(self, *args: IntType) -> IntType:
        want(not args, "an input has no operands")
        want(
            len(self.shape) >= 2 and self.shape[0] == 1, f"image shape {self.shape} is not [1, ...]"
        )
        return IntType("uint8", self.shape, 0, 255)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        raise TypeError("the interpreter supplies inputs")

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        raise TypeError("the lowering supplies inputs")

    @classmethod
    def samples(cls) -> list[Sample]:
        return []
