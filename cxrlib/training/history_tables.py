"""Tables of a stage's training: a row for each epoch in ``history.csv``, one for each batch in ``batches.csv``.

Both are also in ``history.json`` as training wrote them, so that a changed table is noticed and written again.
"""

import csv
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrlib import UserError, paths
from cxrlib.labels import FINDINGS
from cxrlib.training import optim

HISTORY_COLUMNS = [
    "epoch",
    "epochs_so_far",
    "lr",
    "train_loss",
    "val_loss",
    "val_auc",
    *(f"auc_{name}" for name in FINDINGS),
]
TIMES = ["seconds", "images_per_s"]
EXTRA = ["skipped", *TIMES]
BATCH_COLUMNS = ["epoch", "part", "batch", "films", "loss"]


def history_row(
    epoch: int, epochs_so_far: int, lr: float, train_loss: float, val_loss: float, aucs: np.ndarray
) -> dict:
    """History row of one epoch. ``val_auc`` is the mean over the 14 findings, without undefined ones (NaN)."""
    findings = np.asarray(aucs, np.float64)[: len(FINDINGS)]
    mean = float(np.nanmean(findings)) if np.isfinite(findings).any() else math.nan
    return dict(
        zip(HISTORY_COLUMNS, [epoch, epochs_so_far, lr, train_loss, val_loss, mean, *findings.tolist()], strict=True)
    )


def history_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[*HISTORY_COLUMNS, *EXTRA])


def best_epoch(rows: list[dict[str, Any]], chosen_by: str = "auc") -> int:
    """Epoch with the highest validation AUC or the lowest loss, the first of equals; the last if none is defined."""
    values = optim.scores(rows, chosen_by)
    defined = [position for position, value in enumerate(values) if not math.isnan(value)]
    return rows[max(defined, key=values.__getitem__) if defined else -1]["epoch"]


def loss_rows(epoch: int, part: str, values: Sequence[float], films: Sequence[int]) -> list[tuple]:
    """Losses of an epoch's batches as rows of ``BATCH_COLUMNS``; ``part`` is "train" or "val"."""
    return [(epoch, part, at, n, value) for at, (value, n) in enumerate(zip(values, films, strict=True), 1)]


def batch_losses_frame(rows: Sequence[Sequence]) -> pd.DataFrame:
    """Table of batches: epoch and batch (from 1), part, number of films, mean loss."""
    return pd.DataFrame(rows, columns=BATCH_COLUMNS)


HISTORY = "history.json"
"""Texts of ``history.csv`` and ``batches.csv`` as training wrote them, by name, guarded by their hash."""


def write_history(folder: Path, history: pd.DataFrame, batches: Sequence[Sequence]) -> None:
    """Write ``batches.csv`` and ``history.csv``, and both again in ``HISTORY``, each file atomically."""
    tables = {"batches.csv": batch_losses_frame(batches), "history.csv": history}
    texts = {name: table.to_csv(index=False, lineterminator="\n") for name, table in tables.items()}
    for name, text in texts.items():
        paths.write_text(folder / name, text)
    paths.write_json(folder / HISTORY, texts, guarded=True)


def restore_history(folder: Path) -> None:
    """Write a table again that is not what training wrote, with a warning. The stage need not be trained again for it.

    If ``HISTORY`` itself is absent or damaged, it is written again from the tables. Raises UserError, OSError,
    ValueError or KeyError if they cannot be read either.
    """
    try:
        texts = paths.read_json(folder / HISTORY)
    except UserError:
        read_history(folder), read_batches(folder)
        names = [name for name in ("batches.csv", "history.csv") if (folder / name).is_file()]
        paths.write_json(folder / HISTORY, {name: paths.text_of(folder / name) for name in names}, guarded=True)
        return
    for name, text in texts.items():
        if paths.text_of(folder / name) != text:
            paths.write_text(folder / name, text)
            warnings.warn(
                f"{folder / name} was not what training wrote; it is written again from {HISTORY}", stacklevel=2
            )


def read_batches(folder: Path) -> pd.DataFrame:
    """Losses by batch from a stage folder; empty where an older version did not write them."""
    if not (folder / "batches.csv").is_file():
        return batch_losses_frame([])
    with (folder / "batches.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))[1:]
    return batch_losses_frame(
        [(int(epoch), part, int(at), int(films), float(loss)) for epoch, part, at, films, loss in lines]
    )


def read_history(folder: Path) -> pd.DataFrame:
    """History from a stage folder, every float exact to the last bit, which pandas does not guarantee."""
    with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = [{name: float(text or "nan") for name, text in line.items()} for line in lines]
    return history_frame(rows).fillna({"skipped": 0}).astype({"epoch": int, "epochs_so_far": int, "skipped": int})


def jsonable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with None instead of NaN, which JSON lacks."""
    return [{name: None if value != value else value for name, value in row.items()} for row in rows]


def from_json(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The inverse of ``jsonable``."""
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]
