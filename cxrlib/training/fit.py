"""The one training loop: a stage from its parent's weights to its best checkpoint, exact after any interruption.

A finished stage is recognised by its fingerprint and not trained again. An interrupted one goes on from its last
saved state and ends, on the same CPU machine, with the same bits as an undisturbed one: every draw is a pure
function of (seed, epoch, position), and the state holds the rest.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cxrlib import provenance
from cxrlib.training import checkpoint, hardware, network, optim, record, state, tensors
from cxrlib.training.folder import StageFolder, check_writable, finished
from cxrlib.training.frozen import Features
from cxrlib.training.meter import Meter
from cxrlib.training.progress import Progress
from cxrlib.training.stages import Stage

SAVE_EVERY = 300.0
"""Seconds after which the state is saved within an epoch; it is also saved after each epoch."""


class Stopped(KeyboardInterrupt):
    """Training was interrupted and its state saved; the message says how to go on."""


@dataclass(frozen=True)
class Result:
    """What a stage came to. The network given to ``fit`` holds the best weights.

    ``history`` one row per epoch · ``best`` the checkpoint of the epoch with the highest mean validation AUC over
    the 14 findings · ``trained`` False where the finished stage was recognised · ``resumed_from`` in words, ""
    where it began at the beginning.
    """

    history: pd.DataFrame
    best: Path
    trained: bool
    resumed_from: str = ""


def fit(
    model: network.Network,
    train: Any,
    val: Any,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    recipe: Stage,
    *,
    folder: str | Path,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    parent: Path | None = None,
    weights: str = "none",
    data: str = "",
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Result:
    """Train a stage as its recipe says, into ``folder``, and leave its best weights in the network.

    ``train`` and ``val`` are ``data.batches.Batches``: films, batch_size, len(), steps(epoch),
    epoch(number, start).
    ``score(labels (N, 15) uint8, probabilities (N, 15))`` gives 15 AUCs, NaN where undefined. ``parent`` is the
    checkpoint whose weights the network holds, None where it holds the initial ``weights``. ``data`` is a
    fingerprint for the record. The device is chosen late and may be given.

    Raises UserError where the folder cannot be written or another process trains in it, where a loss is not
    finite or memory runs out; ``Stopped`` on Ctrl-C, SIGTERM or a notebook's interrupt. The network then holds the
    weights it came with again, so that the same call goes on.
    """
    folder, at = Path(folder), hardware.device(device)
    network.train_only(model, recipe.groups)
    line = checkpoint.lineage(parent, weights, train.films)
    who = record.identity(recipe, train, val, loss, line, data=data, seed=seed)
    start = tensors.sha256(model.state_dict())
    if best := finished(folder, who, start):
        checkpoint.load_into(model, best)
        return Result(record.read_history(folder), best, trained=False)
    check_writable(folder)
    model.to(at, memory_format=torch.channels_last)
    with (
        provenance.only_one(folder),
        hardware.interrupts() as signalled,
        state.own_randomness(seed, at),
        optim.given_back(model),
        hardware.memory_of(at, f"stage {recipe.number}", train.batch_size),
        Progress(folder, recipe, len(train), shown=progress) as shown,
    ):
        files = StageFolder(folder, recipe, line, who, start, data)
        return _Training(model, train, val, loss, recipe, score, files, shown, signalled, at).run()


class _SignalError(Exception):
    """A signal came, and no step is under way."""


@dataclass
class _Training:
    """A stage under way. All that changes in it is in ``snapshot`` and comes back by ``resume``."""

    model: network.Network
    train: Any
    val: Any
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    recipe: Stage
    score: Callable[[np.ndarray, np.ndarray], np.ndarray]
    files: StageFolder
    progress: Progress
    signalled: Callable[[], str]
    device: torch.device

    def __post_init__(self) -> None:
        self.optimizer = optim.make(self.model, self.recipe)
        self.average = optim.Average(self.model, self.recipe.ema) if self.recipe.ema else None
        batches = [self.train.steps(epoch) for epoch in range(self.recipe.epochs)]
        self.all_steps = sum(-(-number // self.recipe.accumulate) for number in batches)
        self.seen, self.seen_val = (
            Features(self.model, part, self.device, pause=self.pause) for part in (self.train, self.val)
        )
        self.epoch = self.batch = self.steps = 0
        self.history: list[dict[str, Any]] = []
        self.meter = self.new_meter()

    def run(self) -> Result:
        resumed_from = self.resume()
        try:
            while self.epoch < self.recipe.epochs:
                self.train_epoch()
                with self.averaged():
                    self.close_epoch(*self.validate())
                self.epoch, self.batch = self.epoch + 1, 0
                self.meter = self.new_meter()
                if self.epoch < self.recipe.epochs:
                    self.save_when_due(0)
        except _SignalError:
            self.files.save(self.steps, *self.snapshot())
            raise Stopped(
                f"stage {self.recipe.number} was stopped by {self.signalled()} in epoch {self.epoch + 1}, batch "
                f"{self.batch}; its state is saved: run the same cell or command again to go on from there"
            ) from None
        best = self.files.finish(self.model, self.history)
        checkpoint.load_into(self.model, best)
        return Result(record.frame(self.history), best, trained=True, resumed_from=resumed_from)

    def train_epoch(self) -> None:
        """Train what is left of the epoch; a step comes after ``accumulate`` batches and at the epoch's end."""
        self.model.train()
        batches = self.train.steps(self.epoch)
        owed, clock = 0, time.monotonic()  # films whose gradients wait for the step
        for batch in self.train.epoch(self.epoch, self.batch):
            value, _ = self.forward(batch, self.seen)
            self.meter.add(self.batch, value, batch.rows)
            (value * len(batch.rows)).backward()
            owed += len(batch.rows)
            self.batch += 1
            if self.batch % self.recipe.accumulate == 0 or self.batch == batches:
                self.step(owed)
                owed = 0
            clock, before = time.monotonic(), clock
            self.meter.seconds += clock - before
            self.progress.step(self.epoch, self.batch, len(batch.rows), self.meter.last)
            if not owed:
                self.save_when_due(SAVE_EVERY)

    def forward(self, batch: Any, features: Features) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of a batch, a scalar, and its logits (B, 15)."""
        with hardware.precision(self.device):
            logits = self.model.suffix(features.of(batch))
        return self.loss(logits, batch.labels.to(self.device, non_blocking=True)), logits

    def step(self, films: int) -> None:
        """One step of the optimizer on the mean gradient over ``films`` films."""
        weights = [p for p in self.model.parameters() if p.grad is not None]
        torch._foreach_div_([p.grad for p in weights], films)
        if self.recipe.clip:
            torch.nn.utils.clip_grad_norm_(weights, self.recipe.clip)
        optim.set_rate(self.optimizer, self.rate(self.steps))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        if self.average:
            self.average.update(self.model, self.steps)

    @torch.no_grad()
    def validate(self) -> tuple[float, np.ndarray]:
        """Mean loss over the validation part, and its 15 AUCs."""
        self.model.eval()
        meter = Meter(f"stage {self.recipe.number}, validation after epoch {self.epoch + 1}", self.names(self.val))
        labels, probabilities = [], []
        for number, batch in enumerate(self.val.epoch(0)):
            self.stop_if_signalled()
            value, logits = self.forward(batch, self.seen_val)
            meter.add(number, value, batch.rows)
            labels.append(batch.labels.cpu())
            probabilities.append(logits.float().sigmoid().cpu())
        aucs = self.score(torch.cat(labels).numpy().astype(np.uint8), torch.cat(probabilities).numpy())
        return meter.mean(), aucs

    def close_epoch(self, val_loss: float, aucs: np.ndarray) -> None:
        """Write the epoch into the history, and its weights where they are the best so far or the last."""
        number, train_loss = self.epoch + 1, self.meter.mean()
        row = record.row(
            number, self.files.line.epochs_so_far + number, self.rate(self.steps - 1), train_loss, val_loss, aucs
        )
        row |= {"seconds": self.meter.seconds, "images_per_s": self.meter.films / self.meter.seconds}
        self.history.append(row)
        self.files.keep(self.model, self.history, last=number == self.recipe.epochs)

    def save_when_due(self, every: float) -> None:
        self.stop_if_signalled()
        if self.files.due(every):
            self.files.save(self.steps, *self.snapshot())

    def stop_if_signalled(self) -> None:
        if self.signalled():
            raise _SignalError

    def pause(self, done: int, of: int) -> None:
        """After each batch of the frozen features."""
        self.stop_if_signalled()
        self.progress.note(f"frozen features, batch {done} of {of}")

    def averaged(self) -> AbstractContextManager:
        return self.average.lent_to(self.model) if self.average else nullcontext()

    def rate(self, step: int) -> float:
        return optim.rate(step, self.all_steps, self.recipe)

    def new_meter(self, **sums: float) -> Meter:
        return Meter(f"stage {self.recipe.number}, epoch {self.epoch + 1}", self.names(self.train), **sums)

    @staticmethod
    def names(batches: Any) -> np.ndarray:
        return batches.films["image"].to_numpy()

    def snapshot(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Everything that an undisturbed training would carry on with, as tensors and as plain data."""
        values = state.prefixed(
            model=optim.learned(self.model),
            optimizer=optim.tensors(self.optimizer),
            average=self.average.values if self.average else {},
            random=state.random_state(self.device),
        )
        position = {"epoch": self.epoch, "batch": self.batch, "steps": self.steps}
        return values, {**position, "sums": self.meter.sums(), "history": record.jsonable(self.history)}

    def resume(self) -> str:
        """Go on from the newest state of this very stage, if there is one; say from where, "" for the beginning."""
        found = self.files.newest()
        if found is None:
            return ""
        optim.fill(self.model, state.part(found.tensors, "model"))
        optim.restore(self.optimizer, state.part(found.tensors, "optimizer"))
        if self.average:
            self.average.fill(state.part(found.tensors, "average"))
        state.set_random_state(state.part(found.tensors, "random"), self.device)
        self.epoch, self.batch, self.steps = (found.data[name] for name in ("epoch", "batch", "steps"))
        self.history = record.from_json(found.data["history"])
        self.meter = self.new_meter(**found.data["sums"])
        self.progress.go_on_from(self.epoch, self.batch)
        return f"epoch {self.epoch + 1}, batch {self.batch}"
