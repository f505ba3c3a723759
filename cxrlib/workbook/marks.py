"""Small drawings for a page as inline SVG: curves, and values with intervals.

They scale with the page, so a phone shows the same as a large screen. Each has a label in words for screen readers.
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from cxrlib import theme
from cxrlib.workbook.words import verdict

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


def roc(points: pd.DataFrame) -> Markup:
    """ROC curve of one finding with its band and the chance line; frame as ``curves.roc_points`` for one finding.

    Columns finding, rate, sensitivity (0..1) and, for a band, low, high.
    """
    finding = theme.name(str(points["finding"].iloc[0]))
    points = _thinned(points.dropna(subset=["rate", "sensitivity"]))
    if points.empty:
        return _undefined(f"{finding}: no ROC curve, undefined")
    curve = f'<polyline class="curve" points="0,{SIDE} {_path(points["rate"], points["sensitivity"])}"/>'
    chance = f'<path class="chance" d="M0 {SIDE}L{SIDE} 0"/>'
    return _box(f"ROC curve of {finding}", chance + _band(points, "rate") + curve)


def pr(points: pd.DataFrame) -> Markup:
    """Precision-recall curve of one finding with its band; frame as ``curves.pr_points`` for one finding.

    Columns finding, recall, precision (0..1) and, for a band, low, high; with positives and negatives, the prevalence
    is drawn as the chance line.
    """
    finding = theme.name(str(points["finding"].iloc[0]))
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


def reliability(points: pd.DataFrame) -> tuple[Markup, float]:
    """Calibration curve of one finding, a line per kind of probabilities, and the end of both axes (0..1).

    Columns finding, reading (the kind), probability, observed; the first of several kinds is drawn faint.
    """
    finding = theme.name(str(points["finding"].iloc[0]))
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


def interval(
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


def intervals(values: Sequence[Value], *, least: float, most: float, neutral: float, first: int = 0) -> Markup:
    """Values with their intervals on one scale, one per line; shapes are those of ``SHAPES`` from ``first`` on."""
    x = _scale(least, most)
    drawn = _tick(x(neutral), len(values))
    for i, mark in enumerate(values):
        if not np.isnan(mark.value):
            middle = LINE * i + LINE / 2
            drawn += _whisker(mark, x, middle) + _shape(first + i, x(mark.value), middle)
    return _lines(values, drawn)


def differences(table: pd.DataFrame, sides: tuple[str, str] = ("better", "worse")) -> list[dict[str, Any]]:
    """Differences with a drawing (``mark``) and a verdict (``says``); columns difference, low, high, perhaps p_holm.

    All have one scale, from minus to plus ``reach``; sides are the words for above and below 0.
    """
    far, rows = reach(table), table.to_dict("records")
    for row in rows:
        ends = row["difference"], row["low"], row["high"]
        row["mark"] = interval(*ends, least=-far, most=far, neutral=0, unit="difference")
        row["says"] = verdict(*ends, row.get("p_holm", np.nan), sides=sides)
    return rows


def reach(table: pd.DataFrame) -> float:
    """Largest distance from 0 of a table's differences and their intervals, at least 0.02."""
    return max(0.02, table[["difference", "low", "high"]].abs().max(axis=None)) if len(table) else 0.02


def among(ours: Value, others: Iterable[float], *, least: float, most: float) -> Markup:
    """A value with its interval, and published values as vertical lines on the same scale."""
    x = _scale(least, most)
    strokes = "".join(f'<path class="other" d="M{x(other):.1f} 2V14"/>' for other in others)
    return _lines([ours], strokes + _whisker(ours, x, LINE / 2) + _shape(0, x(ours.value), LINE / 2))


def sign(i: int) -> Markup:
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
