"""The bound lambda of clipped GELU inputs, and what it and the split sigmoid are for."""

import pytest
import torch
from torch.nn import functional

from iqvit.calibration.observers import Observer, gelu_bound
from iqvit.inttype import QParams
from iqvit.ops.lambda_shiftgelu import LambdaShiftGelu
from iqvit.ops.shiftgelu import ShiftGelu


def gelu_error(kind: type, bound: float, x: torch.Tensor) -> torch.Tensor:
    """|integer GELU - GELU| of reals rounded to int8 at `bound / 127`."""
    qin, qout = QParams.of(bound / 127), QParams.of(bound / 32767)
    op, multiplier, zero = kind.of(qin, qout, "int16")
    q = qin.quantize(x, -127, 127).to(torch.int8)
    out = op.run(q, torch.from_numpy(multiplier), torch.from_numpy(zero))
    return (qout.dequantize(out) - functional.gelu(qin.dequantize(q))).abs()


def test_no_row_maximum_makes_negative_values_collapse():
    row = torch.tensor([[12.0, -6.0, -3.0, -1.0, 0.0, 1.0]])
    assert gelu_error(ShiftGelu, 12.0, row).max() > 1.0
    assert gelu_error(LambdaShiftGelu, 12.0, row).max() < 0.025


@pytest.mark.parametrize("bound", [0.5, 4.0, 12.0, 100.0])
def test_error_inside_the_bound_is_the_declared_one(bound):
    x = torch.arange(-127, 128)[None] * bound / 127
    assert gelu_error(LambdaShiftGelu, bound, x).max() <= 0.025


def seen(x: torch.Tensor) -> Observer:
    observer = Observer(histogram=True)
    observer.update(x)
    return observer


def test_lambda_gives_up_a_tail_that_is_rare():
    x = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))
    body = gelu_bound(seen(x))
    x[0, 0] = 12.0
    bound = gelu_bound(seen(x))
    assert 2.0 < body < 5.0
    assert body < bound < 11.0
    x[0, :10_000] = 12.0
    assert gelu_bound(seen(x)) == pytest.approx(12.0, rel=0.06)


def test_lambda_ignores_a_negative_tail_that_gelu_flattens():
    x = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))
    x[0, :5_000] = -40.0
    assert gelu_bound(seen(x)) < 6.0


@pytest.mark.parametrize("size", [0.0, 1e-6, 0.004, 0.05])
def test_lambda_of_small_values_makes_an_operator(size):
    bound = gelu_bound(seen(size * torch.linspace(-1, 1, 64)[None]))
    assert bound >= 0.01
    LambdaShiftGelu.of(QParams.of(bound / 127), QParams.of(0.01), "int8")
