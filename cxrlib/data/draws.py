"""Random numbers of an epoch as a pure function of (seed, epoch), by the counter-based generator Philox.

Only the generator's raw 64-bit stream is used (``philox``), which NumPy promises to keep the same over its versions.
"""

import numpy as np

from cxrlib import labels, philox

_ORDER, _TABLE = 0, 1
_HERNIA = labels.column("Hernia")


def uniform(films: int, draws: int, seed: int, epoch: int) -> np.ndarray:
    """(films, draws) float32 in [0, 1): a row of random numbers for every position of the epoch."""
    raw = philox.raw(films * draws, seed, epoch, _TABLE)
    return ((raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).reshape(films, draws)


def permutation(films: int, seed: int, epoch: int) -> np.ndarray:
    """(films,) int64: the positions 0 … films - 1 in random order."""
    return philox.permutation(films, seed, epoch, _ORDER)


def capped(marks: np.ndarray, cap: int) -> np.ndarray:
    """Positions (k,) int64, rising, of films kept when each of the 15 labels may occur ``cap`` times.

    ``marks`` is (N, 15), in the order of the draw. Every Hernia is kept and counted first; then a film is kept if none
    of its labels is used up yet. The original did the same film by film, but dropped the first film of each class that
    has that label alone; here no film is dropped for being first.
    """
    hernia = marks[:, _HERNIA] == 1
    counts = marks[hernia].sum(0, dtype=np.int64)
    full = counts >= cap
    full[_HERNIA] = False  # whatever the cap
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

