"""Random numbers that stay the same over NumPy's versions: the raw 64-bit stream of the generator Philox.

NumPy promises to keep the raw stream of a bit generator. What the methods of ``Generator`` (``permutation``,
``integers``) make of it may change from one version to the next, and a split or an interval would change with it.
"""

import numpy as np


def raw(count: int, seed: int, stream: int = 0, purpose: int = 0) -> np.ndarray:
    """Random (count,) uint64, a pure function of (seed, stream, purpose). A longer draw begins with the shorter one."""
    key = (seed % 2**64) | (stream << 64)
    return np.random.Philox(key=key, counter=purpose << 192).random_raw(count)


def permutation(n: int, seed: int, stream: int = 0, purpose: int = 0) -> np.ndarray:
    """Random order of 0 … n - 1, (n,) int64."""
    return np.argsort(raw(n, seed, stream, purpose), kind="stable")


def below(numbers: np.ndarray, n: int) -> np.ndarray:
    """Random int64 of 0 … n - 1 from raw numbers: upper 32 bits times n (Lemire 2019). n ≤ 2^31; bias n / 2^32."""
    return ((numbers >> np.uint64(32)) * np.uint64(n) >> np.uint64(32)).astype(np.int64)
