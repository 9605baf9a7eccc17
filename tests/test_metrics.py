import math

import pytest
import torch

from iqvit.errors import DataError
from iqvit.eval import metrics


def test_ties_go_to_the_lowest_class():
    scores = torch.tensor([[5, 9, 9, 9], [0, 0, 0, 0]], dtype=torch.int8)
    assert metrics.predictions(scores).tolist() == [1, 0]
    assert metrics.ranks(scores, torch.tensor([3, 2])).tolist() == [2, 2]
    assert metrics.ranks(scores, torch.tensor([0, 0])).tolist() == [3, 0]


def test_ranks_equal_a_sort_in_python():
    scores = torch.randint(-3, 4, (40, 11), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 11
    for row, label, rank in zip(scores, labels, metrics.ranks(scores, labels), strict=True):
        order = sorted(range(11), key=lambda c, row=row: (-int(row[c]), c))
        assert order.index(int(label)) == int(rank)
        assert metrics.predictions(row[None]).item() == order[0]


def test_percentages():
    scores = torch.eye(8)
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 0, 7])
    assert metrics.top1(scores, labels) == 87.5
    # Class 0 is the first of the seven zeros after the one hit of row 6.
    assert metrics.top5(scores, labels) == 100.0
    assert metrics.topk(scores, torch.full((8,), 7), 5) == 12.5
    assert metrics.agreement(scores, scores.roll(1, dims=0)) == 0.0
    assert metrics.agreement(scores, scores * 3) == 100.0


def test_top5_of_three_classes_is_all():
    assert metrics.top5(torch.tensor([[1, 2, 3]]), torch.tensor([0])) == 100.0


def test_sqnr_by_hand():
    reference = torch.tensor([[3.0, 4.0]])
    assert metrics.sqnr_db(torch.tensor([[3.0, 4.5]]), reference) == pytest.approx(20.0)
    assert metrics.sqnr_db(reference, reference) == math.inf
    with pytest.raises(DataError, match="zero everywhere"):
        metrics.sqnr_db(reference, torch.zeros(1, 2))


def test_a_label_outside_the_classes_is_refused():
    with pytest.raises(DataError, match=r"outside 0\.\.3.*model of 4 classes"):
        metrics.ranks(torch.zeros(1, 4), torch.tensor([4]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_no_hit(value):
    with pytest.raises(DataError, match="NaN or infinite"):
        metrics.top1(torch.tensor([[value, 0.0]]), torch.tensor([0]))


def test_nothing_scored_is_refused():
    with pytest.raises(DataError, match="no images"):
        metrics.percent(0, 0)
