"""DeLong's covariance of AUCs, fast (Sun & Xu 2014), by film or by patient; pure NumPy.

An AUC is a mean over its positives of "the share of negatives below", and likewise over its negatives; DeLong (1988)
reads its variance off the spread of those per-film *components*. Films of one patient are not independent: given
``patients``, components are summed within a patient first (Obuchowski 1997), which widens the interval as it should.
"""

import numpy as np
from scipy.stats import rankdata


def covariance(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray | None = None) -> np.ndarray:
    """Covariance (S, S) of the AUCs of S sets of scores (S, N) for one finding, labels (N,) with both classes.

    NaN where a class has one film (one patient, given ``patients``) only.
    """
    positive = np.asarray(labels) == 1
    groups = np.arange(len(positive)) if patients is None else np.unique(patients, return_inverse=True)[1].ravel()
    if min(len(np.unique(groups[positive])), len(np.unique(groups[~positive]))) < 2:
        return np.full((len(scores), len(scores)), np.nan)
    parts = components(positive, scores)
    ones = _summed(parts[:, positive], groups[positive], groups.max() + 1)
    zeros = _summed(parts[:, ~positive], groups[~positive], groups.max() + 1)
    cross = ones @ zeros.T  # 0 where no patient has films of both classes
    return _spread(ones, groups[positive]) + _spread(zeros, groups[~positive]) + cross + cross.T


def components(positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Placement of each film among the other class, by mid-ranks: positive (N,) bool, scores (S, N) → (S, N), 0..1."""
    n_positive, n_negative = np.count_nonzero(positive), np.count_nonzero(~positive)
    found = rankdata(scores, axis=1)
    found[:, positive] -= rankdata(scores[:, positive], axis=1)
    found[:, ~positive] -= rankdata(scores[:, ~positive], axis=1)
    found[:, positive] /= n_negative
    found[:, ~positive] = 1 - found[:, ~positive] / n_positive
    return found


def _summed(parts: np.ndarray, groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Deviations of one class's components from their mean, summed by group and over the films: (S, n_groups)."""
    centred = parts - parts.mean(1, keepdims=True)
    return np.stack([np.bincount(groups, row, minlength=n_groups) for row in centred]) / parts.shape[1]


def _spread(summed: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """One class's share of the covariance, with the small-sample n / (n − 1) over its n groups."""
    n = len(np.unique(groups))
    return summed @ summed.T * n / (n - 1)
