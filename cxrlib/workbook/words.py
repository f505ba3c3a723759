"""Numbers, lists of findings and test results as text for the report."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from cxrlib import theme

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


def small(value: Any) -> str:
    """A threshold or a learning rate with two significant digits: ``0.013``, ``1e-05``."""
    return "–" if value is None or pd.isna(value) else f"{value:.2g}"


def chance(p: Any) -> str:
    """A p value: ``p = 0.012``, ``p < 0.001``; "" where undefined."""
    if p is None or pd.isna(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def listed(names: Sequence[str]) -> str:
    """Display names of findings in a sentence: ``A``, ``A and B``, ``A, B and C``."""
    return joined([theme.name(name) for name in names])


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
