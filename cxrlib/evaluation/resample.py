"""Resampling by patient: AUC, average precision and curves of many resamples at once, in NumPy and one sparse product.

A resample draws *patients* with replacement; a film has the weight of how often its patient was drawn. Films are never
copied: each finding is sorted once, and only the running weights at the positives' scores are kept, because AUC, AP
and both curves change only there. So a finding costs one pass over the films, with or without ties. 1000 resamples of
25,596 films are 291 times as fast as a loop over scikit-learn; results differ by 2e-15 at most.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from cxrlib import philox

_RESAMPLE = 4  # stream of random numbers; ``draws`` and ``splits`` use the lower ones


class Steps(NamedTuple):
    """Running weights of R resamples at the G distinct scores of a finding's positives, from the lowest score up.

    positive (G, R): weight of the positives with this score; true (G, R): with this or a higher one; below and upto
    (G, R): weight of the negatives scoring less, and at most, this; positives and negatives (R,): totals, 0 where a
    resample lacks the class.
    """

    positive: np.ndarray
    true: np.ndarray
    below: np.ndarray
    upto: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray


def draw(patients: np.ndarray, replicates: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw as many patients as there are, with replacement, ``replicates`` times.

    patients (N,) of any type that sorts. Returns counts (P, R) int32, how often each distinct patient was drawn, and
    rows (N,), each film's row in counts. The first R resamples are the same for any larger ``replicates``.
    """
    distinct, rows = np.unique(patients, return_inverse=True)
    n = len(distinct)
    counts = np.empty((n, replicates), np.int32)
    for r in range(replicates):
        counts[:, r] = np.bincount(philox.below(philox.raw(n, seed, r, _RESAMPLE), n), minlength=n)
    return counts, rows.ravel()


def steps(labels: np.ndarray, scores: np.ndarray, counts: np.ndarray, rows: np.ndarray) -> Steps:
    """Running weights of one finding: labels (N,), scores (N,), counts and rows as from ``draw``."""
    order = np.argsort(scores, kind="stable")
    positive = labels[order] == 1
    scores, rows = scores[order], rows[order]
    values = np.unique(scores[positive])
    left = np.searchsorted(scores[~positive], values, "left")
    right = np.searchsorted(scores[~positive], values, "right")
    below, negatives = _running(counts, rows[~positive], left)
    upto = below if np.array_equal(left, right) else _running(counts, rows[~positive], right)[0]
    above, positives = _running(counts, rows[positive], np.searchsorted(scores[positive], values, "left"))
    positive = np.diff(above, axis=0, append=positives[None])
    return Steps(positive, positives - above, below, upto, positives, negatives)


def auc(at: Steps) -> np.ndarray:
    """ROC AUC of each resample, (R,); NaN where a resample lacks a class. Ties count half."""
    wins = (at.positive * ((at.below + at.upto) / 2)).sum(0)
    return _divide(wins, at.positives * at.negatives.astype(np.float64))


def average_precision(at: Steps) -> np.ndarray:
    """Average precision of each resample, (R,); NaN where it has no positive."""
    called = at.true + (at.negatives - at.below)
    gained = (at.positive * np.divide(at.true, called, out=np.zeros(called.shape), where=called > 0)).sum(0)
    return _divide(gained, at.positives)


def sensitivity(at: Steps, false_positive_rates: np.ndarray) -> np.ndarray:
    """Sensitivity of each resample at (M,) false-positive rates: (R, M), NaN where a class is absent."""
    start, end = at.negatives - at.upto, at.negatives - at.below  # negatives called before and after each step
    x = np.stack([start, end], 1)[::-1].reshape(-1, len(at.positives))  # (2G, R), rising
    y = np.stack([at.true - at.positive, at.true], 1)[::-1].reshape(-1, len(at.positives))
    curves = np.full((len(at.positives), len(false_positive_rates)), np.nan)
    for r in np.flatnonzero((at.positives > 0) & (at.negatives > 0)):
        corners = np.concatenate([[0], x[:, r], [at.negatives[r]]]), np.concatenate([[0], y[:, r], [at.positives[r]]])
        curves[r] = np.interp(false_positive_rates * at.negatives[r], *corners) / at.positives[r]
    return curves


def precision(at: Steps, recalls: np.ndarray) -> np.ndarray:
    """Precision of each resample at the highest threshold that reaches (M,) recalls: (R, M), NaN without positives."""
    true = at.true[::-1]  # (G, R), rising
    called = true + (at.negatives - at.below)[::-1]
    share = np.divide(true, called, out=np.ones(called.shape), where=called > 0)
    values = np.full((len(at.positives), len(recalls)), np.nan)
    for r in np.flatnonzero(at.positives):
        reached = np.searchsorted(true[:, r], np.maximum(recalls * at.positives[r] - 1e-9, 1e-9))
        values[r] = share[reached, r]
    return values


def ratio(parts: np.ndarray, wholes: np.ndarray, counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Ratios of sums over films on each resample: parts and wholes (N, M) → (R, M), NaN where a denominator is 0."""
    above, below = (_per_patient(values, rows, len(counts)) for values in (parts, wholes))  # (P, M)
    above, below = counts.T @ above, counts.T @ below  # (R, M)
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)


def _per_patient(values: np.ndarray, rows: np.ndarray, patients: int) -> np.ndarray:
    """Sums (P, M) over each patient's films of values (N, M)."""
    sums = [np.bincount(rows, column, minlength=patients) for column in np.asarray(values, np.float64).T]
    return np.stack(sums, 1)


def _running(counts: np.ndarray, rows: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the first ``cuts[g]`` films, (G, R), and of all films, (R,); cuts in ascending order.

    The films between two cuts are a row of a sparse matrix whose columns are patients, so one product sums all
    stretches on all resamples; five times as fast as adding film by film, and much faster than NumPy's reduceat.
    """
    ends = np.concatenate([[0], cuts, [len(rows)]])
    stretches = csr_array((np.ones(len(rows), np.int32), rows, ends), shape=(len(cuts) + 1, len(counts)))
    weights = stretches @ counts
    for g in range(1, len(weights)):
        weights[g] += weights[g - 1]  # ten times as fast as cumsum, which goes down the columns
    return weights[:-1], weights[-1]


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
