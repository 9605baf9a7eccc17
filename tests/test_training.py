"""The trainer on a small task: what is learned, kept, resumed, refused, and shared by processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from iqvit.errors import DataError, IqvitError
from iqvit.processes import World
from iqvit.training.checkpoint import NAME, read_checkpoint
from iqvit.training.feed import Order, loader, seed_of
from iqvit.training.optimise import Average, adamw, schedule
from iqvit.training.trainer import Output, Schedule, Trainer

SAMPLES = 8
PLAN = Schedule(epochs=4, batch=4, lr=0.05, weight_decay=0.1, warmup=1.0, average=0.9, seed=3)


class Line:
    """Fit y = 2 x with noise on x, dropout in the model; the score is what the test says."""

    metric = "score"
    samples = SAMPLES

    def __init__(self, scores=None, rate=0.5, factor=1.0):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(1, 16), nn.Dropout(rate), nn.Linear(16, 1))
        self.facts = {"task": "line", "samples": self.samples}
        self.scores = scores
        self.factor = factor
        self.saved = []

    def sample(self, index):
        x = torch.tensor([index / SAMPLES]) + 0.1 * torch.randn(1)
        return x, 2 * x

    def collate(self, samples):
        xs, ys = zip(*samples, strict=True)
        return torch.stack(xs), torch.stack(ys)

    def loss(self, network, batch):
        x, y = batch
        return self.factor * (network(x) - y).square().mean()

    def learning_rate_scale(self, name):
        return 0.5 if name.startswith("0.") else 1.0

    def validate(self, model, world):
        assert not model.training
        if self.scores is not None:
            return {"score": self.scores.pop(0)}
        x = torch.linspace(0, 1, 5)[:, None]
        return {"score": -float((model(x) - 2 * x).square().mean())}

    def save(self, folder, model):
        self.saved.append(folder.name)


def trainer(folder, task=None, plan=PLAN, **output):
    return Trainer(task or Line(), plan, Output(folder, **output), World())


def weights(run):
    return {**run.model.state_dict(), **{f"ema.{k}": t for k, t in run.scored.state_dict().items()}}


def without_times(history):
    timed = ("seconds", "samples_per_s", "validation_seconds")
    return [{k: v for k, v in row.items() if k not in timed} for row in history]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_is_never_stopped_to_the_bit(tmp_path, stop, average):
    plan = Schedule(**{**vars(PLAN), "average": average})
    whole = trainer(tmp_path / "a", plan=plan)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    straight = whole.run()
    trainer(tmp_path / "b", plan=plan).run(until=stop)
    torch.manual_seed(999)  # whatever the process did before must not matter
    second = trainer(tmp_path / "b", plan=plan, resume=True)
    assert second.step == stop * SAMPLES // PLAN.batch
    continued = second.run()
    assert same(weights(whole), weights(second))
    assert without_times(straight) == without_times(continued)
    states = (r.optimizer.state_dict()["state"] for r in (whole, second))
    for ours, theirs in zip(*(s.values() for s in states), strict=True):
        assert same(ours, theirs)


def test_it_learns(tmp_path):
    plan = Schedule(epochs=60, batch=4, lr=0.05, weight_decay=0.0, warmup=2)
    history = trainer(tmp_path, Line(rate=0.0), plan).run()
    assert history[-1]["score"] > -0.01 > history[0]["score"]
    assert history[-1]["loss"] < history[0]["loss"] / 10
    assert {"epoch", "lr", "seconds", "samples_per_s"} <= history[-1].keys()


def test_the_best_and_the_last_are_kept(tmp_path):
    task = Line(scores=[1.0, 3.0, 2.0, 3.0])
    run = trainer(tmp_path, task)
    run.run()
    best = tmp_path.name
    assert task.saved == ["last", best, "last", best, "last", "last"]
    assert read_checkpoint(tmp_path, run.run_facts).best == 3.0


def test_validation_every_other_epoch_and_always_the_last(tmp_path):
    plan = Schedule(**{**vars(PLAN), "epochs": 5})
    history = trainer(tmp_path, plan=plan, validate_every=2).run()
    assert [row["epoch"] for row in history if "score" in row] == [2, 4, 5]


@pytest.mark.parametrize(
    ("change", "told"), [({"lr": 0.1}, "lr: 0.05 there, 0.1 here"), ({"seed": 4}, "seed: 3 there")]
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, told):
    trainer(tmp_path).run(until=1)
    with pytest.raises(DataError, match="belongs to another run") as error:
        trainer(tmp_path, plan=Schedule(**{**vars(PLAN), **change}), resume=True)
    assert told in str(error.value)
    assert str(error.value).count("there") == 1


def test_other_facts_of_the_task_are_another_run(tmp_path):
    trainer(tmp_path).run(until=1)
    other = Line()
    other.facts["labels"] = ["a"]
    with pytest.raises(DataError, match=r"labels: None there, \['a'\] here"):
        trainer(tmp_path, other, resume=True)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(DataError, match="nothing to resume"):
        trainer(tmp_path, resume=True)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"text"])
def test_a_damaged_checkpoint(tmp_path, damage):
    trainer(tmp_path).run(until=1)
    path = tmp_path / NAME
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{NAME} is not a readable checkpoint"):
        trainer(tmp_path, resume=True)


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path):
    torch.save({"format": 1, "run": Path("x")}, tmp_path / NAME)
    with pytest.raises(DataError, match="not a readable checkpoint"):
        trainer(tmp_path, resume=True)


def test_a_checkpoint_of_another_format(tmp_path):
    torch.save({"format": 99}, tmp_path / NAME)
    with pytest.raises(DataError, match="format 99"):
        trainer(tmp_path, resume=True)


def test_a_loss_that_is_not_finite(tmp_path):
    with pytest.raises(IqvitError, match="the loss is nan at step 1 of epoch 1"):
        trainer(tmp_path, Line(factor=float("nan"))).run()
    assert not (tmp_path / NAME).exists()


def test_impossible_plans(tmp_path):
    with pytest.raises(IqvitError, match=r"epochs 0, learning rate -1"):
        Schedule(epochs=0, batch=1, lr=-1, warmup=0)
    with pytest.raises(IqvitError, match="warm-up 5"):
        Schedule(epochs=4, batch=1, lr=1, warmup=5)
    with pytest.raises(DataError, match="8 training samples do not fill a batch of 16"):
        trainer(tmp_path, plan=Schedule(epochs=1, batch=16, lr=1))
    with pytest.raises(IqvitError, match="batch of 3 cannot be shared by 2"):
        Trainer(Line(), Schedule(1, 3, 1.0), Output(tmp_path), World(size=2))


def test_the_learning_rate_rises_then_falls_as_half_a_cosine():
    assert [schedule(step, 8, 3) for step in range(3)] == [0.25, 0.5, 0.75]
    assert schedule(3, 8, 3) == 1.0
    assert schedule(13, 20, 6) == pytest.approx(0.5)
    assert schedule(19, 20, 0) == pytest.approx(0.00616, abs=1e-5)
    assert schedule(0, 1, 0) == 1.0


def test_what_decays_and_how_fast_it_learns():
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    model.register_parameter("pos_embed", nn.Parameter(torch.zeros(1, 5, 2)))
    model.register_parameter("frozen", nn.Parameter(torch.zeros(3, 3), requires_grad=False))
    optimizer = adamw(model, 1.0, 0.3, lambda name: 0.1 if name.startswith("encoder") else 1.0)
    found = {
        id(p): (g["weight_decay"], g["lr"]) for g in optimizer.param_groups for p in g["params"]
    }
    named = {name: found.get(id(p)) for name, p in model.named_parameters()}
    assert named == {
        "encoder.weight": (0.3, 0.1),
        "encoder.bias": (0.0, 0.1),
        "norm.weight": (0.0, 1.0),
        "norm.bias": (0.0, 1.0),
        "pos_embed": (0.0, 1.0),
        "frozen": None,
    }


def test_the_average_follows_the_weights():
    source = nn.BatchNorm1d(1)
    average = Average(source, 0.5)
    with torch.no_grad():
        source.weight.fill_(3.0)
        source.running_mean.fill_(7.0)
    average.update(source, step=1)  # decay 2 / 11, still below 0.5
    assert average.model.weight.item() == pytest.approx(1 + 2 * 9 / 11)
    average.update(source, step=1000)
    assert average.model.weight.item() == pytest.approx((1 + 2 * 9 / 11 + 3) / 2)
    assert average.model.running_mean.item() == 7.0
    assert not any(p.requires_grad for p in average.model.parameters())


def test_an_epoch_is_shuffled_and_shared():
    orders = [Order(11, 4, 5, World(rank, 2)) for rank in range(2)]
    seen = {}
    for epoch in (0, 1):
        for order in orders:
            order.epoch = epoch
        steps = list(zip(*orders, strict=True))
        assert len(steps) == len(orders[0]) == 2
        keys = [key for parts in steps for part in parts for key in part]
        assert len(set(keys)) == 8
        assert {e for e, _ in keys} == {epoch}
        assert all(len(part) == 2 for parts in steps for part in parts)
        seen[epoch] = [index for _, index in keys]
    assert seen[0] != seen[1]


def test_samples_are_the_same_whoever_makes_them():
    found = []
    for rank, workers in ((0, 0), (1, 0), (0, 1)):
        task, order = Line(), Order(SAMPLES, 4, 1, World())
        order.epoch = 2
        torch.manual_seed(100 + rank)
        found.append([x for x, _ in loader(task, order, 1, workers)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_seeds_depend_on_every_part():
    seeds = {seed_of(a, b, c) for a in range(4) for b in range(4) for c in range(4)}
    assert len(seeds) == 64
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 23) != seed_of(12, 3)


SCRIPT = """
import importlib.util, json, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("toy", sys.argv[1])
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
from iqvit.processes import processes
from iqvit.training.trainer import Output, Trainer

folder = Path(sys.argv[2])
with processes() as world:
    for until in (2, 4):
        resume = until > 2
        run = Trainer(toy.Line(rate=0.0), toy.PLAN, Output(folder, resume=resume), world)
        history = run.run(until=until)
    total = world.sum(toy.torch.tensor(world.rank + 1)).item()
    values = [p.flatten().tolist() for p in run.model.parameters()]
    text = json.dumps({"size": world.size, "sum": total, "values": sum(values, []),
                       "loss": [row["loss"] for row in history]})
    (folder / f"{world.rank}.json").write_text(text)
"""


def test_two_processes_learn_what_one_does(tmp_path):
    one = trainer(tmp_path, Line(rate=0.0))
    history = one.run()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(script), __file__, str(tmp_path)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert (first["size"], first["sum"]) == (2, 3)
    expected = torch.cat([p.detach().flatten() for p in one.model.parameters()])
    torch.testing.assert_close(torch.tensor(first["values"]), expected, rtol=1e-4, atol=1e-5)
    losses = torch.tensor([row["loss"] for row in history])
    torch.testing.assert_close(torch.tensor(first["loss"]), losses, rtol=1e-4, atol=1e-6)
