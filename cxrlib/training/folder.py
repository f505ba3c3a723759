"""The folder of one stage: its checkpoints, its resume states, and best.json, which says that it is finished."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from cxrlib import paths, provenance
from cxrlib.errors import UserError
from cxrlib.training import checkpoint, lineage, network, record, state, tensors
from cxrlib.training.recipes import Stage

SAVE_EVERY = 300.0
"""Seconds after which a state is saved within an epoch; one is also saved after each epoch."""
SAVE_SHARE = 0.01
"""Largest share of the time that saving states may take: where it is slow, or epochs are short, it is done less often.
"""


def save_every() -> float | None:
    """Seconds between two states as ``$CXR_SAVE_EVERY`` asks for them, and one after each epoch, whatever that takes.

    None where it is not set. Raises UserError where it is no number of seconds.
    """
    asked = os.environ.get("CXR_SAVE_EVERY", "")
    try:
        seconds = float(asked) if asked else None
    except ValueError:
        seconds = math.nan
    if seconds is not None and not 0 <= seconds < math.inf:
        raise UserError(f"CXR_SAVE_EVERY is {asked!r}; give the seconds between two states, 0 or more, or unset it")
    return seconds


def check_writable(folder: Path) -> None:
    """Raise UserError where nothing can be written into ``folder``; it is made where it is absent."""
    with paths.atomic(folder / ".probe"):
        pass
    (folder / ".probe").unlink(missing_ok=True)


def finished(folder: Path, who: dict[str, Any], start: str) -> Path | None:
    """The best checkpoint of ``folder`` if its stage is this one and done, else None.

    ``start`` is the hash of the network's weights: those the stage started from, or those it ended with where a
    notebook's cell is run again. Moments that it took over may have been deleted since.
    """
    if _wanted_again(folder):
        return None
    try:
        best = paths.read_json(folder / "best.json")
        who = who if who["carried"] else {**who, "carried": best["who"]["carried"]}
        if best["fingerprint"] != provenance.digest(who) or start not in (best["start"], best["result"]):
            return None
        record.read_history(folder)
        return checkpoint.load(folder / (best["best"] + checkpoint.SUFFIX)).path
    except (UserError, OSError, ValueError, KeyError, TypeError):  # absent, damaged or of another version: train
        return None


def _wanted_again(folder: Path) -> bool:
    """Whether the stage is to be trained again from the start, finished or not; training takes the mark away."""
    return (folder / paths.AGAIN).is_file()


MOMENTS = "moments.safetensors"


def moments_hash(parent: Path | None) -> str:
    """Hash of the optimizer's moments at the end of the stage that made a checkpoint, "" where none are kept of it."""
    if parent is None or not (file := parent.with_name(MOMENTS)).is_file():
        return ""
    kept = tensors.read_meta(file)
    return kept["sha256"] if kept.get("fingerprint") == checkpoint.read_meta(parent)["fingerprint"] else ""


def moments(parent: Path) -> dict[str, Tensor]:
    """The moments that ``moments_hash`` is of, by weight. Raises UserError where they are damaged."""
    return tensors.read(parent.with_name(MOMENTS))[0]


class StageFolder:
    """Writes what a training under way has to keep. Only the holder of the folder's lock may have one.

    ``who`` is the stage's identity (``record.identity``), ``start`` the hash of the weights it starts from.
    """

    def __init__(
        self, folder: Path, recipe: Stage, line: lineage.Lineage, who: dict[str, Any], start: str, data: str
    ) -> None:
        self.folder, self.recipe, self.line, self.who, self.start, self.data = folder, recipe, line, who, start, data
        self.states = folder / "state"
        self.fingerprint = provenance.digest(who)
        self.asked = save_every()
        self.saved_at, self.save_cost = time.monotonic(), 0.0
        self.safe: list[str] = []  # the best checkpoint at each saved state, which a resumed training needs

    def newest(self) -> state.State | None:
        """The newest state of this very stage, None where there is none or it is to be trained again from the start."""
        return None if _wanted_again(self.folder) else state.newest(self.states, self._fault)

    def begin(self) -> None:
        """Make the folder ready to begin anew: the stage is no longer finished; its checkpoints stay."""
        state.sweep(self.folder)
        state.clear(self.states)
        for name in ("best.json", "history.csv", "batches.csv", paths.AGAIN):
            (self.folder / name).unlink(missing_ok=True)

    def go_on(self, found: state.State) -> None:
        """Make the folder ready to go on from a state, whose best checkpoint must stay."""
        state.sweep(self.folder)
        state.sweep(self.states)
        self.safe = [found.data["best"]]

    def take_up(self) -> Path | None:
        """Make the folder ready for this stage; the state to go on from, None where it begins anew."""
        found = self.newest()
        self.go_on(found) if found else self.begin()
        return found.path if found else None

    def due(self, *, within: bool) -> bool:
        """Whether to save a state now, ``within`` an epoch or after one.

        Until the first state is saved, it is taken to cost what a checkpoint did.
        """
        every = SAVE_EVERY if self.asked is None else self.asked
        rest = self.save_cost / SAVE_SHARE if self.asked is None else 0.0
        return time.monotonic() - self.saved_at >= max(every if within else 0.0, rest)

    def save(self, steps: int, values: dict[str, Any], data: dict[str, Any]) -> None:
        began = time.monotonic()
        best = self._title(record.best_epoch(record.from_json(data["history"]))) if data["history"] else ""
        state.save(self.states, steps, values, {**data, "best": best, "who": self.who, "start": self.start})
        self.safe = [*self.safe[-1:], best]
        self._prune({*self.safe})
        self.saved_at = time.monotonic()
        self.save_cost = self.saved_at - began

    def keep(self, model: network.Network, history: list[dict[str, Any]], batches: list[tuple], *, last: bool) -> None:
        """Write the history, and a checkpoint of the epoch just done if it is the best so far or the ``last``.

        ``batches`` are the losses of all epochs so far, as rows of ``record.BATCH_COLUMNS``.
        """
        epoch = history[-1]["epoch"]
        if last or record.best_epoch(history) == epoch:
            self._checkpoint(model, epoch, history[-1])
        record.write_history(self.folder, record.frame(history), batches)

    def finish(self, model: network.Network, history: list[dict[str, Any]], moments: dict[str, Tensor]) -> Path:
        """Mark the stage as finished. Returns its best checkpoint; with no epochs, the weights it started from.

        The network then holds what the checkpoint's file gave back. ``moments`` are the optimizer's at the end, for a
        stage that goes on from here.
        """
        if not history:
            self._checkpoint(model, 0, {})
            record.write_history(self.folder, record.frame(history), [])
        tensors.remove(self.folder / MOMENTS)
        if moments:
            kind = {"fingerprint": self.fingerprint, "optimizer": self.recipe.optimizer}
            tensors.write((self.folder / MOMENTS).with_suffix(""), moments, kind)
        epoch = record.best_epoch(history) if history else 0
        best, last = self._title(epoch), self._title(len(history))
        loaded = checkpoint.load_into(model, self.folder / (best + checkpoint.SUFFIX)).checkpoint
        content = {
            "best": best,
            "last": last,
            "why": _why(record.frame(history), epoch),
            "epoch": epoch,
            "val_auc": loaded.meta["metrics"].get("val_auc"),
            "sha256": loaded.meta["sha256"],
            "fingerprint": self.fingerprint,
            "start": self.start,
            "result": tensors.sha256(loaded.state),
            "who": self.who,
        }
        paths.write_json(self.folder / "best.json", content)
        self._prune({best, last})
        state.clear(self.states)
        return loaded.path

    def _checkpoint(self, model: network.Network, epoch: int, row: dict[str, Any]) -> None:
        _ = self.line.past  # looked at once, and no part of what a checkpoint costs
        began = time.monotonic()
        metrics = record.jsonable([{name: value for name, value in row.items() if name not in record.TIMES}])[0]
        checkpoint.save(
            self.folder,
            model.state_dict(),
            self.recipe,
            self.line,
            epoch=epoch,
            metrics=metrics,
            data=self.data,
            fingerprint=self.fingerprint,
            code=self.who["code"],
        )
        self.save_cost = self.save_cost or time.monotonic() - began

    def _title(self, epoch: int) -> str:
        return checkpoint.name(self.recipe.number, self.recipe.lr, self.line.epochs_so_far + epoch)

    def _fault(self, data: dict[str, Any]) -> str:
        """Why a state cannot be gone on with, "" where it can."""
        if differing := record.differences(self.who | {"start": self.start}, data["who"] | {"start": data["start"]}):
            return f"it was of another recipe or data: {differing}"
        if data["best"] and not (self.folder / (data["best"] + checkpoint.SUFFIX)).is_file():
            return f"its best checkpoint {data['best']} is gone"
        return ""

    def _prune(self, keep: set[str]) -> None:
        """Remove this stage's checkpoints but for the names in ``keep``; those of other recipes are left alone."""
        for file in self.folder.glob("stage*.json"):
            try:
                mine = json.loads(file.read_text(encoding="utf-8")).get("fingerprint") == self.fingerprint
            except (ValueError, AttributeError):
                continue
            if mine and file.stem not in keep:
                tensors.remove(file.with_suffix(checkpoint.SUFFIX))


def _why(history: pd.DataFrame, epoch: int) -> str:
    if history.empty:
        return "no epochs: the weights it started from, handed on"
    auc = history.set_index("epoch")["val_auc"][epoch]
    if math.isnan(auc):
        return f"validation AUC is undefined on these films; epoch {epoch} is the last"
    return f"highest mean validation AUC over the 14 findings, {auc:.4f}, of {len(history)} epochs"
