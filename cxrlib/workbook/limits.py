"""The sections of a report on a run's limits: on whom it fails, where it looks, and what others reach.

As in ``sections``, each function reads its own tables and gives a dict of plain values, with ``why`` where there is
nothing to show.
"""

from typing import Any

import pandas as pd

from cxrlib import paths
from cxrlib.evaluation import metrics
from cxrlib.evaluation import published as results
from cxrlib.labels import FINDINGS
from cxrlib.workbook import marks, pictures, tables, words

METHODS = {"gradcam": "Grad-CAM", "hirescam": "HiResCAM", "occlusion": "Occlusion", "": "Heat maps"}
ALL = "all findings"
BASIC = ("all", "sex", "age", "view")  # kinds of groups shown at once; where two meet, on request
WHAT = {"auc": "mean AUC", "sensitivity": "mean sensitivity", "tpr": "mean sensitivity"}


def subgroups(home: paths.Run, album: pictures.Album) -> dict[str, Any]:
    """Mean AUC group by group, the gaps between groups, and how much of the AUC the view alone may give."""
    found = tables.table(home.tables / "subgroups.csv")
    rows = [] if found.value is None else _groups(found.value)
    return {
        "rows": [row for row in rows if row["kind"] in BASIC],
        "met": [row for row in rows if row["kind"] not in BASIC],
        "figure": None if rows else album.read(home.figures / "subgroups"),
        "why": found.why or "tables/subgroups.csv has no means.",
        "gaps": _gaps(home, album),
        "shortcut": _shortcut(home),
    }


def localisation(home: paths.Run, album: pictures.Album) -> dict[str, Any]:
    """How often a map's maximum lies in the box, beside blind pointing and a network that has learnt nothing."""
    found, control = (tables.table(home.tables / f"{name}.csv") for name in ("localisation", "localisation_control"))
    methods = []
    table = found.value
    if table is not None:
        table = table if "method" in table else table.assign(method="")
        methods = [_method(name, rows, control.value) for name, rows in table.groupby("method", sort=False)]
    return {
        "methods": methods,
        "strips": [figure for name in pictures.MAPS if (figure := album.strip(home.figures / name))],
        "overlap": album.read(home.figures / "overlap"),
        "chart": None if methods else album.read(home.figures / "localisation"),
        "control_why": control.why,
        "why": found.why or "There was no film with a box to look at.",
    }


def published(home: paths.Run, album: pictures.Album, auc: list[dict[str, Any]]) -> dict[str, Any]:
    """Published results with the run among them, best first, or why the run cannot stand beside them.

    auc: rows of the AUC table, whose intervals the single findings have.
    """
    found = tables.table(home.figures / "published.csv")
    if found.value is None:
        return {"rows": [], "why": found.why, "figure": album.read(home.figures / "published")}
    if found.value.empty:
        return {"rows": [], "why": _why_not(home), "figure": None}
    wanted = ("mean_low", "mean_high", "spread", "chosen_on")
    table = found.value.reindex(columns=list(dict.fromkeys([*found.value.columns, *wanted])))
    table = table.sort_values("mean", ascending=False, kind="stable")
    least = min(0.7, table[["mean", "mean_low"]].min(axis=None)) - 0.01
    most = max(0.85, table[["mean", "mean_high"]].max(axis=None))
    rows = []
    for row in table.to_dict("records"):
        value = marks.Value("mean AUC", row["mean"], row["mean_low"], row["mean_high"])
        row["ours"] = row["network"] == "this run"
        row["mark"] = marks.intervals([value], least=least, most=most, neutral=least)
        rows.append(row)
    shown = {"rows": rows, "why": "", "figure": None, "least": least, "most": most}
    return shown | _beside(table[table["network"] != "this run"], auc)


def _groups(table: pd.DataFrame) -> list[dict[str, Any]]:
    means = table[table["finding"].map(metrics.is_mean)]
    least = min(0.5, means[["auc", "low"]].min(axis=None))
    rows = []
    for row in means.to_dict("records"):
        row["mark"] = marks.interval(row["auc"], row["low"], row["high"], least=least, most=1.0, neutral=0.5)
        row["least"], row["findings"] = least, row.get("findings", len(FINDINGS))
        row["reason"] = row.get("reason", "")
        rows.append(row)
    return rows


def _gaps(home: paths.Run, album: pictures.Album) -> dict[str, Any]:
    """The run's gaps, and the figure of single findings."""
    found = tables.table(home.tables / "gaps.csv")
    figure = None if found.value is None else album.read(home.figures / "gaps_by_finding")
    why = found.why or "No two groups have enough films of one finding to be compared."
    return gaps(found.value) | {"figure": figure, "why": why}


def gaps(table: pd.DataFrame | None) -> dict[str, Any]:
    """The mean gaps between groups, those where another trait is held fixed, and the gaps of single findings shown.

    table: as ``evaluation.subgroups.gaps``, or None.
    """
    if table is None:
        return {"rows": [], "met": [], "findings": [], "looked_at": 0, "means": 0, "sentence": ""}
    table = table.dropna(subset=["difference"])
    means, single = (table[table["finding"].map(metrics.is_mean).to_numpy(bool) == flag] for flag in (True, False))
    rows = [
        row
        for _, own in means.groupby("number", sort=False)  # each number on a scale of its own
        for row in marks.differences(own, sides=("higher", "lower"))
    ]
    for row in rows:
        row["one"], row["other"] = (_whom(row.get("kind", ""), row[side]) for side in ("group", "against"))
        row["what"], row["findings"] = WHAT.get(row["number"], row["number"]), row.get("findings", len(FINDINGS))
    shown = single[single["p_holm"] <= words.SURE]
    shown = shown.assign(what=[WHAT.get(name, name).removeprefix("mean ") for name in shown["number"]])
    basic = [row for row in rows if row.get("kind", "") in ("", *BASIC)]
    return {
        "rows": basic,
        "met": [row for row in rows if row not in basic],
        "findings": shown.to_dict("records"),
        "looked_at": int(single["p_holm"].notna().sum()),
        "means": int(means["p_holm"].notna().sum()),
        "sentence": _spoken(basic),
    }


def _whom(kind: str, group: str) -> str:
    """A group in a sentence: what is an age is called so."""
    return f"ages {group}" if kind == "age" else group


def _spoken(rows: list[dict[str, Any]]) -> str:
    """The gaps that are shown, in words."""
    shown = [f"{row['what']} is {row['says']} in {row['one']} than in {row['other']}" for row in rows
             if row["says"] in ("higher", "lower")]  # fmt: skip
    text = "; ".join(shown) or "no difference between these groups is shown"
    return f"{text[0].upper()}{text[1:]}."


def _shortcut(home: paths.Run) -> dict[str, Any]:
    """What is won by telling the views apart; from the table, or from the numbers beside an older run's figure."""
    found = tables.table(home.tables / "view_shortcut.csv")
    if found.value is None and not (home.tables / "view_shortcut.csv").exists():
        older = tables.table(home.figures / "view_shortcut.csv")
        found = older if older.value is not None else found
    if found.value is None:
        return {"mean": None, "rows": [], "why": found.why}
    rows = marks.differences(found.value.dropna(subset=["difference"]))
    mean = next((row for row in rows if metrics.is_mean(row["finding"])), None)
    why = "" if mean else "The view's part cannot be measured: too few films of one of the views."
    return {"mean": mean, "rows": [row for row in rows if row is not mean], "why": why}


def _method(name: str, table: pd.DataFrame, control: pd.DataFrame | None) -> dict[str, Any]:
    """One method's rows, with the hit rate of weights drawn anew where it was measured for the same method."""
    anew = {}
    if control is not None:
        same = control[control["method"] == name] if "method" in control and name else control
        anew = same.drop_duplicates("finding").set_index("finding")["hit"].to_dict()
    most = min(20.0, max(2.0, table[["lift", "lift_high"]].max(axis=None)))
    rows = []
    for row in table.to_dict("records"):
        sides = row["lift"], row["lift_low"], row["lift_high"]
        row["mark"] = marks.interval(*sides, least=0, most=most, neutral=1, unit="lift")
        row["control"], row["iou"] = anew.get(row["finding"]), row.get("iou")
        rows.append(row)
    single = [row for row in rows if row["finding"] != ALL]
    return {
        "name": METHODS.get(name, name),
        "rows": sorted(single, key=lambda row: -row["lift"] if row["lift"] == row["lift"] else float("inf"))
        + [row for row in rows if row["finding"] == ALL],
        "all": next((row for row in rows if row["finding"] == ALL), None),
        "beyond_chance": [row["finding"] for row in single if row["lift"] > 1 and row.get("p_holm", 1) <= words.SURE],
        "most": most,
    }


def _beside(others: pd.DataFrame, auc: list[dict[str, Any]]) -> dict[str, Any]:
    """The run's AUC finding by finding among the published ones, on one scale from ``floor`` to ``ceiling``."""
    given = others.reindex(columns=list(FINDINGS))
    if given.isna().all(axis=None):
        return {"findings": []}
    told = [row for row in auc if row["finding"] in FINDINGS and not pd.isna(row["auc"])]
    floor = min(0.6, given.min(axis=None), *(row["auc"] for row in told)) - 0.01
    ceiling = max(0.95, given.max(axis=None))
    rows = []
    for row in told:
        values = given[row["finding"]].dropna()
        ours = marks.Value("AUC", row["auc"], row["auc_low"], row["auc_high"])
        rows.append({
            "finding": row["finding"], "auc": ours.value, "low": ours.low, "high": ours.high,
            "least": values.min(), "most": values.max(), "others": len(values),
            "above": int((values < ours.value).sum()), "mark": marks.among(ours, values, least=floor, most=ceiling),
        })  # fmt: skip
    return {"findings": rows, "floor": floor, "ceiling": ceiling}


def _why_not(home: paths.Run) -> str:
    """Why the run was not set beside published results."""
    images = tables.read(home.predictions / "test.csv", lambda file: pd.read_csv(file, usecols=["image"])["image"])
    if images.value is None:
        return f"This run was not set beside published results, and {images.why}"
    return results.why_not(images.value.astype(str)) or "Run 06_evaluation again to set it beside published results."
