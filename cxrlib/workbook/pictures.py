"""Figures of a run for its report: embedded, with a title and a caption."""

import base64
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from PIL import Image

HEAVY = 300_000  # bytes; a larger SVG is replaced by the PNG beside it
ROOM = 4_300_000  # characters of embedded figures; text and drawings need the rest of the 5 MB
KINDS = {".svg": "svg+xml", ".png": "png"}
BLANK = 250  # grey values from here on count as paper
TALL = 0.2  # of a figure's height: a taller stretch is a row of films, a lower one is a line of text

CAPTIONS = {
    "films_best": (
        "Films it ranks best",
        "Films with the finding that rank highest among films without it: 1.00 is above all of them.",
    ),
    "films_worst": (
        "Films it ranks worst",
        "Films with the finding that rank lowest among films without it: look at these first.",
    ),
    "stages": ("Mean AUC stage by stage", "Validation and test, with 95 % intervals by patient."),
    "loss": ("Learning curves", "Loss of every batch and mean of each epoch; training above, validation below."),
    "auc": ("Finding by finding", "Validation AUC of every finding, epoch by epoch."),
    "gain": ("Effect of the stage", "Difference in validation AUC to the parent, with 95 % intervals by patient."),
    "leak": (
        "Split by film or by patient",
        "How much a split by film raises the AUC of a model without medical content.",
    ),
    "distance": ("Which layers moved", "Distance from the parent's weights, group by group."),
    "losses": ("Losses compared", "The same head trained with each loss."),
    "pr_test": ("Precision and recall", "The dotted line is the prevalence (chance)."),
    "reliability": ("Calibration", "Predicted against observed frequency, before and after calibration."),
    "thresholds": ("Thresholds", "Chosen on the validation part, applied to the test part."),
    "subgroups": ("Patient groups", "AUC by sex, age and view, with intervals and numbers."),
    "view_shortcut": ("Does it use the view position?", "AUC over all films beside AUC within AP and within PA films."),
    "gaps_by_finding": ("Gaps by finding", "First group minus second, with 95 % intervals by patient."),
    "localisation": ("Where it looks", "How often a heat map's maximum lies in the box, beside two controls."),
    "overlap": (
        "Overlap of map and box",
        "Share of maps with at least this overlap: IoU, common area over joint area; IoBB, over the map's area.",
    ),
    "hits_and_misses": ("Hits and misses", "White: the box. Tinted: the heat map. Top row: hits. Bottom row: misses."),
    "second_opinion": ("Two methods", "The same films by Grad-CAM (top) and by occlusion (bottom)."),
    "published": ("Beside published results", "Official split only."),
    "prevalence": ("How common each finding is", "Share of films, part by part."),
    "co_occurrence": (
        "Findings that come together",
        "Share of the films with the row's finding that also have the column's.",
    ),
    "films_per_patient": ("Films per patient", "Patients have several films, so a split by film would leak."),
    "age_sex_view": ("Age, sex and view position", "Patients' age and sex, and the view position of the films."),
    "view_by_finding": (
        "View position by finding",
        "The view position alone predicts a finding that is mostly on AP films.",
    ),
}
"""Titles and captions of known figures, in their order on the page; others follow under their file's name."""

FILMS = ("films_best", "films_worst")
MAPS = ("hits_and_misses", "second_opinion")
STRIPS = (*FILMS, *MAPS)
"""Figures made of a row or two of films."""

PLACED = (
    *("roc_test", "auc_test", "stages", "pr_test", "reliability", "thresholds", "subgroups", "view_shortcut"),
    *("localisation", "published", "gaps", "gaps_by_finding", "first_to_last", "overlap", *STRIPS),
)
"""Figures that have a section of their own, or whose numbers are drawn there."""


@dataclass
class Album:
    """Figures for a page, embedded until the page is full; later ones have a title and an empty address.

    A figure is a dict: stem, title, caption, file (its name in the run's folder), address (a data URL) and, where the
    address is empty, ``why``.
    """

    room: int = ROOM

    def read(self, stem: Path) -> dict[str, Any] | None:
        """A figure as SVG, or as PNG if the SVG is large or damaged; None if absent."""
        vector, picture = _beside(stem, ".svg"), _beside(stem, ".png")
        light = vector.is_file() and (vector.stat().st_size < HEAVY or not picture.is_file())
        order = [file for file in ((vector, picture) if light else (picture, vector)) if file.is_file()]
        whole = [file for file in order if _whole(file)]
        if not order:
            return None
        if not whole:
            return _titled(order[0], why=f"{_place(order[0])} is damaged and cannot be shown.")
        return self._figure(whole[0], [[whole[0].read_bytes()]], KINDS[whole[0].suffix])

    def strip(self, stem: Path) -> dict[str, Any] | None:
        """A figure of films, cut into ``rows`` of addresses, one per film, so that a phone can wrap the rows.

        Without a PNG, or if it cannot be cut, rows is empty and the figure is as from ``read``.
        """
        file = _beside(stem, ".png")
        rows = cut(Image.open(file)) if file.is_file() and _whole(file) else []
        if sum(map(len, rows)) < 2:
            figure = self.read(stem)
            return figure and figure | {"rows": []}
        figure = self._figure(file, [[_png(piece) for piece in row] for row in rows], KINDS[".png"])
        return figure | {"rows": figure["addresses"], "names": _names(_beside(stem, ".csv"), sum(map(len, rows)))}

    def others(self, folder: Path) -> list[dict[str, Any]]:
        """Figures of a folder that have no section of their own: known ones first, then the rest by name."""
        stems = {file.stem for ending in KINDS for file in folder.glob(f"*{ending}")}
        titled = [name for name in CAPTIONS if name in stems]
        order = titled + sorted(stems - set(titled))
        return [self.read(folder / name) for name in order if name not in PLACED]

    def _figure(self, file: Path, rows: list[list[bytes]], kind: str) -> dict[str, Any]:
        """The figure of a file in pieces, embedded if all pieces fit."""
        addresses = [[f"data:image/{kind};base64,{base64.b64encode(piece).decode()}" for piece in row] for row in rows]
        size = sum(len(address) for row in addresses for address in row)
        if size > self.room:
            return _titled(file, why=f"Left out to keep this page small; see {_place(file)}.") | {"addresses": []}
        self.room -= size
        return _titled(file, address=addresses[0][0]) | {"addresses": addresses}


def _titled(file: Path, *, address: str = "", why: str = "") -> dict[str, Any]:
    title, caption = CAPTIONS.get(file.stem, (file.stem.replace("_", " ").capitalize(), ""))
    shown = {"stem": file.stem, "title": title, "caption": caption, "file": _place(file)}
    return shown | {"address": address, "why": why}


def _place(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _beside(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)


def _whole(file: Path) -> bool:
    """True if a picture can be decoded to its end."""
    try:
        if file.suffix == ".svg":
            return ElementTree.parse(file).getroot().tag.endswith("svg")
        with Image.open(file) as picture:
            picture.load()
        return True
    except (OSError, ValueError, SyntaxError, ElementTree.ParseError, Image.DecompressionBombError):
        return False


def _names(csv: Path, films: int) -> list[str]:
    """Names of the films from the figure's CSV; empty if their number is not that of the films in the figure."""
    try:
        names = pd.read_csv(csv, dtype=str)["image"].tolist()
    except (OSError, ValueError, KeyError):
        return []
    return names if len(names) == films else []


def cut(picture: Image.Image) -> list[list[Image.Image]]:
    """Panels of a figure of films, row by row: cut at blank columns, and below each row of films.

    A panel keeps the text above it; blank margins are removed. Two panels whose texts touch stay one.
    """
    ink = np.asarray(picture.convert("L")) < BLANK  # (H, W)
    films = [stop for start, stop in _runs(ink.any(1)) if stop - start >= TALL * len(ink)]
    edges = [0, *films[:-1], len(ink)]
    rows = []
    for above, below in itertools.pairwise(edges):
        filled = above + np.flatnonzero(ink[above:below].any(1))
        if len(filled):
            top, bottom = int(filled[0]), int(filled[-1]) + 1
            columns = _runs(ink[top:bottom].any(0))
            rows.append([picture.crop((left, top, right, bottom)) for left, right in columns])
    return rows


def _runs(flags: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and stop of each stretch of True."""
    steps = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return zip(steps[::2].tolist(), steps[1::2].tolist(), strict=True)


def _png(piece: Image.Image) -> bytes:
    drawn = io.BytesIO()
    piece.save(drawn, "PNG", optimize=True)
    return drawn.getvalue()
