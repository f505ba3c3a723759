"""Reference figures of a checkpoint: what its probabilities were on validation films, and how good its decisions are.

A probability of 0.2 alone says little to a reader. The reference sets it beside other films: how common the finding was
in validation, which share of the validation films without the finding got less, and how often a decision of the
checkpoint's thresholds is right at a prevalence. It is kept in the checkpoint's JSON, under ``reference``, so that who
has the checkpoint needs no film of its training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrlib import UserError
from cxrlib import labels as order
from cxrlib.evaluation import thresholds
from cxrlib.training import checkpoint

KEY = "reference"
FORMAT = 1
QUANTILES = 201
"""Probabilities kept per label for percentiles: one for each half percent."""

RATES = ["finding", "rule", "sensitivity", "specificity", "positives", "negatives"]


@dataclass(frozen=True)
class Reference:
    """Reference figures, in the order of ``labels.LABELS``.

    ``known`` and ``positives`` (15,): validation films whose label is known, and those with the finding. ``without``
    (15,) of arrays: calibrated probabilities of validation films without the finding, ascending, at most ``QUANTILES``
    evenly spaced ones; empty if there is no such film. ``rates``: columns ``RATES``, a row per label and rule; NaN
    where undefined, and negatives are NaN where they were not told. ``judged_on``: the part that the rates come from,
    "test" or "validation".
    """

    known: np.ndarray
    positives: np.ndarray
    without: tuple[np.ndarray, ...]
    rates: pd.DataFrame
    judged_on: str

    @property
    def base_rates(self) -> np.ndarray:
        """Share of validation films with each label, (15,) from 0 to 1. NaN where no label is known."""
        with np.errstate(invalid="ignore"):
            return self.positives / self.known

    def percentiles(self, calibrated: np.ndarray) -> np.ndarray:
        """Share in percent of the validation films without the label that got less: calibrated (N, 15) → (N, 15).

        Ties count half. NaN for a label that all validation films have.
        """
        values = np.asarray(calibrated, np.float64)
        shares = np.full(values.shape, np.nan)
        for k, kept in enumerate(self.without):
            if len(kept):
                sides = [np.searchsorted(kept, values[:, k], side) for side in ("left", "right")]
                shares[:, k] = 50 * np.sum(sides, 0) / len(kept)
        return shares

    def sensitivity_specificity(self, rule: str) -> tuple[np.ndarray, np.ndarray]:
        """Sensitivity and specificity of a rule's thresholds, (15,) each, NaN where undefined.

        Raises UserError for another rule.
        """
        rows = self.rates[self.rates["rule"] == rule].set_index("finding")
        if rows.empty:
            rules = ", ".join(self.rates["rule"].unique())
            raise UserError(f"the reference has no threshold rule {rule!r}; choose {rules}")
        rows = rows.reindex(list(order.LABELS))
        return rows["sensitivity"].to_numpy(np.float64), rows["specificity"].to_numpy(np.float64)

    def predictive_values(self, rule: str, prevalence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """PPV and NPV of a rule's decisions at a prevalence (15,), by Bayes' rule; (15,) each, NaN where undefined.

        A sensitivity or specificity of 0 or 1 is that of few films. It is corrected by half a film on both sides, the
        usual continuity correction, so that no decision is said to be always right or always wrong.
        """
        rows = self.rates[self.rates["rule"] == rule].set_index("finding").reindex(list(order.LABELS))
        sensitivity, specificity = self.sensitivity_specificity(rule)
        sensitivity = _without_extremes(sensitivity, rows["positives"].to_numpy(np.float64))
        specificity = _without_extremes(specificity, rows["negatives"].to_numpy(np.float64))
        return predictive_values(sensitivity, specificity, prevalence)


def predictive_values(
    sensitivity: np.ndarray, specificity: np.ndarray, prevalence: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """PPV and NPV by Bayes' rule, from sensitivity, specificity and prevalence of any one shape, all 0 to 1.

    PPV is NaN for a test that is never positive, NPV for one that is never negative.
    """
    found, false_alarms = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    missed, cleared = (1 - sensitivity) * prevalence, specificity * (1 - prevalence)
    with np.errstate(invalid="ignore", divide="ignore"):
        return found / (found + false_alarms), cleared / (cleared + missed)


def _without_extremes(shares: np.ndarray, films: np.ndarray) -> np.ndarray:
    """Shares of so many films, with (k + ½) / (n + 1) for those of 0 and 1. Unchanged where the number is unknown."""
    extreme = ((shares == 0) | (shares == 1)) & (films > 0)
    return np.where(extreme, (shares * films + 0.5) / (films + 1), shares)


def make(
    labels: np.ndarray,
    probabilities: np.ndarray,
    decisions: thresholds.Decisions,
    judged: pd.DataFrame | None = None,
) -> Reference:
    """Reference from *validation*: labels (N, 15) of 0, 1 or NaN (unknown), the network's own probabilities (N, 15).

    ``judged`` is the table of ``Decisions.judge`` on test films; sensitivity and specificity are taken from it. A
    column ``negatives`` (films without the finding) may be added to it; see ``predictive_values``. Without a table they
    are those on the validation films, where the thresholds were chosen, so they are a little too good.
    A film whose label is unknown is left out for this label.
    """
    known = ~np.isnan(np.asarray(labels, np.float64))
    truth = known & (np.nan_to_num(np.asarray(labels, np.float64)) == 1)
    calibrated = decisions.calibration(probabilities)
    without = tuple(_evenly(calibrated[known[:, k] & ~truth[:, k], k]) for k in range(len(order.LABELS)))
    rates = _rates_here(known, truth, probabilities, decisions) if judged is None else _rates_of(judged)
    return Reference(known.sum(0), truth.sum(0), without, rates, "validation" if judged is None else "test")


def attach(path: Path, made: Reference) -> Path:
    """Write a reference into the JSON of the checkpoint at ``path``; returns the JSON's path."""
    return checkpoint.attach(path, KEY, as_dict(made))


def read(path: Path) -> Reference | None:
    """Reference that ``attach`` wrote, None if the checkpoint has none. Raises UserError for a damaged one."""
    if KEY not in checkpoint.read_meta(path).get(checkpoint.ATTACHED, {}):
        return None
    return from_dict(checkpoint.attached(path, KEY), f"reference of {path.stem}")


def as_dict(made: Reference) -> dict[str, Any]:
    """Plain values for a checkpoint's JSON; ``from_dict`` reads them back."""
    rows = made.rates.astype(object).where(made.rates.notna(), None)
    return {
        "format": FORMAT,
        "labels": list(order.LABELS),
        "known": made.known.tolist(),
        "positives": made.positives.tolist(),
        "without": [" ".join(f"{value:.6g}" for value in kept) for kept in made.without],
        "rates": rows[RATES].to_dict("list"),
        "judged_on": made.judged_on,
    }


def from_dict(values: Mapping[str, Any], where: str = "reference") -> Reference:
    """Reference from ``as_dict``. Raises UserError for another label order or format, and for damaged values."""
    try:
        order.check_order(values["labels"], where)
        if values["format"] != FORMAT:
            raise UserError(f"{where} has format {values['format']}, this version reads {FORMAT}; run 06_evaluation")
        counts = [np.array(values[key], np.int64) for key in ("known", "positives")]
        without = tuple(np.array(text.split(), np.float64) for text in values["without"])
        rates = pd.DataFrame(values["rates"], columns=RATES).astype(dict.fromkeys(RATES[2:], np.float64))
        made = Reference(*counts, without, rates, str(values["judged_on"]))
        sound = _is_sound(made)
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{where} is damaged; make it again by running 06_evaluation")
    return made


def _is_sound(made: Reference) -> bool:
    shares = made.rates[["sensitivity", "specificity"]].to_numpy()
    return (
        made.known.shape == made.positives.shape == (len(order.LABELS),)
        and bool(((made.positives >= 0) & (made.positives <= made.known)).all())
        and len(made.without) == len(order.LABELS)
        and all(bool(((kept >= 0) & (kept <= 1)).all() and (np.diff(kept) >= 0).all()) for kept in made.without)
        and not bool(((shares < 0) | (shares > 1)).any())
        and len(made.rates) > 0
        and all(sorted(rows) == sorted(order.LABELS) for _, rows in made.rates.groupby("rule", dropna=False)["finding"])
    )


def _evenly(values: np.ndarray) -> np.ndarray:
    """Values ascending, or ``QUANTILES`` evenly spaced ones of them if there are more."""
    ordered = np.sort(values)
    if len(ordered) > QUANTILES:
        ordered = ordered[np.linspace(0, len(ordered) - 1, QUANTILES).round().astype(int)]
    return ordered


def _rates_of(judged: pd.DataFrame) -> pd.DataFrame:
    told = judged if "negatives" in judged else judged.assign(negatives=np.nan)
    return told[RATES].reset_index(drop=True).astype(dict.fromkeys(RATES[2:], np.float64))


def _rates_here(
    known: np.ndarray, truth: np.ndarray, probabilities: np.ndarray, decisions: thresholds.Decisions
) -> pd.DataFrame:
    """Sensitivity and specificity of every rule on the films at hand."""
    rows = []
    for rule in decisions.chosen["rule"].unique():
        calls = decisions.calls(probabilities, rule)  # (N, 15), NaN without a threshold
        for k, finding in enumerate(order.LABELS):
            positive, negative = calls[truth[:, k], k], calls[known[:, k] & ~truth[:, k], k]
            shares = (positive.mean() if len(positive) else np.nan, 1 - negative.mean() if len(negative) else np.nan)
            rows.append((finding, rule, *shares, len(positive), len(negative)))
    return pd.DataFrame(rows, columns=RATES).astype(dict.fromkeys(RATES[2:], np.float64))
