"""Page parts: the template, numbers in words, small SVG drawings in the text, and embedded figures.

Everything that comes from files is escaped. Drawings scale with the page, so that a phone shows as much as a desk
screen; each has a text that says what it shows.
"""

import base64
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image

from cxrlib.labels import display_name
from cxrlib.plots import common
from cxrlib.training import progress

SURE = 0.05  # of an adjusted p value
CHANCE = "no difference shown"


def number(value: Any, digits: int = 3) -> str:
    """A number with fixed digits; a dash where undefined."""
    return "–" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def signed(value: Any, digits: int = 3) -> str:
    """A difference with its sign; without a sign where it rounds to 0."""
    if pd.isna(value):
        return "–"
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if text.strip("+-0.") else text[1:]


def count(value: Any) -> str:
    """A count of films or patients: ``25,596``."""
    return "–" if value is None or pd.isna(value) else f"{value:,.0f}"


def percent(value: Any, digits: int = 0) -> str:
    """A share 0..1 in percent."""
    return "–" if value is None or pd.isna(value) else f"{100 * value:.{digits}f} %"


def cut(value: Any) -> str:
    """A threshold with two decimals, ``0.20``; a smaller one than 0.01 with one significant digit, ``0.004``."""
    if value is None or pd.isna(value):
        return "–"
    return f"{value:.2f}" if value >= 0.01 or value == 0 else f"{value:.1g}"


def small(value: Any) -> str:
    """A learning rate with two significant digits: ``0.013``, ``1e-05``."""
    return "–" if value is None or pd.isna(value) else f"{value:.2g}"


def chance(p: Any) -> str:
    """A p value: ``p = 0.012``, ``p < 0.001``; "" where undefined."""
    if p is None or pd.isna(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def listed(names: Sequence[str]) -> str:
    """Display names of findings in a sentence: ``A``, ``A and B``, ``A, B and C``."""
    return joined([display_name(name) for name in names])


def joined(names: Sequence[str]) -> str:
    """Names in a sentence as in ``listed``, but unchanged."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def verdict(
    difference: float,
    low: float,
    high: float,
    p: float = float("nan"),
    *,
    sides: tuple[str, str] = ("better", "worse"),
) -> str:
    """The verdict on a difference: a word of ``sides`` (above 0, below 0), ``CHANCE``, or "undefined".

    The adjusted p decides. Without a p the interval decides, which is right for a single comparison only.
    """
    if pd.isna(difference):
        return "undefined"
    if (pd.isna(low) and pd.isna(p)) or p > SURE or (pd.isna(p) and low <= 0 <= high):
        return CHANCE
    return sides[0] if difference > 0 else sides[1]


SIDE = 100  # side of a curve's box in SVG units
POINTS = 80  # points of a curve that are drawn; more cannot be seen at this size
WIDTH, LINE = 200, 16  # width of an interval's scale and height of a line on it, in SVG units
SHAPES = ("circle", "square", "diamond", "triangle", "cross")
"""Shapes of several runs on one scale; each has its own colour in the style sheet, and they differ in grey too."""


class Value(NamedTuple):
    """A measured value with its interval; NaN where undefined."""

    name: str
    value: float
    low: float
    high: float


def svg_roc(points: pd.DataFrame) -> Markup:
    """ROC curve of one finding with its band and the chance line; frame as ``results.roc_points`` for one finding.

    Columns finding, rate, sensitivity (0..1) and, for a band, low, high.
    """
    finding = display_name(str(points["finding"].iloc[0]))
    points = _thinned(points.dropna(subset=["rate", "sensitivity"]))
    if points.empty:
        return _undefined(f"{finding}: no ROC curve, undefined")
    curve = f'<polyline class="curve" points="0,{SIDE} {_path(points["rate"], points["sensitivity"])}"/>'
    chance = f'<path class="chance" d="M0 {SIDE}L{SIDE} 0"/>'
    return _box(f"ROC curve of {finding}", chance + _band(points, "rate") + curve)


def svg_pr(points: pd.DataFrame) -> Markup:
    """Precision-recall curve of one finding with its band; frame as ``results.pr_points`` for one finding.

    Columns finding, recall, precision (0..1) and, for a band, low, high; with positives and negatives, the prevalence
    is drawn as the chance line.
    """
    finding = display_name(str(points["finding"].iloc[0]))
    points = _thinned(points.dropna(subset=["recall", "precision"]))
    if points.empty:
        return _undefined(f"{finding}: no precision-recall curve, undefined")
    chance = ""
    if {"positives", "negatives"} <= set(points):
        positives, negatives = points.iloc[0][["positives", "negatives"]]
        height = SIDE * (1 - positives / (positives + negatives))
        chance = f'<path class="chance" d="M0 {height:.1f}H{SIDE}"/>'
    curve = f'<polyline class="curve" points="{_path(points["recall"], points["precision"])}"/>'
    return _box(f"Precision over recall of {finding}", chance + _band(points, "recall") + curve)


def svg_reliability(points: pd.DataFrame) -> tuple[Markup, float]:
    """Calibration curve of one finding, a line per kind of probabilities, and the end of both axes (0..1).

    Columns finding, reading (the kind), probability, observed; the first of several kinds is drawn faint.
    """
    finding = display_name(str(points["finding"].iloc[0]))
    points = points.dropna(subset=["probability", "observed"])
    if points.empty:
        return _undefined(f"{finding}: no calibration curve, undefined"), 1.0
    top = min(1.0, 1.1 * max(0.01, points[["probability", "observed"]].max(axis=None)))
    drawn = f'<path class="chance" d="M0 {SIDE}L{SIDE} 0"/>'
    kinds = list(points.groupby("reading", sort=False))
    for i, (_, rows) in enumerate(kinds):
        faint = " faint" if i == 0 and len(kinds) > 1 else ""
        x, y = rows["probability"] / top, rows["observed"] / top
        drawn += f'<polyline class="curve{faint}" points="{_path(x, y)}"/>'
        drawn += "".join(
            f'<circle class="point{faint}" cx="{SIDE * a:.1f}" cy="{SIDE * (1 - b):.1f}" r="2.6"/>'
            for a, b in zip(x, y, strict=True)
        )
    words = f"Observed frequency over probability of {finding}, axes from 0 to {top:.2f}"
    return _box(words, drawn), top


def svg_interval(
    value: float, low: float, high: float, *, least: float, most: float, neutral: float, unit: str = "AUC"
) -> Markup:
    """A value as a dot with its interval as a line, on a scale from ``least`` to ``most`` with a tick at ``neutral``.

    A bar goes from ``neutral`` to the value.
    """
    if np.isnan(value):
        return Markup('<span class="muted">undefined</span>')
    x = _scale(least, most)
    start, length = x(min(value, neutral)), abs(x(value) - x(neutral))
    bar = f'<rect class="bar" x="{start:.1f}" y="5" width="{length:.1f}" height="6"/>'
    mark = Value(unit, value, low, high)
    return _lines([mark], bar + _tick(x(neutral), 1) + _whisker(mark, x, 8) + _shape(0, x(value), 8))


def svg_intervals(values: Sequence[Value], *, least: float, most: float, neutral: float, first: int = 0) -> Markup:
    """Values with their intervals on one scale, one per line; shapes are those of ``SHAPES`` from ``first`` on."""
    x = _scale(least, most)
    drawn = _tick(x(neutral), len(values))
    for i, mark in enumerate(values):
        if not np.isnan(mark.value):
            middle = LINE * i + LINE / 2
            drawn += _whisker(mark, x, middle) + _shape(first + i, x(mark.value), middle)
    return _lines(values, drawn)


def svg_differences(table: pd.DataFrame, sides: tuple[str, str] = ("better", "worse")) -> list[dict[str, Any]]:
    """Differences with a drawing (``mark``) and a verdict (``says``); columns difference, low, high, perhaps p_holm.

    All have one scale, from minus to plus ``reach``; sides are the words for above and below 0.
    """
    far, rows = reach_of_differences(table), table.to_dict("records")
    for row in rows:
        ends = row["difference"], row["low"], row["high"]
        row["mark"] = svg_interval(*ends, least=-far, most=far, neutral=0, unit="difference")
        row["says"] = verdict(*ends, row.get("p_holm", np.nan), sides=sides)
    return rows


def reach_of_differences(table: pd.DataFrame) -> float:
    """Largest distance from 0 of a table's differences and their intervals, at least 0.02."""
    return max(0.02, table[["difference", "low", "high"]].abs().max(axis=None)) if len(table) else 0.02


def svg_among_others(ours: Value, others: Iterable[float], *, least: float, most: float) -> Markup:
    """A value with its interval, and published values as vertical lines on the same scale."""
    x = _scale(least, most)
    strokes = "".join(f'<path class="other" d="M{x(other):.1f} 2V14"/>' for other in others)
    return _lines([ours], strokes + _whisker(ours, x, LINE / 2) + _shape(0, x(ours.value), LINE / 2))


def svg_sign(i: int) -> Markup:
    """Legend mark of the i-th run."""
    return Markup(f'<svg class="sign" viewBox="0 0 16 16" aria-hidden="true">{_shape(i, 8, 8)}</svg>')


def _scale(least: float, most: float):
    def x(number: float) -> float:
        return WIDTH * (min(max(number, least), most) - least) / (most - least)

    return x


def _tick(x: float, lines: int) -> str:
    return f'<path class="neutral" d="M{x:.1f} 0V{LINE * lines}"/>'


def _whisker(mark: Value, x, y: float) -> str:
    if np.isnan(mark.low) or np.isnan(mark.high):
        return ""
    low, high, up, down = x(mark.low), x(mark.high), y - 3, y + 3
    return (
        f'<path class="whisker" d="M{low:.1f} {y:g}H{high:.1f}M{low:.1f} {up:g}V{down:g}M{high:.1f} {up:g}V{down:g}"/>'
    )


def _shape(i: int, x: float, y: float) -> str:
    """The i-th shape, about 7 units wide, centred at (x, y)."""
    name = SHAPES[i % len(SHAPES)]
    style = f'class="dot run{i % len(SHAPES)}"'
    if name == "circle":
        return f'<circle {style} cx="{x:.1f}" cy="{y:g}" r="3.4"/>'
    if name == "square":
        return f'<rect {style} x="{x - 3:.1f}" y="{y - 3:g}" width="6" height="6"/>'
    if name == "diamond":
        return f'<path {style} d="M{x:.1f} {y - 4:g}l4 4l-4 4l-4 -4z"/>'
    if name == "triangle":
        return f'<path {style} d="M{x:.1f} {y - 4:g}l4 7h-8z"/>'
    return f'<path {style} d="M{x - 3.5:.1f} {y - 1.2:g}h2.3v-2.3h2.4v2.3h2.3v2.4h-2.3v2.3h-2.4v-2.3h-2.3z"/>'


def _lines(values: Sequence[Value], inside: str) -> Markup:
    words = "; ".join(_words(mark) for mark in values)
    box = f'viewBox="-4 0 {WIDTH + 8} {LINE * len(values)}"'
    return Markup(f'<svg class="interval" {box} role="img" aria-label="{escape(words)}">{inside}</svg>')


def _words(mark: Value) -> str:
    if np.isnan(mark.value):
        return f"{mark.name} undefined"
    defined = not (np.isnan(mark.low) or np.isnan(mark.high))
    return f"{mark.name} {mark.value:.3f}" + (f", interval {mark.low:.3f} to {mark.high:.3f}" if defined else "")


def _undefined(words: str) -> Markup:
    return _box(words, '<text x="50" y="54" class="none">undefined</text>')


def _box(words: str, inside: str) -> Markup:
    frame = f'<rect class="frame" width="{SIDE}" height="{SIDE}"/>'
    return Markup(
        f'<svg class="roc" viewBox="-2 -2 104 104" role="img" aria-label="{escape(words)}">{frame}{inside}</svg>'
    )


def _thinned(points: pd.DataFrame) -> pd.DataFrame:
    return points.iloc[np.unique(np.linspace(0, max(0, len(points) - 1), POINTS).round().astype(int))[: len(points)]]


def _band(points: pd.DataFrame, x: str) -> str:
    if not {"low", "high"} <= set(points) or points[["low", "high"]].isna().any(axis=None):
        return ""
    back = _path(points[x][::-1], points["low"][::-1])
    return f'<polygon class="band" points="{_path(points[x], points["high"])} {back}"/>'


def _path(x: pd.Series, y: pd.Series) -> str:
    return " ".join(f"{SIDE * a:.1f},{SIDE * (1 - b):.1f}" for a, b in zip(x, y, strict=True))


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
    "labels_roc": (
        "Beside the radiologists",
        "ROC curves against the mined labels and against radiologists; the diamond is the mined label itself.",
    ),
    "labels_agreement": ("How good the labels are", "The mined labels, with the radiologists taken as the truth."),
    "labels_jumps": (
        "Labels that jump",
        "Of three films of a patient in a row, the first and last with the finding: how often the middle one lacks it.",
    ),
    "reading_room": (
        "The worst errors of a finding",
        "Films whose label and probability differ most. White: the box. Tinted: the heat map.",
    ),
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
MAPS = ("hits_and_misses", "second_opinion", "reading_room")
STRIPS = (*FILMS, *MAPS)
"""Figures made of a row or two of films."""

PLACED = (
    *("roc_test", "auc_test", "stages", "pr_test", "reliability", "thresholds", "subgroups", "view_shortcut"),
    *(
        "localisation",
        "labels_roc",
        "labels_agreement",
        "labels_jumps",
        "published",
        "gaps",
        "gaps_by_finding",
        "first_to_last",
        "overlap",
        *STRIPS,
    ),
)
"""Figures that have a section of their own, or whose numbers are drawn there."""


@dataclass
class FigureAlbum:
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
        rows = cut_panels(Image.open(file)) if file.is_file() and _whole(file) else []
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


def cut_panels(picture: Image.Image) -> list[list[Image.Image]]:
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


FILTERS = {
    "name": display_name,
    "clock": progress.clock,
    "number": number,
    "signed": signed,
    "count": count,
    "percent": percent,
    "small": small,
    "cut": cut,
    "chance": chance,
    "listed": listed,
    "joined": joined,
}


def render(template: str, **values: Any) -> str:
    """HTML of a template, a file in this folder, filled with plain values."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= FILTERS
    colours = common.RUN_COLOURS[: len(SHAPES)]
    made = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    return environment.get_template(template).render(made=made, colours=colours, **values)
