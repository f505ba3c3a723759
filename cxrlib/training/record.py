"""What is written down of a stage: all that decides its result, and how its epochs went."""

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrlib import paths, provenance
from cxrlib.data import batches, records
from cxrlib.labels import FINDINGS
from cxrlib.training import lineage
from cxrlib.training import losses as losses_room
from cxrlib.training.recipes import Stage

BATCH_SETTINGS = ("batch_size", "seed", "shuffle", "cap", "augment", "views")
COLUMNS = ["epoch", "epochs_so_far", "lr", "train_loss", "val_loss", "val_auc", *(f"auc_{name}" for name in FINDINGS)]
TIMES = ["seconds", "images_per_s"]
EXTRA = ["skipped", *TIMES]
BATCH_COLUMNS = ["epoch", "part", "batch", "films", "loss"]


APART = ("cxrlib.training.progress", "cxrlib.data.splits")
"""Rooms that a stage's result does not depend on: what is shown of it, and who drew its films, which are compared."""


def identity(
    recipe: Stage,
    train: Any,
    val: Any,
    loss: Any,
    line: lineage.Lineage,
    *,
    data: str,
    seed: int,
    score: Any = None,
    carried: str = "",
) -> dict[str, Any]:
    """All that decides a stage's result but the bits of its starting weights, as plain data that can be compared.

    ``score`` chooses the best epoch. ``carried`` is the hash of the optimizer's moments that the stage takes over, ""
    for none.
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
        "code": code(*(getattr(function, "__module__", "") for function in (loss, score))),
    }


@cache
def code(*rooms: str) -> str:
    """Version of what decides a stage's result, as this process first met it: the loop with all that it imports.

    ``rooms`` are further modules by name. ``APART`` is not among them, nor is ``stages``: what a schedule's table says
    of this stage is in the recipe, and a change to another row must not have this one trained again.
    """
    return provenance.code_version("cxrlib.training.fit", batches, losses_room, *rooms, without=APART)


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    """The fields in which two identities differ, in words such as ``recipe.lr 0.001 → 0.0003``; "" for none."""
    ours, others = _flat(mine), _flat(theirs)
    differing = [name for name in ours | others if ours.get(name) != others.get(name)]
    return ", ".join(f"{name} {others.get(name)!r} → {ours.get(name)!r}" for name in differing)


def row(epoch: int, epochs_so_far: int, lr: float, train_loss: float, val_loss: float, aucs: np.ndarray) -> dict:
    """One epoch of the history. ``val_auc`` is the mean over the 14 findings, those undefined (NaN) left out."""
    findings = np.asarray(aucs, np.float64)[: len(FINDINGS)]
    mean = float(np.nanmean(findings)) if np.isfinite(findings).any() else math.nan
    return dict(zip(COLUMNS, [epoch, epochs_so_far, lr, train_loss, val_loss, mean, *findings.tolist()], strict=True))


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[*COLUMNS, *EXTRA])


def best_epoch(rows: list[dict[str, Any]]) -> int:
    """The epoch of the highest validation AUC, the first of equals; where it is nowhere defined, the last epoch."""
    defined = [row for row in rows if not math.isnan(row["val_auc"])]
    return max(defined, key=lambda row: row["val_auc"])["epoch"] if defined else rows[-1]["epoch"]


def losses(epoch: int, part: str, values: Sequence[float], films: Sequence[int]) -> list[tuple]:
    """The losses of an epoch's batches as rows of ``BATCH_COLUMNS``; ``part`` is "train" or "val"."""
    return [(epoch, part, at, n, value) for at, (value, n) in enumerate(zip(values, films, strict=True), 1)]


def batch_frame(rows: Sequence[Sequence]) -> pd.DataFrame:
    """A row per batch: epoch and batch (from 1), part, films in it, mean loss."""
    return pd.DataFrame(rows, columns=BATCH_COLUMNS)


def write_history(folder: Path, history: pd.DataFrame, batches: Sequence[Sequence]) -> None:
    """Write ``history.csv`` and ``batches.csv``, whole or not at all each."""
    paths.write_text(folder / "batches.csv", batch_frame(batches).to_csv(index=False))
    paths.write_text(folder / "history.csv", history.to_csv(index=False))


def read_batches(folder: Path) -> pd.DataFrame:
    """The losses by batch of a stage folder; empty where an older version left none."""
    if not (folder / "batches.csv").is_file():
        return batch_frame([])
    with (folder / "batches.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))[1:]
    return batch_frame([(int(epoch), part, int(at), int(films), float(loss)) for epoch, part, at, films, loss in lines])


def read_history(folder: Path) -> pd.DataFrame:
    """The history of a stage folder, every float as it was written to the last bit, which pandas does not promise."""
    with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            {name: float(text) if text else math.nan for name, text in line.items()} for line in csv.DictReader(file)
        ]
    return frame(rows).fillna({"skipped": 0}).astype({"epoch": int, "epochs_so_far": int, "skipped": int})


def jsonable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with None for NaN, which JSON lacks."""
    return [{name: None if value != value else value for name, value in row.items()} for row in rows]


def from_json(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The inverse of ``jsonable``."""
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]


def _films(part: Any) -> dict[str, Any]:
    """What a set of batches is: its films, their pixels, and the settings that decide what is drawn from them."""
    settings = {name: repr(getattr(part, name, None)) for name in BATCH_SETTINGS}
    store = getattr(part, "store", None)
    pixels = {"size": store.size, "pixels": store.pixels_of(part.films)} if store else {"size": None, "pixels": ""}
    return {"films": records.fingerprint(part.films), **pixels, **settings}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    parts = [_flat(item, f"{name}.{key}" if name else key) for key, item in value.items()]
    return {key: item for part in parts for key, item in part.items()}
