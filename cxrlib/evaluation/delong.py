"""DeLong's covariance of AUCs, fast (Sun & Xu 2014), by film or by patient; pure NumPy.

An AUC is a mean over its positives of "the share of negatives below", and likewise over its negatives; DeLong (1988)
reads its variance off the spread of those per-film *components*. Films of one patient are not independent: given
``patients``, components are summed within a patient first (Obuchowski 1997), which widens the interval as it should.
"""

import numpy as np


def covariance(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray | None = None) -> np.ndarray:
    """Covariance (S, S) of the AUCs of S sets of scores (S, N) for one finding, labels (N,) with both classes.

    NaN where a class has one film (one patient, given ``patients``) only.
    """
    positive = np.asarray(labels) == 1
    ones, zeros = components(positive, scores)
    if patients is None:
        return _variance(ones, ones.shape[1]) + _variance(zeros, zeros.shape[1])
    groups = np.unique(patients, return_inverse=True)[1].ravel()
    n_groups = groups.max() + 1
    of_ones, of_zeros = _summed(ones, groups[positive], n_groups), _summed(zeros, groups[~positive], n_groups)
    cross = of_ones @ of_zeros.T  # 0 where no patient has films of both classes
    n_ones, n_zeros = len(np.unique(groups[positive])), len(np.unique(groups[~positive]))
    return _variance(of_ones, n_ones) + _variance(of_zeros, n_zeros) + cross + cross.T


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


def _summed(parts: np.ndarray, groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Sums of one class's deviations (S, n) by group: (S, n_groups)."""
    return np.stack([np.bincount(groups, row, minlength=n_groups) for row in parts])


def _variance(deviations: np.ndarray, n: int) -> np.ndarray:
    """One class's share of the covariance, with the small-sample n / (n − 1) over its n films or patients."""
    return deviations @ deviations.T * n / (n - 1) if n > 1 else np.full((len(deviations),) * 2, np.nan)
