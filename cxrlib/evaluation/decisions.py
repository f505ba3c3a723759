"""From a checkpoint's probabilities to true ones and to calls: calibration and thresholds that travel with it.

Both are chosen on validation films and written into the checkpoint's JSON, so that whoever has the checkpoint decides
as its evaluation did. Thresholds are on calibrated probabilities.
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
    """``chosen``: thresholds as ``thresholds.choose`` gives them; ``made_on`` says on what both were chosen."""

    calibration: calibration.Calibration
    chosen: pd.DataFrame
    made_on: dict[str, int | str] = field(default_factory=dict)

    def cuts(self, rule: str = "youden") -> np.ndarray:
        """One rule's thresholds on calibrated probabilities, (15,) with NaN where undefined. UserError for another."""
        return thresholds.vector(thresholds.as_dict(self.chosen), rule)

    def calls(self, probabilities: np.ndarray, rule: str = "youden") -> np.ndarray:
        """1.0 where a label is called, 0.0 where not, NaN in columns without a threshold: (N, 15) → (N, 15).

        probabilities as the network gives them.
        """
        cuts = self.cuts(rule)
        return np.where(np.isnan(cuts), np.nan, self.calibration(probabilities) >= np.nan_to_num(cuts))

    def judge(
        self, labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, *, seed: int = 0
    ) -> pd.DataFrame:
        """``thresholds.judge`` on other films, whose probabilities are as the network gives them."""
        return thresholds.judge(self.chosen, labels, self.calibration(probabilities), patients, seed=seed)


def choose(
    labels: np.ndarray, probabilities: np.ndarray, kind: str = "platt", *, gamma: float = 0.0, **made_on: int | str
) -> Decisions:
    """Fit a calibration on *validation*, and choose each rule's thresholds on what it gives there; both (N, 15).

    kind and gamma as for ``calibration.fit``; made_on: how the probabilities came about, such as size and tta.
    """
    fitted = calibration.fit(labels, probabilities, kind, gamma)
    made_on = {"part": "validation", "films": len(labels), **made_on}
    return Decisions(fitted, thresholds.choose(labels, fitted(probabilities)), made_on)


def attach(path: Path, made: Decisions) -> Path:
    """Write both into the JSON of the checkpoint at ``path``; returns the JSON's path."""
    checkpoint.attach(path, CALIBRATION, {**made.calibration.as_dict(), "made_on": made.made_on})
    return checkpoint.attach(path, THRESHOLDS, thresholds.as_dict(made.chosen))


def read(path: Path) -> Decisions:
    """What ``attach`` wrote. Raises UserError where the checkpoint carries none, or damaged or foreign ones."""
    fitted = checkpoint.attached(path, CALIBRATION)
    chosen = thresholds.from_dict(checkpoint.attached(path, THRESHOLDS), f"thresholds of {path.stem}")
    return Decisions(
        calibration.from_dict(fitted, f"calibration of {path.stem}"), chosen, dict(fitted.get("made_on", {}))
    )
