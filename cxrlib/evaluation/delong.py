"""DeLong's variance by patient of an AUC, of a share, and of means and differences of them: tests without resampling.

An AUC is a mean over its positives of "the share of negatives below", and likewise over its negatives; DeLong (1988)
reads its variance off the spread of those per-film components, fast as Sun & Xu (2014) do. Films of one patient are not
independent, so components are summed within a patient first (Obuchowski 1997). The variance of whatever is made of such
numbers by adding and taking away is then a sum of squares over patients, whether the numbers share patients or not.
Pure NumPy, and SciPy for t.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from cxrlib.evaluation import metrics

LEVEL = 0.95
NOTHING = 1e-9
"""A standard error below this is none: the patients say all the same, or there are too few to say how they differ."""


@dataclass(frozen=True)
class Estimate:
    """A number with what each patient adds to it. parts (C, P): its independent parts, such as the films with and
    without a finding, patient by patient; counts (C,): the patients that each part is of."""

    value: float
    parts: np.ndarray
    counts: np.ndarray

    @property
    def error(self) -> float:
        """Standard error; NaN where a part is of one patient."""
        return float(np.sqrt((self.parts.sum(0) ** 2).sum()))

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the error: Welch and Satterthwaite's, of each part's patients less one."""
        spread = (self.parts**2).sum(1)
        of_parts = (spread**2 / np.maximum(self.counts - 1, 1)).sum()
        patients = np.count_nonzero(self.parts.any(0))
        return float(np.clip(spread.sum() ** 2 / of_parts, 1, max(patients - 1, 1))) if of_parts > 0 else 1.0

    def test(self, freedom: float | None = None) -> tuple[float, float, float]:
        """Low and high end of the 95 % interval, and two-sided p against 0, by t; NaN where there is no error."""
        if not self.error > NOTHING:
            return np.nan, np.nan, np.nan
        freedom = self.freedom if freedom is None else freedom
        half = float(t.ppf((1 + LEVEL) / 2, freedom)) * self.error
        return self.value - half, self.value + half, float(2 * t.sf(abs(self.value) / self.error, freedom))


def auc(labels: np.ndarray, scores: np.ndarray, rows: np.ndarray, patients: int) -> Estimate:
    """ROC AUC of one finding, labels and scores (N,), both classes present; rows (N,) each film's patient, 0 … P - 1.

    Parts are scaled by √(n / (n − 1)) for the n patients of a class, as in a sample's variance.
    """
    positive = np.asarray(labels) == 1
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
    """The difference of two numbers of different films, such as of two groups that may share patients."""
    counts = np.concatenate([one.counts, other.counts])
    return Estimate(one.value - other.value, np.concatenate([one.parts, -other.parts]), counts)


def paired(one: Estimate, other: Estimate) -> Estimate:
    """The difference of two readings of the same films."""
    return Estimate(one.value - other.value, one.parts - other.parts, one.counts)


def mean(estimates: Sequence[Estimate]) -> Estimate:
    parts = np.concatenate([each.parts for each in estimates]) / len(estimates)
    value = float(np.mean([each.value for each in estimates]))
    return Estimate(value, parts, np.concatenate([each.counts for each in estimates]))


def logit(estimate: Estimate) -> Estimate:
    """The same number as log odds, on which an AUC near 1 has room for its error."""
    slope = 1 / (estimate.value * (1 - estimate.value))
    value = float(np.log(estimate.value / (1 - estimate.value)))
    return Estimate(value, estimate.parts * slope, estimate.counts)


def against_others(found: Sequence[Estimate]) -> np.ndarray:
    """Two-sided p of each AUC against the mean of the others on the scale of log odds, (K,); NaN for one alone.

    An AUC that is high by chance looks surer than it is. So its variance is not taken below what the median of all
    variances, patient for patient, would be with its number of patients; the difference is as it would be with two
    more patients who are read as the others are; and freedom is that of the patients of the smaller class.
    """
    if len(found) < 2:
        return np.full(len(found), np.nan)
    own = [logit(one) for one in found]
    fewest = np.array([one.counts.min() for one in found])
    variances = np.array([one.error**2 for one in own])
    least, p = np.median(variances * fewest) / fewest, []
    for k, one in enumerate(own):
        gap = less(one, logit(mean([other for other in found if other is not found[k]])))
        error = np.sqrt(gap.error**2 + max(0.0, least[k] - variances[k]))
        shrunk = abs(gap.value) * fewest[k] / (fewest[k] + 2)
        p.append(2 * t.sf(shrunk / error, fewest[k] - 1))
    return np.array(p)


def imperfect(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores that rank one pair wrong where they ranked all right, or one right where all wrong.

    A perfect AUC shows no error of its own, and one film more might have been the first one ranked wrong.
    """
    positive = np.asarray(labels) == 1
    if metrics.roc_auc(labels, scores) not in (0.0, 1.0):
        return scores
    sign = 1.0 if scores[positive].min() > scores[~positive].max() else -1.0
    weakest = np.flatnonzero(positive)[np.argmin(sign * scores[positive])]
    strongest = np.flatnonzero(~positive)[np.argmax(sign * scores[~positive])]
    mended = np.array(scores, np.float64)
    mended[[weakest, strongest]] = mended[[strongest, weakest]]
    return mended


def components(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deviation of each film's placement among the other class from the mean placement, over the films of its class.

    positive (N,) bool, scores (S, N) → positives' (S, n₁) and negatives' (S, n₀); their products sum to variances.
    """
    ones = np.stack([_placed(row[positive], row[~positive]) for row in scores])
    zeros = np.stack([1 - _placed(row[~positive], row[positive]) for row in scores])
    return tuple((part - part.mean(1, keepdims=True)) / part.shape[1] for part in (ones, zeros))


def _placed(these: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each score of ``these`` the share of ``others`` below it, ties half."""
    ranked = np.sort(others)
    return (np.searchsorted(ranked, these, "left") + np.searchsorted(ranked, these, "right")) / 2 / len(ranked)


def _summed(rows: np.ndarray, deviations: np.ndarray, patients: int) -> tuple[np.ndarray, int]:
    """Deviations of a part's films summed by patient (P,), scaled for a small sample, and its number of patients."""
    n = len(np.unique(rows))
    scale = np.sqrt(n / (n - 1)) if n > 1 else np.nan
    return np.bincount(rows, deviations, patients) * scale, n
