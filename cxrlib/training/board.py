"""A stage's history for TensorBoard, where that is installed; where it is not, or fails, training goes on without."""

import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cxrlib.labels import FINDINGS

FOLDER = "tensorboard"
SCALARS = {"train_loss": "loss/training", "val_loss": "loss/validation", "lr": "rate", "images_per_s": "images per s"}


class Board:
    """Writes each epoch's row of the history as scalars into ``tensorboard/`` in a stage's folder.

    Nothing is written where TensorBoard is not installed. What goes wrong is warned of once, and ends nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.events = folder / FOLDER, None
        self.on = find_spec("tensorboard") is not None

    def begin(self) -> None:
        """Start anew: what an earlier training wrote is gone, and one that is gone on with is written again."""
        if self.on:
            self._try(lambda: shutil.rmtree(self.folder, ignore_errors=True))

    def epoch(self, row: dict[str, Any]) -> None:
        """Write one row; findings whose AUC is undefined are left out."""
        if self.on:
            self._try(lambda: self._write(row))

    def close(self) -> None:
        if self.events:
            with suppress(Exception):
                self.events.close()

    def _write(self, row: dict[str, Any]) -> None:
        if self.events is None:
            from torch.utils.tensorboard import SummaryWriter  # seconds to import, and not everybody has it

            self.events = SummaryWriter(str(self.folder))
        aucs = {f"AUC/{finding}": row[f"auc_{finding}"] for finding in FINDINGS}
        values = {title: row[name] for name, title in SCALARS.items()} | {"AUC/mean": row["val_auc"]} | aucs
        for title, value in values.items():
            if value == value:
                self.events.add_scalar(title, value, row["epochs_so_far"])
        self.events.flush()

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.on = False
            warnings.warn(f"nothing more is written for TensorBoard in {self.folder}: {error!r}", stacklevel=2)
