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
    """The findings shown to be read better, or less well, than the others on average; those not shown above guessing.

    Every p is adjusted. A finding on too few patients has none and is only named.
    """
    known = [row for row in findings if row["finding"] in FINDINGS and not pd.isna(row["auc"])]
    told = [row for row in known if not pd.isna(row.get("p_chance", float("nan")))]
    if not told:
        return ""
    mean = sum(row["auc"] for row in told) / len(told)
    apart = [row for row in told if row["p_others"] <= words.SURE]
    high, low = [row for row in apart if row["auc"] > mean], [row for row in apart[::-1] if row["auc"] <= mean]
    sides = (("better", high), ("less well", low))
    said = "; ".join(f"{how} than the others on average {_named(rows)}" for how, rows in sides if rows)
    text = f"It reads {said}." if said else "No finding is shown to be read better or less well than the others."
    guesses = [row["finding"] for row in told if not (row["p_chance"] <= words.SURE and row["auc"] > 0.5)]
    text += f" Not shown to be better than guessing: {words.listed(guesses)}." if guesses else ""
    few = [row["finding"] for row in known if row not in told]
    return text + (f" On too few patients to tell: {words.listed(few)}." if few else "")


def looking(places: dict[str, Any]) -> str:
    """How often each way of asking points at the place, against blind pointing, and for which findings that is shown.

    A way that was asked on fewer than half of the boxes is left out.
    """
    ways = [method for method in places["methods"] if method["all"]]
    most = max((method["all"]["boxes"] for method in ways), default=0)
    ways = [method for method in ways if method["all"]["boxes"] >= most / 2]
    if not ways:
        return ""
    hits = words.joined([f"{words.number(100 * way['all']['hit'], 0)} of 100 cases ({way['name']})" for way in ways])
    blind = words.number(100 * ways[0]["all"]["chance"], 0)
    shown = [f"{words.listed(way['beyond_chance'])} ({way['name']})" for way in ways if way["beyond_chance"]]
    text = f"The brightest spot of its map lies in the marked box in {hits}; blind pointing reaches {blind}."
    if shown:
        return f"{text} It is shown to point better than blind at {'; '.join(shown)}."
    return f"{text} For no finding is it shown to point better than blind."


def failing(groups: dict[str, Any]) -> str:
    """The gaps in mean AUC shown between groups; where none was measured, between which means the groups lie."""
    gaps = [row for row in groups["gaps"]["rows"] if row["number"] == "auc"]
    shown = [_gap(row) for row in gaps if row["says"] in ("higher", "lower")]
    rest = [f"{row['one']} and {row['other']}" for row in gaps if row["says"] == words.CHANCE]
    text = " ".join(shown)
    if rest:
        text += f" No {'other ' if shown else ''}difference in mean AUC is shown between {'; '.join(rest)}."
    return ((text or _extent(groups["rows"])) + _view(groups["shortcut"]["mean"])).strip()


def _named(rows: list[dict[str, Any]]) -> str:
    """The first three with their AUC, and how many more there are."""
    names = [f"{theme.name(row['finding'])} ({row['auc']:.2f})" for row in rows[:3]]
    return words.joined([*names, *([f"{len(rows) - 3} more"] if len(rows) > 3 else [])])


def _gap(row: dict[str, Any]) -> str:
    side = "lower" if row["difference"] < 0 else "higher"
    ends = sorted((abs(row["low"]), abs(row["high"])))
    return (
        f"Mean AUC is {side} in {row['one']} than in {row['other']}, "
        f"by {abs(row['difference']):.2f} ({ends[0]:.2f} to {ends[1]:.2f})."
    )


def _extent(rows: list[dict[str, Any]]) -> str:
    told = [row for row in rows if row["kind"] != "all" and not pd.isna(row["auc"]) and not pd.isna(row["low"])]
    told.sort(key=lambda row: row["auc"])
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
