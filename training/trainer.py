"""The training loop, for any task: steps, validation, checkpoints, and going on from one."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from iqvit.errors import DataError, IqvitError
from iqvit.processes import World
from iqvit.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from iqvit.training.feed import Order, loader, seed_of
from iqvit.training.memory import keep_memory
from iqvit.training.optimise import Average, adamw, schedule, set_learning_rate
from iqvit.training.task import Task

__all__ = [
    "Output",
    "Progress",
    "Row",
    "Schedule",
    "Trainer",
]

Row = dict[str, float]
Progress = Callable[[int, int, float, float], None]
"""Called after each step as progress(steps done of the epoch, their total, loss, samples/s)."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn; all of it must be equal for a run to be resumed.

    batch: samples a step over all processes. warmup: epochs of rising learning rate. clip: the
    largest 2-norm of the gradient. average: decay of the moving average of the weights, 0 for none.
    """

    epochs: int
    batch: int
    lr: float
    weight_decay: float = 0.05
    warmup: float = 1.0
    clip: float = 1.0
    average: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [
            f"{name} {value}"
            for name, value, fine in (
                ("epochs", self.epochs, self.epochs >= 1),
                ("batch", self.batch, self.batch >= 1),
                ("learning rate", self.lr, 0 < self.lr < math.inf),
                ("weight decay", self.weight_decay, 0 <= self.weight_decay < math.inf),
                ("warm-up", self.warmup, 0 <= self.warmup <= self.epochs),
                ("clip", self.clip, self.clip > 0),
                ("average", self.average, 0 <= self.average < 1),
            )
            if not fine
        ]
        if wrong:
            raise IqvitError(f"training is impossible with {', '.join(wrong)}")


@dataclass(frozen=True)
class Output:
    """Where a run writes, how often it validates (epochs), and who is told.

    The best model is kept in `folder` itself, the last that was validated in `folder`/last.
    workers: processes that make the samples, 0 for this one. epoch_done is given the history.
    """

    folder: Path
    validate_every: int = 1
    resume: bool = False
    workers: int = 0
    progress: Progress = lambda done, total, loss, rate: None
    epoch_done: Callable[[list[Row]], None] = lambda history: None


class Trainer:
    """One run of a task in this process, one of the `world`.

    After `resume` a run goes on as if it had never stopped: to the bit on CPUs, and on GPUs as far
    as their kernels are deterministic. What was lost is the epoch that was not finished.
    """

    def __init__(self, task: Task, plan: Schedule, output: Output, world: World) -> None:
        self.task, self.plan, self.output, self.world = task, plan, output, world
        if plan.batch % world.size:
            raise IqvitError(
                f"a batch of {plan.batch} cannot be shared by {world.size} processes; "
                f"take a multiple of {world.size}"
            )
        self.order = Order(task.samples, plan.batch, plan.seed, world)
        if len(self.order) == 0:
            raise DataError(f"{task.samples} training samples do not fill a batch of {plan.batch}")
        self.model = task.model.to(world.device)
        self.optimizer = adamw(self.model, plan.lr, plan.weight_decay, task.learning_rate_scale)
        self.average = Average(self.model, plan.average) if plan.average else None
        self.step, self.history, self.best = 0, list[Row](), None
        self.run_facts = {**asdict(plan), "processes": world.size, **task.facts}
        if output.resume:
            self._restore(read_checkpoint(output.folder, self.run_facts))
        self.network = self._network()

    @property
    def scored(self) -> nn.Module:
        """The model that is validated and kept: the average of the weights where there is one."""
        return self.model if self.average is None else self.average.model

    def run(self, until: int | None = None) -> list[Row]:
        """Train to the end, or to the end of epoch `until`; returns the history.

        A row of the history has epoch, loss, lr, seconds, samples_per_s, and the scores of the
        epochs that were validated. A checkpoint is written after each epoch. Raises IqvitError for
        a loss that is not finite, and where the files cannot be written.
        """
        keep_memory()
        feed = loader(self.task, self.order, self.plan.seed, self.output.workers)
        last = self.plan.epochs if until is None else min(until, self.plan.epochs)
        for epoch in range(self.step // len(self.order), last):
            self._epoch(feed, epoch)
        return self.history

    def _epoch(self, feed: Any, epoch: int) -> None:
        length, begun, total = len(self.order), time.monotonic(), 0.0
        self.order.epoch = epoch
        self.model.train()
        for done, batch in enumerate(feed, 1):
            if isinstance(batch, IqvitError):
                raise batch
            loss = self._learn(batch)
            if not math.isfinite(loss):
                raise IqvitError(
                    f"the loss is {loss} at step {done} of epoch {epoch + 1}; take a smaller "
                    "learning rate or a longer warm-up"
                )
            total += loss
            rate = done * self.plan.batch / (time.monotonic() - begun)
            if self.world.leads:
                self.output.progress(done, length, total / done, rate)
        self._close_epoch(epoch + 1, total / length, time.monotonic() - begun)
        self._write()

    def _learn(self, batch: Any) -> float:
        """One step of the optimizer; returns this process's loss."""
        plan = self.plan
        set_learning_rate(self.optimizer, plan.lr * self._factor(self.step))
        torch.manual_seed(seed_of(plan.seed, self.step, self.world.rank))
        with self._precision():
            loss = self.task.loss(self.network, _moved(batch, self.world.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), plan.clip)
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.model, self.step)
        return float(loss.detach())

    def _factor(self, step: int) -> float:
        length = len(self.order)
        return schedule(step, self.plan.epochs * length, round(self.plan.warmup * length))

    def _close_epoch(self, epoch: int, loss: float, seconds: float) -> None:
        """Score, remember, and keep the best."""
        mean = self.world.sum(torch.tensor(loss, dtype=torch.float64)).item() / self.world.size
        row: Row = {
            "epoch": epoch,
            "loss": mean,
            "lr": self.plan.lr * self._factor(self.step - 1),
            "seconds": seconds,
            "samples_per_s": len(self.order) * self.plan.batch / seconds,
        }
        if epoch % self.output.validate_every == 0 or epoch == self.plan.epochs:
            row |= self._validate()
        self.history.append(row)
        if self.world.leads:
            self.output.epoch_done(self.history)

    def _validate(self) -> Row:
        begun = time.monotonic()
        model = self.scored.eval()
        with torch.no_grad():  # in float32, as the model that is kept will be scored
            scores = self.task.validate(model, self.world)
        score = scores[self.task.metric]
        better = self.best is None or score > self.best
        if better:
            self.best = score
        if self.world.leads:
            self.task.save(self.output.folder / "last", model)
            if better:
                self.task.save(self.output.folder, model)
        return {**scores, "validation_seconds": time.monotonic() - begun}

    def _write(self) -> None:
        if self.world.leads:
            average = None if self.average is None else self.average.model.state_dict()
            state = Checkpoint(
                self.run_facts, self.step, self.history, self.best, self.model.state_dict(),
                self.optimizer.state_dict(), average,
            )  # fmt: skip
            write_checkpoint(self.output.folder, state)
        # Whoever reads it next, in whichever process, finds it.
        self.world.wait()

    def _restore(self, state: Checkpoint) -> None:
        self.step, self.history, self.best = state.step, state.history, state.best
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        if self.average is not None and state.average is not None:
            self.average.model.load_state_dict(state.average)

    def _network(self) -> nn.Module:
        if self.world.size == 1:
            return self.model
        ids = [self.world.device.index] if self.world.device.type == "cuda" else None
        return DistributedDataParallel(self.model, device_ids=ids)

    def _precision(self) -> Any:
        """bfloat16 where a GPU has it, which needs no scaling of the loss; float32 elsewhere."""
        cuda = self.world.device.type == "cuda"
        if cuda and torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return tuple(_moved(part, device) for part in batch)
