"""Progress of a stage: a bar, a callback, progress.json for other processes, and TensorBoard where it is installed."""

import json
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm.auto import tqdm

from cxrlib.labels import FINDINGS
from cxrlib.training.schedules import Stage

EVERY = 1.0
"""Seconds between two updates of progress.json."""
BAR_EVERY = 5.0
"""Seconds between two refreshes of the bar: under papermill each refresh is a printed line."""
POINTS = 50
"""Largest number of points per epoch in the loss curve."""

Watch = Callable[["Progress"], None]


class Progress:
    """Progress of a stage, counted in batches. ``shown`` False: no bar, but the file is written.

    ``watch`` is called with this object about once a second during training, after each epoch and at the end. If it
    raises, there is one warning and it is not called again. It can read ``curve`` (pairs of epochs done, as a fraction,
    and mean loss since the previous pair), ``history`` (the epochs' rows), ``loss`` (the newest) and ``done``.
    ``writes`` False: one of several processes, without output.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Stage,
        batches: int,
        *,
        shown: bool,
        watch: Watch | None = None,
        writes: bool = True,
    ) -> None:
        self.path = folder / "progress.json"
        self.recipe, self.batches, self.watch, self.writes = recipe, batches, watch if writes else None, writes
        self.epoch = self.batch = self.films = 0
        self.loss = float("nan")
        self.done = False
        self.curve: list[tuple[float, float]] = []
        self.history: list[dict[str, Any]] = []
        self.since_point: list[float] = []
        self.started = self.written = self.noted = time.monotonic()
        self.done_before = 0
        self.how: dict[str, Any] = {}
        self.board = TensorBoard(folder) if writes else None
        self.bar = tqdm(
            total=batches * recipe.epochs,
            desc=f"stage {recipe.number}",
            unit="batch",
            mininterval=BAR_EVERY,
            maxinterval=4 * BAR_EVERY,
            disable=not (shown and writes),
        )

    def __enter__(self) -> Self:
        if self.board:
            self.board.begin()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()
        if self.board:
            self.board.close()
        self.done = kind is None
        self.write()
        if self.done:
            self.tell()

    def describe(self, precision: str, compiled: bool) -> None:
        """Show the precision of the training, and whether its code is compiled."""
        self.how = {"precision": precision, "compiled": compiled}
        self.bar.set_description(f"stage {self.recipe.number}, {precision}{', compiled' * compiled}", refresh=False)

    def go_on_from(self, epoch: int, batch: int, history: list[dict[str, Any]]) -> None:
        """Resume an interrupted stage at a batch of an epoch (both from 0), with its history."""
        for row in history:
            self.close_epoch(row)
        self.epoch, self.batch = epoch, batch
        self.done_before = epoch * self.batches + batch
        self.bar.update(self.done_before - self.bar.n)

    def step(self, epoch: int, batch: int, films: int, loss: float) -> None:
        """Count a finished ``batch`` (from 1) of ``epoch`` (from 0), with its number of films and its loss."""
        self.epoch, self.batch, self.loss = epoch, batch, loss
        self.films += films
        self.since_point.append(loss)
        if batch == self.batches or len(self.since_point) >= max(1, self.batches // POINTS):
            self.curve.append((epoch + batch / self.batches, sum(self.since_point) / len(self.since_point)))
            self.since_point.clear()
        self.bar.update(epoch * self.batches + batch - self.bar.n)
        if time.monotonic() - self.written >= EVERY:
            self.bar.set_postfix_str(f"epoch {epoch + 1}, loss {loss:.4f}, {self.speed():.0f} images/s", refresh=False)
            self.write()
            self.tell()

    def close_epoch(self, row: dict[str, Any]) -> None:
        """Add the history row of a finished epoch."""
        self.history.append(row)
        if self.board:
            self.board.epoch(row)
        self.tell()

    def note(self, text: str) -> None:
        """Show a text while no batch is trained."""
        now = time.monotonic()
        if now - self.written >= EVERY:
            self.bar.set_postfix_str(text, refresh=now - self.noted >= BAR_EVERY)
            self.noted = now if now - self.noted >= BAR_EVERY else self.noted
            self.write()

    def tell(self) -> None:
        """Call ``watch``, if there is one."""
        if self.watch is None:
            return
        try:
            self.watch(self)
        except Exception as error:
            self.watch = None
            warnings.warn(f"watch failed and is not called again: {error!r}", stacklevel=2)

    def text(self) -> str:
        """Progress in words: ``stage 3, epoch 2 of 4, batch 10 of 44, loss 0.1234, 38 images/s, 2:00 left``."""
        if self.done:
            return f"stage {self.recipe.number}, done after {len(self.history)} epochs"
        words = [f"stage {self.recipe.number}, epoch {min(self.epoch + 1, self.recipe.epochs)} of {self.recipe.epochs}"]
        words += [f"batch {self.batch} of {self.batches}", f"loss {self.loss:.4f}"]
        if self.films:
            minutes, seconds = divmod(round(self.left()), 60)
            words += [f"{self.speed():.0f} images/s", f"{minutes}:{seconds:02} left"]
        skipped = self.history[-1].get("skipped", 0) if self.history else 0
        words += [f"{skipped} steps skipped"] if skipped else []
        words += [self.how["precision"]] if self.how else []
        words += ["compiled"] if self.how.get("compiled") else []
        return ", ".join(words)

    def speed(self) -> float:
        """Images per second since the start or the resume; NaN before the first."""
        seconds = time.monotonic() - self.started
        return self.films / seconds if self.films and seconds > 0 else float("nan")

    def left(self) -> float:
        """Seconds left at the present speed; NaN before the first batch."""
        done = self.epoch * self.batches + self.batch - self.done_before
        left = self.recipe.epochs * self.batches - self.done_before - done
        return left * (time.monotonic() - self.started) / done if done else float("nan")

    def write(self) -> None:
        """Write progress.json by renaming, without a sync: it need not survive a power cut."""
        self.written = time.monotonic()
        if not self.writes:
            return
        content = {
            "stage": self.recipe.number,
            "epoch": min(self.epoch + 1, self.recipe.epochs),
            "epochs": self.recipe.epochs,
            "batch": self.batch,
            "batches": self.batches,
            "loss": _number(self.loss, 5),
            "images_per_s": _number(self.speed(), 1),
            "eta_s": 0 if self.done else _number(self.left(), 0),
            "done": self.done,
            **self.how,
        }
        temporary = self.path.with_name(".progress.json.tmp")
        try:
            temporary.write_text(json.dumps(content))
            temporary.replace(self.path)
        except OSError:  # this file must not stop a stage
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _number(value: float, digits: int) -> float | None:
    """The value rounded, None for NaN and infinities, which JSON lacks."""
    return round(value, digits) if abs(value) < float("inf") else None


TENSORBOARD_FOLDER = "tensorboard"
SCALARS = {"train_loss": "loss/training", "val_loss": "loss/validation", "lr": "rate", "images_per_s": "images per s"}


class TensorBoard:
    """TensorBoard writer: each epoch's history row as scalars, in ``tensorboard/`` of the stage's folder.

    It writes nothing where TensorBoard is not installed. An error gives one warning and does not stop the training.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.events = folder / TENSORBOARD_FOLDER, None
        self.on = find_spec("tensorboard") is not None

    def begin(self) -> None:
        """Remove the events of an earlier training. A resumed training writes its earlier epochs again."""
        if self.on:
            self._try(lambda: shutil.rmtree(self.folder, ignore_errors=True))

    def epoch(self, row: dict[str, Any]) -> None:
        """Write the epoch's row, without the findings whose AUC is undefined."""
        if self.on:
            self._try(lambda: self._write(row))

    def close(self) -> None:
        if self.events:
            with suppress(Exception):
                self.events.close()

    def _write(self, row: dict[str, Any]) -> None:
        if self.events is None:
            from torch.utils.tensorboard import SummaryWriter  # optional, and slow to import

            self.events = SummaryWriter(str(self.folder))
        aucs = {f"AUC/{finding}": row[f"auc_{finding}"] for finding in FINDINGS}
        values = {title: row[name] for name, title in SCALARS.items()} | {"AUC/mean": row["val_auc"]} | aucs
        for title, value in values.items():
            if value == value:
                self.events.add_scalar(title, value, row["epochs_so_far"])
        self.events.flush()

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.on = False
            warnings.warn(f"TensorBoard failed, no more is written to {self.folder}: {error!r}", stacklevel=2)


def clock(seconds: float) -> str:
    """Duration as text: ``0:07``, ``12:40``, ``3:05:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
