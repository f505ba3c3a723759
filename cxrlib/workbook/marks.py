"""Small drawings that stand in the report's text as inline SVG: a ROC curve, a value with its interval.

They scale with the page, so that a phone shows as much as a desk screen does; each says in words what it shows.
"""

from html import escape

import numpy as np
import pandas as pd
from markupsafe import Markup

from cxrlib import theme

SIDE = 100  # of a ROC curve's box, in its own units
POINTS = 80  # kept of a curve; more cannot be seen at this size


def roc(points: pd.DataFrame) -> Markup:
    """One finding's ROC curve with its band and the chance line; frame as ``curves.roc_points`` for one finding.

    Columns finding, rate, sensitivity (0..1) and, for a band, low, high.
    """
    finding = theme.name(str(points["finding"].iloc[0]))
    points = points.dropna(subset=["rate", "sensitivity"])
    if points.empty:
        return _svg(f"{finding}: no ROC curve, undefined", '<text x="50" y="54" class="none">undefined</text>')
    points = points.iloc[np.unique(np.linspace(0, len(points) - 1, POINTS).round().astype(int))]
    band = ""
    if {"low", "high"} <= set(points) and points[["low", "high"]].notna().all(axis=None):
        back = _path(points["rate"][::-1], points["low"][::-1])
        band = f'<polygon class="band" points="{_path(points["rate"], points["high"])} {back}"/>'
    curve = f'<polyline class="curve" points="0,{SIDE} {_path(points["rate"], points["sensitivity"])}"/>'
    return _svg(f"ROC curve of {finding}", f'<path class="chance" d="M0 {SIDE}L{SIDE} 0"/>{band}{curve}')


def interval(
    value: float, low: float, high: float, *, least: float, most: float, neutral: float, unit: str = "AUC"
) -> Markup:
    """A value as a dot with its interval as a line, between ``least`` and ``most``; a tick stands at ``neutral``.

    From ``neutral`` to the value there is a bar, so that the length can be read without the dot.
    """
    if np.isnan(value):
        return Markup('<span class="muted">undefined</span>')

    def x(number: float) -> str:
        return f"{200 * (min(max(number, least), most) - least) / (most - least):.1f}"

    start, length = x(min(value, neutral)), abs(float(x(value)) - float(x(neutral)))
    parts = [
        f'<rect class="bar" x="{start}" y="5" width="{length:.1f}" height="6"/>',
        f'<path class="neutral" d="M{x(neutral)} 0V16"/>',
    ]
    words = f"{unit} {value:.3f}"
    if not (np.isnan(low) or np.isnan(high)):
        parts.append(f'<path class="whisker" d="M{x(low)} 8H{x(high)}M{x(low)} 5V11M{x(high)} 5V11"/>')
        words += f", interval {low:.3f} to {high:.3f}"
    parts.append(f'<circle class="dot" cx="{x(value)}" cy="8" r="3.4"/>')
    return Markup(
        f'<svg class="interval" viewBox="-4 0 208 16" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'
    )


def _svg(words: str, inside: str) -> Markup:
    frame = f'<rect class="frame" width="{SIDE}" height="{SIDE}"/>'
    return Markup(
        f'<svg class="roc" viewBox="-2 -2 104 104" role="img" aria-label="{escape(words)}">{frame}{inside}</svg>'
    )


def _path(x: pd.Series, y: pd.Series) -> str:
    return " ".join(f"{SIDE * a:.1f},{SIDE * (1 - b):.1f}" for a, b in zip(x, y, strict=True))
