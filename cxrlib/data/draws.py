"""Random numbers of an epoch, a pure function of (seed, epoch), and the sampler with a cap per class.

The numbers come from ``philox``, so they are the same in every version of NumPy.
"""

import numpy as np

from cxrlib import labels, philox

_ORDER, _TABLE = 0, 1
_HERNIA = labels.column("Hernia")


def uniform(films: int, draws: int, seed: int, epoch: int) -> np.ndarray:
    """Random numbers (films, draws) float32 in [0, 1): one row per position of the epoch."""
    raw = philox.raw(films * draws, seed, epoch, _TABLE)
    return ((raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).reshape(films, draws)


def permutation(films: int, seed: int, epoch: int) -> np.ndarray:
    """Random order of the positions 0 … films - 1, (films,) int64."""
    return philox.permutation(films, seed, epoch, _ORDER)


def capped(marks: np.ndarray, cap: int) -> np.ndarray:
    """Films kept if each of the 15 labels may occur ``cap`` times: positions (k,) int64, ascending.

    ``marks`` are labels (N, 15) in the order of the draw. All Hernia films are kept and counted first. Then a film is
    kept if none of its labels has reached the cap. The original did this film by film, and dropped the first film of
    each class that has only that label; this function keeps it.
    """
    hernia = marks[:, _HERNIA] == 1
    counts = marks[hernia].sum(0, dtype=np.int64)
    full = counts >= cap
    full[_HERNIA] = False  # Hernia has no cap
    kept = [np.flatnonzero(hernia)]
    rest = np.flatnonzero(~hernia)
    while len(rest := rest[~marks[rest][:, full].any(1)]):
        running = counts + marks[rest].cumsum(0, dtype=np.int64)  # (n, 15)
        filled = np.flatnonzero((running >= cap)[:, :_HERNIA].any(1) | (running >= cap)[:, _HERNIA + 1 :].any(1))
        end = filled[0] + 1 if len(filled) else len(rest)
        kept.append(rest[:end])
        counts, rest = running[end - 1], rest[end:]
        full = counts >= cap
        full[_HERNIA] = False
    return np.sort(np.concatenate(kept))
