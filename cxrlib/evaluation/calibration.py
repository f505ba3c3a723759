"""Calibration of probabilities: fitted on validation, evaluated on test.

Focal loss trains the *ranking* of probabilities well and their *size* badly: films that are roughly right add little
loss, so probabilities stay near the middle. For a known γ the bias has a closed form (``unfocal``). Other errors, from
too little data or from weights on positives, are corrected by a fit on validation films (``fit``).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from cxrlib import UserError, metrics
from cxrlib import labels as order
from cxrlib.evaluation import intervals

KINDS = ("none", "temperature", "platt")
LEAST = 10
"""Validation films of each class that a finding needs for a fit."""

EDGE = 1e-7  # during a fit probabilities stay this far from 0 and 1, so that one film cannot dominate
# Replace p = 0 and 1 - p = 0: smaller than any other value in float32 (p) and float64 (1 - p).
LOWEST, HIGHEST = 1e-46, 1e-17
BLEND = 1e-6
"""Share of the network's own probability in a calibrated one. In float64 σ is 1 for all logits above 37, which would
tie films that the network ranks; the blend keeps their order and changes no probability by more than its share."""

LEAST_SLOPE = 0.05
"""Smallest slope of a fit; with a flatter line, rounding would tie films of different rank."""


@dataclass(frozen=True)
class Calibration:
    """Calibration in two steps: ``unfocal``, then a line per label on logits, σ(slope · logit + intercept).

    gamma: of the focal loss, 0 for any other loss; slopes, intercepts: 15 numbers each, 1 and 0 where nothing was
    fitted; then ``reasons`` says why, else "". Both steps are increasing and work on logits, so the ranking of float32
    probabilities, also near 0 and 1, and every AUC stay the same.
    """

    kind: str
    gamma: float
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]
    reasons: tuple[str, ...]

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities: (N, 15) → (N, 15)."""
        raw = np.asarray(probabilities, np.float64)
        unfitted = unfocal(raw, self.gamma) if self.gamma else raw
        fitted = _probability(self.logits(raw), raw)
        return np.where([bool(reason) for reason in self.reasons], unfitted, fitted)

    def logits(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated logits: (N, 15) → (N, 15), finite, in the order of the probabilities."""
        return _unfocal_logit(probabilities, self.gamma) * np.array(self.slopes) + np.array(self.intercepts)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint's JSON; ``from_dict`` reads them back."""
        return {"labels": list(order.LABELS), **{key: _plain(value) for key, value in asdict(self).items()}}


def from_dict(values: dict[str, Any], where: str = "calibration") -> Calibration:
    """Calibration from ``Calibration.as_dict``. Raises UserError for another label order and for damaged values."""
    try:
        order.check_order(values["labels"], where)
        lists = (tuple(values[key]) for key in ("slopes", "intercepts", "reasons"))
        calibration = Calibration(values["kind"], float(values["gamma"]), *lists)
        lines = np.array([calibration.slopes, calibration.intercepts], np.float64)
    except KeyError as error:
        raise UserError(f"{where} lacks {error}; fit it again on validation") from None
    except (TypeError, ValueError):
        lines = np.empty(0)
    if lines.shape != (2, len(order.LABELS)) or not np.isfinite(lines).all() or (lines[0] <= 0).any():
        raise UserError(
            f"{where} is not a rising line for each of {len(order.LABELS)} labels; fit it again on validation"
        )
    return calibration


def fit(labels: np.ndarray, probabilities: np.ndarray, kind: str = "platt", gamma: float = 0.0) -> Calibration:
    """Fit a calibration on *validation*: labels (N, 15), probabilities (N, 15), gamma of the focal loss or 0.

    Each label's line is fitted on the films whose label is known.
    First ``unfocal`` removes the bias of the focal loss, which needs no films. Then "temperature" fits a slope per
    label (Guo et al. 2017), which corrects over- and underconfidence; "platt" also fits an intercept (Platt 1999, with
    his smoothed targets), which corrects the overall level, as after positive weights; "none" fits nothing. A label
    with fewer than ``LEAST`` films of a class, or with scores that do not rise with the finding, gets no line and a
    reason. Raises UserError for another kind.
    """
    if kind not in KINDS:
        raise UserError(f"calibration {kind!r} is unknown; choose {', '.join(KINDS)}")
    logits = _unfocal_logit(np.clip(probabilities, EDGE, 1 - EDGE), gamma)
    lines = [_line(labels[:, k], logits[:, k], kind) for k in range(labels.shape[1])]
    return Calibration(kind, float(gamma), *(tuple(column) for column in zip(*lines, strict=True)))


def unfocal(probabilities: np.ndarray, gamma: float) -> np.ndarray:
    """Probabilities without the bias of focal loss with this γ; unchanged for γ = 0.

    The q that minimises −η (1−q)^γ log q − (1−η) q^γ log(1−q) is not η but nearer to ½; setting the derivative to 0
    gives η (Charoenphakdee et al., CVPR 2021, "On Focal Loss for Class-Posterior Probability Estimation").
    """
    raw = np.asarray(probabilities, np.float64)
    return _probability(_unfocal_logit(raw, gamma), raw) if gamma else raw


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """Observed frequency of one finding by probability: labels and probabilities (N,); a row per bin.

    Only films of known label count; without any there is no row.
    Bins hold equally many films (ties together): nearly all probabilities of a rare finding are small, so bins of equal
    width would be empty but for one. Columns films, low, high (of the bin), probability (mean), observed (frequency)
    with its Wilson interval observed_low, observed_high.
    """
    labels, probabilities = metrics.of_known(labels, probabilities)
    rows = []
    for these in _bins(probabilities, bins):
        inside, positives = probabilities[these], int(np.count_nonzero(labels[these]))
        share = intervals.proportion(positives, len(these))
        rows.append((len(these), inside.min(), inside.max(), inside.mean(), *share))
    names = ("films", "low", "high", "probability", "observed", "observed_low", "observed_high")
    return pd.DataFrame(rows, columns=list(names))


def ece(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of one finding: mean distance of probability and frequency over ``reliability`` bins.

    0 is perfect; perfect probabilities of N films still give about 0.8 √(p (1−p) bins / N). NaN without films
    of known label.
    """
    if not metrics.is_known(labels).any():
        return np.nan
    rows = reliability(labels, probabilities, bins)
    return float(np.average((rows["probability"] - rows["observed"]).abs(), weights=rows["films"]))


def scores(
    labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, *, replicates: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Brier score and classwise ECE per label, over films of known label: labels, probabilities (N, 15), patients (N,).

    Columns finding, positives, probability (mean), prevalence, brier with brier_low and brier_high by patient,
    brier_prevalence (the score of the prevalence as every film's probability; a higher Brier is worse than no network),
    ece.
    """
    errors, known = (probabilities - labels) ** 2, metrics.is_known(labels)
    errors = errors if known.all() else np.where(known, errors, 0.0)
    brier = intervals.ratio(errors, known.astype(np.float64), patients, replicates=replicates, seed=seed)
    share = metrics.mean_of_known(labels.astype(np.float64), labels)
    table = pd.DataFrame({"finding": order.LABELS, "positives": metrics.positives(labels)})
    table["probability"], table["prevalence"] = metrics.mean_of_known(probabilities, labels), share
    table["brier"], table["brier_low"], table["brier_high"] = brier
    table["brier_prevalence"] = share * (1 - share)
    table["ece"] = [ece(labels[:, k], probabilities[:, k]) for k in range(labels.shape[1])]
    return table


def _line(labels: np.ndarray, logits: np.ndarray, kind: str) -> tuple[float, float, str]:
    """Slope and intercept of one label's line and ""; or 1, 0 and the reason why nothing was fitted."""
    if kind == "none":
        return 1.0, 0.0, "not asked for"
    labels, logits = metrics.of_known(labels, logits)
    positives = int(np.count_nonzero(labels))
    fewest = min(positives, len(labels) - positives)
    if fewest < LEAST:
        return 1.0, 0.0, f"only {fewest} validation films of a class, {LEAST} are needed"
    slope, intercept = _newton(logits, _targets(labels), free=kind == "platt")
    if not (np.isfinite(slope) and slope >= LEAST_SLOPE):
        return 1.0, 0.0, "the scores do not rise with the finding on validation"
    return slope, intercept, ""


def _targets(labels: np.ndarray) -> np.ndarray:
    """Platt's targets: a little inside 0 and 1, so that a perfect ranking does not need an infinite slope."""
    positives = np.count_nonzero(labels)
    return np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))


def _newton(x: np.ndarray, targets: np.ndarray, *, free: bool, steps: int = 100) -> tuple[float, float]:
    """Logistic regression on one variable, intercept only if ``free``, by Newton steps halved until the loss falls."""
    design = np.stack([x, np.ones_like(x)], 1) if free else x[:, None]  # (N, 2) or (N, 1)
    weights = np.array([1.0, 0.0])[: design.shape[1]]
    loss = _cross_entropy(design @ weights, targets)
    for _ in range(steps):
        p = expit(design @ weights)
        gradient = design.T @ (p - targets)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(len(weights))
        step = np.linalg.solve(hessian, gradient)
        while (after := _cross_entropy(design @ (weights - step), targets)) > loss and np.abs(step).max() > 1e-12:
            step /= 2
        weights, gained, loss = weights - step, loss - after, after
        if gained < 1e-12 * max(loss, 1):
            break
    return float(weights[0]), float(weights[1]) if free else 0.0


def _cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    return float(np.sum(np.logaddexp(0, logits) - targets * logits))


def _unfocal_logit(probabilities: np.ndarray, gamma: float) -> np.ndarray:
    """Log odds of ``unfocal`` probabilities, exact near 0 and 1; for γ = 0 the plain log odds."""
    q = np.asarray(probabilities, np.float64)
    q, rest = np.maximum(q, LOWEST), np.maximum(1 - q, HIGHEST)  # 1 - q is exact where it is small
    return np.log(_pull(rest, q, gamma)) - np.log(_pull(q, rest, gamma))


def _pull(q: np.ndarray, rest: np.ndarray, gamma: float) -> np.ndarray:
    """Minus the derivative of (1−q)^γ (−log q) in q, the pull of a positive film on q; rest is 1 − q."""
    if not gamma:
        return 1 / q
    return rest**gamma / q - gamma * rest ** (gamma - 1) * np.where(
        q < 0.5, np.log(q), np.log1p(-np.minimum(rest, 0.5))
    )


def _probability(logits: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """σ of the logits, blended with the network's probabilities, which keep the ranking where σ is 1 in float64."""
    return (1 - BLEND) * expit(logits) + BLEND * raw


def _bins(probabilities: np.ndarray, bins: int) -> list[np.ndarray]:
    """Positions of the films of each bin, about equally many; films of equal probability stay together."""
    if len(probabilities) == 0:
        return []
    ranked = np.argsort(probabilities, kind="stable")
    cuts = np.searchsorted(probabilities[ranked], probabilities[ranked[np.arange(1, bins) * len(ranked) // bins]])
    return [part for part in np.split(ranked, np.unique(cuts)) if len(part)]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
