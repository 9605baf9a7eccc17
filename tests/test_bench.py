import json
import time

import pytest

from iqvit.errors import IqvitError
from iqvit.eval.bench import bench, machine, percentile


def test_rows_and_turns():
    calls, threads, seen = [], [], []
    rows = bench(
        {
            "slow": lambda x: (calls.append("slow"), time.sleep(x)),
            "fast": lambda x: calls.append("fast"),
        },
        lambda name: 0.004,
        threads=(1, 2),
        runs=3,
        warmup=1,
        batch=2,
        set_threads={"slow": threads.append},
        progress=lambda *a: seen.append(a),
    )
    assert [(r["model"], r["threads"], r["runs"]) for r in rows] == [
        ("slow", 1, 3),
        ("fast", 1, 3),
        ("slow", 2, 3),
        ("fast", 2, 3),
    ]
    slow, fast = rows[:2]
    assert slow["latency_ms"] >= 4 > fast["latency_min_ms"]
    assert slow["latency_min_ms"] <= slow["latency_ms"] <= slow["latency_p90_ms"]
    assert slow["fps"] == pytest.approx(2e3 / slow["latency_ms"])
    # Each turn is one call to settle and one to time; the first of a round changes.
    assert calls[:8] == ["slow", "slow", "fast", "fast", "fast", "fast", "slow", "slow"]
    assert threads == [1] * 4 + [2] * 4
    assert seen == [(i + 1, 8) for i in range(8)]


@pytest.mark.parametrize(("few", "rounds"), [(1, [5]), (2, [3, 5]), (3, [3, 4, 5])])
def test_a_slow_model_has_fewer_runs_spread_over_the_rounds(few, rounds):
    done, usual, slow = [], [], []
    rows = bench(
        {"usual": lambda x: usual.append(len(done)), "slow": lambda x: slow.append(len(done))},
        lambda name: None,
        runs=4,
        warmup=2,
        fewer={"slow": few},
        progress=lambda *a: done.append(a),
    )
    assert [row["runs"] for row in rows] == [4, few]
    assert usual == [i for i in range(6) for _ in range(2)]
    assert slow == rounds


@pytest.mark.parametrize(
    "options",
    [
        {"runs": 0},
        {"threads": ()},
        {"threads": (0,)},
        {"batch": 0},
        {"fewer": {"a": 0}},
        {"runs": 3, "fewer": {"a": 4}},
    ],
)
def test_nothing_to_measure_is_refused(options):
    with pytest.raises(IqvitError, match="nothing to measure"):
        bench({"a": lambda x: None}, lambda name: None, **options)


def test_percentiles_interpolate():
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0, 2.0], 0.9) == pytest.approx(1.9)
    assert percentile([7.0], 0.9) == 7.0


def test_machine_is_flat_json():
    found = machine()
    assert json.loads(json.dumps(found)) == found
    assert found["cores"] >= 1
    assert {"cpu", "isa", "date", "version_torch"} <= found.keys()
