"""Random numbers that are the same in every version of NumPy: the raw 64-bit stream of the Philox generator.

NumPy guarantees the raw stream of a bit generator. It does not guarantee the results of ``Generator.permutation`` and
``Generator.integers``. If these changed, a split or an interval would change too.
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
