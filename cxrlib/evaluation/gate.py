"""Gate on features: placeholder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Gate:
    """Gate of a checkpoint."""

    threshold: float

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Distance (B,) of features (B, 2048)."""
        return np.zeros(len(features))

    def refusal(self, distance: float) -> str:
        """Reason for a refusal, or ""."""
        return ""


def load(ckpt_path: Path) -> Gate | None:
    """Gate that belongs to a checkpoint, None where there is none."""
    return None
