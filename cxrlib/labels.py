"""The label order of the project, and how a label is shown.

The 14 findings stand in the order of the dataset paper (Wang et al., ChestX-ray8, CVPR 2017, extended to 14 in
its arXiv version), then "No Finding". Every matrix of labels, logits or probabilities has these 15 columns.
A label is 1, 0, or NaN where it is unknown. A matrix of labels is uint8 where all are known, else float32.
"""

from collections.abc import Iterable

import numpy as np

from cxrlib import UserError

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
"""Other spellings in the dataset's files. The box list has "Infiltrate"."""

_COLUMN = {label: i for i, label in enumerate(LABELS)}


def column(name: str) -> int:
    """Column of a label in ``LABELS``. Accepts the spellings in ``ALIASES``.

    Raises UserError for an unknown label.
    """
    try:
        return _COLUMN[ALIASES.get(name, name)]
    except KeyError:
        raise UserError(f"unknown label {name!r}; the labels are {', '.join(LABELS)}") from None


def encode(text: str) -> np.ndarray:
    """Label vector, (15,) uint8 of 0 and 1, of a ``Finding Labels`` cell such as ``"Effusion|Mass"``.

    "No Finding" is 1 only if all 14 findings are 0.
    Raises UserError for an empty cell, an unknown label, or "No Finding" together with a finding.
    """
    names = [name.strip() for name in text.split(SEPARATOR)]
    vector = np.zeros(len(LABELS), np.uint8)
    vector[[column(name) for name in names]] = 1
    if vector[-1] and vector[:-1].any():
        raise UserError(f"{text!r} has {NO_FINDING!r} beside a finding; one of the two is wrong")
    return vector


def decode(vector: Iterable[float]) -> str:
    """``Finding Labels`` text of a (15,) vector of 0, 1 and NaN: the labels that are 1. The inverse of ``encode``."""
    return SEPARATOR.join(name for name, on in zip(LABELS, vector, strict=True) if on == 1)


def no_finding(findings: np.ndarray) -> np.ndarray:
    """ "No Finding" of films from their 14 findings: (N, 14) of 0, 1 and NaN → (N,) float32 of the same.

    It is unknown where any finding is unknown, also beside a finding that is present. Otherwise a dataset that labels
    only some of the 14 would have known zeros and no known ones, and a network would learn that the label is always 0.
    """
    known = ~np.isnan(findings).any(1)
    return np.where(known, (findings == 0).all(1), np.nan).astype(np.float32)


def differ(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether labels differ, bool of their common shape. Two unknown labels (NaN) do not differ."""
    return (one != other) & ((one == one) | (other == other))


def check_order(names: Iterable[str], where: str) -> None:
    """Raise UserError unless ``names`` are the 15 labels in the order of ``LABELS``. ``where`` is for the message."""
    names = tuple(names)
    if names != LABELS:
        raise UserError(f"{where}: labels are {list(names)}, expected {list(LABELS)} in this order")


def display_name(label: str) -> str:
    """Display name of a label: without underscores."""
    return label.replace("_", " ")
