"""Which films the starting weights have seen: a test on those would be as worthless as on our own training films."""

from pathlib import Path

import numpy as np
from torchvision.models import ResNet50_Weights

from cxrlib import paths
from cxrlib.errors import UserError

UNKNOWN = "unknown"
LIST = ".films.txt"
"""Ending, after the weights' own file name, of the list of films that they were trained on: one image name a line."""


def films_of(weights: str) -> tuple[str, np.ndarray]:
    """What the starting weights were trained on, in words, and the patients among it: sorted int64.

    "none" and torchvision's names have seen no chest films. For a file, a list beside it (``w.pth.films.txt``: image
    names such as 00000013_005.png, or patient numbers) is read; without one the answer is ``UNKNOWN``.
    Raises UserError naming the line of a list that is neither.
    """
    nobody = np.empty(0, np.int64)
    if weights == "none":
        return "nothing", nobody
    if weights in ResNet50_Weights.__members__:
        return "ImageNet, no chest films", nobody
    file = Path(f"{paths.resolve(weights)}{LIST}")
    if not file.is_file():
        return UNKNOWN, nobody
    seen = set()
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        patient = line.strip().split("_")[0]
        if patient and not patient.isdigit():
            raise UserError(f"{file}, line {number}: {line!r} is neither an image name nor a patient's number")
        seen |= {int(patient)} if patient else set()
    return f"{len(seen)} patients listed in {file.name}", np.array(sorted(seen), np.int64)
