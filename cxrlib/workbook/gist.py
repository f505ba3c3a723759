"""The headline of a report: a few sentences on findings, localisation and patient groups for the first screen."""

from typing import Any

import pandas as pd

from cxrlib import theme
from cxrlib.labels import FINDINGS
from cxrlib.workbook import words


def sentences(findings: list[dict[str, Any]], places: dict[str, Any], groups: dict[str, Any]) -> list[dict[str, str]]:
    """The sentences with their titles and the ids of their sections; a text with nothing to say is left out.

    findings: the rows of the AUC table, best first; places and groups as ``limits.localisation`` and ``subgroups``.
    """
    texts = (
        ("findings", "Findings", reading(findings)),
        ("localisation", "Where it looks", looking(places)),
        ("subgroups", "Patient groups", failing(groups)),
    )
    return [{"section": section, "title": title, "text": text} for section, title, text in texts if text]


def reading(findings: list[dict[str, Any]]) -> str:
    """Findings whose AUC is shown to differ from the mean of the others, and those not shown to be above chance.

    Every p is adjusted. A finding in too few patients has no p; only its name is given.
    """
    defined = [row for row in findings if row["finding"] in FINDINGS and not pd.isna(row["auc"])]
    tested = [row for row in defined if not pd.isna(row.get("p_chance", float("nan")))]
    if not tested:
        return ""
    mean = sum(row["auc"] for row in tested) / len(tested)
    apart = [row for row in tested if row["p_others"] <= words.SURE]
    high, low = [row for row in apart if row["auc"] > mean], [row for row in apart[::-1] if row["auc"] <= mean]
    sides = (("higher", high), ("lower", low))
    text = " ".join(f"AUC {side} than the mean of the other findings: {_named(rows)}." for side, rows in sides if rows)
    text = text or "No finding's AUC is shown to differ from the mean of the others."
    chance = [row["finding"] for row in tested if not (row["p_chance"] <= words.SURE and row["auc"] > 0.5)]
    text += f" Not shown to be better than chance: {words.listed(chance)}." if chance else ""
    few = [row["finding"] for row in defined if row not in tested]
    return text + (f" Too few patients for a test: {words.listed(few)}." if few else "")


def looking(places: dict[str, Any]) -> str:
    """Hit rates of the heat maps beside that of a random point, and the findings for which a map is shown to be better.

    A method that was measured on fewer than half of the boxes is left out.
    """
    methods = [method for method in places["methods"] if method["all"]]
    most = max((method["all"]["boxes"] for method in methods), default=0)
    methods = [method for method in methods if method["all"]["boxes"] >= most / 2]
    if not methods:
        return ""
    rates = [f"{words.number(100 * each['all']['hit'], 0)} of 100 cases ({each['name']})" for each in methods]
    chance = words.number(100 * methods[0]["all"]["chance"], 0)
    shown = [f"{words.listed(each['beyond_chance'])} ({each['name']})" for each in methods if each["beyond_chance"]]
    text = f"The maximum of the heat map lies in the marked box in {words.joined(rates)}; a random point in {chance}."
    if shown:
        return f"{text} Shown to be better than a random point for {'; '.join(shown)}."
    return f"{text} For no finding is it shown to be better than a random point."


def failing(groups: dict[str, Any]) -> str:
    """Differences in mean AUC between groups that are shown; the range of the groups' means where none was tested."""
    gaps = [row for row in groups["gaps"]["rows"] if row["number"] == "auc"]
    shown = [_gap(row) for row in gaps if row["says"] in ("higher", "lower")]
    rest = [f"{row['one']} and {row['other']}" for row in gaps if row["says"] == words.CHANCE]
    text = " ".join(shown)
    if rest:
        text += f" No {'other ' if shown else ''}difference in mean AUC is shown between {'; '.join(rest)}."
    return ((text or _extent(groups["rows"])) + _view(groups["shortcut"]["mean"])).strip()


def _named(rows: list[dict[str, Any]]) -> str:
    """Names and AUC of the first three findings, and the number of the others."""
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
    defined = [row for row in rows if row["kind"] != "all" and not pd.isna(row["auc"]) and not pd.isna(row["low"])]
    defined.sort(key=lambda row: row["auc"])
    if len(defined) < 2:
        return ""
    worst, best = defined[0], defined[-1]
    return (
        f"By sex, age and view position the mean AUC goes from {worst['auc']:.2f} ({worst['group']}) to "
        f"{best['auc']:.2f} ({best['group']}); whether that may be chance was not tested."
    )


def _view(mean: dict[str, Any] | None) -> str:
    if mean is None or not mean["low"] > 0:
        return ""
    return f" Up to {mean['difference']:.3f} of the mean AUC may come from recognising AP and PA films."
