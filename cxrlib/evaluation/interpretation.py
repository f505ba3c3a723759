"""Interpretation of a film's probabilities: calibrated, decided, and set beside other films and a prevalence.

The numbers of one label, in a dict with the keys of ``COLUMNS``:

- ``probability``: calibrated on validation films; None without a calibration.
- ``network``: the network's own probability, as ``predict.predict`` gives it.
- ``decision``: "positive" or "negative" at the threshold of ``rule``, which is on calibrated probabilities.
- ``percentile``: share, in percent, of the validation films without the label that got less.
- ``base_rate``: share of the validation films with the label.
- ``prevalence``, ``ppv``, ``npv``: how often a positive and a negative decision are right where this share of the films
  has the label, from the sensitivity and the specificity of the thresholds (see ``reference``).

All but ``network`` are None where they are unknown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cxrlib import UserError, paths
from cxrlib import labels as order
from cxrlib.data import tables
from cxrlib.evaluation import reference, thresholds

COLUMNS = (
    *("finding", "probability", "network", "decision", "rule", "threshold"),
    *("percentile", "base_rate", "prevalence", "ppv", "npv"),
)
RULE = "youden"
BASE_RATE = "the base rate in validation"
"""Where the prevalence comes from if none is stated."""


@dataclass(frozen=True)
class Interpreter:
    """Interpreter of the network's probabilities at one threshold rule and one prevalence per label.

    ``decisions`` and ``ref`` are the checkpoint's, None where it has none. ``stated`` (15,): the user's prevalence, NaN
    where nothing was stated; then it is the base rate in validation. ``stated_by``: its source, "" for none.
    ``warnings``: sentences on the checkpoint that stand before all others.
    """

    decisions: thresholds.Decisions | None
    ref: reference.Reference | None
    rule: str = RULE
    stated: np.ndarray | None = None
    stated_by: str = ""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.decisions is None and self.rule not in thresholds.RULES:
            raise UserError(f"threshold rule {self.rule!r} is unknown; choose {', '.join(thresholds.RULES)}")
        _ = self._cuts  # raises for another rule

    @cached_property
    def prevalence(self) -> np.ndarray:
        """Prevalence of each label, (15,) from 0 to 1, NaN where unknown."""
        stated = np.full(len(order.LABELS), np.nan) if self.stated is None else self.stated
        return np.where(np.isnan(stated), self._base_rates, stated)

    @property
    def sources(self) -> str:
        """Sources of the prevalence in words, such as "clinic.csv, else the base rate in validation". "" for none."""
        known = ~np.isnan(self.prevalence)
        stated = np.zeros_like(known) if self.stated is None else ~np.isnan(self.stated)
        named = [self.stated_by or "stated"] if stated.any() else []
        return ", else ".join(named + ([BASE_RATE] if (known & ~stated).any() else []))

    def remarks(self) -> list[str]:
        """Warnings, and what the checkpoint lacks and what this means, a sentence each without its full stop."""
        said = [*self.warnings]
        if self.decisions is None:
            said.append(
                "The checkpoint carries no calibration: only the network's own probabilities are given, which are no "
                "frequencies, and nothing is decided. 06_evaluation makes one"
            )
        if self.ref is None:
            said.append(
                "The checkpoint carries no reference: percentile, base rate, PPV and NPV are unknown. 06_evaluation "
                "makes one"
            )
        elif self.ref.judged_on != "test":
            said.append(
                "PPV and NPV are from the films on which the thresholds were chosen, so they are a bit too good"
            )
        return said

    def findings(self, network: np.ndarray) -> list[dict[str, Any]]:
        """Numbers of the 15 labels, in their order, from the network's own probabilities (15,)."""
        raw = np.asarray(network, np.float64)
        nothing = np.full(len(order.LABELS), np.nan)
        calibrated = nothing if self.decisions is None else self.decisions.calibration(raw[None])[0]
        compared = None if self.decisions is None or self.ref is None else self.ref
        columns = {
            "probability": calibrated,
            "network": raw,
            "threshold": self._cuts,
            "percentile": nothing if compared is None else compared.percentiles(calibrated[None])[0],
            "base_rate": self._base_rates,
            "prevalence": self.prevalence,
            "ppv": self._predictive[0],
            "npv": self._predictive[1],
        }
        plain = {
            name: [None if np.isnan(value) else float(value) for value in values] for name, values in columns.items()
        }
        rows = []
        for k, finding in enumerate(order.LABELS):
            row = {name: values[k] for name, values in plain.items()}
            cut = row["threshold"]
            row |= {"finding": finding, "decision": None, "rule": None}
            if cut is not None:
                row |= {"decision": "positive" if row["probability"] >= cut else "negative", "rule": self.rule}
            rows.append({name: row[name] for name in COLUMNS})
        return rows

    @cached_property
    def _cuts(self) -> np.ndarray:
        return np.full(len(order.LABELS), np.nan) if self.decisions is None else self.decisions.cuts(self.rule)

    @cached_property
    def _base_rates(self) -> np.ndarray:
        return np.full(len(order.LABELS), np.nan) if self.ref is None else self.ref.base_rates

    @cached_property
    def _predictive(self) -> tuple[np.ndarray, np.ndarray]:
        nothing = np.full(len(order.LABELS), np.nan)
        if self.ref is None or self.decisions is None:
            return nothing, nothing
        return self.ref.predictive_values(self.rule, self.prevalence)


def ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Numbers of the labels by rank: the highest percentile first, then the highest probability; "No Finding" last."""

    def key(row: dict[str, Any]) -> tuple:
        best = row["network"] if row["probability"] is None else row["probability"]
        return row["finding"] == order.NO_FINDING, -(row["percentile"] if row["percentile"] is not None else -1), -best

    return sorted(rows, key=key)


def in_words(percentile: float | None) -> str:
    """A percentile in words, such as "higher than 93 % of the films without it". "" for None."""
    if percentile is None:
        return ""
    if percentile >= 100:
        return "higher than all films without it"
    if percentile <= 0:
        return "lower than all films without it"
    return f"higher than {min(max(round(percentile), 1), 99)} % of the films without it"


def read_prevalence(stated: str | Path | Mapping[str, float] | None) -> tuple[np.ndarray | None, str]:
    """Prevalence (15,) from a CSV with columns finding and prevalence, or from a mapping; NaN where nothing is stated.

    Also returns its source, for people. None gives (None, ""). A finding may be spelled with blanks for underscores.
    Raises UserError for an unknown or doubled finding, and for a value that is not from 0 to 1.
    """
    if stated is None or stated == "":
        return None, ""
    if isinstance(stated, Mapping):
        return _vector([(f"finding {name}", name, value) for name, value in stated.items()], "prevalence"), "stated"
    path = paths.resolve(stated)
    if not path.is_file():
        raise UserError(f"{stated} is not there; give a CSV with columns finding and prevalence")
    cells = tables.read_cells(path)
    cells.columns = [str(name).strip().casefold() for name in cells.columns]
    for name in ("finding", "prevalence"):
        if list(cells.columns).count(name) != 1:
            raise UserError(f"{path} needs one column finding and one column prevalence (shares from 0 to 1)")
    rows = zip(cells.index, cells["finding"], cells["prevalence"], strict=True)
    return _vector([(f"row {line + 2}", finding, value) for line, finding, value in rows], str(path)), path.name


def _vector(rows: list[tuple[str, Any, Any]], where: str) -> np.ndarray:
    values = np.full(len(order.LABELS), np.nan)
    spelled = {order.display_name(label).casefold(): label for label in order.LABELS}
    for place, finding, value in rows:
        name = str(finding).strip()
        try:
            k = order.column(spelled.get(name.replace("_", " ").casefold(), name))
        except UserError as error:
            raise UserError(f"{where}, {place}: {error}") from None
        if not np.isnan(values[k]):
            raise UserError(f"{where}, {place}: {name} is there twice; keep one")
        try:
            number = float(str(value).strip())
        except ValueError:
            number = np.nan
        if not 0 <= number <= 1:
            raise UserError(
                f"{where}, {place}: prevalence {str(value)[:40]!r} is not a share from 0 to 1, such as 0.03"
            )
        values[k] = number
    return values
