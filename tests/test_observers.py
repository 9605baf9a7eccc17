"""Observers: what they count, and the range that each of the four rules takes from it."""

import pytest
import torch

from iqvit.calibration.observers import BINS, Observer, span
from iqvit.calibration.recipe import OBSERVERS
from iqvit.errors import DataError


def observed(*batches: torch.Tensor) -> Observer:
    observer = Observer(True)
    for batch in batches:
        observer.update(batch)
    return observer


def range_of(observer: Observer, kind: str, percentile: float = 99.99, symmetric: bool = False):
    found = span(observer, kind, percentile, symmetric)
    return found.lo, found.hi


def normal(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def ramp() -> Observer:
    """10 001 values, evenly from -1 to 3."""
    return observed(torch.linspace(-1, 3, 10001)[:, None])


def test_minmax_is_what_was_seen(ramp):
    assert range_of(ramp, "minmax") == (-1, 3)
    assert range_of(observed(torch.tensor([2.0, 5.0])), "minmax") == (0, 5)
    assert range_of(observed(torch.tensor([-2.0, -5.0])), "minmax") == (-5, 0)


def test_minmax_needs_no_histogram():
    observer = Observer(False)
    observer.update(torch.tensor([[1.0, -4.0]]))
    assert observer.counts is None
    assert range_of(observer, "minmax") == (-4, 1)


def test_percentile_drops_both_tails(ramp):
    lo, hi = range_of(ramp, "percentile", 99.0)
    # 1 % of 4 on each side, in bins of 8 / 4096.
    assert (lo, hi) == (pytest.approx(-0.96, abs=0.004), pytest.approx(2.96, abs=0.004))
    lo, hi = range_of(ramp, "percentile", 100.0)
    assert (lo, hi) == (pytest.approx(-1, abs=0.004), pytest.approx(3, abs=0.004))


def test_percentile_ignores_a_few_outliers():
    x = torch.cat([normal(25000), torch.tensor([[900.0, -500.0, 0.0, 0.0]])])
    lo, hi = range_of(observed(x), "percentile", 99.9)
    assert -4.5 < lo < -2.5
    assert 2.5 < hi < 4.5


def test_mse_clips_as_much_as_255_steps_allow():
    # A uniform distribution is not worth clipping.
    lo, hi = range_of(observed(torch.linspace(-1, 1, 20001)[:, None]), "mse")
    assert (lo, hi) == (pytest.approx(-1, abs=0.03), pytest.approx(1, abs=0.03))
    # A normal one is, at about 3.9 standard deviations (Banner et al., arXiv 1810.05723).
    lo, hi = range_of(observed(normal(50000)), "mse")
    assert (lo, hi) == (pytest.approx(-3.9, abs=0.3), pytest.approx(3.9, abs=0.3))
    # Two outliers at 30 cost 2 (30 - c)^2, 200 000 values 200 000 (2c/255)^2 / 12: least at 19.8.
    x = torch.cat([normal(50000), torch.tensor([[30.0, -30.0, 0.0, 0.0]])])
    lo, hi = range_of(observed(x), "mse")
    assert (lo, hi) == (pytest.approx(-19.8, abs=0.7), pytest.approx(19.8, abs=0.7))


def test_mse_is_not_beaten_by_minmax():
    observer = observed(torch.randn(5000, 2, generator=torch.Generator().manual_seed(3)) ** 3)

    def error(kind: str) -> float:
        lo, hi = range_of(observer, kind)
        step = (hi - lo) / 255
        x, counts = observer.centres(), observer.counts
        rounded = torch.round((x - lo) / step).clamp(0, 255) * step + lo
        return float((counts * (rounded - x) ** 2).sum())

    assert error("mse") <= error("minmax")


def test_entropy_keeps_a_flat_range_and_clips_outliers():
    lo, hi = range_of(observed(torch.linspace(-1, 1, 20001)[:, None]), "entropy")
    assert (lo, hi) == (pytest.approx(-1, abs=0.06), pytest.approx(1, abs=0.06))
    x = torch.cat([normal(50000), torch.tensor([[30.0, -30.0, 0.0, 0.0]])])
    lo, hi = range_of(observed(x), "entropy")
    assert -20 < lo < -2
    assert 2 < hi < 20


@pytest.mark.parametrize("kind", ["mse", "entropy"])
def test_symmetric_ranges(kind):
    lo, hi = range_of(observed(normal(5000) + 1), kind, symmetric=True)
    assert lo == -hi


@pytest.mark.parametrize("kind", OBSERVERS)
def test_the_range_lies_in_what_was_seen_and_holds_zero(kind, ramp):
    width = 8 / BINS
    for observer in (ramp, observed(normal(2000)), observed(normal(2000).abs() + 3)):
        lo, hi = range_of(observer, kind)
        assert min(observer.least, 0) <= lo <= 0 <= hi <= max(observer.most, 0) + width
        assert hi > lo


@pytest.mark.parametrize("kind", OBSERVERS)
def test_zeros_have_an_empty_range(kind):
    assert range_of(observed(torch.zeros(5, 3), torch.zeros(2, 3)), kind) == (0, 0)


@pytest.mark.parametrize("kind", OBSERVERS)
@pytest.mark.parametrize("value", [3.0, -0.01, 4.0, 1e-20, -1e20])
def test_constants_are_covered(kind, value):
    lo, hi = range_of(observed(torch.full((50, 2), value)), kind)
    covered = lo if value < 0 else hi
    # The steps of a range of 0..value are value/255 wide: one off at most.
    assert covered == pytest.approx(value, rel=0.005)


def test_counts_do_not_depend_on_the_order_of_batches():
    generator = torch.Generator().manual_seed(2)
    # Multiples of 1/64 lie on edges of bins at every limit; the zeros come with no scale at all.
    batches = [
        torch.randint(-64, 64, (50, 3), generator=generator) / 64,
        torch.zeros(20, 3),
        torch.randint(-64, 64, (50, 3), generator=generator) / 4,
        torch.randint(-64, 64, (50, 3), generator=generator) * 2.0,
    ]
    forward, backward = observed(*batches), observed(*reversed(batches))
    shuffled = observed(*(batches[i] for i in (1, 3, 0, 2)))
    assert forward.limit == backward.limit == shuffled.limit
    assert torch.equal(forward.counts, backward.counts)
    assert torch.equal(forward.counts, shuffled.counts)
    assert int(forward.counts.sum()) == 170 * 3
    for kind in OBSERVERS:
        assert range_of(forward, kind) == range_of(backward, kind) == range_of(shuffled, kind)


def test_growth_loses_no_value():
    observer = observed(*(normal(10, seed) * 10.0**seed for seed in range(-4, 5)))
    assert int(observer.counts.sum()) == 9 * 40
    assert observer.limit >= max(-observer.least, observer.most)
    assert observer.centres()[0] == pytest.approx(-observer.limit, rel=0.001)


def test_extremes_by_channel():
    observer = observed(torch.tensor([[1.0, -2.0], [0.5, 7.0]]), torch.tensor([[[3.0, 0.0]]]))
    assert observer.channel_least.tolist() == [0.5, -2.0]
    assert observer.channel_most.tolist() == [3.0, 7.0]
    assert (observer.least, observer.most) == (-2, 7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("histogram", [True, False])
def test_values_that_are_not_finite_are_refused(value, histogram):
    observer = Observer(histogram, "fc1")
    with pytest.raises(DataError, match="NaN or an infinite value at fc1"):
        observer.update(torch.tensor([[1.0, value]]))


def test_a_scalar_is_one_value():
    observer = observed(torch.tensor(2.5))
    assert (observer.least, observer.most) == (2.5, 2.5)
