"""Tables of a run, read for its report: a missing or damaged file gives a reason in place of its content."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from cxrlib import paths
from cxrlib.errors import UserError

NEEDED = {
    "auc_test": ("finding", "positives", "auc", "auc_low", "auc_high", "ap", "ap_low", "ap_high"),
    "stages": ("stage", "checkpoint", "groups", "lr", "epochs", "val_auc", "val_low", "val_high", "test_auc"),
    "stage_findings": ("comparison", "stage", "against", "finding", "positives", "difference", "low", "high", "p_holm"),
    "overall": ("number", "value", "low", "high"),
    "data": ("part", "films", "patients"),
    "lineage": ("checkpoint", "patients", "unknown"),
    "lineage_localisation": ("checkpoint", "patients", "unknown"),
    "calibration": ("finding", "probability", "prevalence", "brier", "brier_prevalence", "ece"),
    "thresholds": ("finding", "rule", "threshold", "sensitivity", "specificity", "ppv", "npv"),
    "subgroups": ("kind", "group", "finding", "films", "patients", "auc", "low", "high"),
    "gaps": ("number", "group", "against", "finding", "difference", "low", "high", "p_holm"),
    "view_shortcut": ("finding", "auc", "within", "difference", "low", "high"),
    "localisation": ("finding", "boxes", "hit", "hit_low", "hit_high", "chance", "lift", "lift_low", "lift_high"),
    "localisation_control": ("finding", "hit", "lift"),
    "roc_test": ("finding", "rate", "sensitivity"),
    "pr_test": ("finding", "recall", "precision"),
    "reliability": ("finding", "reading", "probability", "observed"),
    "published": ("method", "network", "mean", "source"),
}
"""Required columns of each table, by its file's name; a table may have more."""

WORDS = (
    *("finding", "checkpoint", "groups", "loss", "part", "rule", "reason", "kind", "group", "against", "number"),
    *("method", "network", "source", "reading", "probabilities", "comparison", "says"),
    *("origin", "first", "unknown", "no_interval", "chosen_on", "split"),
)
"""Columns that hold text. All others hold numbers; a cell that is not a number counts as undefined."""

NUMBERED = ("stage",)
"""Number columns that identify a row, so may not be empty."""

NAMED = {"stage_findings": ("stage",)}
"""Columns that hold text in one table only: there ``stage`` is a checkpoint's name."""

MAY_LACK = ("reason", "network", "source", "loss", "says", "first", "unknown", "no_interval", "chosen_on", "split")
"""Text columns that may be empty; the others identify a row."""


class Found(NamedTuple):
    """A file's content and "", or None and a sentence with the reason."""

    value: Any
    why: str


def read(file: Path, reader: Callable[[Path], Any]) -> Found:
    """The result of ``reader`` on a file; an error of the file is returned as ``why``, not raised."""
    where = f"{file.parent.name}/{file.name}"
    if not file.is_file():
        return Found(None, f"{where} is not there yet.")
    try:
        return Found(reader(file), "")
    except (UserError, ValueError, KeyError, TypeError, OSError) as error:
        return Found(None, f"{where} cannot be read: {error}")


def table(file: Path) -> Found:
    """A CSV with the columns that ``NEEDED`` lists for its name: text as str, the rest as float or int."""
    return read(file, _table)


def _table(file: Path) -> pd.DataFrame:
    texts = (*WORDS, *NAMED.get(file.stem, ()))
    rows = pd.read_csv(file, dtype=dict.fromkeys(texts, str))
    lacking = [column for column in NEEDED[file.stem] if column not in rows]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    for column in rows:
        if column not in texts:
            rows[column] = pd.to_numeric(rows[column], errors="coerce")
        elif column in MAY_LACK:
            rows[column] = rows[column].fillna("")
        if (column in texts or column in NUMBERED) and rows[column].isna().any():
            raise ValueError(f"row {rows.index[rows[column].isna()][0] + 2} has no {column}")
    return rows


def record(home: paths.Run) -> Found:
    """The run's ``run.json``; an empty dict where it cannot be read."""
    value, why = read(home.run_json, _record)
    return Found(value or {}, why)


def _record(file: Path) -> dict[str, Any]:
    content = paths.read_json(file)
    if not isinstance(content, dict):
        raise ValueError("it is not the record of a run")
    for name in ("parameters", "settings", "data", "versions", "notebooks"):
        if not isinstance(content.get(name, {}), dict):
            raise ValueError(f"its {name!r} is not a table")
    for name, entry in content.get("notebooks", {}).items():
        if not isinstance(entry, dict) or not isinstance(entry.get("seconds", 0), int | float):
            raise ValueError(f"its notebook {name!r} has no record")
    films = content.get("data", {})
    left_out = films.get("left_out", {})
    counts = [films.get("films", 0), films.get("patients", 0)]
    counts.append(left_out.get("films", 0) if isinstance(left_out, dict) else None)
    if not all(isinstance(count, int) for count in counts):
        raise ValueError("its counts of films are not numbers")
    return content
