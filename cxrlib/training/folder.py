"""Folder of a stage: checkpoints, resume states, and best.json, which marks the stage as finished."""

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
"""Seconds between two states within an epoch. A state is also saved after each epoch."""
SAVE_SHARE = 0.01
"""Largest share of the time for saving. With slow saving or short epochs, states are saved less often."""


def save_every() -> float | None:
    """Seconds between two states from ``$CXR_SAVE_EVERY``, None where it is not set.

    If it is set, a state is also saved after each epoch, whatever time that takes.
    Raises UserError where it is not a number of seconds.
    """
    text = os.environ.get("CXR_SAVE_EVERY", "")
    try:
        seconds = float(text) if text else None
    except ValueError:
        seconds = math.nan
    if seconds is not None and not 0 <= seconds < math.inf:
        raise UserError(f"CXR_SAVE_EVERY is {text!r}; give the seconds between two states, 0 or more, or unset it")
    return seconds


def check_writable(folder: Path) -> None:
    """Check that a folder is writable, else raise UserError. An absent folder is created."""
    with paths.atomic(folder / ".probe"):
        pass
    (folder / ".probe").unlink(missing_ok=True)


def finished(folder: Path, who: dict[str, Any], start: str) -> Path | None:
    """The best checkpoint of ``folder`` if it holds this same stage, finished; else None.

    ``who`` is the stage's identity. ``start`` is the hash of the network's weights: the stage's starting weights, or
    its result if a notebook cell runs again. The parent's optimizer moments need not exist any more.
    """
    if _marked_again(folder):
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


def _marked_again(folder: Path) -> bool:
    """Whether the stage is marked to be trained again from the start. Training removes the mark."""
    return (folder / paths.AGAIN).is_file()


MOMENTS = "moments.safetensors"


def moments_hash(parent: Path | None) -> str:
    """Hash of the optimizer moments at the end of the parent's stage, "" where no moments are saved."""
    if parent is None or not (file := parent.with_name(MOMENTS)).is_file():
        return ""
    meta = tensors.read_meta(file)
    return meta["sha256"] if meta.get("fingerprint") == checkpoint.read_meta(parent)["fingerprint"] else ""


def moments(parent: Path) -> dict[str, Tensor]:
    """The optimizer moments at the end of the parent's stage, by weight. Raises UserError where they are damaged."""
    return tensors.read(parent.with_name(MOMENTS))[0]


class StageFolder:
    """Writer of a stage's files during training. Only the process with the folder's lock may use it.

    ``who`` is the stage's identity (``record.identity``), ``start`` the hash of its starting weights.
    """

    def __init__(
        self, folder: Path, recipe: Stage, line: lineage.Lineage, who: dict[str, Any], start: str, data: str
    ) -> None:
        self.folder, self.recipe, self.line, self.who, self.start, self.data = folder, recipe, line, who, start, data
        self.states = folder / "state"
        self.fingerprint = provenance.digest(who)
        self.asked = save_every()
        self.saved_at, self.save_cost = time.monotonic(), 0.0
        self.safe: list[str] = []  # best checkpoint of each saved state, needed to resume

    def newest(self) -> state.State | None:
        """The newest state of this stage, None where there is none or the stage must start again."""
        return None if _marked_again(self.folder) else state.newest(self.states, self._fault)

    def begin(self) -> None:
        """Prepare the folder for a start from the beginning. The stage is then unfinished; its checkpoints stay."""
        state.sweep(self.folder)
        state.clear(self.states)
        for name in ("best.json", "history.csv", "batches.csv", paths.AGAIN):
            (self.folder / name).unlink(missing_ok=True)

    def go_on(self, found: state.State) -> None:
        """Prepare the folder to resume from a state, and keep the best checkpoint of that state."""
        state.sweep(self.folder)
        state.sweep(self.states)
        self.safe = [found.data["best"]]

    def take_up(self) -> Path | None:
        """Prepare the folder for this stage. Returns the state to resume from, None for a start from the beginning."""
        newest = self.newest()
        self.go_on(newest) if newest else self.begin()
        return newest.path if newest else None

    def due(self, *, within: bool) -> bool:
        """Whether to save a state now, ``within`` an epoch or after one.

        The cost of the first state is unknown, so the cost of a checkpoint stands for it.
        """
        interval = SAVE_EVERY if self.asked is None else self.asked
        shortest = self.save_cost / SAVE_SHARE if self.asked is None else 0.0
        return time.monotonic() - self.saved_at >= max(interval if within else 0.0, shortest)

    def save(self, steps: int, values: dict[str, Any], data: dict[str, Any]) -> None:
        start_time = time.monotonic()
        best = self._title(record.best_epoch(record.from_json(data["history"]))) if data["history"] else ""
        state.save(self.states, steps, values, {**data, "best": best, "who": self.who, "start": self.start})
        self.safe = [*self.safe[-1:], best]
        self._prune({*self.safe})
        self.saved_at = time.monotonic()
        self.save_cost = self.saved_at - start_time

    def keep(self, model: network.Network, history: list[dict[str, Any]], batches: list[tuple], *, last: bool) -> None:
        """Write the history, and a checkpoint if the newest epoch is the best so far or the ``last``.

        ``batches`` are the losses of all finished epochs, as rows of ``record.BATCH_COLUMNS``.
        """
        epoch = history[-1]["epoch"]
        if last or record.best_epoch(history) == epoch:
            self._checkpoint(model, epoch, history[-1])
        record.write_history(self.folder, record.frame(history), batches)

    def finish(self, model: network.Network, history: list[dict[str, Any]], moments: dict[str, Tensor]) -> Path:
        """Mark the stage as finished. Returns its best checkpoint, of the starting weights where it has no epochs.

        The network then holds the checkpoint's weights, read back from the file. ``moments`` are the final optimizer
        moments, for the next stage.
        """
        if not history:
            self._checkpoint(model, 0, {})
            record.write_history(self.folder, record.frame(history), [])
        tensors.remove(self.folder / MOMENTS)
        if moments:
            meta = {"fingerprint": self.fingerprint, "optimizer": self.recipe.optimizer}
            tensors.write((self.folder / MOMENTS).with_suffix(""), moments, meta)
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
        _ = self.line.past  # computed once and cached; its time must not count as the cost of a checkpoint
        start_time = time.monotonic()
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
        self.save_cost = self.save_cost or time.monotonic() - start_time

    def _title(self, epoch: int) -> str:
        return checkpoint.name(self.recipe.number, self.recipe.lr, self.line.epochs_so_far + epoch)

    def _fault(self, data: dict[str, Any]) -> str:
        """Reason why a state cannot be resumed, "" where it can."""
        if differences := record.differences(self.who | {"start": self.start}, data["who"] | {"start": data["start"]}):
            return f"it has another recipe or other data: {differences}"
        if data["best"] and not (self.folder / (data["best"] + checkpoint.SUFFIX)).is_file():
            return f"its best checkpoint {data['best']} is missing"
        return ""

    def _prune(self, keep: set[str]) -> None:
        """Remove this stage's checkpoints except the names in ``keep``. Those of other recipes stay."""
        for file in self.folder.glob("stage*.json"):
            try:
                same_stage = json.loads(file.read_text(encoding="utf-8")).get("fingerprint") == self.fingerprint
            except (ValueError, AttributeError):
                continue
            if same_stage and file.stem not in keep:
                tensors.remove(file.with_suffix(checkpoint.SUFFIX))


def _why(history: pd.DataFrame, epoch: int) -> str:
    if history.empty:
        return "no epochs: the starting weights, unchanged"
    auc = history.set_index("epoch")["val_auc"][epoch]
    if math.isnan(auc):
        return f"validation AUC is undefined on these films; epoch {epoch} is the last"
    return f"highest mean validation AUC over the 14 findings, {auc:.4f}, of {len(history)} epochs"
