"""TensorBoard events of a stage. Where TensorBoard is absent or fails, training goes on without it."""

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
    """TensorBoard writer: each epoch's history row as scalars, in ``tensorboard/`` of the stage's folder.

    It writes nothing where TensorBoard is not installed. An error gives one warning and does not stop the training.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.events = folder / FOLDER, None
        self.on = find_spec("tensorboard") is not None

    def begin(self) -> None:
        """Remove the events of an earlier training. A resumed training writes its earlier epochs again."""
        if self.on:
            self._try(lambda: shutil.rmtree(self.folder, ignore_errors=True))

    def epoch(self, row: dict[str, Any]) -> None:
        """Write the epoch's row, without the findings whose AUC is undefined."""
        if self.on:
            self._try(lambda: self._write(row))

    def close(self) -> None:
        if self.events:
            with suppress(Exception):
                self.events.close()

    def _write(self, row: dict[str, Any]) -> None:
        if self.events is None:
            from torch.utils.tensorboard import SummaryWriter  # optional, and slow to import

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
            warnings.warn(f"TensorBoard failed, no more is written to {self.folder}: {error!r}", stacklevel=2)
