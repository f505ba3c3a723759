"""Report sections on a run's performance: AUC, stages, precision, calibration, thresholds.

Each function reads its own tables and returns plain values for the template: rows, sentences, and in ``why`` the reason
where there is nothing to show.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from cxrlib import paths
from cxrlib.evaluation import metrics
from cxrlib.labels import FINDINGS, NO_FINDING
from cxrlib.workbook import marks, pictures, tables, words

RULES = {
    "youden": ("Balanced", "The highest sum of sensitivity and specificity (Youden)."),
    "f1": ("Few false positives", "The best balance of precision and recall (F1)."),
    "sensitivity_90": ("Few misses", "The highest threshold with a sensitivity of at least 90 % on validation."),
}


def findings(auc: pd.DataFrame | None, films: int | None) -> list[dict[str, Any]]:
    """Rows of the AUC table, best first, with prevalence and drawing; then undefined findings, "No Finding", the mean.

    films: number of films in the test part, None where unknown.
    """
    if auc is None:
        return []
    least = min(0.4, auc["auc_low"].min(), auc["auc"].min())  # left end of the drawings' scale
    rows = []
    for row in auc.sort_values("auc", ascending=False, na_position="last", kind="stable").to_dict("records"):
        sides = row["auc"], row["auc_low"], row["auc_high"]
        row["mark"] = marks.interval(*sides, least=least, most=1.0, neutral=0.5)
        row["prevalence"] = row["positives"] / films if films else None
        row["films"], row["least"] = films, least
        row["reason"], row["no_interval"] = row.get("reason", ""), row.get("no_interval", "")
        row["patients"] = row.get("patients")
        rows.append(row)
    return sorted(rows, key=lambda row: (metrics.is_mean(row["finding"]), row["finding"] == NO_FINDING))


def roc(home: paths.Run, album: pictures.Album, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """ROC curves, one per finding, drawn from the CSV beside the figure; the figure itself where there is no CSV."""
    points, by_finding = tables.table(home.figures / "roc_test.csv"), {row["finding"]: row for row in rows}
    drawn = [
        {"finding": name, "mark": marks.roc(own), "row": by_finding.get(name)}
        for name, own in _by_finding(points.value)
    ]
    return {"curves": drawn, "why": points.why or NO_CURVES, **_instead(drawn, home, album, "roc_test")}


def stages(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Rows of the stages' table with the trained layer groups and the effect on the AUC, in words and as a drawing."""
    if table is None:
        return []
    wanted = ("test_low", "test_high", "difference", "difference_low", "difference_high", "p_holm")
    wanted += tuple(f"val_{name}" for name in wanted[2:])
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *wanted])))
    reach = max(0.02, table[["difference_low", "difference_high", "difference"]].abs().max(axis=None))
    rows = []
    for i, row in enumerate(table.to_dict("records")):
        sides = row["difference"], row["difference_low"], row["difference_high"]
        row["mark"] = marks.interval(*sides, least=-reach, most=reach, neutral=0, unit="difference in AUC")
        row["helped"] = words.verdict(*sides, row["p_holm"]) if i else "first stage"
        row["on_val"] = words.verdict(*(row[f"val_{name}"] for name in wanted[2:6])) if i else "first stage"
        row["trained"], row["loss"] = trained(row["groups"]), row.get("loss", "")
        row["stage"] = int(row["stage"])
        rows.append(row)
    return rows


def steps(home: paths.Run) -> dict[str, Any]:
    """Changes of single findings: those from stage to stage that are shown, and all from first stage to last."""
    table, why = tables.table(home.tables / "stage_findings.csv")
    if table is None:
        return {"shown": [], "looked_at": 0, "whole": [], "why": why}
    single, whole = (table[table["comparison"] == kind] for kind in ("step", "whole"))
    whole = marks.differences(whole.sort_values("difference", ascending=False, kind="stable"))
    shown = [row for row in marks.differences(single) if row["says"] in ("better", "worse")]
    return {"shown": shown, "looked_at": int(single["p_holm"].notna().sum()), "whole": whole, "why": ""}


def trained(groups: str) -> str:
    """Layer groups, separated by spaces, in a few words: "everything" for all six, else "first to last"."""
    names = groups.split()
    if len(names) == 6:
        return "everything"
    return f"{names[0]} to {names[-1]}" if len(names) > 1 else groups


def precision(home: paths.Run, album: pictures.Album, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Average precision beside the prevalence, which is the chance level, highest ratio first; and the curves."""
    defined = [
        row | {"times": row["ap"] / row["prevalence"] if row["prevalence"] else None}
        for row in rows
        if row["finding"] in FINDINGS and not pd.isna(row["ap"])
    ]
    defined.sort(key=lambda row: -(row["times"] or 0))
    points = tables.table(home.figures / "pr_test.csv")
    drawn = [(name, marks.pr(own)) for name, own in _by_finding(points.value)]
    shown = _instead(drawn, home, album, "pr_test")
    return {"rows": defined, "curves": drawn, "why": points.why or NO_CURVES, **shown}


def calibration(home: paths.Run, album: pictures.Album) -> dict[str, Any]:
    """Calibration error and Brier score per finding for each kind of probabilities (before and after calibration)."""
    scores, points = tables.table(home.tables / "calibration.csv"), tables.table(home.figures / "reliability.csv")
    curves = [(name, *marks.reliability(own)) for name, own in _by_finding(points.value)]
    shown = {
        "curves": curves,
        "readings": list(dict.fromkeys(points.value["reading"])) if curves else [],
        "curves_why": points.why or NO_CURVES,
        "why": scores.why or "tables/calibration.csv has none of the 14 findings.",
        **_instead(curves, home, album, "reliability"),
    }
    table = None if scores.value is None else scores.value[scores.value["finding"].isin(FINDINGS)]
    if table is None or table.empty:
        return shown | {"rows": [], "kinds": [], "means": [], "truth": {}}
    if "probabilities" not in table:
        table = table.assign(probabilities="as it came")
    kinds = list(dict.fromkeys(table["probabilities"]))
    rows = []
    for name, own in table.groupby("finding", sort=False):
        by_kind = own.drop_duplicates("probabilities").set_index("probabilities").reindex(kinds)
        rows.append({"finding": name, "prevalence": own["prevalence"].iloc[0], "kinds": by_kind.to_dict("records")})
    means = table.groupby("probabilities", sort=False)[["probability", "ece", "brier"]].mean()
    truth = table.drop_duplicates("finding")[["prevalence", "brier_prevalence"]].mean()
    means = means.reset_index().to_dict("records")
    return shown | {"rows": rows, "kinds": kinds, "means": means, "truth": truth.to_dict()}


def thresholds(home: paths.Run, album: pictures.Album) -> dict[str, Any]:
    """Thresholds of each rule, chosen on validation, with their results on the test part."""
    table, why = tables.table(home.tables / "thresholds.csv")
    rules = []
    for rule, rows in [] if table is None else table.groupby("rule", sort=False):
        title, meaning = RULES.get(rule, (rule, ""))
        own = rows[rows["finding"].isin(FINDINGS)]
        mean = own[["sensitivity", "specificity", "ppv", "npv"]].mean().to_dict()
        rows = rows.assign(reason=rows.get("reason", ""))
        rules.append({"title": title, "meaning": meaning, "mean": mean, "rows": rows.to_dict("records")})
    shown = _instead(rules, home, album, "thresholds")
    return {"rules": rules, "why": why or "tables/thresholds.csv is empty.", **shown}


NO_CURVES = "The CSV beside the figure has none of the 14 findings."


def _instead(drawn: list, home: paths.Run, album: pictures.Album, stem: str) -> dict[str, Any]:
    """The run's own figure, only where no curve could be drawn; the page has no room for both."""
    return {"figure": None if drawn else album.read(home.figures / stem)}


def _by_finding(points: pd.DataFrame | None) -> Iterator[tuple[str, pd.DataFrame]]:
    if points is not None:
        yield from ((name, own) for name, own in points.groupby("finding", sort=False) if name in FINDINGS)
