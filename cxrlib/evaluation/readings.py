"""Cached predictions: probabilities on disk, with a note of all that they depend on.

Predicting the full test part takes minutes on a GPU and hours on a CPU, and an evaluation is run many times.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cxrlib import paths, provenance
from cxrlib.data import batches as batch_rooms
from cxrlib.data import records
from cxrlib.errors import UserError
from cxrlib.evaluation import predict
from cxrlib.training import hardware


def once(
    model: nn.Module,
    batches: batch_rooms.Batches,
    csv: Path,
    *,
    weights: str,
    tta: str = "none",
    device: str | torch.device | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Probabilities of ``predict.predict``, from ``csv`` if an equal call wrote it: (N, 15) float64.

    weights: the hash of the checkpoint that ``model`` was loaded from. Predicts again if the checkpoint, films, labels,
    pixels, test-time augmentation or code changed, or if a file is damaged or absent. The note is beside the file, as
    ``.json``. The values are always read from the file, so a cached result equals a new one.
    """
    made_by = {
        "weights": weights,
        "films": records.fingerprint(batches.films),
        "pixels": batches.store.pixels_of(batches.films),
        "size": batches.store.size,
        "tta": tta,
        "precision": hardware.name(predict.dtype_of(model)),
        "code": provenance.code_version(predict, batch_rooms),
    }
    if (cached := _cached(csv, batches, made_by)) is not None:
        return cached
    probabilities = predict.predict(model, batches, tta=tta, device=device, progress=progress)
    note(csv).unlink(missing_ok=True)  # after an interruption here the file has no note and is made again
    predict.write(csv, batches.films, probabilities)
    paths.write_json(note(csv), made_by)
    return predict.read(csv, batches.films).probabilities


def note(csv: Path) -> Path:
    """Path of the note on ``csv``."""
    return csv.with_name(csv.name.removesuffix(".csv") + ".json")


def _cached(csv: Path, batches: batch_rooms.Batches, made_by: dict[str, Any]) -> np.ndarray | None:
    try:
        if paths.read_json(note(csv)) != made_by:
            return None
        return predict.read(csv, batches.films).probabilities
    except UserError:
        return None
