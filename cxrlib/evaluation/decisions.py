"""Calibration and thresholds of a checkpoint, stored in its JSON.

Both are chosen on validation films, so every user of the checkpoint gets the same decisions as its evaluation.
Thresholds apply to calibrated probabilities.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib.evaluation import calibration, thresholds
from cxrlib.training import checkpoint

CALIBRATION, THRESHOLDS = "calibration", "thresholds"


@dataclass(frozen=True)
class Decisions:
    """Calibration and thresholds: ``chosen`` as from ``thresholds.choose``; ``made_on``: the films both come from."""

    calibration: calibration.Calibration
    chosen: pd.DataFrame
    made_on: dict[str, int | str] = field(default_factory=dict)

    def cuts(self, rule: str = "youden") -> np.ndarray:
        """Thresholds of a rule on calibrated probabilities, (15,), NaN where undefined. UserError for another rule."""
        return thresholds.vector(thresholds.as_dict(self.chosen), rule)

    def calls(self, probabilities: np.ndarray, rule: str = "youden") -> np.ndarray:
        """Calls of labels from the network's probabilities: (N, 15) → (N, 15), 1.0 positive, 0.0 negative.

        NaN in columns without a threshold.
        """
        cuts = self.cuts(rule)
        return np.where(np.isnan(cuts), np.nan, self.calibration(probabilities) >= np.nan_to_num(cuts))

    def judge(
        self, labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, *, seed: int = 0
    ) -> pd.DataFrame:
        """Results of the thresholds (``thresholds.judge``) on other films, from the network's probabilities."""
        return thresholds.judge(self.chosen, labels, self.calibration(probabilities), patients, seed=seed)


def choose(
    labels: np.ndarray, probabilities: np.ndarray, kind: str = "platt", *, gamma: float = 0.0, **made_on: int | str
) -> Decisions:
    """Fit a calibration on *validation*, then choose each rule's thresholds on its probabilities; both (N, 15).

    kind and gamma as for ``calibration.fit``; made_on: settings of the probabilities, such as size and tta.
    """
    fitted = calibration.fit(labels, probabilities, kind, gamma)
    made_on = {"part": "validation", "films": len(labels), **made_on}
    return Decisions(fitted, thresholds.choose(labels, fitted(probabilities)), made_on)


def attach(path: Path, made: Decisions) -> Path:
    """Write both into the JSON of the checkpoint at ``path``; returns the JSON's path."""
    checkpoint.attach(path, CALIBRATION, {**made.calibration.as_dict(), "made_on": made.made_on})
    return checkpoint.attach(path, THRESHOLDS, thresholds.as_dict(made.chosen))


def read(path: Path) -> Decisions:
    """Decisions that ``attach`` wrote. Raises UserError if the checkpoint has none, or damaged or foreign ones."""
    fitted = checkpoint.attached(path, CALIBRATION)
    chosen = thresholds.from_dict(checkpoint.attached(path, THRESHOLDS), f"thresholds of {path.stem}")
    return Decisions(
        calibration.from_dict(fitted, f"calibration of {path.stem}"), chosen, dict(fitted.get("made_on", {}))
    )
