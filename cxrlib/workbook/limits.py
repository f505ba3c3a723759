"""Report sections on a run's limits: patient groups, localisation, published results.

As in ``sections``, each function reads its own tables and returns plain values, with ``why`` where there is nothing to
show.
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
BASIC = ("all", "sex", "age", "view")  # kinds of groups that are shown open; groups by two traits are folded
WHAT = {"auc": "mean AUC", "sensitivity": "mean sensitivity", "tpr": "mean sensitivity"}


def subgroups(home: paths.Run, album: pictures.Album) -> dict[str, Any]:
    """Mean AUC of each group, the gaps between groups, and the part of the AUC that may come from the view position."""
    table, why = tables.table(home.tables / "subgroups.csv")
    rows = [] if table is None else _groups(table)
    return {
        "rows": [row for row in rows if row["kind"] in BASIC],
        "met": [row for row in rows if row["kind"] not in BASIC],
        "figure": None if rows else album.read(home.figures / "subgroups"),
        "why": why or "tables/subgroups.csv has no means.",
        "gaps": _gaps(home, album),
        "shortcut": _shortcut(home),
    }


def localisation(home: paths.Run, album: pictures.Album) -> dict[str, Any]:
    """Hit rates of the heat maps beside those of a random point and of a network with random weights."""
    names = ("localisation", "localisation_control")
    (table, why), control = (tables.table(home.tables / f"{name}.csv") for name in names)
    methods = []
    if table is not None:
        table = table if "method" in table else table.assign(method="")
        methods = [_method(name, rows, control.value) for name, rows in table.groupby("method", sort=False)]
    return {
        "methods": methods,
        "strips": [figure for name in pictures.MAPS if (figure := album.strip(home.figures / name))],
        "overlap": album.read(home.figures / "overlap"),
        "chart": None if methods else album.read(home.figures / "localisation"),
        "control_why": control.why,
        "why": why or "No film has a box.",
    }


def published(home: paths.Run, album: pictures.Album, auc: list[dict[str, Any]]) -> dict[str, Any]:
    """Published results with the run among them, best first, or why the run cannot be compared with them.

    auc: rows of the AUC table, which hold the intervals of the single findings.
    """
    table, why = tables.table(home.figures / "published.csv")
    if table is None:
        return {"rows": [], "why": why, "figure": album.read(home.figures / "published")}
    if table.empty:
        return {"rows": [], "why": _why_not(home), "figure": None}
    optional = ("mean_low", "mean_high", "spread", "chosen_on")
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *optional])))
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
    """The run's gaps and the figure of single findings."""
    table, why = tables.table(home.tables / "gaps.csv")
    figure = None if table is None else album.read(home.figures / "gaps_by_finding")
    return gaps(table) | {"figure": figure, "why": why or "No two groups have enough films of the same finding."}


def gaps(table: pd.DataFrame | None) -> dict[str, Any]:
    """Mean gaps between groups, mean gaps within a group of another trait, and gaps of single findings that are shown.

    table: as ``evaluation.subgroups.gaps``, or None.
    """
    if table is None:
        return {"rows": [], "met": [], "findings": [], "looked_at": 0, "means": 0, "sentence": ""}
    table = table.dropna(subset=["difference"])
    means, single = (table[table["finding"].map(metrics.is_mean).to_numpy(bool) == flag] for flag in (True, False))
    rows = [
        row
        for _, own in means.groupby("number", sort=False)  # each number has its own scale
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
    """A group's name in a sentence; age ranges get the word "ages"."""
    return f"ages {group}" if kind == "age" else group


def _spoken(rows: list[dict[str, Any]]) -> str:
    """A sentence on the gaps that are shown."""
    shown = [
        f"{row['what']} is {row['says']} in {row['one']} than in {row['other']}"
        for row in rows
        if row["says"] in ("higher", "lower")
    ]
    text = "; ".join(shown) or "no difference between these groups is shown"
    return f"{text[0].upper()}{text[1:]}."


def _shortcut(home: paths.Run) -> dict[str, Any]:
    """AUC that may come from the view position; older runs have the table beside the figure."""
    table, why = tables.table(home.tables / "view_shortcut.csv")
    if table is None and not (home.tables / "view_shortcut.csv").exists():
        table = tables.table(home.figures / "view_shortcut.csv").value
    if table is None:
        return {"mean": None, "rows": [], "why": why}
    rows = marks.differences(table.dropna(subset=["difference"]))
    mean = next((row for row in rows if metrics.is_mean(row["finding"])), None)
    why = "" if mean else "The effect of the view position cannot be measured: one of the views has too few films."
    return {"mean": mean, "rows": [row for row in rows if row is not mean], "why": why}


def _method(name: str, table: pd.DataFrame, control: pd.DataFrame | None) -> dict[str, Any]:
    """Rows of one method, with the hit rate of random weights where it was measured for the same method."""
    random_weights = {}
    if control is not None:
        same = control[control["method"] == name] if "method" in control and name else control
        random_weights = same.drop_duplicates("finding").set_index("finding")["hit"].to_dict()
    most = min(20.0, max(2.0, table[["lift", "lift_high"]].max(axis=None)))
    rows = []
    for row in table.to_dict("records"):
        sides = row["lift"], row["lift_low"], row["lift_high"]
        row["mark"] = marks.interval(*sides, least=0, most=most, neutral=1, unit="lift")
        row["control"], row["iou"] = random_weights.get(row["finding"]), row.get("iou")
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
    """The run's AUC of each finding among the published values, on one scale from ``floor`` to ``ceiling``."""
    values_of = others.reindex(columns=list(FINDINGS))
    if values_of.isna().all(axis=None):
        return {"findings": []}
    defined = [row for row in auc if row["finding"] in FINDINGS and not pd.isna(row["auc"])]
    floor = min(0.6, values_of.min(axis=None), *(row["auc"] for row in defined)) - 0.01
    ceiling = max(0.95, values_of.max(axis=None))
    rows = []
    for row in defined:
        values = values_of[row["finding"]].dropna()
        ours = marks.Value("AUC", row["auc"], row["auc_low"], row["auc_high"])
        numbers = {"auc": ours.value, "low": ours.low, "high": ours.high, "least": values.min(), "most": values.max()}
        numbers |= {"others": len(values), "above": int((values < ours.value).sum())}
        drawing = marks.among(ours, values, least=floor, most=ceiling)
        rows.append({"finding": row["finding"], **numbers, "mark": drawing})
    return {"findings": rows, "floor": floor, "ceiling": ceiling}


def _why_not(home: paths.Run) -> str:
    """Why the run was not compared with published results."""
    images = tables.read(home.predictions / "test.csv", lambda file: pd.read_csv(file, usecols=["image"])["image"])
    if images.value is None:
        return f"This run was not compared with published results, and {images.why}"
    return results.why_not(images.value.astype(str)) or "Run 06_evaluation again to compare with published results."
