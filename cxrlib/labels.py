"""The one label order of the project.

The 14 findings stand in the order of the dataset paper (Wang et al., ChestX-ray8, CVPR 2017, extended to 14 in
its arXiv version), then "No Finding". Every matrix of labels, logits or probabilities has these 15 columns.
"""

from collections.abc import Iterable

import numpy as np

from cxrlib.errors import UserError

FINDINGS: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
NO_FINDING = "No Finding"
LABELS: tuple[str, ...] = (*FINDINGS, NO_FINDING)

SEPARATOR = "|"
ALIASES = {"Infiltrate": "Infiltration", "Pleural Thickening": "Pleural_Thickening"}
"""Other spellings met in the dataset's files: the box list says Infiltrate."""

_COLUMN = {label: i for i, label in enumerate(LABELS)}


def column(name: str) -> int:
    """Index of a label in the order of ``LABELS``; known other spellings are understood.

    Raises UserError for a label that is none of the 15.
    """
    try:
        return _COLUMN[ALIASES.get(name, name)]
    except KeyError:
        raise UserError(f"unknown label {name!r}; the labels are {', '.join(LABELS)}") from None


def encode(text: str) -> np.ndarray:
    """Turn a cell of ``Finding Labels`` such as ``"Effusion|Mass"`` into a vector of 0 and 1.

    Returns (15,) uint8. "No Finding" is 1 when, and only when, none of the 14 findings is.
    Raises UserError for an empty cell, an unknown label, or "No Finding" beside a finding.
    """
    names = [name.strip() for name in text.split(SEPARATOR)]
    vector = np.zeros(len(LABELS), np.uint8)
    vector[[column(name) for name in names]] = 1
    if vector[-1] and vector[:-1].any():
        raise UserError(f"{text!r} says {NO_FINDING!r} beside a finding; one of the two is wrong")
    return vector


def decode(vector: Iterable[int]) -> str:
    """Turn a (15,) vector of 0 and 1 back into the text of ``Finding Labels``; the inverse of ``encode``."""
    return SEPARATOR.join(name for name, on in zip(LABELS, vector, strict=True) if on)


def check_order(names: Iterable[str], where: str) -> None:
    """Raise UserError unless ``names`` are the 15 labels in the project's order; ``where`` goes into the message."""
    found = tuple(names)
    if found != LABELS:
        raise UserError(f"{where}: labels are {list(found)}, expected {list(LABELS)} in this order")
