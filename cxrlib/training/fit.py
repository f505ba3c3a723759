"""Training loop: a stage from its parent's weights to its best checkpoint, exact after any interruption.

A finished stage is recognised by its identity and not trained again. An interrupted one goes on from its last saved
state and ends, on the same CPU machine, with the same bits as an undisturbed one: every draw is a pure function of
(seed, epoch, position), and the state holds the rest.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cxrlib import UserError, metrics, paths
from cxrlib.data import batches, records
from cxrlib.labels import LABELS
from cxrlib.training import (
    checkpoint,
    devices,
    frozen,
    history_tables,
    lineage,
    losses,
    network,
    optim,
    processes,
    schedules,
    stage_folder,
)
from cxrlib.training.frozen import FrozenFeatures, Inference
from cxrlib.training.processes import ProcessGroup
from cxrlib.training.progress import Progress, Watch
from cxrlib.training.schedules import Stage

LOOK_EVERY = 16
"""Batches between two transfers of losses from an accelerator. Each time, the losses of the transfer before are read:
they have already arrived, so nothing waits. On a CPU every loss is read at once."""


@dataclass
class LossMeter:
    """Meter of the loss: the mean loss, the number of films and of known labels of each batch, in this process alone.

    ``where`` is for error messages, ``part`` are the batches · ``losses``, ``films``, ``known``: one value per batch ·
    ``seconds``: training time · ``unseen``, ``coming``: losses that are not read yet.
    """

    where: str
    part: Any
    losses: list[float] = field(default_factory=list)
    films: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    seconds: float = 0.0
    unseen: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    coming: list[tuple[batches.OnItsWayToCpu, list[Tensor]]] = field(default_factory=list)

    def add(self, loss: Tensor, rows: Tensor) -> None:
        """Add the mean loss of the next batch, over the known labels of the films at ``rows``."""
        self.unseen.append((loss.detach(), rows))
        if loss.device.type == "cpu":
            self.look()
        elif len(self.unseen) >= LOOK_EVERY:
            self._send()
            self._receive(leave=1)

    def look(self) -> None:
        """Read all losses. Raises UserError that names batch and images of the first one that is not finite."""
        self._send()
        self._receive()

    def _send(self) -> None:
        if self.unseen:
            losses, rows = zip(*self.unseen, strict=True)
            self.coming.append((batches.OnItsWayToCpu(torch.stack(losses)), list(rows)))
            self.unseen.clear()

    def _receive(self, leave: int = 0) -> None:
        while len(self.coming) > leave:
            losses, rows = self.coming.pop(0)
            for value, films in zip(losses.values().tolist(), rows, strict=True):
                if not math.isfinite(value):
                    raise UserError(self._complaint(value, films))
                self.losses.append(value)
                self.films.append(len(films))
                self.known.append(self.part.known_of(films))

    def last(self) -> float:
        """The newest loss that was read, NaN before the first."""
        return self.losses[-1] if self.losses else float("nan")

    def of_all(self, process_group: ProcessGroup) -> "Losses":
        """Losses, films and known labels of each batch over all processes, which have the same number of batches."""
        self.look()
        if process_group.world == 1:
            return Losses(list(self.losses), list(self.films), list(self.known))
        losses, films, known = (
            torch.tensor(values, dtype=torch.float64) for values in (self.losses, self.films, self.known)
        )
        shares = known / len(LABELS)
        sums, shares, films, known = process_group.sum(torch.stack([losses * shares, shares, films, known]))
        means = sums / torch.where(shares > 0, shares, 1.0)
        return Losses(means.tolist(), films.int().tolist(), known.int().tolist())

    def _complaint(self, value: float, rows: Tensor) -> str:
        names = self.part.films["image"].iloc[rows.numpy()].tolist()
        images = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        return (
            f"{self.where}, batch {len(self.losses) + 1}: the loss is {value} (images {images}); "
            "lower lr, set clip=1, or check these images for damage"
        )


class Losses(NamedTuple):
    """Mean losses of batches, and their numbers of films and of known labels: one value per batch."""

    losses: list[float]
    films: list[int]
    known: list[int]

    def mean(self) -> float:
        """Mean loss per known label, NaN without any. The sum is exact, so an interruption does not change it."""
        shares = [known / len(LABELS) for known in self.known]  # the number of films, if all labels are known
        total = math.fsum(loss * share for loss, share in zip(self.losses, shares, strict=True))
        return total / math.fsum(shares) if any(self.known) else float("nan")


class NoRoomError(MemoryError):
    """Out of memory on a batch. ``fits`` is the number of films that fit, 0 if unknown or if two do not fit."""

    def __init__(self, fits: int) -> None:
        super().__init__("out of memory")
        self.fits = fits


class Suffix(nn.Module):
    """Trained part of a network as a module: features of the frozen part to logits (B, 15)."""

    def __init__(self, model: network.Network, compiled: int, *, graphs: bool = False) -> None:
        super().__init__()
        self.model = model
        self.run = frozen.WholeBatches(model.suffix, compiled, graphs=graphs) if compiled else model.suffix

    def forward(self, features: Tensor) -> Tensor:
        return self.run(features)


class Step:
    """Training step: ``learn`` adds up gradients of the mean loss over the step's labels, ``take`` updates the weights.

    The mean is over the known labels of all films of the step, however they are cut into batches, parts and processes:
    ``known_of(rows)`` gives their number for films of the training part.
    ``dtype`` is for autocast; for float16 the loss is scaled. ``compiled`` is the compiled batch size, 0 for none.
    ``parts`` is the number of parts of a batch, 1 unless memory ran out (recipe ``split_on_oom``). The gradients are
    the same, except that BatchNorm computes its statistics on each part alone.
    """

    def __init__(
        self,
        model: network.Network,
        loss: Callable[[Tensor, Tensor], Tensor],
        recipe: Stage,
        optimizer: Optimizer,
        process_group: ProcessGroup,
        *,
        known_of: Callable[[Tensor], int],
        dtype: torch.dtype = torch.float32,
        compiled: int = 0,
    ) -> None:
        self.model, self.loss, self.recipe, self.optimizer, self.process_group, self.known_of = (
            model,
            loss,
            recipe,
            optimizer,
            process_group,
            known_of,
        )
        self.dtype = dtype
        self.weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        # Gradients that wait for further batches must not lie in memory that the next batch's graph uses again.
        self.graphs = bool(compiled) and frozen.graphs_fit(process_group) and recipe.accumulate == 1
        self.suffix = process_group.wrap(Suffix(model, compiled, graphs=self.graphs))
        self.scaler = optim.Scaler(optimizer, process_group.device, on=dtype == torch.float16)
        self.owing = False  # whether there are gradients for the next ``take``
        self.parts = 1

    def learn(self, batch: Any, features: Callable[[Any], Tensor], of: int, *, last: bool) -> Tensor:
        """Add the gradients of a batch. Returns its mean loss, a scalar without autograd.

        ``features(batch)`` gives the output of the frozen part. ``of`` is the number of known labels of the whole step,
        over all batches and processes. ``last`` says whether ``take`` follows. Raises NoRoomError where memory runs out
        and the recipe's ``split_on_oom`` does not help.
        """
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        before = [w.grad.clone() for w in self.weights] if self.recipe.split_on_oom and self.owing else None
        while True:
            try:
                value = self._learn(batch, features, of, last)
                self.owing = True
                return value
            except (RuntimeError, MemoryError) as error:
                if not devices.is_out_of_memory(error):
                    raise
            if not self.can_halve(batch):  # outside the except block, whose traceback keeps the batch in memory
                raise NoRoomError(self.fitting(batch, features))
            self.parts *= 2
            for number, weight in enumerate(self.weights):
                weight.grad = before[number].clone() if before else None
            self._free()

    def can_halve(self, batch: Any) -> bool:
        """Whether parts of half the size are allowed, with one process only, and large enough for BatchNorm."""
        return self.recipe.split_on_oom and self.process_group.world == 1 and len(batch.rows) >= 4 * self.parts

    def fitting(self, batch: Any, features: Callable[[Any], Tensor]) -> int:
        """Number of the batch's films that fit into memory, found by halving; 0 if unknown.

        Afterwards the gradients and BatchNorm's statistics are wrong.
        """
        size = len(batch.rows) // 2 if self.process_group.world == 1 else 0
        while size >= 2:
            self.optimizer.zero_grad()
            self._free()
            try:
                self.forward(_cut(batch, 0, size), features)[0].backward()
                return size
            except (RuntimeError, MemoryError) as error:
                if not devices.is_out_of_memory(error):
                    raise
            size //= 2
        return 0

    def _learn(self, batch: Any, features: Callable[[Any], Tensor], of: int, last: bool) -> Tensor:
        size = math.ceil(len(batch.rows) / self.parts)
        cuts = range(0, len(batch.rows), size)
        total, whole = torch.zeros((), device=self.process_group.device), max(self.known_of(batch.rows), 1)
        for at in cuts:
            part = batch if self.parts == 1 else _cut(batch, at, at + size)
            with nullcontext() if last and at == cuts[-1] else self.process_group.unsynced(self.suffix):
                value, _ = self.forward(part, features)
                known = self.known_of(part.rows)
                share = known * self.process_group.world / max(of, 1)  # the wrapper takes the mean over the processes
                self.scaler.scaled(value * share).backward()
            total += value.detach() * (known / whole)
        return total

    def forward(self, batch: Any, features: Callable[[Any], Tensor]) -> tuple[Tensor, Tensor]:
        """Loss of a batch, a scalar, and its logits (B, 15)."""
        with devices.autocast(self.process_group.device, self.dtype):
            logits = self.suffix(features(batch))
        return self.loss(logits, batch.labels), logits

    def take(self, lr: float) -> None:
        """Update the weights with the added gradients, at rate ``lr`` of the topmost group."""
        self.scaler.unscale()
        if self.recipe.clip:
            torch.nn.utils.clip_grad_norm_(self.weights, self.recipe.clip)
        optim.set_rate(self.optimizer, lr)
        self.scaler.step()
        self.optimizer.zero_grad()
        self.owing = False

    def _free(self) -> None:
        if self.process_group.device.type == "cuda":
            torch.cuda.empty_cache()


def _cut(batch: Any, begin: int, end: int) -> Any:
    return batch._make(values if values is None else values[begin:end] for values in batch)


ASK_EVERY = 8
"""Steps after which several processes agree whether to save or to stop. A single process checks at every step."""


class Stopped(KeyboardInterrupt):
    """Interrupted training, with its state saved. The message says how to resume."""


@dataclass(frozen=True)
class Result:
    """Result of a stage. The network passed to ``fit`` holds the best weights.

    ``history``: one row per epoch · ``batches``: one row per batch, with its loss · ``best``: the checkpoint of the
    epoch with the highest mean validation AUC over the 14 findings, or the lowest loss, as the recipe says ·
    ``trained``: False where the stage was finished before · ``resumed_from``: epoch and batch in words, "" for a start
    from the beginning.
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
    score: Callable[[np.ndarray, np.ndarray], np.ndarray] = metrics.auc_per_label,
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
    ``score(labels (N, 15), probabilities (N, 15))`` gives 15 AUCs, NaN where undefined; labels as ``label_matrix``.
    If ``train`` has soft labels, the loss takes them; validation always uses plain labels.
    ``parent`` is the checkpoint of the network's weights, None for the initial ``weights``. ``data`` is a fingerprint
    for the checkpoint. ``device`` None means the best one. ``watch`` follows the training, see ``progress``.

    Raises UserError where the folder cannot be written, another process trains in it, a loss is not finite, or memory
    runs out. Raises ``Stopped`` on Ctrl-C, SIGTERM or a notebook's interrupt. After an error the network holds its
    starting weights again, so that the same call resumes.
    """
    folder, process_group = Path(folder), processes.launched_group(device)
    recipe = schedules.for_batch_size(recipe, train.batch_size)
    loss = losses.for_soft_labels(loss) if getattr(train, "soft", None) else loss
    network.train_only(model, recipe.groups)
    model.precision = recipe.precision
    line = lineage.of_stage(parent, weights, train, val)
    carried = stage_folder.moments_hash(parent) if recipe.keep_moments else ""
    identity = stage_folder.identity(recipe, train, val, loss, line, data=data, seed=seed, score=score, carried=carried)
    start = checkpoint.tensors_sha256(model.state_dict())
    if best := process_group.from_first(lambda: stage_folder.finished_checkpoint(folder, identity, start)):
        checkpoint.load_into(model, best)
        model.to(process_group.device, memory_format=torch.channels_last)  # as after a training
        process_group.from_first(lambda: stage_folder.clean_finished(folder))
        return Result(history_tables.read_history(folder), history_tables.read_batches(folder), best, trained=False)
    process_group.from_first(lambda: stage_folder.check_writable(folder))
    process_group.from_first(lambda: stage_folder.require_room(folder, model, recipe))
    model.to(process_group.device, memory_format=torch.channels_last)
    train, val = process_group.share(train), process_group.share(val)
    with (
        process_group.held_by_first(lambda: paths.lock_folder(folder)),
        devices.hold_back_interrupts() as signalled,
        stage_folder.own_randomness(seed, process_group.device),
        optim.given_back(model),
        devices.explain_failures(process_group.device, f"stage {recipe.number}", train.batch_size),
        processes.shared_statistics(model, process_group),
        Progress(folder, recipe, len(train), shown=progress, watch=watch, writes=process_group.first) as shown,
    ):
        files = stage_folder.StageFolder(folder, recipe, line, identity, start, data)
        moments = stage_folder.read_moments(parent) if carried else {}
        return _Training(model, train, val, loss, recipe, score, files, shown, signalled, process_group, moments).run()


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
    files: stage_folder.StageFolder
    progress: Progress
    signalled: Callable[[], str]
    process_group: processes.ProcessGroup
    moments: dict[str, torch.Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        self.optimizer = optim.make(self.model, self.recipe)
        optim.restore(self.optimizer, self.model, self.moments, self.recipe.optimizer)
        self.average = optim.Average(self.model, self.recipe.ema) if self.recipe.ema else None
        batches = [self.train.steps(epoch) for epoch in range(self.recipe.epochs)]
        self.all_steps = sum(-(-number // self.recipe.accumulate) for number in batches)
        self.steps = 0
        dtype = devices.dtype(self.process_group.device, self.recipe.precision)
        devices.require_size_for_bfloat16(self.train, dtype)
        compiled = frozen.compiled_batch_size(
            self.recipe, self.train, self.model, self.process_group.device, self.process_group.world
        )
        self.step = Step(
            self.model,
            self.loss,
            self.recipe,
            self.optimizer,
            self.process_group,
            known_of=self.train.known_of,
            dtype=dtype,
            compiled=compiled,
        )
        options = {"dtype": dtype, "compiled": compiled, "pause": self.pause, "folder": self.files.folder}
        self.train_features = FrozenFeatures(self.model, self.train, self.process_group, **options)
        self.val_features = FrozenFeatures(self.model, self.val, self.process_group, **options)
        self.reader = Inference(self.model, first=self.model.split, dtype=dtype)
        self.progress.describe(devices.dtype_name(dtype), bool(compiled))
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
            soup = self.soup()
        except _SignalError:
            self.save()
            raise Stopped(
                f"stage {self.recipe.number} was stopped by {self.signalled() or 'a signal'} in epoch "
                f"{self.epoch + 1}, batch {self.batch}; its state is saved: "
                "run the same cell or command again to resume"
            ) from None
        moments = optim.tensors(self.optimizer, self.model)
        best = self.process_group.from_first(lambda: self.files.finish(self.model, self.history, moments, soup))
        if not self.process_group.first:
            checkpoint.load_into(self.model, best)
        return Result(
            history_tables.history_frame(self.history),
            history_tables.batch_losses_frame(self.losses),
            best,
            True,
            resumed_from,
        )

    def over(self) -> bool:
        """Whether the stage ends: all epochs are done, or early stopping applies."""
        return self.epoch >= self.recipe.epochs or self.stops_early()

    def stops_early(self) -> bool:
        return optim.exhausted(optim.scores(self.history, self.recipe.chosen_by), self.recipe.patience)

    def train_epoch(self) -> None:
        """Train the rest of the epoch. A step comes after ``accumulate`` batches and at the end of the epoch."""
        self.model.train()
        features = partial(self.train_features.of, epoch=self.epoch)
        sizes, known = self.train.sizes(self.epoch), self.train.known(self.epoch)
        accumulate, clock = self.recipe.accumulate, time.monotonic()
        for batch in self.train_features.batches(self.epoch, self.batch):
            due = (self.batch + 1) % accumulate == 0 or self.batch + 1 == len(sizes)
            begin = self.batch - self.batch % accumulate
            step_labels = int(known[begin : begin + accumulate].sum())
            loss = self.step.learn(batch, features, step_labels, last=due)
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
    def validate(self) -> tuple[Losses, np.ndarray]:
        """Losses of the validation batches, and the 15 AUCs."""
        self.model.eval()
        val_meter = LossMeter(f"stage {self.recipe.number}, validation after epoch {self.epoch + 1}", self.val)
        rows, logits = [], []
        for batch in self.val_features.batches():
            self.pause()
            logits.append(self.reader(self.val_features.of(batch)))
            rows.append(batch.rows)
            val_meter.add(self.loss(logits[-1], batch.labels), batch.rows)
        own_share = [(torch.cat(rows), torch.cat(logits).sigmoid().cpu())] if rows else []
        shares = [share for shares in self.process_group.gather(own_share) for share in shares]
        order, probabilities = (torch.cat(values) for values in zip(*shares, strict=True))
        labels = records.label_matrix(self.val.films)
        aucs = self.score(labels[order.numpy()], probabilities.numpy())
        return val_meter.of_all(self.process_group), aucs

    def close_epoch(self, val: Losses, aucs: np.ndarray) -> None:
        """Write the epoch's history row, and a checkpoint if the epoch is the best so far or the last."""
        number, train = self.epoch + 1, self.meter.of_all(self.process_group)
        so_far, lr = self.files.line.epochs_so_far + number, self.highest_rate()
        row = history_tables.history_row(number, so_far, lr, train.mean(), val.mean(), aucs)
        row |= {"skipped": self.step.scaler.skipped}
        row |= {"seconds": self.meter.seconds, "images_per_s": sum(train.films) / self.meter.seconds}
        self.history.append(row)
        for part, of_part in (("train", train), ("val", val)):
            self.losses += history_tables.loss_rows(number, part, of_part.losses, of_part.films)
        last = number == self.recipe.epochs or self.stops_early()
        self.process_group.from_first(lambda: self.files.keep(self.model, self.history, self.losses, last=last))
        self.progress.close_epoch(row)

    def soup(self) -> stage_folder.Soup | None:
        """The mean of the last epochs' weights and its validation numbers; None where the recipe wants none."""
        epochs = self.files.soup_epochs(self.history)
        if len(epochs) < 2:
            return None
        state = checkpoint.mean_weights(self.files.checkpoints(epochs))
        with optim.lent(self.model, state):
            self.reader.refresh(self.model)
            val, aucs = self.validate()
        so_far, lr = self.files.line.epochs_so_far + len(self.history), self.history[-1]["lr"]
        row = history_tables.history_row(len(self.history), so_far, lr, math.nan, val.mean(), aucs)
        return stage_folder.Soup(epochs, row, state)

    def save_when_due(self, *, within: bool) -> None:
        """Save the state if it is due, or stop after a signal. Several processes first agree on it."""
        if self.process_group.world > 1 and within and self.steps % ASK_EVERY:
            return
        due, stop = self.process_group.any(
            self.process_group.first and self.files.due(within=within), bool(self.signalled())
        )
        if stop:
            raise _SignalError
        if due:
            self.save()

    def save(self) -> None:
        snapshot = self.snapshot()
        self.process_group.from_first(lambda: self.files.save(self.steps, *snapshot))

    def pause(self, done: int = 0, of: int = 0) -> None:
        """Stop between two batches without training if a signal came, unless other processes would wait."""
        if self.process_group.world == 1 and self.signalled():
            raise _SignalError
        if of:
            self.progress.note(f"frozen features, batch {done} of {of}")

    def averaged(self) -> AbstractContextManager:
        return self.average.lent_to_model() if self.average else nullcontext()

    def rate(self, step: int) -> float:
        chosen_by = self.recipe.chosen_by
        values = optim.scores(self.history, chosen_by)
        plateaus = optim.halvings(values, self.recipe.plateau, optim.BETTER[chosen_by])
        return optim.rate(step, self.all_steps, self.recipe, plateaus)

    def highest_rate(self) -> float:
        """Highest rate of the epoch that just ended; the last rate of a cosine is 0."""
        steps = -(-self.train.steps(self.epoch) // self.recipe.accumulate)
        return max(self.rate(step) for step in range(self.steps - steps, self.steps))

    def new_meter(self, **values: Any) -> LossMeter:
        return LossMeter(f"stage {self.recipe.number}, epoch {self.epoch + 1}", self.train, **values)

    def snapshot(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The training's state, as tensors and as plain data."""
        losses, films, known = self.meter.of_all(self.process_group)
        values = stage_folder.join_tensors(
            model=optim.learned(self.model),
            optimizer=optim.tensors(self.optimizer, self.model),
            average=self.average.values if self.average else {},
            random=stage_folder.random_state(self.process_group.device),
            meter={
                "losses": torch.tensor(losses, dtype=torch.float64),
                "films": torch.tensor(films),
                "known": torch.tensor(known),
            },
        )
        position = {"epoch": self.epoch, "batch": self.batch, "steps": self.steps, "parts": self.step.parts}
        position |= {"scaler": self.step.scaler.state()}
        history = {"history": history_tables.jsonable(self.history), "losses": self.losses}
        return values, {**position, "seconds": self.meter.seconds, **history}

    def resume(self) -> str:
        """Restore the newest state of this stage, if there is one. Returns its position in words, "" for none."""
        path = self.process_group.from_first(self.files.take_up)
        if path is None:
            return ""
        saved = stage_folder.read_state(path)
        optim.fill(self.model, stage_folder.part_of_tensors(saved.tensors, "model"))
        optim.restore(
            self.optimizer, self.model, stage_folder.part_of_tensors(saved.tensors, "optimizer"), self.recipe.optimizer
        )
        if self.average:
            self.average.fill(stage_folder.part_of_tensors(saved.tensors, "average"))
        stage_folder.set_random_state(stage_folder.part_of_tensors(saved.tensors, "random"), self.process_group.device)
        self.epoch, self.batch, self.steps = (saved.data[name] for name in ("epoch", "batch", "steps"))
        self.step.parts = saved.data["parts"]
        self.step.scaler.restore(saved.data["scaler"])
        self.history = history_tables.from_json(saved.data["history"])
        self.losses = [tuple(row) for row in saved.data["losses"]]
        meter_state = stage_folder.part_of_tensors(saved.tensors, "meter")
        share = (
            1 if self.process_group.first else 0
        )  # saved for all processes together, so the first continues with all
        counted = {name: (meter_state[name] * share).tolist() for name in ("losses", "films", "known")}
        self.meter = self.new_meter(**counted, seconds=saved.data["seconds"])
        self.progress.go_on_from(self.epoch, self.batch, self.history)
        return f"epoch {self.epoch + 1}, batch {self.batch}"
