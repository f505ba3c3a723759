"""Whether a probability means what it says, and how to make it: fitted on validation, judged on test.

Focal loss trains the *ranking* of probabilities well and their *size* badly: it stops caring once an answer is roughly
right, so its probabilities crowd towards the middle. For a known γ the bias has a closed form (``unfocal``); what
else is wrong (too little data, weights on positives) a fit on validation films mends (``fit``).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from cxrlib import labels as order
from cxrlib.errors import UserError
from cxrlib.evaluation import intervals

KINDS = ("none", "temperature", "platt")
LEAST = 10
"""Films of either class that validation must hold for a finding's probabilities to be fitted."""

EDGE = 1e-7  # probabilities are kept this far from 0 and 1 before their logit is taken


@dataclass(frozen=True)
class Calibration:
    """Focal loss's bias undone (``unfocal``), then a line per label from logit to logit: σ(slope · logit + intercept).

    gamma: of the focal loss, 0 for any other; slopes, intercepts: 15 numbers each, 1 and 0 where nothing was fitted;
    then ``reasons`` says why, else "". Both steps rise and keep the ranking, so no AUC changes.
    """

    kind: str
    gamma: float
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]
    reasons: tuple[str, ...]

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities: (N, 15) → (N, 15)."""
        meant = unfocal(probabilities, self.gamma) if self.gamma else np.asarray(probabilities)
        fitted = _sigmoid(_logit(meant) * np.array(self.slopes) + np.array(self.intercepts))
        return np.where([bool(reason) for reason in self.reasons], meant, fitted)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, to travel in a checkpoint's JSON; ``from_dict`` reads them back."""
        return {"labels": list(order.LABELS), **{key: _plain(value) for key, value in asdict(self).items()}}


def from_dict(values: dict[str, Any], where: str = "calibration") -> Calibration:
    """The inverse of ``Calibration.as_dict``. Raises UserError for another label order and for damaged values."""
    try:
        order.check_order(values["labels"], where)
        lists = (tuple(values[key]) for key in ("slopes", "intercepts", "reasons"))
        found = Calibration(values["kind"], float(values["gamma"]), *lists)
        lines = np.array([found.slopes, found.intercepts], np.float64)
    except KeyError as error:
        raise UserError(f"{where} lacks {error}; fit it again on validation") from None
    except (TypeError, ValueError):
        lines = np.empty(0)
    if lines.shape != (2, len(order.LABELS)) or not np.isfinite(lines).all() or (lines[0] <= 0).any():
        raise UserError(
            f"{where} is not a rising line for each of {len(order.LABELS)} labels; fit it again on validation"
        )
    return found


def fit(labels: np.ndarray, probabilities: np.ndarray, kind: str = "platt", gamma: float = 0.0) -> Calibration:
    """Fit on *validation*: labels (N, 15), probabilities (N, 15); gamma of the focal loss they were trained with, or 0.

    Focal loss's bias is undone first, for which no film is needed. Then "temperature" fits a slope per label (Guo et
    al. 2017), which cures over- and underconfidence; "platt" an intercept too (Platt 1999, with his smoothed targets),
    which also cures a wrong overall level, as positive weights cause; "none" fits nothing. A label with fewer than
    ``LEAST`` films of a class, or whose scores rank the wrong way round, gets no line and says so. Raises UserError for
    another kind.
    """
    if kind not in KINDS:
        raise UserError(f"calibration {kind!r} is unknown; choose {', '.join(KINDS)}")
    meant = unfocal(probabilities, gamma) if gamma else probabilities
    lines = [_line(labels[:, k], meant[:, k], kind) for k in range(labels.shape[1])]
    return Calibration(kind, float(gamma), *(tuple(column) for column in zip(*lines, strict=True)))


def unfocal(probabilities: np.ndarray, gamma: float) -> np.ndarray:
    """The probability that a network means which was trained with focal loss of this γ; unchanged for γ = 0.

    The q that minimises −η (1−q)^γ log q − (1−η) q^γ log(1−q) is not η but nearer to ½; setting the derivative to 0
    gives η back (Charoenphakdee et al., CVPR 2021, "On Focal Loss for Class-Posterior Probability Estimation").
    """
    q = np.clip(np.asarray(probabilities, np.float64), EDGE, 1 - EDGE)
    towards_one, towards_zero = _pull(q, gamma), _pull(1 - q, gamma)
    return towards_zero / (towards_one + towards_zero)


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """How often the finding was there, at what probability: one finding, (N,) each; a row per bin.

    Bins hold equally many films (ties together), since nearly all probabilities of a rare finding are small and bins
    of equal width would leave all but one empty. Columns films, low, high (of the bin), probability (mean), observed
    with its Wilson interval observed_low, observed_high.
    """
    rows = []
    for these in _bins(probabilities, bins):
        inside, found = probabilities[these], int(np.count_nonzero(labels[these]))
        share = intervals.proportion(found, len(these))
        rows.append((len(these), inside.min(), inside.max(), inside.mean(), *share))
    names = ("films", "low", "high", "probability", "observed", "observed_low", "observed_high")
    return pd.DataFrame(rows, columns=list(names))


def ece(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of one finding: mean distance of probability and frequency over ``reliability`` bins.

    0 is perfect; a perfect forecaster of N films still shows about 0.8 √(p (1−p) bins / N). NaN without films.
    """
    if len(labels) == 0:
        return np.nan
    rows = reliability(labels, probabilities, bins)
    return float(np.average((rows["probability"] - rows["observed"]).abs(), weights=rows["films"]))


def scores(
    labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, *, replicates: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Brier score and classwise ECE per label: labels, probabilities (N, 15), patients (N,).

    Columns finding, positives, probability (mean), prevalence, brier with brier_low and brier_high by patient,
    brier_prevalence (what always answering the prevalence scores: a Brier above it is worse than no network), ece.
    """
    errors = (probabilities - labels) ** 2
    brier = intervals.ratio(errors, np.ones_like(errors), patients, replicates=replicates, seed=seed)
    share = labels.mean(0)
    table = pd.DataFrame({"finding": order.LABELS, "positives": labels.sum(0, dtype=np.int64)})
    table["probability"], table["prevalence"] = probabilities.mean(0), share
    table["brier"], table["brier_low"], table["brier_high"] = brier
    table["brier_prevalence"] = share * (1 - share)
    table["ece"] = [ece(labels[:, k], probabilities[:, k]) for k in range(labels.shape[1])]
    return table


def _line(labels: np.ndarray, probabilities: np.ndarray, kind: str) -> tuple[float, float, str]:
    """Slope and intercept of one label's line and "", or 1, 0 and why it stays as it is."""
    if kind == "none":
        return 1.0, 0.0, "not asked for"
    positives = int(np.count_nonzero(labels))
    fewest = min(positives, len(labels) - positives)
    if fewest < LEAST:
        return 1.0, 0.0, f"only {fewest} validation films of a class, {LEAST} are needed"
    slope, intercept = _newton(_logit(probabilities), _targets(labels), free=kind == "platt")
    if not (np.isfinite(slope) and slope > 0):
        return 1.0, 0.0, "the scores do not rise with the finding on validation"
    return slope, intercept, ""


def _targets(labels: np.ndarray) -> np.ndarray:
    """Platt's targets: a little inside 0 and 1, so that a perfect ranking does not ask for an infinite slope."""
    positives = np.count_nonzero(labels)
    return np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))


def _newton(x: np.ndarray, targets: np.ndarray, *, free: bool, steps: int = 100) -> tuple[float, float]:
    """Logistic regression on one variable, intercept only if ``free``, by Newton steps halved until the loss falls."""
    design = np.stack([x, np.ones_like(x)], 1) if free else x[:, None]  # (N, 2) or (N, 1)
    weights = np.array([1.0, 0.0])[: design.shape[1]]
    loss = _cross_entropy(design @ weights, targets)
    for _ in range(steps):
        chance = _sigmoid(design @ weights)
        slope = design.T @ (chance - targets)
        bend = (design * (chance * (1 - chance))[:, None]).T @ design + 1e-9 * np.eye(len(weights))
        step = np.linalg.solve(bend, slope)
        while (after := _cross_entropy(design @ (weights - step), targets)) > loss and np.abs(step).max() > 1e-12:
            step /= 2
        weights, gained, loss = weights - step, loss - after, after
        if gained < 1e-12 * max(loss, 1):
            break
    return float(weights[0]), float(weights[1]) if free else 0.0


def _cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    return float(np.sum(np.logaddexp(0, logits) - targets * logits))


def _pull(q: np.ndarray, gamma: float) -> np.ndarray:
    """Minus the derivative of (1−q)^γ (−log q) in q: how strongly a positive film pulls q upwards."""
    return (1 - q) ** gamma / q - (gamma * (1 - q) ** (gamma - 1) * np.log(q) if gamma else 0.0)


def _bins(probabilities: np.ndarray, bins: int) -> list[np.ndarray]:
    """Positions of the films of each bin, about equally many, films of one probability together."""
    ranked = np.argsort(probabilities, kind="stable")
    cuts = np.searchsorted(probabilities[ranked], probabilities[ranked[np.arange(1, bins) * len(ranked) // bins]])
    return [part for part in np.split(ranked, np.unique(cuts)) if len(part)] if len(ranked) else []


def _logit(probabilities: np.ndarray) -> np.ndarray:
    p = np.clip(np.asarray(probabilities, np.float64), EDGE, 1 - EDGE)
    return np.log(p) - np.log1p(-p)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -700, 700)))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
