"""Readings made once: probabilities kept with a note of what made them, so that nothing is read twice in vain.

Reading the test part in full takes a GPU minutes and a CPU hours, and an evaluation is looked at again and again.
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
    """``predict.predict``, or what an equal call left in ``csv``: (N, 15) float64.

    weights: the hash of the checkpoint that ``model`` was loaded from. Another checkpoint, other films, labels, pixels
    or views, and changed code that reads them ask for another reading, as does a file that was damaged or taken away.
    The note lies beside the file, as ``.json``. The values are those of the file, so that both ways are the same.
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
    if (kept := _kept(csv, batches, made_by)) is not None:
        return kept
    found = predict.predict(model, batches, tta=tta, device=device, progress=progress)
    note(csv).unlink(missing_ok=True)  # a file cut off here has no note, and is made again
    predict.write(csv, batches.films, found)
    paths.write_json(note(csv), made_by)
    return predict.read(csv, batches.films).probabilities


def note(csv: Path) -> Path:
    """Where it is written what made the readings of ``csv``."""
    return csv.with_name(csv.name.removesuffix(".csv") + ".json")


def _kept(csv: Path, batches: batch_rooms.Batches, made_by: dict[str, Any]) -> np.ndarray | None:
    try:
        if paths.read_json(note(csv)) != made_by:
            return None
        return predict.read(csv, batches.films).probabilities
    except UserError:
        return None
