"""Hospitals of the phantom set: A, whose films all other drawings are, and B, another hospital for external validation.

B differs as hospitals do: more portable (AP) films, other prevalence, another exposure and noise, name plates that are
blacked out and a marker on the other side. Its people are others: patients are numbered from ``FIRST_PATIENT_OF_B``.
"""

import cv2
import numpy as np
import pandas as pd

from cxrlib import UserError
from cxrlib.labels import FINDINGS
from cxrlib.phantom import cohort

NAMES = ("A", "B")
FIRST_PATIENT_OF_B = 1_000_001

CHOICE = 4
"""Films that are sampled for each film of B. Of these, B's are drawn by weight, so findings go together as in A."""

PORTABLE_WEIGHT = 4.0
"""Weight of an AP film of B. With it about three of four films are portable (A: two of five)."""

FINDING_WEIGHTS = {
    "Effusion": 1.8,
    "Edema": 2.0,
    "Consolidation": 1.8,
    "Pneumonia": 1.6,
    "Nodule": 0.4,
    "Mass": 0.4,
    "Emphysema": 0.5,
    "Fibrosis": 0.5,
}
"""Weights of a film of B by its findings: wards and intensive care instead of an outpatient clinic."""

GAMMA, LOWEST, CONTRAST, NOISE = 1.5, 0.1, 0.78, 0.022
"""Grey curve and noise of B: grey = LOWEST + CONTRAST * grey^GAMMA, plus noise of this standard deviation (white =
1)."""

_STREAM = 2


def check(name: str) -> None:
    """Raise UserError unless a hospital has this name."""
    if name not in NAMES:
        raise UserError(f"phantom hospital is {name!r}; give {' or '.join(NAMES)}")


def sample_cohort(hospital: str, films: int, seed: int, least: float) -> pd.DataFrame:
    """Random table of a hospital's films, with the columns of ``cohort.sample_cohort``.

    In B each finding is on at least one film; ``least`` holds for the films among which B's are drawn.
    """
    if hospital == "A":
        return cohort.sample_cohort(films, seed, least)
    table = cohort.sample_cohort(CHOICE * films, seed, least)
    has = table[list(FINDINGS)].to_numpy(bool)
    weights = np.array([FINDING_WEIGHTS.get(name, 1.0) for name in FINDINGS])
    weight = np.where(has, weights, 1.0).prod(1) * np.where(table["view"] == "AP", PORTABLE_WEIGHT, 1.0)
    rng = np.random.default_rng([seed, films, _STREAM])
    order = np.argsort(-(np.log(weight) + rng.gumbel(size=len(table))), kind="stable")  # a draw without replacement
    first = [order[has[order, k]][0] for k in range(len(FINDINGS))]
    chosen = np.sort(pd.unique(np.concatenate([first, order]))[:films])
    result = table.iloc[chosen].reset_index(drop=True)
    return result.assign(patient=result["patient"] + FIRST_PATIENT_OF_B - 1)


def develop(hospital: str, pixels: np.ndarray, *, seed: int, patient: int, follow_up: int, view: str) -> np.ndarray:
    """A drawn film, (S, S) uint8, as the hospital's machine gives it. Films of A are as they were drawn."""
    if hospital == "A":
        return pixels
    rng = np.random.default_rng([seed, patient, follow_up, _STREAM])
    grey = LOWEST + CONTRAST * (pixels / np.float32(255)) ** np.float32(GAMMA * rng.uniform(0.9, 1.1))
    grey += NOISE * rng.standard_normal(grey.shape, np.float32)
    film = np.clip(grey * 255, 0, 255).astype(np.uint8)
    size = len(film)
    film[: size * 16 // 100, size * 86 // 100 :] = 0  # where A's markers are, B has blacked out the names
    film[: size * 12 // 100, : size * 34 // 100] = 0
    _mark(film, rng, portable=view == "AP")
    return film


def _mark(film: np.ndarray, rng: np.random.Generator, *, portable: bool) -> None:
    """Draw B's marker: R in a ring at the patient's right side, and SUPINE on portable films."""
    size = len(film)
    scale, thick = size / 900, max(1, size // 300)
    x, y = int(size * rng.uniform(0.06, 0.1)), int(size * rng.uniform(0.2, 0.28))
    cv2.circle(film, (x, y), int(size * 0.035), 255, thick, cv2.LINE_AA)
    place = (x - int(size * 0.018), y + int(size * 0.018))
    cv2.putText(film, "R", place, cv2.FONT_HERSHEY_DUPLEX, 1.3 * scale, 255, thick, cv2.LINE_AA)
    if portable:
        place = (int(size * 0.72), int(size * 0.97))
        cv2.putText(film, "SUPINE", place, cv2.FONT_HERSHEY_SIMPLEX, 0.8 * scale, 240, thick, cv2.LINE_AA)
