"""Cohort of the phantom set: patients, follow-ups, view positions and findings as in ChestX-ray14.

Every constant is a count in the dataset's own table of 112,120 films (``Data_Entry_2017_v2020.csv``).
"""

import numpy as np
import pandas as pd
from scipy.special import ndtri

from cxrlib.labels import FINDINGS

FILMS = 112_120
FILMS_AP = 44_810
MALE = 0.565
TEST_SHARE = 25_596 / FILMS
"""The official test list holds 25,596 films."""

FILMS_PER_PATIENT = (0.568, 0.134, 0.068, 0.043, 0.030, 0.026, 0.020, 0.016, 0.013, 0.010, 0.009, 0.063)
"""Share of patients with 1, 2, ... films. The last value is for 12 or more (up to 184 in the dataset)."""

AGE_QUANTILES = ((0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1), (1, 8, 18, 34, 49, 59, 72, 79, 95))

PERSISTENCE = 0.55
"""Share of a finding's liability that is the same on all films of a patient. A finding then recurs on a third to a half
of the next films, as in the dataset (Effusion 0.49, Infiltration 0.39, Fibrosis 0.20)."""

AP_SHARE = (0.50, 0.44, 0.51, 0.53, 0.38, 0.34, 0.56, 0.36, 0.67, 0.88, 0.40, 0.16, 0.29, 0.15)
"""Share of each finding's films that are AP."""

TOGETHER = np.array(
    [
        [11559, 370, 3275, 3264, 739, 590, 262, 774, 1223, 221, 424, 220, 496, 40],
        [370, 2776, 1063, 587, 102, 108, 41, 49, 169, 127, 44, 52, 111, 7],
        [3275, 1063, 13317, 4000, 1254, 912, 269, 996, 1287, 593, 359, 188, 849, 21],
        [3264, 587, 4000, 19894, 1159, 1546, 605, 946, 1221, 981, 449, 345, 750, 33],
        [739, 102, 1254, 1159, 5782, 906, 71, 431, 610, 129, 215, 117, 452, 25],
        [590, 108, 912, 1546, 906, 6331, 70, 341, 428, 131, 115, 166, 411, 10],
        [262, 41, 269, 605, 71, 70, 1431, 41, 123, 340, 23, 11, 48, 3],
        [774, 49, 996, 946, 431, 341, 41, 5302, 223, 33, 747, 80, 289, 9],
        [1223, 169, 1287, 1221, 610, 428, 123, 223, 4667, 162, 103, 79, 251, 4],
        [221, 127, 593, 981, 129, 131, 340, 33, 162, 2303, 30, 9, 64, 3],
        [424, 44, 359, 449, 215, 115, 23, 747, 103, 30, 2516, 36, 151, 4],
        [220, 52, 188, 345, 117, 166, 11, 80, 79, 9, 36, 1686, 176, 8],
        [496, 111, 849, 750, 452, 411, 48, 289, 251, 64, 151, 176, 3385, 8],
        [40, 7, 21, 33, 25, 10, 3, 9, 4, 3, 4, 8, 8, 227],
    ]
)
"""Films with both findings, (14, 14); on the diagonal films with the finding."""

PREVALENCE = TOGETHER.diagonal() / FILMS


def sample_cohort(films: int, seed: int, least: float) -> pd.DataFrame:
    """Random table of ``films`` films, sorted by patient and follow-up.

    The columns are patient, follow_up, age, sex, view, the 14 findings (0 or 1) and test (bool). A finding is on the
    dataset's share of films, or on the share ``least`` if this is larger, and on at least one film. Test patients are
    drawn so that they have about the share TEST_SHARE of each finding.
    """
    rng = np.random.default_rng([seed, films])
    per_patient = rng.choice(len(FILMS_PER_PATIENT), films, p=FILMS_PER_PATIENT) + 1
    patient = np.repeat(np.arange(films), per_patient)[:films]  # (films,), 0-based
    follow_up = np.arange(films) - np.searchsorted(patient, patient)
    age = np.interp(rng.random(films), *AGE_QUANTILES)[patient] + follow_up * 0.4
    sex = np.where(rng.random(films) < MALE, "M", "F")[patient]
    portable = rng.random(films) < FILMS_AP / FILMS
    has = _findings(rng, patient, portable, least)
    view = np.where(portable, "AP", "PA")
    table = {"patient": patient + 1, "follow_up": follow_up, "age": age.astype(int), "sex": sex, "view": view}
    test = _test_patients(rng, patient, has)[patient]
    return pd.DataFrame(table | dict(zip(FINDINGS, has.T.astype(np.uint8), strict=True)) | {"test": test})


def _findings(rng: np.random.Generator, patient: np.ndarray, portable: np.ndarray, least: float) -> np.ndarray:
    """Findings of films, (films, 14) bool: the films with the highest (normally distributed) liability have one."""
    films = len(patient)
    factor = np.linalg.cholesky(liability_correlation())
    of_patient, of_film = rng.standard_normal((patient[-1] + 1, 14)), rng.standard_normal((films, 14))
    liability = (np.sqrt(PERSISTENCE) * of_patient[patient] + np.sqrt(1 - PERSISTENCE) * of_film) @ factor.T
    share = np.maximum(PREVALENCE, least)
    ap = np.array(AP_SHARE)
    by_view = np.stack([(1 - ap) / (1 - FILMS_AP / FILMS), ap / (FILMS_AP / FILMS)]) * share  # (2, 14): in PA, in AP
    excess = liability + ndtri(np.clip(by_view, 1e-6, 0.95))[portable.astype(int)]
    has = np.zeros((films, 14), bool)
    for column, count in enumerate(np.maximum(1, np.round(share * films)).astype(int)):
        has[np.argsort(-excess[:, column], kind="stable")[:count], column] = True
    return has


def liability_correlation() -> np.ndarray:
    """Correlations of the findings' liabilities, (14, 14), that give the dataset's co-occurrence.

    These are tetrachoric correlations, approximated from the odds ratio (Bonett and Price, J. Educ. Behav. Stat.
    2005;30:213-225).
    """
    both = TOGETHER + 0.5
    one = TOGETHER.diagonal()[:, None] - TOGETHER + 0.5
    neither = FILMS - TOGETHER.diagonal()[:, None] - TOGETHER.diagonal() + TOGETHER + 0.5
    odds = both * neither / (one * one.T)
    rarer = np.minimum(PREVALENCE[:, None], PREVALENCE)
    power = (1 - np.abs(PREVALENCE[:, None] - PREVALENCE) / 5 - (0.5 - rarer) ** 2) / 2
    correlation = np.cos(np.pi / (1 + odds**power))
    np.fill_diagonal(correlation, 1)
    values, vectors = np.linalg.eigh(correlation)
    definite = (vectors * np.maximum(values, 1e-4)) @ vectors.T
    scale = np.sqrt(definite.diagonal())
    return definite / scale[:, None] / scale


def _test_patients(rng: np.random.Generator, patient: np.ndarray, has: np.ndarray, tries: int = 200) -> np.ndarray:
    """Test patients, (patients,) bool: the best of ``tries`` random draws by each finding's distance to TEST_SHARE."""
    patients = patient[-1] + 1
    per_patient = np.column_stack([np.bincount(patient, has[:, j], patients) for j in range(14)])
    total, films = per_patient.sum(0), np.bincount(patient)
    best, lowest_cost = np.zeros(patients, bool), np.inf
    for _ in range(tries):
        order = rng.permutation(patients)
        draw = np.zeros(patients, bool)
        draw[order[np.cumsum(films[order]) <= max(TEST_SHARE * len(patient), films[order[0]])]] = True
        positives = per_patient[draw].sum(0)
        cost = ((positives / total - TEST_SHARE) ** 2).sum() + ((positives == 0) | (positives == total)).sum()
        if cost < lowest_cost:
            best, lowest_cost = draw, cost
    return best
