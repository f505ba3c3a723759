"""Metrics from labels and scores in pure NumPy.

A label is 1, 0 or NaN, which is unknown: a film with an unknown label does not count for that finding. An undefined
number is NaN, never 0 or 0.5; ``reason`` says why. "Scores" may be any values that order films (probabilities or
logits); "probabilities" must lie in 0..1.
"""

from typing import NamedTuple

import numpy as np

from cxrlib import UserError
from cxrlib.labels import FINDINGS

HEADLINE = slice(0, len(FINDINGS))
"""Columns of the headline mean: the 14 findings, without "No Finding"."""

MEAN = "mean of 14"
"""Name of the headline mean in a table's column ``finding``; ``mean_of`` names a mean of fewer findings."""


class Curve(NamedTuple):
    """Vertices of a curve, (M,) each. ROC: x = 1 − specificity, y = sensitivity. PR: x = recall, y = precision."""

    x: np.ndarray
    y: np.ndarray
    thresholds: np.ndarray


class AtThreshold(NamedTuple):
    """Metrics of the rule "positive if score ≥ threshold"; NaN where the denominator is 0."""

    sensitivity: float
    specificity: float
    ppv: float
    npv: float
    f1: float


def mean_of(findings: int) -> str:
    """Name of a mean over some of the 14 findings: "mean of 12 of 14"; ``MEAN`` for all and for none."""
    return MEAN if findings in (0, len(FINDINGS)) else f"mean of {findings} of {len(FINDINGS)}"


def is_mean(name: str) -> bool:
    """True for a name from ``mean_of``."""
    return name.startswith("mean of ")


def is_known(labels: np.ndarray) -> np.ndarray:
    """Whether each label is known, bool of the shape of ``labels``. Labels of integers or bools are all known."""
    labels = np.asarray(labels)
    return ~np.isnan(labels) if labels.dtype.kind == "f" else np.ones(labels.shape, bool)


def of_known(labels: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Labels of one finding (N,) and other arrays (N, ...) of the same films, all without the films of unknown label.

    Where all labels are known the arrays are returned as they are.
    """
    known = is_known(labels)
    arrays = tuple(map(np.asarray, (labels, *others)))
    return arrays if known.all() else tuple(array[known] for array in arrays)


def positives(labels: np.ndarray) -> np.ndarray:
    """Number of films with each finding: labels (N, K) → (K,) int64; a number for (N,). Unknown ones do not count."""
    return (np.asarray(labels) == 1).sum(0, dtype=np.int64)


def mean_of_known(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean of each column of values (N, K) over the films whose label (N, K) is known: (K,), NaN where none is."""
    known = is_known(labels)
    return values.mean(0) if known.all() else nanmean(np.where(known, values, np.nan), axis=0)


def fill_unknown(labels: np.ndarray) -> np.ndarray:
    """Labels (N, K) with each finding's prevalence (0.5 where no label is known) in place of unknown ones, float64.

    For methods that cannot leave out a label, such as nearest neighbours. Metrics take the labels as they are.
    """
    share = mean_of_known(np.asarray(labels, np.float64), labels)
    return np.where(is_known(labels), labels, np.where(np.isnan(share), 0.5, share))


def reason(labels: np.ndarray) -> str:
    """Reason why the AUC of one finding is undefined, labels (N,); "" if it is defined."""
    (known,) = of_known(labels)
    if len(known) == 0:
        return "no film with a known label" if len(labels) else "no films"
    positives = int(np.count_nonzero(known))
    if positives == 0:
        return "no film with the finding"
    return "no film without the finding" if positives == len(known) else ""


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the probability that a positive film scores above a negative one, ties counting half.

    labels (N,) of 0, 1 and NaN, scores (N,) finite. Returns 0..1, NaN when one class is absent. It is the Mann-Whitney
    statistic (Hanley & McNeil 1982): positives are looked up among the sorted negatives.
    Raises UserError for scores that are not finite, or other labels.
    """
    positive, scores = _checked(labels, scores)
    if reason(positive):
        return np.nan
    negatives = np.sort(scores[~positive])
    below = np.searchsorted(negatives, scores[positive], "left")
    upto = np.searchsorted(negatives, scores[positive], "right")
    return float((below + upto).mean() / 2 / len(negatives))


def auc_per_label(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """ROC AUC of each column: labels (N, K), scores (N, K) → (K,), NaN where undefined."""
    return _per_label(roc_auc, labels, scores)


def mean_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean ROC AUC over those of the 14 findings that are defined; NaN if none is. Later columns are ignored."""
    return nanmean(auc_per_label(labels[:, HEADLINE], scores[:, HEADLINE]))


def micro_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Micro AUC, over all film-label pairs at once: labels (N, K), scores (N, K).

    The original printed it over its 15 outputs. It also compares films across findings, so the prevalences alone give
    well above 0.5; report it only beside the mean.
    """
    return roc_auc(np.ravel(labels), np.ravel(scores))


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Average precision of one finding: the mean of the precision at each positive film; ties share a threshold.

    The chance level is the prevalence. NaN when no film is positive; 1 when all are. No interpolation, as in
    scikit-learn (interpolated areas are too large, Davis & Goadrich 2006).
    """
    curve = pr_curve(labels, scores)
    if len(curve.x) == 0:
        return np.nan
    return float(np.sum(np.diff(curve.x) * curve.y[1:]))


def ap_per_label(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Average precision of each column: (N, K), (N, K) → (K,), NaN where undefined."""
    return _per_label(average_precision, labels, scores)


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> Curve:
    """ROC curve of one finding from (0, 0) to (1, 1), a vertex per distinct score; empty when one class is absent.

    The first threshold is +∞ ("nothing is called positive").
    """
    positive, scores = _checked(labels, scores)
    if reason(positive):
        return Curve(np.empty(0), np.empty(0), np.empty(0))
    true, false, thresholds = _counts_from_above(positive, scores)
    return Curve(
        np.concatenate([[0.0], false / false[-1]]),
        np.concatenate([[0.0], true / true[-1]]),
        np.concatenate([[np.inf], thresholds]),
    )


def pr_curve(labels: np.ndarray, scores: np.ndarray) -> Curve:
    """Precision over recall, recall rising from 0, a vertex per distinct score; empty when no film is positive.

    The first vertex (recall 0, precision 1) is a convention: no film is called positive there.
    """
    positive, scores = _checked(labels, scores)
    if not positive.any():
        return Curve(np.empty(0), np.empty(0), np.empty(0))
    true, false, thresholds = _counts_from_above(positive, scores)
    return Curve(
        np.concatenate([[0.0], true / true[-1]]),
        np.concatenate([[1.0], true / (true + false)]),
        np.concatenate([[np.inf], thresholds]),
    )


def at_threshold(labels: np.ndarray, scores: np.ndarray, threshold: float) -> AtThreshold:
    """Sensitivity, specificity, PPV, NPV and F1 of one finding when "score ≥ threshold" is called positive."""
    positive, scores = _checked(labels, scores)
    called = scores >= threshold
    true_positive = np.count_nonzero(called & positive)
    true_negative = np.count_nonzero(~called & ~positive)
    positives, negatives = np.count_nonzero(positive), np.count_nonzero(~positive)
    calls, passes = np.count_nonzero(called), np.count_nonzero(~called)
    return AtThreshold(
        sensitivity=_share(true_positive, positives),
        specificity=_share(true_negative, negatives),
        ppv=_share(true_positive, calls),
        npv=_share(true_negative, passes),
        f1=_share(2 * true_positive, positives + calls),
    )


def nanmean(values: np.ndarray, axis: int | None = None) -> float | np.ndarray:
    """Mean of the defined values along ``axis``; NaN, without NumPy's warning, where there are none."""
    defined = ~np.isnan(values)
    total, n = np.where(defined, values, 0.0).sum(axis), defined.sum(axis)
    mean = np.divide(total, n, out=np.full(np.shape(total), np.nan), where=n > 0)
    return float(mean) if axis is None else mean


def _counts_from_above(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and false positives at each distinct score as the threshold, from the highest score down; (M,) each."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # the last film of each run of ties
    true = np.cumsum(positive[order])[last]
    return true, last + 1 - true, ranked[last]


def _per_label(metric, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    if labels.shape != scores.shape:
        raise UserError(
            f"labels {labels.shape} and scores {scores.shape} differ in shape; they must be of the same films"
        )
    return np.array([metric(labels[:, k], scores[:, k]) for k in range(labels.shape[1])])


def _checked(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Known labels of one finding as (n,) bool and their scores as (n,) float64.

    Raises UserError for labels and scores (N,) that are no such.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise UserError(f"labels {labels.shape} and scores {scores.shape} must both be (films,)")
    if not np.isfinite(scores).all():
        raise UserError(f"{np.count_nonzero(~np.isfinite(scores))} scores are NaN or infinite; no metric can rank them")
    labels, scores = of_known(labels, scores)
    positive = labels == 1
    if not (positive | (labels == 0)).all():
        wrong = np.unique(labels[~positive & (labels != 0)])[:5]
        raise UserError(f"labels hold {wrong}; a label is 0, 1, or NaN where it is unknown")
    return positive, scores


def _share(part: int, whole: int) -> float:
    return part / whole if whole else np.nan
