"""Thresholds chosen on validation films and judged on test films, and how they travel with a checkpoint.

A threshold judged on the films it was chosen on looks too good, so ``choose`` is for validation and ``judge`` for test.
0.5 is no threshold: for a rare finding a good network may never reach it. Thresholds are on calibrated probabilities;
``Decisions`` keeps both in the checkpoint's JSON, so that everyone with the checkpoint decides as its evaluation did.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib import UserError, metrics
from cxrlib import labels as order
from cxrlib.evaluation import calibration, intervals
from cxrlib.training import checkpoint

RULES = {
    "youden": "the most sensitivity + specificity (Youden 1950)",
    "f1": "the best F1, the balance of sensitivity and PPV",
    "sensitivity_90": "the highest threshold that finds 90 % of the positive films",
}
SENSITIVITY = 0.9


def choose(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Thresholds per label and rule from *validation*: labels (N, 15), probabilities (N, 15).

    Each label's thresholds come from the films whose label is known.
    Columns finding, rule, threshold, positives, reason. A threshold is the middle between the lowest score called
    positive and the next lower one. NaN, with the reason, if validation has one class only.
    """
    rows = []
    for k, finding in enumerate(order.LABELS[: labels.shape[1]]):
        why, positives = metrics.reason(labels[:, k]), int(metrics.positives(labels[:, k]))
        cuts = _by_rule(labels[:, k], probabilities[:, k]) if not why else dict.fromkeys(RULES, np.nan)
        why = f"validation: {why}" if why else ""
        rows += [(finding, rule, cuts[rule], positives, why) for rule in RULES]
    return pd.DataFrame(rows, columns=["finding", "rule", "threshold", "positives", "reason"])


def judge(
    chosen: pd.DataFrame,
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: np.ndarray,
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Results of chosen thresholds on other films: labels, probabilities (N, 15), patients (N,).

    A film counts for a finding if its label is known. Columns finding, rule, threshold, positives (here), then
    sensitivity, specificity, ppv, npv, f1, each with _low and _high by patient, and reason. NaN where the threshold or
    the number is undefined.
    """
    columns = [order.column(finding) for finding in chosen["finding"]]
    truth, scores = labels[:, columns], probabilities[:, columns]
    defined = chosen["threshold"].notna().to_numpy()
    table = chosen[["finding", "rule", "threshold"]].reset_index(drop=True)
    table["positives"] = metrics.positives(truth)
    called = scores >= np.where(defined, chosen["threshold"], 0)
    for name, (part, whole) in _shares(truth, called).items():
        value, low, high = intervals.ratio(part, whole, patients, replicates=replicates, seed=seed)
        for column, numbers in ((name, value), (f"{name}_low", low), (f"{name}_high", high)):
            table[column] = np.where(defined, numbers, np.nan)
    table["reason"] = [why or metrics.reason(truth[:, i]) for i, why in enumerate(chosen["reason"])]
    return table


def as_dict(chosen: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Plain values for a checkpoint's JSON: {rule: {finding: threshold, None where undefined}}."""
    return {
        rule: {row.finding: None if np.isnan(row.threshold) else row.threshold for row in rows.itertuples()}
        for rule, rows in chosen.groupby("rule", sort=False)
    }


def from_dict(values: dict[str, dict[str, float | None]], where: str = "thresholds") -> pd.DataFrame:
    """Thresholds from ``as_dict``: columns finding, rule, threshold, reason.

    Raises UserError for another label order, and for values that are not probabilities.
    """
    try:
        for rule, cuts in values.items():
            order.check_order([*cuts], f"{where}, {rule}")
            wrong = [label for label, cut in cuts.items() if cut is not None and not 0 <= cut <= 1]
            if wrong:
                raise UserError(
                    f"{where}, {rule}: {wrong[0]} at {cuts[wrong[0]]} is not a probability; choose them again"
                )
    except (AttributeError, TypeError):
        raise UserError(f"{where} are damaged; choose them again by running 06_evaluation") from None
    rows = [(label, rule, cuts[label]) for label in order.LABELS for rule, cuts in values.items()]
    table = pd.DataFrame(rows, columns=["finding", "rule", "threshold"]).astype({"threshold": np.float64})
    return table.assign(reason=np.where(table["threshold"].isna(), "validation: no threshold could be chosen", ""))


def vector(values: dict[str, dict[str, float | None]], rule: str) -> np.ndarray:
    """Thresholds of one rule from ``as_dict``: (15,), NaN where undefined. UserError for another rule."""
    if rule not in values:
        raise UserError(
            f"threshold rule {rule!r} is unknown; choose {', '.join(values) or 'after running 06_evaluation'}"
        )
    return np.array([values[rule].get(label) for label in order.LABELS], np.float64)  # None becomes NaN


def _by_rule(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    labels, scores = metrics.of_known(labels, scores)
    curve = metrics.roc_curve(labels, scores)
    positives, negatives = np.count_nonzero(labels), np.count_nonzero(labels == 0)
    true, false = curve.y[1:] * positives, curve.x[1:] * negatives  # without the first vertex, which has no calls
    best = {
        "youden": np.argmax(curve.y[1:] - curve.x[1:]),
        "f1": np.argmax(2 * true / (positives + true + false)),
        "sensitivity_90": np.argmax(curve.y[1:] >= SENSITIVITY - 1e-12),
    }
    scores = curve.thresholds[1:]
    below = np.append(scores[1:], 0.0)
    return {rule: float((scores[at] + below[at]) / 2) for rule, at in best.items()}


def _shares(truth: np.ndarray, called: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Numerators and denominators of the five numbers, film by film, (N, M) each; 0 where the truth is unknown."""
    ill, well = truth == 1, truth == 0
    called, passed = called & (ill | well), ~called & (ill | well)
    return {
        "sensitivity": (called & ill, ill),
        "specificity": (passed & well, well),
        "ppv": (called & ill, called),
        "npv": (passed & well, passed),
        "f1": (2 * (called & ill), ill.astype(int) + called),
    }


CALIBRATION, THRESHOLDS = "calibration", "thresholds"


@dataclass(frozen=True)
class Decisions:
    """Calibration and thresholds: ``chosen`` as from ``thresholds.choose``; ``made_on``: the films both come from."""

    calibration: calibration.Calibration
    chosen: pd.DataFrame
    made_on: dict[str, int | str] = field(default_factory=dict)

    def cuts(self, rule: str = "youden") -> np.ndarray:
        """Thresholds of a rule on calibrated probabilities, (15,), NaN where undefined. UserError for another rule."""
        return vector(as_dict(self.chosen), rule)

    def calls(self, probabilities: np.ndarray, rule: str = "youden") -> np.ndarray:
        """Calls of labels from the network's probabilities: (N, 15) → (N, 15), 1.0 positive, 0.0 negative.

        NaN in columns without a threshold.
        """
        cuts = self.cuts(rule)
        return np.where(np.isnan(cuts), np.nan, self.calibration(probabilities) >= np.nan_to_num(cuts))

    def judge(
        self, labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, *, seed: int = 0
    ) -> pd.DataFrame:
        """Results of the thresholds (``thresholds.judge``) on other films, from the network's probabilities."""
        return judge(self.chosen, labels, self.calibration(probabilities), patients, seed=seed)


def fit_decisions(
    labels: np.ndarray, probabilities: np.ndarray, kind: str = "platt", *, gamma: float = 0.0, **made_on: int | str
) -> Decisions:
    """Fit a calibration on *validation*, then choose each rule's thresholds on its probabilities; both (N, 15).

    kind and gamma as for ``calibration.fit``; made_on: settings of the probabilities, such as size and tta.
    """
    fitted = calibration.fit(labels, probabilities, kind, gamma)
    made_on = {"part": "validation", "films": len(labels), **made_on}
    return Decisions(fitted, choose(labels, fitted(probabilities)), made_on)


def attach_decisions(path: Path, made: Decisions) -> Path:
    """Write both into the JSON of the checkpoint at ``path``; returns the JSON's path."""
    checkpoint.attach(path, CALIBRATION, {**made.calibration.as_dict(), "made_on": made.made_on})
    return checkpoint.attach(path, THRESHOLDS, as_dict(made.chosen))


def read_decisions(path: Path) -> Decisions:
    """Decisions that ``attach`` wrote. Raises UserError if the checkpoint has none, or damaged or foreign ones."""
    fitted = checkpoint.attached(path, CALIBRATION)
    chosen = from_dict(checkpoint.attached(path, THRESHOLDS), f"thresholds of {path.stem}")
    return Decisions(
        calibration.from_dict(fitted, f"calibration of {path.stem}"), chosen, dict(fitted.get("made_on", {}))
    )
