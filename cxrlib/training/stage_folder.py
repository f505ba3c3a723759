"""Folder of a stage: its identity, resume states, checkpoints, and best.json, which marks it as finished.

Each saved state is a pair ``state/<steps>.safetensors`` and ``.json``; the two newest are kept, so that a state
damaged by a power cut costs only the minutes since the one before.
"""

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from cxrlib import UserError, disk, metrics, paths, provenance
from cxrlib.data import batches, records
from cxrlib.training import checkpoint, history_tables, lineage, losses, network, optim
from cxrlib.training.schedules import Stage

BATCH_SETTINGS = ("batch_size", "seed", "shuffle", "cap", "augment", "variants")
NOT_IN_CODE = ("cxrlib.training.progress", "cxrlib.training.schedules", "cxrlib.data.splits")
"""Modules that do not change a stage's result: the progress display; schedules and split, whose recipe and films are in
the identity."""


def identity(
    recipe: Stage,
    train: Any,
    val: Any,
    loss: Any,
    line: lineage.Lineage,
    *,
    data: str,
    seed: int,
    score: Any = metrics.auc_per_label,
    carried: str = "",
) -> dict[str, Any]:
    """Identity of a stage: all that decides its result except the starting weights, as plain data to compare.

    ``score`` chooses the best epoch. ``carried`` is the hash of the parent's optimizer moments, "" for none.
    """
    return {
        "recipe": {**asdict(recipe), "groups": list(recipe.groups), "purpose": ""},
        "loss": getattr(loss, "__qualname__", repr(loss)),
        "score": getattr(score, "__qualname__", repr(score)),
        "data": data,
        "train": _films(train),
        "val": _films(val),
        "parent": line.parent["sha256"] if line.parent else "",
        "weights": line.weights,
        "seed": seed,
        "carried": carried,
        "code": code_version(*(getattr(function, "__module__", "") for function in (loss, score))),
    }


@cache
def code_version(*rooms: str) -> str:
    """Code version of a stage's result: the loop and its imports, as they were at the first call in this process.

    ``rooms`` are further modules, by name. ``NOT_IN_CODE`` is left out, ``schedules`` among it: this stage's row is in
    the recipe, and a change of another row must not train this stage again.
    """
    return provenance.code_version("cxrlib.training.fit", batches, losses, *rooms, without=NOT_IN_CODE)


def identity_differences(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Differences of two identities in words, such as ``recipe.lr 0.001 → 0.0003``; "" for none.

    Another version of the code is named as such, and fields that only one version has are then left out.
    """
    new, old = _flat(mine), _flat(theirs)
    names = [name for name in new | old if new.get(name) != old.get(name)]
    other_code = "code" in names
    if other_code:
        names = [name for name in names if name in new and name in old and name != "code"]
    changes = [f"{name} {old.get(name)!r} → {new.get(name)!r}" for name in names]
    return ", ".join([*["the workbook's code for training has changed since"] * other_code, *changes])


def _films(part: Any) -> dict[str, Any]:
    """Identity of a set of batches: its films, their pixels, and the settings of sampling and augmentation."""
    settings = {name: repr(getattr(part, name, None)) for name in BATCH_SETTINGS}
    store = getattr(part, "store", None)
    pixels = {"size": store.size, "pixels": store.pixels_of(part.films)} if store else {"size": None, "pixels": ""}
    soft = getattr(part, "soft", None)
    soft = {"soft": provenance.digest(soft.values.tobytes().hex())} if soft else {}
    return {"films": records.fingerprint(part.films), **pixels, **settings, **soft}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    parts = [_flat(item, f"{name}.{key}" if name else key) for key, item in value.items()]
    return {key: item for part in parts for key, item in part.items()}


STATES_KEPT = 2


@dataclass(frozen=True)
class ResumeState:
    """State: tensors by name, plain data, number of optimizer steps before it, and path of the tensors' file."""

    tensors: dict[str, Tensor]
    data: dict[str, Any]
    steps: int
    path: Path


def save_state(folder: Path, steps: int, values: dict[str, Tensor], data: dict[str, Any]) -> Path:
    """Write a state. After that, delete all but the ``STATES_KEPT`` newest.

    Two states can have the same ``steps``, for example before and after a validation. The later one counts as newer.
    """
    order = max((_order(path)[0] for path in _states(folder)), default=0) + 1
    path = checkpoint.write_tensors(folder / f"{order:06d}-{steps}", values, data)
    for old in _states(folder)[STATES_KEPT:]:
        checkpoint.remove_tensors(old)
    return path


def newest_state(folder: Path, wanted: Callable[[dict[str, Any]], str]) -> ResumeState | None:
    """The newest undamaged state that ``wanted`` accepts, None where there is none.

    ``wanted`` takes the state's data and returns "", or the reason to reject it. Each rejected or damaged state gives
    a warning.
    """
    for path in _states(folder):
        try:
            values, data = checkpoint.read_tensors(path)
        except UserError as error:
            warnings.warn(f"resume state {path.name} is damaged, trying the one before ({error})", stacklevel=2)
            continue
        fault = wanted(data)
        if not fault:
            return ResumeState(values, data, _order(path)[1], path)
        warnings.warn(f"the interrupted training in {folder.parent} is not continued: {fault}", stacklevel=2)
    return None


def read_state(path: Path) -> ResumeState:
    """Read a state. Raises UserError where it is damaged."""
    return ResumeState(*checkpoint.read_tensors(path), _order(path)[1], path)


def clear_states(folder: Path) -> None:
    """Remove all states, and temporary files of a killed process."""
    for path in _states(folder):
        checkpoint.remove_tensors(path)
    remove_temporary_files(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def remove_temporary_files(folder: Path) -> None:
    """Remove temporary files of a killed process. Only the process with the folder's lock may call it."""
    for path in temporary_files(folder):
        path.unlink(missing_ok=True)


def temporary_files(folder: Path) -> list[Path]:
    """Temporary files in a folder: those of ``paths.atomic``, and those that safetensors writes before it renames."""
    return [path for pattern in (".*.tmp", ".tmp*") for path in folder.glob(pattern) if path.is_file()]


def clean_finished(folder: Path) -> None:
    """Remove what a kill left in a finished stage: states, temporary files. Not while a process has the folder."""
    if (folder / "state").exists() or temporary_files(folder):
        with suppress(UserError), paths.lock_folder(folder):
            remove_temporary_files(folder)
            clear_states(folder / "state")


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Random generators for the training inside the block. After it, the process's own generators are restored."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Random state of the generators that a network can use, as tensors."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(values: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(values["cpu"])
    if device.type == "cuda" and "cuda" in values:
        torch.cuda.set_rng_state(values["cuda"], device)


def join_tensors(**parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Joined dict of several dicts of tensors: ``model/fc.bias``, ``optimizer/0.step`` …"""
    return {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}


def part_of_tensors(values: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """One dict from those that ``join_tensors`` joined; empty where it is absent."""
    return {key.removeprefix(f"{name}/"): value for key, value in values.items() if key.startswith(f"{name}/")}


def _states(folder: Path) -> list[Path]:
    """States in a folder, newest first. A file without its JSON does not count."""
    pairs = [path.with_suffix(".safetensors") for path in folder.glob("*-*.json")]
    return sorted(pairs, key=_order, reverse=True)


def _order(path: Path) -> tuple[int, int]:
    order, steps = path.stem.split("-")
    return int(order), int(steps)


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


def room(weights: int, trained: int, *, ema: bool = False, soup: int = 0) -> int:
    """Largest disk space of a stage in bytes while it trains, from the bytes of its network and of its trained weights.

    That is two resume states and the one being written, each with two moments per trained weight and perhaps the moving
    average; the best checkpoint, the last and the one being written; the epochs that each state may still average; and
    the moments at the end.
    """
    state = weights + 2 * trained + (weights if ema else 0)
    return (STATES_KEPT + 1) * (state + soup * weights) + 3 * weights + 2 * trained


def require_room(folder: Path, model: network.Network, recipe: Stage) -> None:
    """Raise UserError with figures if the disk has less room than this stage can need. What the folder has counts."""
    state = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    trained = sum(value.numel() * value.element_size() for value in model.parameters() if value.requires_grad)
    held = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) if folder.is_dir() else 0
    need = room(state, trained, ema=bool(recipe.ema), soup=recipe.soup) - held
    disk.require(folder, need, f"stage {recipe.number}", "free some of a finished run by cxr tidy RUN")


def finished_checkpoint(folder: Path, who: dict[str, Any], start: str) -> Path | None:
    """The best checkpoint of ``folder`` if it holds this same stage, finished and undamaged; else None.

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
        found = checkpoint.load(folder / (best["best"] + checkpoint.SUFFIX)).path
        if (last := best.get("last", best["best"])) != best["best"]:
            checkpoint.load(folder / (last + checkpoint.SUFFIX))
        history_tables.restore_history(folder)
        _remove_damaged_moments(folder)
        return found
    except (UserError, OSError, ValueError, KeyError, TypeError):  # absent, damaged or of another version: train
        return None


def _marked_again(folder: Path) -> bool:
    """Whether the stage is marked to be trained again from the start. Training removes the mark."""
    return (folder / paths.AGAIN).is_file()


MOMENTS = "moments.safetensors"
TIDIED = ".tidied"
"""File that says when ``cxr tidy`` removed the moments."""


def remove_moments(folder: Path) -> None:
    """Remove the optimizer's moments of a finished stage, and note the time. The caller has the folder's lock."""
    paths.write_text(folder / TIDIED, provenance.now() + "\n")
    checkpoint.remove_tensors(folder / MOMENTS)


def moments_hash(parent: Path | None) -> str:
    """Hash of the optimizer moments at the end of the parent's stage, "" where no moments are saved."""
    if parent is None:
        return ""
    if not (file := parent.with_name(MOMENTS)).is_file():
        gone = paths.text_of(parent.with_name(TIDIED)).strip()
        why = f"cxr tidy removed the moments of {parent.parent} at {gone}" if gone else f"there is no {file}"
        warnings.warn(f"the optimizer starts anew, as without keep_moments: {why}", stacklevel=2)
        return ""
    try:
        meta = checkpoint.read_description(file)
    except UserError as error:
        warnings.warn(f"the optimizer starts anew: {error}", stacklevel=2)
        return ""
    return meta["sha256"] if meta.get("fingerprint") == checkpoint.read_meta(parent)["fingerprint"] else ""


def read_moments(parent: Path) -> dict[str, Tensor]:
    """The optimizer moments at the end of the parent's stage, by weight. Raises UserError where they are damaged."""
    return checkpoint.read_tensors(parent.with_name(MOMENTS))[0]


def _remove_damaged_moments(folder: Path) -> None:
    """Remove moments that are not what training wrote, with a warning. Only a stage that keeps moments needs them."""
    file = folder / MOMENTS
    if not file.is_file() and not checkpoint.json_beside(file).is_file():
        return
    try:
        sound = file.is_file() and provenance.file_sha256(file) == checkpoint.read_description(file)["sha256"]
    except UserError:
        sound = False
    if not sound:
        checkpoint.remove_tensors(file)
        warnings.warn(
            f"{file} was not what training wrote and is removed; a stage that keeps moments starts without them",
            stacklevel=2,
        )


@dataclass(frozen=True)
class Soup:
    """The mean of the weights of a stage's last ``epochs``, and its validation numbers as a row of the history."""

    epochs: list[int]
    row: dict[str, Any]
    state: dict[str, Tensor]

    def is_better(self, than: dict[str, Any], chosen_by: str) -> bool:
        """Whether its validation number is better than an epoch's, or the epoch's is not defined."""
        mine, theirs = optim.scores([self.row, than], chosen_by)
        return mine > theirs or (math.isnan(theirs) and not math.isnan(mine))


class StageFolder:
    """Writer of a stage's files during training. Only the process with the folder's lock may use it.

    ``who`` is the stage's identity (``stage_folder.identity``), ``start`` the hash of its starting weights.
    """

    def __init__(
        self, folder: Path, recipe: Stage, line: lineage.Lineage, who: dict[str, Any], start: str, data: str
    ) -> None:
        self.folder, self.recipe, self.line, self.who, self.start, self.data = folder, recipe, line, who, start, data
        self.states = folder / "state"
        self.fingerprint = provenance.digest(who)
        self.asked = save_every()
        self.saved_at, self.save_cost = time.monotonic(), 0.0
        self.safe: list[list[str]] = []  # the checkpoints that each saved state needs

    def newest(self) -> ResumeState | None:
        """The newest state of this stage, None where there is none or the stage must start again."""
        return None if _marked_again(self.folder) else newest_state(self.states, self._fault)

    def begin(self) -> None:
        """Prepare the folder for a start from the beginning. The stage is then unfinished; its checkpoints stay.

        Warns with the reason where a finished stage is trained again.
        """
        if reason := self._why_again():
            warnings.warn(f"the stage in {self.folder} is trained again: {reason}", stacklevel=2)
        remove_temporary_files(self.folder)
        clear_states(self.states)
        for name in ("best.json", "history.csv", "batches.csv", history_tables.HISTORY, TIDIED, paths.AGAIN):
            (self.folder / name).unlink(missing_ok=True)

    def go_on(self, found: ResumeState) -> None:
        """Prepare the folder to resume from a state, and keep the checkpoints that the state needs."""
        remove_temporary_files(self.folder)
        remove_temporary_files(self.states)
        self.safe = [found.data["needs"]]

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
        needs = self._needs(history_tables.from_json(data["history"]))
        save_state(self.states, steps, values, {**data, "needs": needs, "who": self.who, "start": self.start})
        self.safe = [*self.safe[-1:], needs]
        self._prune({name for names in self.safe for name in names})
        self.saved_at = time.monotonic()
        self.save_cost = self.saved_at - start_time

    def keep(self, model: network.Network, history: list[dict[str, Any]], batches: list[tuple], *, last: bool) -> None:
        """Write the history, and a checkpoint if the newest epoch is needed: the best so far, the ``last``, for a soup.

        ``batches`` are the losses of all finished epochs, as rows of ``history_tables.BATCH_COLUMNS``.
        """
        epoch = history[-1]["epoch"]
        if last or self._best(history) == epoch or epoch in self.soup_epochs(history):
            self._checkpoint(model.state_dict(), epoch, history[-1])
        if self.recipe.soup:
            self._prune({name for names in [*self.safe, self._needs(history)] for name in names})
        history_tables.write_history(self.folder, history_tables.history_frame(history), batches)

    def soup_epochs(self, history: list[dict[str, Any]]) -> list[int]:
        """The last epochs that a soup takes, should the stage end now; those that surely come too early left out."""
        may_end = self.recipe.patience > 0
        first = len(history) if may_end else self.recipe.epochs
        return [row["epoch"] for row in history if row["epoch"] > first - self.recipe.soup]

    def checkpoints(self, epochs: Sequence[int]) -> list[Path]:
        """Files of the checkpoints after these epochs."""
        return [self.folder / (self._title(epoch) + checkpoint.SUFFIX) for epoch in epochs]

    def finish(
        self,
        model: network.Network,
        history: list[dict[str, Any]],
        moments: dict[str, Tensor],
        soup: Soup | None = None,
    ) -> Path:
        """Mark the stage as finished. Returns its best checkpoint, of the starting weights where it has no epochs.

        The network then holds the checkpoint's weights, read back from the file. ``moments`` are the final optimizer
        moments, for the next stage. A soup is the best checkpoint where it is better than the best epoch.
        """
        if not history:
            self._checkpoint(model.state_dict(), 0, {})
            history_tables.write_history(self.folder, history_tables.history_frame(history), [])
        checkpoint.remove_tensors(self.folder / MOMENTS)
        if moments:
            meta = {"fingerprint": self.fingerprint, "optimizer": self.recipe.optimizer}
            checkpoint.write_tensors((self.folder / MOMENTS).with_suffix(""), moments, meta)
        epoch = self._best(history) if history else 0
        best, last = self._title(epoch), self._title(len(history))
        why = _why(history_tables.history_frame(history), epoch, self.recipe.chosen_by)
        tried = {}
        if soup:
            taken = soup.is_better(history[epoch - 1], self.recipe.chosen_by)
            if taken:
                best = self._checkpoint(soup.state, len(history), soup.row, soup=soup.epochs).stem
            numbers = history_tables.jsonable([{name: soup.row[name] for name in ("val_auc", "val_loss")}])[0]
            tried = {"soup": {"epochs": soup.epochs, **numbers, "taken": taken}}
            why += _why_soup(soup, self.recipe.chosen_by, taken=taken)
        loaded = checkpoint.load_into(model, self.folder / (best + checkpoint.SUFFIX)).checkpoint
        content = {
            "best": best,
            "last": last,
            "why": why,
            "epoch": epoch,
            **tried,
            "val_auc": loaded.meta["metrics"].get("val_auc"),
            "sha256": loaded.meta["sha256"],
            "fingerprint": self.fingerprint,
            "start": self.start,
            "result": checkpoint.tensors_sha256(loaded.state),
            "who": self.who,
        }
        paths.write_json(self.folder / "best.json", content, guarded=True)
        self._prune({best, last})
        clear_states(self.states)
        return loaded.path

    def _best(self, history: list[dict[str, Any]]) -> int:
        return history_tables.best_epoch(history, self.recipe.chosen_by)

    def _needs(self, history: list[dict[str, Any]]) -> list[str]:
        """Names of the checkpoints without which the training cannot go on from after these epochs."""
        epochs = {self._best(history), *self.soup_epochs(history)} if history else set()
        return [self._title(epoch) for epoch in sorted(epochs)]

    def _checkpoint(self, state: dict[str, Tensor], epoch: int, row: dict[str, Any], soup: Sequence[int] = ()) -> Path:
        _ = self.line.past  # computed once and cached; its time must not count as the cost of a checkpoint
        start_time = time.monotonic()
        lasting = {name: value for name, value in row.items() if name not in history_tables.TIMES}
        path = checkpoint.save(
            self.folder,
            state,
            self.recipe,
            self.line,
            epoch=epoch,
            metrics=history_tables.jsonable([lasting])[0],
            data=self.data,
            fingerprint=self.fingerprint,
            code=self.who["code"],
            soup=soup,
        )
        self.save_cost = self.save_cost or time.monotonic() - start_time
        return path

    def _title(self, epoch: int) -> str:
        return checkpoint.name(self.recipe.number, self.recipe.lr, self.line.epochs_so_far + epoch)

    def _fault(self, data: dict[str, Any]) -> str:
        """Reason why a state cannot be resumed, "" where it can."""
        if differences := identity_differences(
            self.who | {"start": self.start}, data["who"] | {"start": data["start"]}
        ):
            return f"it has another recipe or other data: {differences}"
        for name in data["needs"]:
            file = self.folder / (name + checkpoint.SUFFIX)
            if not file.is_file():
                return f"its checkpoint {name} is missing"
            try:
                checkpoint.load(file)
            except UserError as error:
                return f"its checkpoint {name} is damaged ({str(error).partition(';')[0]}), so it begins anew"
        return ""

    def _why_again(self) -> str:
        """Reason why the finished stage in the folder is not this one, "" where none is finished or it is marked."""
        if _marked_again(self.folder):
            return ""
        try:
            if not (self.folder / "best.json").is_file():
                return ""
            earlier = paths.read_json(self.folder / "best.json")
            theirs = earlier["who"]
            mine = self.who if self.who["carried"] else {**self.who, "carried": theirs["carried"]}
            if self.start not in (earlier["start"], earlier["result"]):
                mine, theirs = mine | {"start": self.start}, theirs | {"start": earlier["start"]}
        except (UserError, OSError, ValueError, KeyError, TypeError):
            return "best.json was changed or damaged"
        return identity_differences(mine, theirs) or "its checkpoint is missing or damaged"

    def _prune(self, keep: set[str]) -> None:
        """Remove this stage's checkpoints except the names in ``keep``. Those of other recipes stay."""
        for file in self.folder.glob("stage*.json"):
            try:
                same_stage = json.loads(file.read_text(encoding="utf-8")).get("fingerprint") == self.fingerprint
            except (ValueError, AttributeError):
                continue
            if same_stage and file.stem not in keep:
                checkpoint.remove_tensors(file.with_suffix(checkpoint.SUFFIX))


def _why(history: pd.DataFrame, epoch: int, chosen_by: str) -> str:
    if history.empty:
        return "no epochs: the starting weights, unchanged"
    if chosen_by == "loss":
        loss = history.set_index("epoch")["val_loss"][epoch]
        return f"lowest validation loss, {loss:.5f}, of {len(history)} epochs"
    auc = history.set_index("epoch")["val_auc"][epoch]
    if math.isnan(auc):
        return f"validation AUC is undefined on these films; epoch {epoch} is the last"
    return f"highest mean validation AUC over the 14 findings, {auc:.4f}, of {len(history)} epochs"


def _why_soup(soup: Soup, chosen_by: str, *, taken: bool) -> str:
    number = f"{soup.row['val_loss']:.5f}" if chosen_by == "loss" else f"{soup.row['val_auc']:.4f}"
    epochs = f"the mean weights of epochs {soup.epochs[0]} to {soup.epochs[-1]}"
    return f"; {epochs} are better, {number}, and taken" if taken else f"; {epochs} are not better, {number}"
