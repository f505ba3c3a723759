"""Sections of a report: from the tables of a run to plain values that the template shows.

Each function reads its own tables and gives a dict: the rows, a sentence on what they show, and ``why`` where there is
nothing to show. A file that is missing or damaged gives a reason instead of its content.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from cxrlib import UserError, metrics, paths
from cxrlib.data import radiologists
from cxrlib.evaluation import summary
from cxrlib.labels import FINDINGS, NO_FINDING
from cxrlib.report import page

NEEDED = {
    "auc_test": ("finding", "positives", "auc", "auc_low", "auc_high", "ap", "ap_low", "ap_high"),
    "stages": ("stage", "checkpoint", "groups", "lr", "epochs", "val_auc", "val_low", "val_high", "test_auc"),
    "stage_findings": ("comparison", "stage", "against", "finding", "positives", "difference", "low", "high", "p_holm"),
    "overall": ("number", "value", "low", "high"),
    "data": ("part", "films", "patients"),
    "lineage": ("checkpoint", "patients", "unknown"),
    "lineage_localisation": ("checkpoint", "patients", "unknown"),
    "calibration": ("finding", "probability", "prevalence", "brier", "brier_prevalence", "ece"),
    "thresholds": ("finding", "rule", "threshold", "sensitivity", "specificity", "ppv", "npv"),
    "subgroups": ("kind", "group", "finding", "films", "patients", "auc", "low", "high"),
    "gaps": ("number", "group", "against", "finding", "difference", "low", "high", "p_holm"),
    "external": ("finding", "home_auc", "there_auc", "drop", "low", "high", "p_holm", "reason"),
    "external_calibration": ("finding", "probabilities", "probability", "prevalence", "brier", "ece"),
    "external_thresholds": ("finding", "rule", "thresholds", "sensitivity", "specificity", "ppv"),
    "external_mix": ("number", "home", "there"),
    "view_shortcut": ("finding", "auc", "within", "difference", "low", "high"),
    "localisation": ("finding", "boxes", "hit", "hit_low", "hit_high", "chance", "lift", "lift_low", "lift_high"),
    "localisation_control": ("finding", "hit", "lift"),
    "roc_test": ("finding", "rate", "sensitivity"),
    "pr_test": ("finding", "recall", "precision"),
    "reliability": ("finding", "reading", "probability", "observed"),
    "labels_agreement": ("set", "finding", "films", "ppv", "ppv_low", "ppv_high", "sensitivity"),
    "labels_auc": ("finding", "films", "auc_read", "auc_mined", "difference", "low", "high", "p_holm"),
    "labels_curve": ("finding", "mined", "network", "difference", "low", "high", "source"),
    "published": ("method", "network", "mean", "source"),
    "members": ("member", "auc", "mean_auc", "difference", "low", "high", "p_holm", "val_auc", "mean_val_auc", "size"),
    "member_findings": ("member", "finding", "positives", "difference", "low", "high", "p_holm"),
}
"""Required columns of each table, by its file's name; a table may have more."""

WORDS = (
    *("finding", "checkpoint", "groups", "loss", "part", "rule", "reason", "kind", "group", "against", "number"),
    *("method", "network", "source", "reading", "probabilities", "comparison", "says", "thresholds"),
    *("set", "origin", "first", "unknown", "no_interval", "chosen_on", "split", "member", "tta", "weights"),
)
"""Columns that hold text. All others hold numbers; a cell that is not a number counts as undefined."""

NUMBERED = ("stage",)
"""Number columns that identify a row, so may not be empty."""

NAMED = {"stage_findings": ("stage",)}
"""Columns that hold text in one table only: there ``stage`` is a checkpoint's name."""

MAY_LACK = ("reason", "network", "source", "loss", "says", "first", "unknown", "no_interval", "chosen_on", "split")
MAY_LACK += ("tta", "weights")
"""Text columns that may be empty; the others identify a row."""


class Found(NamedTuple):
    """A file's content and "", or None and a sentence with the reason."""

    value: Any
    why: str


def read_or_reason(file: Path, reader: Callable[[Path], Any]) -> Found:
    """The result of ``reader`` on a file; an error of the file is returned as ``why``, not raised."""
    where = f"{file.parent.name}/{file.name}"
    if not file.is_file():
        return Found(None, f"{where} is not there yet.")
    try:
        return Found(reader(file), "")
    except (UserError, ValueError, KeyError, TypeError, OSError) as error:
        return Found(None, f"{where} cannot be read: {error}")


def read_table(file: Path) -> Found:
    """A CSV with the columns that ``NEEDED`` lists for its name: text as str, the rest as float or int."""
    return read_or_reason(file, _read_csv)


def _read_csv(file: Path) -> pd.DataFrame:
    texts = (*WORDS, *NAMED.get(file.stem, ()))
    rows = pd.read_csv(file, dtype=dict.fromkeys(texts, str))
    lacking = [column for column in NEEDED[file.stem] if column not in rows]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    for column in rows:
        if column not in texts:
            rows[column] = pd.to_numeric(rows[column], errors="coerce")
        elif column in MAY_LACK:
            rows[column] = rows[column].fillna("")
        if (column in texts or column in NUMBERED) and rows[column].isna().any():
            raise ValueError(f"row {rows.index[rows[column].isna()][0] + 2} has no {column}")
    return rows


def read_run_record(home: paths.Run) -> Found:
    """The run's ``run.json``; an empty dict where it cannot be read."""
    value, why = read_or_reason(home.run_json, _read_json)
    return Found(value or {}, why)


def _read_json(file: Path) -> dict[str, Any]:
    content = paths.read_json(file)
    if not isinstance(content, dict):
        raise ValueError("it is not the record of a run")
    for name in ("parameters", "settings", "data", "versions", "notebooks"):
        if not isinstance(content.get(name, {}), dict):
            raise ValueError(f"its {name!r} is not a table")
    for name, entry in content.get("notebooks", {}).items():
        if not isinstance(entry, dict) or not isinstance(entry.get("seconds", 0), int | float):
            raise ValueError(f"its notebook {name!r} has no record")
    members = content.get("members", [])
    if not (isinstance(members, list) and all(isinstance(member, dict) for member in members)):
        raise ValueError("its 'members' are not a list of runs")
    films = content.get("data", {})
    left_out, excluded = films.get("left_out", {}), films.get("excluded", {})
    counts = [films.get("films", 0), films.get("patients", 0)]
    counts.append(left_out.get("films", 0) if isinstance(left_out, dict) else None)
    reasons = excluded.get("reasons", {}) if isinstance(excluded, dict) else None
    counts += [excluded.get("films", 0), *reasons.values()] if isinstance(reasons, dict) else [None]
    if not all(isinstance(count, int) for count in counts):
        raise ValueError("its counts of films are not numbers")
    return content


RULES = {
    "youden": ("Balanced", "The highest sum of sensitivity and specificity (Youden)."),
    "f1": ("Few false positives", "The best balance of precision and recall (F1)."),
    "sensitivity_90": ("Few misses", "The highest threshold with a sensitivity of at least 90 % on validation."),
}


def members(home: paths.Run, record: dict[str, Any]) -> dict[str, Any]:
    """The runs that a mean is of, and the mean minus each of them; ``runs`` is empty for any other run.

    Tables as ``averaging`` writes them: ``members`` with a row per member, ``member_findings`` one per finding as well.
    """
    runs = [str(member.get("run", "")) for member in record.get("members", [])]
    if not runs:
        return {"runs": []}
    sides = ("higher", "lower")
    table, why = read_table(home.tables / "members.csv")
    rows = [] if table is None else page.svg_differences(table, sides)
    single, single_why = read_table(home.tables / "member_findings.csv")
    drawn = [] if single is None else page.svg_differences(single, sides)
    settings = record.get("settings", {})
    return {
        "runs": runs,
        "of": settings.get("of", "probabilities"),
        "rows": rows,
        "reach": 0.02 if table is None else page.reach_of_differences(table),
        "above": [row["member"] for row in rows if row["says"] == "higher"],
        "below": [row["member"] for row in rows if row["says"] == "lower"],
        "why": why,
        "findings": [row for row in drawn if row["says"] in sides],
        "looked_at": 0 if single is None else int(single["p_holm"].notna().sum()),
        "findings_why": single_why,
    }


def findings(auc: pd.DataFrame | None, films: int | None) -> list[dict[str, Any]]:
    """Rows of the AUC table, best first, with prevalence and drawing; then undefined findings, "No Finding", the mean.

    films: number of films in the test part, None where unknown. A finding's row counts the films whose label is known.
    """
    if auc is None:
        return []
    least = min(0.4, auc["auc_low"].min(), auc["auc"].min())  # left end of the drawings' scale
    rows = []
    for row in auc.sort_values("auc", ascending=False, na_position="last", kind="stable").to_dict("records"):
        sides = row["auc"], row["auc_low"], row["auc_high"]
        row["mark"] = page.svg_interval(*sides, least=least, most=1.0, neutral=0.5)
        known = row.get("films", films)  # films whose label is known; tables of older versions do not have it
        row["prevalence"] = row["positives"] / known if known else None
        row["films"], row["least"] = known, least
        row["reason"], row["no_interval"] = row.get("reason", ""), row.get("no_interval", "")
        row["patients"] = row.get("patients")
        rows.append(row)
    return sorted(rows, key=lambda row: (metrics.is_mean(row["finding"]), row["finding"] == NO_FINDING))


def roc(home: paths.Run, album: page.FigureAlbum, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """ROC curves, one per finding, drawn from the CSV beside the figure; the figure itself where there is no CSV."""
    points, by_finding = read_table(home.figures / "roc_test.csv"), {row["finding"]: row for row in rows}
    drawn = [
        {"finding": name, "mark": page.svg_roc(own), "row": by_finding.get(name)}
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
        row["mark"] = page.svg_interval(*sides, least=-reach, most=reach, neutral=0, unit="difference in AUC")
        row["helped"] = page.verdict(*sides, row["p_holm"]) if i else "first stage"
        row["on_val"] = page.verdict(*(row[f"val_{name}"] for name in wanted[2:6])) if i else "first stage"
        row["trained"], row["loss"] = trained(row["groups"]), row.get("loss", "")
        row["stage"] = int(row["stage"])
        rows.append(row)
    return rows


def steps(home: paths.Run) -> dict[str, Any]:
    """Changes of single findings: those from stage to stage that are shown, and all from first stage to last."""
    table, why = read_table(home.tables / "stage_findings.csv")
    if table is None:
        return {"shown": [], "looked_at": 0, "whole": [], "why": why}
    single, whole = (table[table["comparison"] == kind] for kind in ("step", "whole"))
    whole = page.svg_differences(whole.sort_values("difference", ascending=False, kind="stable"))
    shown = [row for row in page.svg_differences(single) if row["says"] in ("better", "worse")]
    return {"shown": shown, "looked_at": int(single["p_holm"].notna().sum()), "whole": whole, "why": ""}


def trained(groups: str) -> str:
    """Layer groups, separated by spaces, in a few words: "everything" for all six, else "first to last"."""
    names = groups.split()
    if len(names) == 6:
        return "everything"
    return f"{names[0]} to {names[-1]}" if len(names) > 1 else groups


def precision(home: paths.Run, album: page.FigureAlbum, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Average precision beside the prevalence, which is the chance level, highest ratio first; and the curves."""
    defined = [
        row | {"times": row["ap"] / row["prevalence"] if row["prevalence"] else None}
        for row in rows
        if row["finding"] in FINDINGS and not pd.isna(row["ap"])
    ]
    defined.sort(key=lambda row: -(row["times"] or 0))
    points = read_table(home.figures / "pr_test.csv")
    drawn = [(name, page.svg_pr(own)) for name, own in _by_finding(points.value)]
    shown = _instead(drawn, home, album, "pr_test")
    return {"rows": defined, "curves": drawn, "why": points.why or NO_CURVES, **shown}


def calibration(home: paths.Run, album: page.FigureAlbum) -> dict[str, Any]:
    """Calibration error and Brier score per finding for each kind of probabilities (before and after calibration)."""
    scores, points = read_table(home.tables / "calibration.csv"), read_table(home.figures / "reliability.csv")
    curves = [(name, *page.svg_reliability(own)) for name, own in _by_finding(points.value)]
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


def thresholds(home: paths.Run, album: page.FigureAlbum) -> dict[str, Any]:
    """Thresholds of each rule, chosen on validation, with their results on the test part."""
    table, why = read_table(home.tables / "thresholds.csv")
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


def _instead(drawn: list, home: paths.Run, album: page.FigureAlbum, stem: str) -> dict[str, Any]:
    """The run's own figure, only where no curve could be drawn; the page has no room for both."""
    return {"figure": None if drawn else album.read(home.figures / stem)}


def _by_finding(points: pd.DataFrame | None) -> Iterator[tuple[str, pd.DataFrame]]:
    if points is not None:
        yield from ((name, own) for name, own in points.groupby("finding", sort=False) if name in FINDINGS)


METHODS = {"gradcam": "Grad-CAM", "hirescam": "HiResCAM", "occlusion": "Occlusion", "": "Heat maps"}
ALL = "all findings"
BASIC = ("all", "sex", "age", "view")  # kinds of groups that are shown open; groups by two traits are folded
WHAT = {"auc": "mean AUC", "sensitivity": "mean sensitivity", "tpr": "mean sensitivity"}


def subgroups(home: paths.Run, album: page.FigureAlbum, mean: dict[str, Any] | None = None) -> dict[str, Any]:
    """Mean AUC of each group, the gaps between groups, and the part of the AUC that may come from the view position.

    mean: the row of the mean in the AUC table. All films together have its number and interval, so that the page says
    each number once.
    """
    table, why = read_table(home.tables / "subgroups.csv")
    rows = [] if table is None else _groups(table, mean)
    return {
        "rows": [row for row in rows if row["kind"] in BASIC],
        "met": [row for row in rows if row["kind"] not in BASIC],
        "figure": None if rows else album.read(home.figures / "subgroups"),
        "why": why or "tables/subgroups.csv has no means.",
        "gaps": _gaps(home, album),
        "shortcut": _shortcut(home),
    }


def external(home: paths.Run) -> dict[str, Any]:
    """Result on another dataset's films beside the home result; ``rows`` is empty for a run without such a test.

    Tables as from ``evaluation.external``: external, external_calibration, external_thresholds and external_mix.
    """
    if not (home.tables / "external.csv").exists():
        return {"tested": False, "rows": [], "why": ""}
    names = ("external", "external_calibration", "external_thresholds", "external_mix")
    found = {name: read_table(home.tables / f"{name}.csv") for name in names}
    if found["external"].value is None:
        return {"tested": True, "rows": [], "why": found["external"].why}
    table = found["external"].value
    rows = table.rename(columns={"drop": "difference"}).to_dict("records")
    numbers = {"calibration": ("probabilities", ["probability", "prevalence", "ece", "brier"])}
    numbers |= {"thresholds": ("thresholds", ["sensitivity", "specificity", "ppv"])}
    means = {}
    for name, (by, columns) in numbers.items():
        one = found[f"external_{name}"].value
        if one is not None:
            one = one[one["finding"].isin(FINDINGS) & (one["rule"] == "youden" if name == "thresholds" else True)]
            means[name] = one.groupby(by, sort=False)[columns].mean().reset_index().to_dict("records")
    mix = found["external_mix"].value
    mix = [] if mix is None else mix[~mix["number"].isin(FINDINGS)].to_dict("records")
    return {"tested": True, "rows": rows[:-1], "mean": rows[-1], "why": "", "mix": mix, **means}


def localisation(home: paths.Run, album: page.FigureAlbum) -> dict[str, Any]:
    """Hit rates of the heat maps beside those of a random point and of a network with random weights."""
    names = ("localisation", "localisation_control")
    (table, why), control = (read_table(home.tables / f"{name}.csv") for name in names)
    methods = []
    if table is not None:
        table = table if "method" in table else table.assign(method="")
        methods = [_method(name, rows, control.value) for name, rows in table.groupby("method", sort=False)]
    return {
        "methods": methods,
        "strips": [figure for name in page.MAPS if (figure := album.strip(home.figures / name))],
        "overlap": album.read(home.figures / "overlap"),
        "chart": None if methods else album.read(home.figures / "localisation"),
        "control_why": control.why,
        "why": why or "No film has a box.",
    }


def labels(home: paths.Run, album: page.FigureAlbum) -> dict[str, Any]:
    """The mined labels against radiologists', and the network beside both, by finding of the radiologists.

    ``why`` says why there is nothing to show: no labels, made-up ones of drawn films, or a damaged table. Empty for a
    run in which 09_labels was not executed.
    """
    if not (home.tables / "labels_curve.csv").exists():
        return {"rows": [], "why": "", "source": "", "figures": []}
    tables = {name: read_table(home.tables / f"labels_{name}.csv") for name in ("curve", "auc", "agreement")}
    why = next((table.why for table in tables.values() if table.why), "")
    source = "" if why or tables["curve"].value.empty else tables["curve"].value["source"].iloc[0]
    if source.startswith(radiologists.MADE_UP):
        why = "These films are drawn: no radiologist read them. 09_labels shows the method with made-up labels."
    elif not why and not (tables["auc"].value["films"] > 0).any():
        why = f"None of the tested films has radiologists' labels: {source}."
    if why:
        real = source and not source.startswith(radiologists.MADE_UP)
        figure = album.read(home.figures / "labels_jumps") if real else None  # it needs no radiologists
        return {"rows": [], "why": why, "source": "", "figures": [figure] if figure else []}
    auc, agreed = tables["auc"].value.set_index("finding"), tables["agreement"].value
    agreed = agreed[agreed["set"] == "test"].set_index("finding")
    rows = []
    for row in tables["curve"].value.to_dict("records"):
        name = row["finding"]
        better = "" if row["low"] != row["low"] else "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "–"
        rows.append(
            {**agreed.reindex([name]).iloc[0], **auc.loc[name], "finding": name, "better": better, "curve": row}
        )
    figures = [album.read(home.figures / f"labels_{name}") for name in ("roc", "agreement", "jumps")]
    return {"rows": rows, "why": "", "source": source, "figures": [figure for figure in figures if figure]}


def published(home: paths.Run, album: page.FigureAlbum, auc: list[dict[str, Any]]) -> dict[str, Any]:
    """Published results with the run among them, best first, or why the run cannot be compared with them.

    auc: rows of the AUC table, which hold the intervals of the single findings.
    """
    table, why = read_table(home.figures / "published.csv")
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
        value = page.Value("mean AUC", row["mean"], row["mean_low"], row["mean_high"])
        row["ours"] = row["network"] == "this run"
        row["mark"] = page.svg_intervals([value], least=least, most=most, neutral=least)
        rows.append(row)
    shown = {"rows": rows, "why": "", "figure": None, "least": least, "most": most}
    return shown | _beside(table[table["network"] != "this run"], auc)


def _groups(table: pd.DataFrame, mean: dict[str, Any] | None) -> list[dict[str, Any]]:
    means = table[table["finding"].map(metrics.is_mean)].copy()
    everyone = means["kind"] == "all"
    if mean is not None:
        means.loc[everyone, ["auc", "low", "high"]] = [mean["auc"], mean["auc_low"], mean["auc_high"]]
    least = min(0.5, means[["auc", "low"]].min(axis=None))
    rows = []
    for row in means.to_dict("records"):
        row["mark"] = page.svg_interval(row["auc"], row["low"], row["high"], least=least, most=1.0, neutral=0.5)
        row["least"], row["findings"] = least, row.get("findings", len(FINDINGS))
        row["reason"] = row.get("reason", "")
        rows.append(row)
    return rows


def _gaps(home: paths.Run, album: page.FigureAlbum) -> dict[str, Any]:
    """The run's gaps and the figure of single findings."""
    table, why = read_table(home.tables / "gaps.csv")
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
        for row in page.svg_differences(own, sides=("higher", "lower"))
    ]
    for row in rows:
        row["one"], row["other"] = (_whom(row.get("kind", ""), row[side]) for side in ("group", "against"))
        row["what"], row["findings"] = WHAT.get(row["number"], row["number"]), row.get("findings", len(FINDINGS))
    shown = single[single["p_holm"] <= page.SURE]
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
    table, why = read_table(home.tables / "view_shortcut.csv")
    if table is None and not (home.tables / "view_shortcut.csv").exists():
        table = read_table(home.figures / "view_shortcut.csv").value
    if table is None:
        return {"mean": None, "rows": [], "why": why}
    rows = page.svg_differences(table.dropna(subset=["difference"]))
    mean = next((row for row in rows if metrics.is_mean(row["finding"])), None)
    why = "" if mean else "The effect of the view position cannot be measured: one of the views has too few films."
    return {"mean": mean, "rows": [row for row in rows if row is not mean], "why": why}


FEWEST_BOXES = 10
"""Boxes of a finding from which on it has a row of its own; the hit rate of fewer says nothing."""


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
        row["mark"] = page.svg_interval(*sides, least=0, most=most, neutral=1, unit="lift")
        row["control"], row["iou"] = random_weights.get(row["finding"]), row.get("iou")
        rows.append(row)
    single = [row for row in rows if row["finding"] != ALL and row["boxes"] >= FEWEST_BOXES]
    return {
        "name": METHODS.get(name, name),
        "rows": sorted(single, key=lambda row: -row["lift"] if row["lift"] == row["lift"] else float("inf"))
        + [row for row in rows if row["finding"] == ALL],
        "all": next((row for row in rows if row["finding"] == ALL), None),
        "few": [row["finding"] for row in rows if row["finding"] != ALL and row["boxes"] < FEWEST_BOXES],
        "beyond_chance": [row["finding"] for row in single if row["lift"] > 1 and row.get("p_holm", 1) <= page.SURE],
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
        ours = page.Value("AUC", row["auc"], row["auc_low"], row["auc_high"])
        numbers = {"auc": ours.value, "low": ours.low, "high": ours.high, "least": values.min(), "most": values.max()}
        numbers |= {"others": len(values), "above": int((values < ours.value).sum())}
        drawing = page.svg_among_others(ours, values, least=floor, most=ceiling)
        rows.append({"finding": row["finding"], **numbers, "mark": drawing})
    return {"findings": rows, "floor": floor, "ceiling": ceiling}


def _why_not(home: paths.Run) -> str:
    """Why the run was not compared with published results."""
    images = read_or_reason(home.predictions / "test.csv", lambda file: pd.read_csv(file, usecols=["image"])["image"])
    if images.value is None:
        return f"This run was not compared with published results, and {images.why}"
    return (
        summary.why_not_beside_published(images.value.astype(str))
        or "Run 06_evaluation again to compare with published results."
    )
