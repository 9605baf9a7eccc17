"""The shared integer arithmetic against Python's big integers and the real functions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iqvit.arith import (
    clamp_range,
    exact_matmul,
    isqrt,
    multipliers,
    requantise,
    requantise_range,
    require_int32,
    saturate,
)
from iqvit.errors import GraphError, OverflowProofError
from iqvit.inttype import LIMITS
from iqvit.ops.exp2 import OCTAVES, Exp2, full_scale

settings.register_profile("iqvit", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("iqvit")

int32s = st.integers(*LIMITS["int32"])
multiplier_values = st.integers(-(2**31) + 1, 2**31 - 1)
shifts = st.integers(0, 62)


def exact_requantise(acc: int, multiplier: int, shift: int) -> int:
    """Round half up of the exact quotient, by a route of its own."""
    quotient, rest = divmod(acc * multiplier, 2**shift)
    return quotient + (2 * rest >= 2**shift if shift else 0)


def fits(*values: int) -> bool:
    return all(-(2**63) <= value < 2**63 for value in values)


@given(int32s, multiplier_values, shifts)
def test_requantise_rounds_half_up(acc: int, multiplier: int, shift: int):
    if not fits(acc * multiplier + (1 << shift >> 1)):
        return
    result = requantise(torch.tensor([acc]), multiplier, shift)
    assert result.item() == exact_requantise(acc, multiplier, shift)


@pytest.mark.parametrize(("acc", "wanted"), [(1, 1), (-1, 0), (3, 2), (-3, -1), (2, 1), (-2, -1)])
def test_requantise_of_halves(acc: int, wanted: int):
    assert requantise(torch.tensor(acc), 1, 1).item() == wanted


@given(int32s, int32s, st.lists(multiplier_values, min_size=1, max_size=4), shifts, st.data())
def test_requantise_range_is_exact(a: int, b: int, ms: list[int], shift: int, data):
    lo, hi = sorted((a, b))
    ends = [exact_requantise(v, m, shift) for v in (lo, hi) for m in ms]
    try:
        proved = requantise_range(lo, hi, ms, shift)
    except OverflowProofError:
        assert not fits(*(v * m + (1 << shift >> 1) for v in (lo, hi) for m in (min(ms), max(ms))))
        return
    assert proved == (min(ends), max(ends))
    inside = data.draw(st.integers(lo, hi))
    chosen = data.draw(st.sampled_from(ms))
    assert proved[0] <= exact_requantise(inside, chosen, shift) <= proved[1]


def test_requantise_range_refuses_what_leaves_int64():
    with pytest.raises(OverflowProofError, match="leaves int64"):
        requantise_range(-(2**62), 2**62, [4], 3)


@given(st.integers(0, 2**62 - 1))
def test_isqrt_is_the_floor(n: int):
    assert isqrt(torch.tensor([n])).item() == math.isqrt(n)


@given(st.integers(0, 2**31 - 1), st.sampled_from([-1, 0, 1]))
def test_isqrt_beside_squares(root: int, offset: int):
    n = max(root * root + offset, 0)
    assert isqrt(torch.tensor([n])).item() == math.isqrt(n)


@given(st.lists(st.floats(1e-12, 1e6), min_size=1, max_size=5), st.integers(4, 31))
def test_multipliers_are_near_and_fit(ratios: list[float], bits: int):
    if max(ratios) >= 2.0 ** (bits - 2):
        return
    m, shift = multipliers(np.array(ratios), bits)
    assert m.dtype == np.int64
    assert 1 <= shift <= 62
    assert 0 <= m.min() <= m.max() < 2**bits
    for ratio, integer in zip(ratios, m.tolist(), strict=True):
        assert abs(ratio * 2.0**shift - integer) <= 0.5 + 1e-6
    # nothing is wasted: one more bit would not fit
    assert m.max() >= 2 ** (bits - 2) or shift == 62


def test_multipliers_keep_signs_and_zeros():
    m, shift = multipliers(np.array([0.5, -0.25, 0.0]), 8)
    assert (m.tolist(), shift) == ([128, -64, 0], 8)
    zeros, shift = multipliers(np.zeros(3))
    assert (zeros.tolist(), shift) == ([0, 0, 0], 1)


@pytest.mark.parametrize(
    ("ratio", "what"), [(math.inf, "finite"), (math.nan, "finite"), (2.0**31, "too large")]
)
def test_multipliers_refuse(ratio: float, what: str):
    with pytest.raises(GraphError, match=what):
        multipliers(ratio)


@pytest.mark.parametrize("terms", [1, 1000, 1040, 1041, 200000])
@pytest.mark.parametrize("sign", [-1, 1])
def test_exact_matmul_at_its_extremes(terms: int, sign: int):
    a = torch.full((2, terms), 127, dtype=torch.int8)
    b = torch.full((terms, 3), 127 * sign, dtype=torch.int8)
    a[0, 0] = 126  # a sum that is odd somewhere, so that a lost last bit shows
    wanted = sign * 127 * 127 * terms
    result = exact_matmul(a, b, terms * 127 * 127)
    assert result.dtype == torch.int64
    assert result.tolist() == [[wanted - sign * 127] * 3, [wanted] * 3]


@given(st.data())
@settings(max_examples=30)
def test_exact_matmul_equals_python(data):
    m, k, n = (data.draw(st.integers(1, 6)) for _ in range(3))
    bits = data.draw(st.sampled_from([7, 15, 20]))
    value = st.integers(-(2**bits), 2**bits)
    a = [[data.draw(value) for _ in range(k)] for _ in range(m)]
    b = [[data.draw(value) for _ in range(n)] for _ in range(k)]
    wanted = [[sum(r[i] * b[i][j] for i in range(k)) for j in range(n)] for r in a]
    assert exact_matmul(torch.tensor(a), torch.tensor(b), k * 4**bits).tolist() == wanted


def test_exact_matmul_refuses_what_it_cannot_do():
    with pytest.raises(OverflowProofError, match="exactly"):
        exact_matmul(torch.ones(1, 1), torch.ones(1, 1), 2**53)


@pytest.mark.parametrize("factor", [1e-7, 3.1e-5, 0.0009, 0.05, 0.4, 3.0])
@pytest.mark.parametrize("bits", [8, 16])
def test_exp2_is_near_the_exponential(factor: float, bits: int):
    exp = Exp2.of(factor)
    full = full_scale(bits)
    last = min(math.ceil(OCTAVES * math.log(2) / factor), 2**22)
    d = torch.arange(0, last + 1)
    real = full * torch.exp(-d.to(torch.float64) * factor)
    result = exp.run(d, full)
    assert result[0] == full
    assert int(result.min()) >= 0
    error = float((result - real).abs().max())
    # the fit, the steps that `pre` drops, and the rounding
    dropped = factor * (2**exp.pre - 1)
    assert error <= 0.5 + full * (1.3e-4 + dropped)
    assert bool((result[1:] <= result[:-1]).all()), "not monotone"


def test_exp2_of_everything_fits_int32():
    for factor in (1e-9, 1e-7, 0.01, 1.0, 10.0):
        exp = Exp2.of(factor)
        assert 0 <= exp.pre <= 31
        assert exp.cap * exp.multiplier < 2**31
        largest = 2**31 - 1
        real = full_scale(16) * math.exp(-largest * factor)
        assert abs(exp.run(torch.tensor([largest]), full_scale(16)).item() - real) <= 5


def test_ranges_saturate():
    assert clamp_range(-300, 300, -128, 127) == (-128, 127)
    assert clamp_range(200, 300, -128, 127) == (127, 127)
    assert saturate(torch.tensor([-300, 5, 300]), "int8", -128, 100).tolist() == [-128, 5, 100]
    assert saturate(torch.tensor([1]), "int8", -128, 100).dtype == torch.int8


def test_int32_is_required():
    require_int32(*LIMITS["int32"])
    for lo, hi in ((-(2**31) - 1, 0), (0, 2**31)):
        with pytest.raises(OverflowProofError, match="leaves int32"):
            require_int32(lo, hi)


@pytest.mark.parametrize(
    "wrong", [(-1, 5, 5, 5), (0, 32767, 2**17, 5), (0, 5, 5, 32), (0, -1, 5, 5)]
)
def test_exp2_that_could_leave_int32_does_not_build(wrong: tuple[int, int, int, int]):
    with pytest.raises(GraphError):
        Exp2(*wrong)
