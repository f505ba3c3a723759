"""How sure a number is: 95 % intervals by patient bootstrap and by DeLong, and what several tests at once cost.

Films of one patient resemble each other, so they are resampled together: a bootstrap by film believes it has more
evidence than there is. Pure NumPy, and SciPy for the normal distribution alone.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from cxrlib.errors import UserError
from cxrlib.evaluation import delong as _delong
from cxrlib.evaluation import metrics, resample

LEVEL = 0.95
Z = float(norm.ppf((1 + LEVEL) / 2))
BLOCK = 1000  # resamples computed together; bounds memory at (distinct scores of positives) × 1000 running weights
POOLED = 100  # the same where all labels count at once, and have fifteen times as many scores
LEAST_DEFINED = 0.9
"""An interval needs this share of resamples with both classes: at about three patients with the finding or more."""


class Interval(NamedTuple):
    """A number with its interval; all NaN where undefined."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A difference with its interval and two-sided p against "none"."""

    value: float
    low: float
    high: float
    p: float


class Band(NamedTuple):
    """A pointwise interval along a curve, (M,) each."""

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Bootstrap:
    """AUC and average precision of K findings on R resamples of the patients.

    auc, ap (K,): on the films as they are. auc_replicates, ap_replicates (R, K): NaN where a resample lacks a class.
    Intervals are percentiles of the replicates, at ``LEVEL``; NaN where fewer than ``LEAST_DEFINED`` are defined.
    """

    auc: np.ndarray
    ap: np.ndarray
    auc_replicates: np.ndarray
    ap_replicates: np.ndarray

    @property
    def auc_interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high end per finding, (K,) each."""
        return percentiles(self.auc_replicates)

    @property
    def ap_interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high end per finding, (K,) each."""
        return percentiles(self.ap_replicates)

    @property
    def mean_auc(self) -> Interval:
        """Mean over the 14 findings that are defined; in a resample, over those that are defined there."""
        return _mean_interval(self.auc, self.auc_replicates)

    @property
    def mean_ap(self) -> Interval:
        return _mean_interval(self.ap, self.ap_replicates)


def bootstrap(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: np.ndarray,
    *,
    replicates: int = 1000,
    seed: int = 0,
    precision: bool = True,
) -> Bootstrap:
    """Resample patients and measure every finding each time.

    labels (N, K) of 0 and 1, probabilities (N, K), patients (N,). The same patients and seed draw the same resamples,
    so the replicates of two models on the same films may be subtracted (``difference``). Without ``precision`` the
    replicates of AP are left out (NaN), which halves the time.
    """
    _check(labels, probabilities, patients)
    auc, ap = metrics.auc_per_label(labels, probabilities), metrics.ap_per_label(labels, probabilities)
    counts, rows = resample.draw(patients, replicates, seed)
    found = np.full((2, replicates, labels.shape[1]), np.nan)
    for start in range(0, replicates, BLOCK):
        block = np.ascontiguousarray(counts[:, start : start + BLOCK])
        for k in np.flatnonzero(labels.any(0)):
            at = resample.steps(labels[:, k], probabilities[:, k], block, rows)
            found[0, start : start + BLOCK, k] = resample.auc(at)
            if precision:
                found[1, start : start + BLOCK, k] = resample.average_precision(at)
    return Bootstrap(auc, ap, *found)


def micro_auc(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray, *, replicates: int = 300, seed: int = 0
) -> Interval:
    """``metrics.micro_auc``, over all film-label pairs at once, with its interval by patient: (N, K), (N, K), (N,)."""
    _check(labels, scores, patients)
    counts, rows = resample.draw(patients, replicates, seed)
    pairs = np.ravel(labels), np.ravel(scores), np.repeat(rows, labels.shape[1])
    parts = np.array_split(counts, -(-replicates // POOLED), axis=1)
    found = [resample.auc(resample.steps(*pairs[:2], np.ascontiguousarray(part), pairs[2])) for part in parts]
    low, high = percentiles(np.concatenate(found)[:, None])
    return Interval(metrics.micro_auc(labels, scores), float(low[0]), float(high[0]))


def difference(ours: Bootstrap, theirs: Bootstrap) -> Difference:
    """Difference of two models' mean AUC on the same films, paired resample by resample (same patients and seed).

    p is twice the share of resamples on the other side of 0, and never below 1 / R.
    Raises UserError where the two were not resampled alike.
    """
    if ours.auc_replicates.shape != theirs.auc_replicates.shape:
        raise UserError("two bootstraps of different size cannot be paired; use the same films, replicates and seed")
    both = ~np.isnan(ours.auc[metrics.HEADLINE]) & ~np.isnan(theirs.auc[metrics.HEADLINE])
    value = metrics.nanmean((ours.auc - theirs.auc)[metrics.HEADLINE][both])
    gaps = metrics.nanmean((ours.auc_replicates - theirs.auc_replicates)[:, metrics.HEADLINE][:, both], axis=1)
    low, high = percentiles(gaps[:, None])
    gaps = gaps[~np.isnan(gaps)]
    if len(gaps) == 0:
        return Difference(value, np.nan, np.nan, np.nan)
    p = 2 * min((gaps <= 0).mean(), (gaps >= 0).mean())
    return Difference(value, float(low[0]), float(high[0]), float(np.clip(p, 1 / len(gaps), 1)))


def percentiles(replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high end of the central ``LEVEL`` of replicates (R, ...) along the first axis; NaN as ``Bootstrap``."""
    defined = ~np.isnan(replicates)
    enough = defined.mean(0) >= LEAST_DEFINED
    ends = np.full((2, *replicates.shape[1:]), np.nan)
    if enough.any():
        ends[:, enough] = np.nanquantile(replicates[:, enough], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return ends[0], ends[1]


def roc_band(
    labels: np.ndarray,
    scores: np.ndarray,
    patients: np.ndarray,
    *,
    replicates: int = 500,
    seed: int = 0,
    at: np.ndarray | None = None,
) -> Band:
    """Pointwise interval of one finding's sensitivity along the false-positive rate; NaN where undefined."""
    rates = np.linspace(0, 1, 101) if at is None else at
    return _band(resample.sensitivity, rates, labels, scores, patients, replicates, seed)


def pr_band(
    labels: np.ndarray,
    scores: np.ndarray,
    patients: np.ndarray,
    *,
    replicates: int = 500,
    seed: int = 0,
    at: np.ndarray | None = None,
) -> Band:
    """Pointwise interval of one finding's precision along the recall; NaN where undefined."""
    recalls = np.linspace(0.01, 1, 100) if at is None else at
    return _band(resample.precision, recalls, labels, scores, patients, replicates, seed)


def delong(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray | None = None) -> Interval:
    """ROC AUC of one finding with DeLong's normal interval, cut at 0 and 1; NaN where undefined.

    labels, scores (N,); with patients (N,) the interval allows for several films of a patient. A perfect AUC of 1
    has no spread, so its interval has no width: read n beside it.
    """
    value = metrics.roc_auc(labels, scores)
    if np.isnan(value):
        return Interval(np.nan, np.nan, np.nan)
    half = Z * np.sqrt(_delong.covariance(labels, scores[None], patients)[0, 0])
    return Interval(value, float(np.clip(value - half, 0, 1)), float(np.clip(value + half, 0, 1)))


def delong_difference(
    labels: np.ndarray, a: np.ndarray, b: np.ndarray, patients: np.ndarray | None = None
) -> Difference:
    """AUC of scores ``a`` minus AUC of scores ``b`` for one finding on the same films, paired; all (N,).

    NaN where undefined. Scores that place every film alike differ by exactly 0, with p = 1.
    """
    gap = metrics.roc_auc(labels, a) - metrics.roc_auc(labels, b)
    if np.isnan(gap):
        return Difference(np.nan, np.nan, np.nan, np.nan)
    spread = _delong.covariance(labels, np.stack([a, b]), patients)
    error = float(np.sqrt(np.maximum(spread[0, 0] + spread[1, 1] - 2 * spread[0, 1], 0)))
    if error < 1e-9:
        return Difference(gap, gap, gap, 1.0 if abs(gap) < 1e-9 else np.nan)
    return Difference(gap, gap - Z * error, gap + Z * error, float(2 * norm.sf(abs(gap) / error)))


def holm(p: np.ndarray) -> np.ndarray:
    """P values adjusted for being several (Holm 1979): calling those ≤ 0.05 errs in 5 % of such families at most.

    p (K,) → (K,); NaN (undefined) stays NaN and does not count as a test.
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]  # NaN sorts last
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted


def ratio(
    parts: np.ndarray, wholes: np.ndarray, patients: np.ndarray, *, replicates: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ratios of sums over films, such as a sensitivity or a mean, with percentile intervals by patient.

    parts, wholes (N, M): each film's share of numerator and denominator. Returns value, low and high, (M,) each; NaN
    where the denominator is 0, or 0 too often among the resamples. None or all of several is no certainty, though every
    resample says the same: the interval of such a share, 0 or 1, is Wilson's over the patients that count.
    """
    found = resample.ratio(parts, wholes, *resample.draw(patients, replicates, seed))
    whole = wholes.sum(0, dtype=np.float64)
    value = np.divide(parts.sum(0), whole, out=np.full(len(whole), np.nan), where=whole != 0)
    low, high = percentiles(found)
    for m in np.flatnonzero(((value == 0) | (value == 1)) & ~np.isnan(low) & (parts <= wholes).all(0)):
        who = len(np.unique(patients[wholes[:, m] != 0]))
        low[m], high[m] = proportion(int(value[m]) * who, who)[1:]
    return value, low, high


def proportion(part: int, whole: int) -> Interval:
    """A share of counted, independent things with its Wilson (1927) interval; all NaN when ``whole`` is 0."""
    if whole == 0:
        return Interval(np.nan, np.nan, np.nan)
    share, shrink = part / whole, 1 + Z**2 / whole
    middle = (share + Z**2 / (2 * whole)) / shrink
    half = Z / shrink * np.sqrt(share * (1 - share) / whole + Z**2 / (4 * whole**2))
    return Interval(share, float(np.clip(middle - half, 0, share)), float(np.clip(middle + half, share, 1)))


def _band(read, x, labels, scores, patients, replicates, seed) -> Band:
    _check(labels[:, None], scores[:, None], patients)
    counts, rows = resample.draw(patients, replicates, seed)
    blocks = [np.ascontiguousarray(counts[:, start : start + BLOCK]) for start in range(0, replicates, BLOCK)]
    curves = [read(resample.steps(labels, scores, block, rows), x) for block in blocks]
    return Band(x, *percentiles(np.concatenate(curves)))


def _mean_interval(values: np.ndarray, replicates: np.ndarray) -> Interval:
    low, high = percentiles(metrics.nanmean(replicates[:, metrics.HEADLINE], axis=1)[:, None])
    return Interval(metrics.nanmean(values[metrics.HEADLINE]), float(low[0]), float(high[0]))


def _check(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> None:
    if labels.shape != scores.shape or len(labels) != len(patients):
        shapes = f"labels {labels.shape}, scores {scores.shape}, patients {np.shape(patients)}"
        raise UserError(f"{shapes} are not of the same films; pass them in one order")
    if len(patients) == 0:
        raise UserError("no films to resample; the part is empty")
