"""A run in a few plain sentences, for the first screen: what it reads, where it looks, on whom it fails."""

from typing import Any

import pandas as pd

from cxrlib import theme
from cxrlib.labels import FINDINGS
from cxrlib.workbook import words


def sentences(findings: list[dict[str, Any]], places: dict[str, Any], groups: dict[str, Any]) -> list[dict[str, str]]:
    """What the report says in full below: a title, the section it is from, and the text; what is unknown is left out.

    findings: the rows of the AUC table, best first; places and groups as ``sections.localisation`` and ``subgroups``.
    """
    found = (
        ("findings", "What it reads", reading(findings)),
        ("localisation", "Where it looks", looking(places)),
        ("subgroups", "On whom it fails", failing(groups)),
    )
    return [{"section": section, "title": title, "text": text} for section, title, text in found if text]


def reading(findings: list[dict[str, Any]]) -> str:
    """The three findings read best and the three read least well, and those no better than guessing for all we know."""
    told = [row for row in findings if row["finding"] in FINDINGS and not pd.isna(row["auc"])]
    if len(told) < 6:
        return ""
    shown = [f"{theme.name(row['finding'])} ({row['auc']:.2f})" for row in told]
    guesses = [row["finding"] for row in told if row["auc_low"] <= 0.5]
    text = f"It reads best {', '.join(shown[:3])}; least well {', '.join(shown[:-4:-1])}."
    return text + (f" Not shown to be better than guessing: {words.listed(guesses)}." if guesses else "")


def looking(places: dict[str, Any]) -> str:
    """How often each way of asking points at the place, against blind pointing, and for which findings that is sure.

    A way that was asked on fewer than half of the boxes is left out.
    """
    ways = [method for method in places["methods"] if method["all"]]
    most = max((method["all"]["boxes"] for method in ways), default=0)
    ways = [method for method in ways if method["all"]["boxes"] >= most / 2]
    if not ways:
        return ""
    hits = words.joined([f"{words.number(100 * way['all']['hit'], 0)} of 100 cases ({way['name']})" for way in ways])
    blind = words.number(100 * ways[0]["all"]["chance"], 0)
    sure = [f"{words.listed(way['beyond_chance'])} ({way['name']})" for way in ways if way["beyond_chance"]]
    text = f"The brightest spot of its map lies in the marked box in {hits}; blind pointing reaches {blind}."
    if sure:
        return f"{text} It surely points better than blind at {'; '.join(sure)}."
    return f"{text} For no finding is it shown to point better than blind."


def failing(groups: dict[str, Any]) -> str:
    """The sure gaps in mean AUC between groups; where none was measured, between which means the groups lie."""
    gaps = [row for row in groups["gaps"]["rows"] if row["number"] == "auc"]
    clear = [_gap(row) for row in gaps if row["says"] in ("higher", "lower")]
    rest = [f"{row['one']} and {row['other']}" for row in gaps if row["says"] == "no sure difference"]
    text = " ".join(clear)
    if rest:
        text += f" No sure {'other ' if clear else ''}difference in mean AUC between {'; '.join(rest)}."
    return ((text or _extent(groups["rows"])) + _view(groups["shortcut"]["mean"])).strip()


def _gap(row: dict[str, Any]) -> str:
    side = "lower" if row["difference"] < 0 else "higher"
    ends = sorted((abs(row["low"]), abs(row["high"])))
    return (
        f"Mean AUC is {side} in {row['one']} than in {row['other']}, "
        f"by {abs(row['difference']):.2f} ({ends[0]:.2f} to {ends[1]:.2f})."
    )


def _extent(rows: list[dict[str, Any]]) -> str:
    told = sorted((row for row in rows if row["kind"] != "all" and not pd.isna(row["auc"])), key=lambda row: row["auc"])
    if len(told) < 2:
        return ""
    worst, best = told[0], told[-1]
    return (
        f"By sex, age and view the mean AUC goes from {worst['auc']:.2f} ({worst['group']}) to {best['auc']:.2f} "
        f"({best['group']}); whether that is more than chance was not measured."
    )


def _view(mean: dict[str, Any] | None) -> str:
    if mean is None or not mean["low"] > 0:
        return ""
    return f" Up to {mean['difference']:.3f} of its mean AUC may come from telling AP from PA films."
