"""Identity of a stage (all that decides its result), and the history of its epochs."""

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
"""Modules that do not change a stage's result: the progress display; the split, whose films are in the identity."""


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
        "code": code(*(getattr(function, "__module__", "") for function in (loss, score))),
    }


@cache
def code(*rooms: str) -> str:
    """Code version of a stage's result: the loop and its imports, as they were at the first call in this process.

    ``rooms`` are further modules, by name. ``APART`` is left out. So is ``stages``: this stage's row is in the recipe,
    and a change of another row must not train this stage again.
    """
    return provenance.code_version("cxrlib.training.fit", batches, losses_room, *rooms, without=APART)


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Differences of two identities in words, such as ``recipe.lr 0.001 → 0.0003``; "" for none."""
    new, old = _flat(mine), _flat(theirs)
    names = [name for name in new | old if new.get(name) != old.get(name)]
    return ", ".join(f"{name} {old.get(name)!r} → {new.get(name)!r}" for name in names)


def row(epoch: int, epochs_so_far: int, lr: float, train_loss: float, val_loss: float, aucs: np.ndarray) -> dict:
    """History row of one epoch. ``val_auc`` is the mean over the 14 findings, without undefined ones (NaN)."""
    findings = np.asarray(aucs, np.float64)[: len(FINDINGS)]
    mean = float(np.nanmean(findings)) if np.isfinite(findings).any() else math.nan
    return dict(zip(COLUMNS, [epoch, epochs_so_far, lr, train_loss, val_loss, mean, *findings.tolist()], strict=True))


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[*COLUMNS, *EXTRA])


def best_epoch(rows: list[dict[str, Any]]) -> int:
    """Epoch with the highest validation AUC, the first of equals. If no AUC is defined, the last epoch."""
    defined = [row for row in rows if not math.isnan(row["val_auc"])]
    return max(defined, key=lambda row: row["val_auc"])["epoch"] if defined else rows[-1]["epoch"]


def losses(epoch: int, part: str, values: Sequence[float], films: Sequence[int]) -> list[tuple]:
    """Losses of an epoch's batches as rows of ``BATCH_COLUMNS``; ``part`` is "train" or "val"."""
    return [(epoch, part, at, n, value) for at, (value, n) in enumerate(zip(values, films, strict=True), 1)]


def batch_frame(rows: Sequence[Sequence]) -> pd.DataFrame:
    """Table of batches: epoch and batch (from 1), part, number of films, mean loss."""
    return pd.DataFrame(rows, columns=BATCH_COLUMNS)


def write_history(folder: Path, history: pd.DataFrame, batches: Sequence[Sequence]) -> None:
    """Write ``batches.csv`` and ``history.csv``, each atomically."""
    paths.write_text(folder / "batches.csv", batch_frame(batches).to_csv(index=False))
    paths.write_text(folder / "history.csv", history.to_csv(index=False))


def read_batches(folder: Path) -> pd.DataFrame:
    """Losses by batch from a stage folder; empty where an older version did not write them."""
    if not (folder / "batches.csv").is_file():
        return batch_frame([])
    with (folder / "batches.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))[1:]
    return batch_frame([(int(epoch), part, int(at), int(films), float(loss)) for epoch, part, at, films, loss in lines])


def read_history(folder: Path) -> pd.DataFrame:
    """History from a stage folder, every float exact to the last bit, which pandas does not guarantee."""
    with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = [{name: float(text or "nan") for name, text in line.items()} for line in lines]
    return frame(rows).fillna({"skipped": 0}).astype({"epoch": int, "epochs_so_far": int, "skipped": int})


def jsonable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with None instead of NaN, which JSON lacks."""
    return [{name: None if value != value else value for name, value in row.items()} for row in rows]


def from_json(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The inverse of ``jsonable``."""
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]


def _films(part: Any) -> dict[str, Any]:
    """Identity of a set of batches: its films, their pixels, and the settings of sampling and augmentation."""
    settings = {name: repr(getattr(part, name, None)) for name in BATCH_SETTINGS}
    store = getattr(part, "store", None)
    pixels = {"size": store.size, "pixels": store.pixels_of(part.films)} if store else {"size": None, "pixels": ""}
    return {"films": records.fingerprint(part.films), **pixels, **settings}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    parts = [_flat(item, f"{name}.{key}" if name else key) for key, item in value.items()]
    return {key: item for part in parts for key, item in part.items()}
