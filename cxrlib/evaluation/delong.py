"""DeLong's variance by patient of an AUC, a share, and their means and differences: tests without resampling.

An AUC is the mean over the positives of the share of negatives that score lower, and likewise over the negatives.
DeLong (1988) computes its variance from the spread of these per-film components; the fast form is by Sun & Xu (2014).
Films of one patient are not independent, so components are first summed per patient (Obuchowski 1997). The variance of
any sum or difference of such numbers is then a sum of squares over patients, whether the numbers share patients or not.
Pure NumPy, and SciPy for t.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are imported when they are first used; stats takes a second

from cxrlib import metrics

LEVEL = 0.95
NOTHING = 1e-9
"""A standard error below this counts as undefined: all patients give the same value, or there are too few."""


@dataclass(frozen=True)
class Estimate:
    """An estimate with each patient's contribution. parts (C, P): contributions to its independent parts, such as the
    films with and without a finding; counts (C,): number of patients of each part."""

    value: float
    parts: np.ndarray
    counts: np.ndarray

    @property
    def error(self) -> float:
        """Standard error; NaN if a part has only one patient."""
        return float(np.sqrt((self.parts.sum(0) ** 2).sum()))

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the error by Welch and Satterthwaite; a part of n patients has n - 1."""
        spread = (self.parts**2).sum(1)
        of_parts = (spread**2 / np.maximum(self.counts - 1, 1)).sum()
        patients = np.count_nonzero(self.parts.any(0))
        return float(np.clip(spread.sum() ** 2 / of_parts, 1, max(patients - 1, 1))) if of_parts > 0 else 1.0

    def test(self, freedom: float | None = None) -> tuple[float, float, float]:
        """Low and high end of the 95 % interval, and two-sided p against 0, by t; NaN where the error is undefined."""
        if not self.error > NOTHING:
            return np.nan, np.nan, np.nan
        freedom = self.freedom if freedom is None else freedom
        half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, freedom)) * self.error
        return self.value - half, self.value + half, float(2 * scipy.stats.t.sf(abs(self.value) / self.error, freedom))


def auc(labels: np.ndarray, scores: np.ndarray, rows: np.ndarray, patients: int) -> Estimate:
    """ROC AUC of one finding, labels and scores (N,), both classes present; rows (N,) each film's patient, 0 … P - 1.

    Films of unknown label (NaN) are left out.
    Parts are scaled by √(n / (n − 1)) for the n patients of a class, as in a sample's variance.
    """
    labels, scores, rows = metrics.of_known(labels, scores, rows)
    positive = labels == 1
    value = metrics.roc_auc(labels, scores)
    classes = zip((rows[positive], rows[~positive]), components(positive, scores[None]), strict=True)
    parts, counts = zip(*(_summed(where, deviations[0], patients) for where, deviations in classes), strict=True)
    return Estimate(value, np.stack(parts), np.array(counts))


def share(hits: np.ndarray, wholes: np.ndarray, rows: np.ndarray, patients: int) -> Estimate:
    """Sum of hits over sum of wholes, (N,) each, such as a sensitivity; rows as for ``auc``."""
    total = wholes.sum(dtype=np.float64)
    value = float(hits.sum() / total)
    counted = wholes != 0
    part, count = _summed(rows[counted], (hits - value * wholes)[counted] / total, patients)
    return Estimate(value, part[None], np.array([count]))


def less(one: Estimate, other: Estimate) -> Estimate:
    """Difference of two numbers from different films, such as two groups; they may share patients."""
    counts = np.concatenate([one.counts, other.counts])
    return Estimate(one.value - other.value, np.concatenate([one.parts, -other.parts]), counts)


def paired(one: Estimate, other: Estimate) -> Estimate:
    """Difference of two numbers from the same films, such as two models' AUC."""
    return Estimate(one.value - other.value, one.parts - other.parts, one.counts)


def mean(estimates: Sequence[Estimate]) -> Estimate:
    parts = np.concatenate([each.parts for each in estimates]) / len(estimates)
    value = float(np.mean([each.value for each in estimates]))
    return Estimate(value, parts, np.concatenate([each.counts for each in estimates]))


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of numbers from the same films, such as the AUCs of one recipe trained from several seeds."""
    value = float(np.mean([each.value for each in estimates]))
    return Estimate(value, np.mean([each.parts for each in estimates], axis=0), estimates[0].counts)


def logit(estimate: Estimate) -> Estimate:
    """The estimate as log odds, which are not bounded, so that an AUC near 1 has a symmetric interval."""
    slope = 1 / (estimate.value * (1 - estimate.value))
    value = float(np.log(estimate.value / (1 - estimate.value)))
    return Estimate(value, estimate.parts * slope, estimate.counts)


def against_others(found: Sequence[Estimate]) -> np.ndarray:
    """Two-sided p of each AUC against the mean of the others on the scale of log odds, (K,); NaN for a single AUC.

    An AUC that is high by chance has too small a variance. Therefore the variance is at least the median of all
    variances per patient, scaled to its number of patients; the difference is shrunk as if two more patients had the
    mean of the others; and the degrees of freedom are those of the smaller class.
    """
    if len(found) < 2:
        return np.full(len(found), np.nan)
    logits = [logit(one) for one in found]
    fewest = np.array([one.counts.min() for one in found])
    variances = np.array([one.error**2 for one in logits])
    floor, p = np.median(variances * fewest) / fewest, []
    for k, one in enumerate(logits):
        gap = less(one, logit(mean([other for other in found if other is not found[k]])))
        error = np.sqrt(gap.error**2 + max(0.0, floor[k] - variances[k]))
        shrunk = abs(gap.value) * fewest[k] / (fewest[k] + 2)
        p.append(2 * scipy.stats.t.sf(shrunk / error, fewest[k] - 1))
    return np.array(p)


def imperfect(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores with one pair swapped if the AUC is 1 or 0; other scores are unchanged.

    A perfect AUC has no variance, although the next film might be ranked wrong.
    """
    positive, negative = np.asarray(labels) == 1, np.asarray(labels) == 0
    if metrics.roc_auc(labels, scores) not in (0.0, 1.0):
        return scores
    sign = 1.0 if scores[positive].min() > scores[negative].max() else -1.0
    weakest = np.flatnonzero(positive)[np.argmin(sign * scores[positive])]
    strongest = np.flatnonzero(negative)[np.argmax(sign * scores[negative])]
    swapped = np.array(scores, np.float64)
    swapped[[weakest, strongest]] = swapped[[strongest, weakest]]
    return swapped


def components(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Components of the variance: each film's placement in the other class minus the mean placement of its class.

    positive (N,) bool, scores (S, N) → positives' (S, n₁) and negatives' (S, n₀); their products sum to variances.
    """
    ones = np.stack([_placed(row[positive], row[~positive]) for row in scores])
    zeros = np.stack([1 - _placed(row[~positive], row[positive]) for row in scores])
    return tuple((part - part.mean(1, keepdims=True)) / part.shape[1] for part in (ones, zeros))


def _placed(these: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Share of ``others`` below each score of ``these``; ties count half."""
    ranked = np.sort(others)
    return (np.searchsorted(ranked, these, "left") + np.searchsorted(ranked, these, "right")) / 2 / len(ranked)


def _summed(rows: np.ndarray, deviations: np.ndarray, patients: int) -> tuple[np.ndarray, int]:
    """Sums of a part's deviations by patient (P,), scaled for a small sample, and its number of patients."""
    n = len(np.unique(rows))
    scale = np.sqrt(n / (n - 1)) if n > 1 else np.nan
    return np.bincount(rows, deviations, patients) * scale, n
