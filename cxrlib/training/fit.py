"""Training loop, the only one: it trains a stage from its parent's weights to its best checkpoint.

A finished stage is recognised by its fingerprint and not trained again. An interrupted stage resumes from its last
saved state. On the same CPU machine the result has the same bits as without the interruption: every random draw is a
function of (seed, epoch, position), and the state holds everything else.

As a program it trains a stage in several processes: ``accelerate launch -m cxrlib.training.fit --help``.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cxrlib import provenance
from cxrlib.data import records
from cxrlib.training import (
    checkpoint,
    compiler,
    hardware,
    lineage,
    meter,
    network,
    optim,
    record,
    state,
    steps,
    tensors,
)
from cxrlib.training import folder as folders
from cxrlib.training import team as teams
from cxrlib.training.frozen import Features
from cxrlib.training.inference import Inference
from cxrlib.training.progress import Progress, Watch
from cxrlib.training.recipes import Stage

ASK_EVERY = 8
"""Steps after which several processes agree whether to save or to stop. A single process checks at every step."""


class Stopped(KeyboardInterrupt):
    """Interrupted training, with its state saved. The message says how to resume."""


@dataclass(frozen=True)
class Result:
    """Result of a stage. The network passed to ``fit`` holds the best weights.

    ``history``: one row per epoch · ``batches``: one row per batch, with its loss · ``best``: the checkpoint of the
    epoch with the highest mean validation AUC over the 14 findings · ``trained``: False where the stage was finished
    before · ``resumed_from``: epoch and batch in words, "" for a start from the beginning.
    """

    history: pd.DataFrame
    batches: pd.DataFrame
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
    watch: Watch | None = None,
) -> Result:
    """Train a stage by its recipe, write it to ``folder``, and leave its best weights in the network.

    ``train`` and ``val`` are whole ``data.batches.Batches``; each process of a launcher takes its share of them.
    ``score(labels (N, 15) uint8, probabilities (N, 15))`` gives 15 AUCs, NaN where undefined. ``parent`` is the
    checkpoint of the network's weights, None for the initial ``weights``. ``data`` is a fingerprint for the checkpoint.
    ``device`` None means the best one. ``watch`` follows the training, see ``progress``.

    Raises UserError where the folder cannot be written, another process trains in it, a loss is not finite, or memory
    runs out. Raises ``Stopped`` on Ctrl-C, SIGTERM or a notebook's interrupt. After an error the network holds its
    starting weights again, so that the same call resumes.
    """
    folder, team = Path(folder), teams.of(device)
    network.train_only(model, recipe.groups)
    model.precision = recipe.precision
    line = lineage.of(parent, weights, train, val)
    carried = folders.moments_hash(parent) if recipe.carry else ""
    identity = record.identity(recipe, train, val, loss, line, data=data, seed=seed, score=score, carried=carried)
    start = tensors.sha256(model.state_dict())
    if best := team.from_first(lambda: folders.finished(folder, identity, start)):
        checkpoint.load_into(model, best)
        return Result(record.read_history(folder), record.read_batches(folder), best, trained=False)
    team.from_first(lambda: folders.check_writable(folder))
    model.to(team.device, memory_format=torch.channels_last)
    train, val = team.share(train), team.share(val)
    with (
        team.held_by_first(lambda: provenance.only_one(folder)),
        hardware.interrupts() as signalled,
        state.own_randomness(seed, team.device),
        optim.given_back(model),
        hardware.failures_of(team.device, f"stage {recipe.number}", train.batch_size),
        teams.shared_statistics(model, team),
        Progress(folder, recipe, len(train), shown=progress, watch=watch, writes=team.first) as shown,
    ):
        files = folders.StageFolder(folder, recipe, line, identity, start, data)
        moments = folders.moments(parent) if carried else {}
        return _Training(model, train, val, loss, recipe, score, files, shown, signalled, team, moments).run()


class _SignalError(Exception):
    """A signal arrived, and no step is half done."""


@dataclass
class _Training:
    """Training of one stage. ``snapshot`` saves its whole state, ``resume`` restores it."""

    model: network.Network
    train: Any
    val: Any
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    recipe: Stage
    score: Callable[[np.ndarray, np.ndarray], np.ndarray]
    files: folders.StageFolder
    progress: Progress
    signalled: Callable[[], str]
    team: teams.Team
    moments: dict[str, torch.Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        self.optimizer = optim.make(self.model, self.recipe)
        optim.restore(self.optimizer, self.model, self.moments, self.recipe.optimizer)
        self.average = optim.Average(self.model, self.recipe.ema) if self.recipe.ema else None
        batches = [self.train.steps(epoch) for epoch in range(self.recipe.epochs)]
        self.all_steps = sum(-(-number // self.recipe.accumulate) for number in batches)
        self.steps = 0
        dtype = hardware.dtype(self.team.device, self.recipe.precision)
        hardware.require_size(self.train, dtype)
        compiled = compiler.films_at_once(self.recipe, self.train, self.model, self.team.device, self.team.world)
        self.step = steps.Step(
            self.model, self.loss, self.recipe, self.optimizer, self.team, dtype=dtype, compiled=compiled
        )
        options = {"dtype": dtype, "compiled": compiled, "pause": self.pause, "folder": self.files.folder}
        self.train_features = Features(self.model, self.train, self.team, **options)
        self.val_features = Features(self.model, self.val, self.team, **options)
        self.reader = Inference(self.model, first=self.model.split, dtype=dtype)
        self.progress.describe(hardware.name(dtype), bool(compiled))
        self.epoch = self.batch = 0
        self.history: list[dict[str, Any]] = []
        self.losses: list[tuple] = []  # rows of record.BATCH_COLUMNS, of the finished epochs
        self.meter = self.new_meter()

    def run(self) -> Result:
        resumed_from = self.resume()
        try:
            while not self.over():
                self.train_epoch()
                with self.averaged():
                    self.reader.refresh(self.model)
                    self.close_epoch(*self.validate())
                self.epoch, self.batch = self.epoch + 1, 0
                self.meter = self.new_meter()
                if not self.over():
                    self.save_when_due(within=False)
        except _SignalError:
            self.save()
            raise Stopped(
                f"stage {self.recipe.number} was stopped by {self.signalled() or 'a signal'} in epoch "
                f"{self.epoch + 1}, batch {self.batch}; its state is saved: "
                "run the same cell or command again to resume"
            ) from None
        moments = optim.tensors(self.optimizer, self.model)
        best = self.team.from_first(lambda: self.files.finish(self.model, self.history, moments))
        if not self.team.first:
            checkpoint.load_into(self.model, best)
        return Result(record.frame(self.history), record.batch_frame(self.losses), best, True, resumed_from)

    def over(self) -> bool:
        """Whether the stage ends: all epochs are done, or early stopping applies."""
        return self.epoch >= self.recipe.epochs or self.stops_early()

    def stops_early(self) -> bool:
        return optim.exhausted([row["val_auc"] for row in self.history], self.recipe.patience)

    def train_epoch(self) -> None:
        """Train the rest of the epoch. A step comes after ``accumulate`` batches and at the end of the epoch."""
        self.model.train()
        features = partial(self.train_features.of, epoch=self.epoch)
        sizes, accumulate, clock = self.train.sizes(self.epoch), self.recipe.accumulate, time.monotonic()
        for batch in self.train_features.batches(self.epoch, self.batch):
            due = (self.batch + 1) % accumulate == 0 or self.batch + 1 == len(sizes)
            begin = self.batch - self.batch % accumulate
            step_films = int(sizes[begin : begin + accumulate].sum())
            loss = self.step.learn(batch, features, step_films, last=due)
            self.meter.add(loss, batch.rows)
            self.batch += 1
            if due:
                self.step.take(self.rate(self.steps))
                self.steps += 1
                if self.average:
                    self.average.update(self.steps)
            clock, before = time.monotonic(), clock
            self.meter.seconds += clock - before
            self.progress.step(self.epoch, self.batch, int(sizes[self.batch - 1]), self.meter.last())
            if due:
                self.save_when_due(within=True)

    @torch.no_grad()
    def validate(self) -> tuple[tuple[list[float], list[int]], np.ndarray]:
        """Losses and film counts of the validation batches, and the 15 AUCs."""
        self.model.eval()
        val_meter = meter.Meter(f"stage {self.recipe.number}, validation after epoch {self.epoch + 1}", self.val)
        rows, logits = [], []
        for batch in self.val_features.batches():
            self.pause()
            logits.append(self.reader(self.val_features.of(batch)))
            rows.append(batch.rows)
            val_meter.add(self.loss(logits[-1], batch.labels), batch.rows)
        own_share = [(torch.cat(rows), torch.cat(logits).sigmoid().cpu())] if rows else []
        shares = [share for shares in self.team.gather(own_share) for share in shares]
        order, probabilities = (torch.cat(values) for values in zip(*shares, strict=True))
        labels = records.label_matrix(self.val.films)
        aucs = self.score(labels[order.numpy()], probabilities.numpy())
        return val_meter.of_all(self.team), aucs

    def close_epoch(self, val: tuple[list[float], list[int]], aucs: np.ndarray) -> None:
        """Write the epoch's history row, and a checkpoint if the epoch is the best so far or the last."""
        number, train = self.epoch + 1, self.meter.of_all(self.team)
        so_far, lr = self.files.line.epochs_so_far + number, self.highest_rate()
        row = record.row(number, so_far, lr, meter.mean(*train), meter.mean(*val), aucs)
        row |= {"skipped": self.step.scaler.skipped}
        row |= {"seconds": self.meter.seconds, "images_per_s": sum(train[1]) / self.meter.seconds}
        self.history.append(row)
        self.losses += record.losses(number, "train", *train) + record.losses(number, "val", *val)
        last = number == self.recipe.epochs or self.stops_early()
        self.team.from_first(lambda: self.files.keep(self.model, self.history, self.losses, last=last))
        self.progress.close_epoch(row)

    def save_when_due(self, *, within: bool) -> None:
        """Save the state if it is due, or stop after a signal. Several processes first agree on it."""
        if self.team.world > 1 and within and self.steps % ASK_EVERY:
            return
        due, stop = self.team.any(self.team.first and self.files.due(within=within), bool(self.signalled()))
        if stop:
            raise _SignalError
        if due:
            self.save()

    def save(self) -> None:
        snapshot = self.snapshot()
        self.team.from_first(lambda: self.files.save(self.steps, *snapshot))

    def pause(self, done: int = 0, of: int = 0) -> None:
        """Stop between two batches without training if a signal came, unless other processes would wait."""
        if self.team.world == 1 and self.signalled():
            raise _SignalError
        if of:
            self.progress.note(f"frozen features, batch {done} of {of}")

    def averaged(self) -> AbstractContextManager:
        return self.average.lent_to_model() if self.average else nullcontext()

    def rate(self, step: int) -> float:
        plateaus = optim.halvings([row["val_auc"] for row in self.history], self.recipe.plateau)
        return optim.rate(step, self.all_steps, self.recipe, plateaus)

    def highest_rate(self) -> float:
        """Highest rate of the epoch that just ended; the last rate of a cosine is 0."""
        steps = -(-self.train.steps(self.epoch) // self.recipe.accumulate)
        return max(self.rate(step) for step in range(self.steps - steps, self.steps))

    def new_meter(self, **values: Any) -> meter.Meter:
        return meter.Meter(f"stage {self.recipe.number}, epoch {self.epoch + 1}", self.train, **values)

    def snapshot(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The training's state, as tensors and as plain data."""
        losses, films = self.meter.of_all(self.team)
        values = state.prefixed(
            model=optim.learned(self.model),
            optimizer=optim.tensors(self.optimizer, self.model),
            average=self.average.values if self.average else {},
            random=state.random_state(self.team.device),
            meter={"losses": torch.tensor(losses, dtype=torch.float64), "films": torch.tensor(films)},
        )
        position = {"epoch": self.epoch, "batch": self.batch, "steps": self.steps, "parts": self.step.parts}
        position |= {"scaler": self.step.scaler.state()}
        history = {"history": record.jsonable(self.history), "losses": self.losses}
        return values, {**position, "seconds": self.meter.seconds, **history}

    def resume(self) -> str:
        """Restore the newest state of this stage, if there is one. Returns its position in words, "" for none."""
        path = self.team.from_first(self.files.take_up)
        if path is None:
            return ""
        saved = state.read(path)
        optim.fill(self.model, state.part(saved.tensors, "model"))
        optim.restore(self.optimizer, self.model, state.part(saved.tensors, "optimizer"), self.recipe.optimizer)
        if self.average:
            self.average.fill(state.part(saved.tensors, "average"))
        state.set_random_state(state.part(saved.tensors, "random"), self.team.device)
        self.epoch, self.batch, self.steps = (saved.data[name] for name in ("epoch", "batch", "steps"))
        self.step.parts = saved.data["parts"]
        self.step.scaler.restore(saved.data["scaler"])
        self.history = record.from_json(saved.data["history"])
        self.losses = [tuple(row) for row in saved.data["losses"]]
        meter_state = state.part(saved.tensors, "meter")
        share = 1 if self.team.first else 0  # saved for all processes together, so the first continues with all
        losses, films = meter_state["losses"] * share, meter_state["films"] * share
        self.meter = self.new_meter(losses=losses.tolist(), films=films.tolist(), seconds=saved.data["seconds"])
        self.progress.go_on_from(self.epoch, self.batch, self.history)
        return f"epoch {self.epoch + 1}, batch {self.batch}"


if __name__ == "__main__":
    from cxrlib.training import job

    job.main()
