"""Bands of ROC and precision-recall curves: pointwise 95 % intervals by patient; pure NumPy.

A band needs as many patients as the interval of an AUC.
"""

from typing import NamedTuple

import numpy as np

from cxrlib.evaluation import intervals, resample


class Band(NamedTuple):
    """Pointwise interval along a curve, (M,) each."""

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray


def roc_band(
    labels: np.ndarray,
    scores: np.ndarray,
    patients: np.ndarray,
    *,
    replicates: int = 500,
    seed: int = 0,
    at: np.ndarray | None = None,
) -> Band:
    """Pointwise interval of one finding's sensitivity along the false-positive rate.

    NaN where undefined, and below ``intervals.LEAST`` patients with or without the finding.
    """
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
    """Pointwise interval of one finding's precision along the recall; NaN as for ``roc_band``."""
    recalls = np.linspace(0.01, 1, 100) if at is None else at
    return _band(resample.precision, recalls, labels, scores, patients, replicates, seed)


def _band(read, x, labels, scores, patients, replicates, seed) -> Band:
    intervals.check(labels[:, None], scores[:, None], patients)
    counts, rows = resample.draw(patients, replicates, seed)
    fewest = intervals.patients_of(labels[:, None], rows, len(counts))[0].min()
    if fewest < intervals.LEAST:
        return Band(x, *np.full((2, len(x)), np.nan))
    blocks = [
        np.ascontiguousarray(counts[:, start : start + intervals.BLOCK])
        for start in range(0, replicates, intervals.BLOCK)
    ]
    curves = [read(resample.steps(labels, scores, block, rows), x) for block in blocks]
    return Band(x, *intervals.percentiles(np.concatenate(curves), fewest))
