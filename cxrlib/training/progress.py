"""How far a stage has come: a bar for who looks on, ``progress.json`` for who watches from outside."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tqdm.auto import tqdm

from cxrlib.training.stages import Stage

EVERY = 1.0
"""Seconds between two writings of progress.json."""
BAR_EVERY = 5.0
"""Seconds between two refreshes of the bar: under papermill each refresh is a printed line."""


class Progress:
    """Counts batches of a stage. ``shown`` False: no bar, the file is written all the same."""

    def __init__(self, folder: Path, recipe: Stage, batches: int, *, shown: bool) -> None:
        self.path = folder / "progress.json"
        self.recipe, self.batches = recipe, batches
        self.epoch = self.batch = self.films = 0
        self.loss = float("nan")
        self.started = self.written = self.noted = time.monotonic()
        self.done_before = 0
        self.bar = tqdm(
            total=batches * recipe.epochs,
            desc=f"stage {recipe.number}",
            unit="batch",
            mininterval=BAR_EVERY,
            maxinterval=4 * BAR_EVERY,
            disable=not shown,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()
        self.write(done=kind is None)

    def go_on_from(self, epoch: int, batch: int) -> None:
        """Start counting at a batch of an epoch (both from 0) of an interrupted stage."""
        self.epoch, self.batch = epoch, batch
        self.done_before = epoch * self.batches + batch
        self.bar.update(self.done_before - self.bar.n)

    def step(self, epoch: int, batch: int, films: int, loss: float) -> None:
        """Note that ``batch`` (from 1) of ``epoch`` (from 0) is done."""
        self.epoch, self.batch, self.loss = epoch, batch, loss
        self.films += films
        self.bar.update(epoch * self.batches + batch - self.bar.n)
        now = time.monotonic()
        if now - self.written >= EVERY:
            self.bar.set_postfix_str(f"epoch {epoch + 1}, loss {loss:.4f}, {self.speed():.0f} images/s", refresh=False)
            self.write()

    def note(self, text: str) -> None:
        """Say what goes on while no batch is trained."""
        now = time.monotonic()
        if now - self.written >= EVERY:
            self.bar.set_postfix_str(text, refresh=now - self.noted >= BAR_EVERY)
            self.noted = now if now - self.noted >= BAR_EVERY else self.noted
            self.write()

    def speed(self) -> float:
        """Images per second since the start, or since going on; NaN before the first."""
        seconds = time.monotonic() - self.started
        return self.films / seconds if self.films and seconds > 0 else float("nan")

    def left(self) -> float:
        """Seconds left at the pace so far; NaN before the first batch."""
        done = self.epoch * self.batches + self.batch - self.done_before
        todo = self.recipe.epochs * self.batches - self.done_before - done
        return todo * (time.monotonic() - self.started) / done if done else float("nan")

    def write(self, *, done: bool = False) -> None:
        """Write progress.json by renaming, but without a sync: it is worth nothing after a power cut."""
        self.written = time.monotonic()
        content = {
            "stage": self.recipe.number,
            "epoch": min(self.epoch + 1, self.recipe.epochs),
            "epochs": self.recipe.epochs,
            "batch": self.batch,
            "batches": self.batches,
            "loss": _number(self.loss, 5),
            "images_per_s": _number(self.speed(), 1),
            "eta_s": 0 if done else _number(self.left(), 0),
            "done": done,
        }
        temporary = self.path.with_name(".progress.json.tmp")
        try:
            temporary.write_text(json.dumps(content))
            temporary.replace(self.path)
        except OSError:  # a watcher's file is not worth a stage
            temporary.unlink(missing_ok=True)


def _number(value: float, digits: int) -> float | None:
    """Rounded, None for NaN and infinities, which JSON lacks."""
    return round(value, digits) if abs(value) < float("inf") else None
