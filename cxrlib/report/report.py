"""Report of a run: one self-contained HTML file, made from what the run left in its folder, and its first sentences.

Whatever is missing or damaged is named in its place; the rest is shown all the same.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from cxrlib import UserError, metrics, paths, provenance
from cxrlib.data import exclusion
from cxrlib.evaluation import protocol
from cxrlib.labels import FINDINGS, display_name
from cxrlib.report import page, sections
from cxrlib.training import progress

ROOMS = ("report", "sections", "page")
PARTS = ("quality", "limits", "labels", "external", "members", "page", "macros")
TEMPLATES = ("report.html.j2", *(f"{part}.html.j2" for part in PARTS))


def build(run: str) -> Path:
    """Write ``outputs/<run>/report.html`` and return its path. Raises UserError if the run does not exist."""
    folder = home(run)
    return paths.write_text(folder.report, page.render("report.html.j2", **gather(folder)))


def home(run: str) -> paths.Run:
    """The folder of a run. Raises UserError with the names of all runs if the run does not exist."""
    folder = paths.Run(run)
    if not folder.root.is_dir():
        names = ", ".join(paths.runs()) or "none yet"
        raise UserError(f"there is no run {run!r} in {paths.outputs()}; there are: {names}")
    return folder


def code_version() -> str:
    """Fingerprint of the report's modules and templates; it changes when one of them changes."""
    here = Path(__file__)
    files = [here.with_name(name) for name in (*(f"{module}.py" for module in ROOMS), *TEMPLATES)]
    return provenance.digest([provenance.file_sha256(file) for file in files])


def gather(home: paths.Run) -> dict[str, Any]:
    """Plain values for the template; ``notes`` lists the run's main files that are missing or damaged."""
    album = page.FigureAlbum()
    auc, overall, stages, data = (
        sections.read_table(home.tables / f"{name}.csv") for name in ("auc_test", "overall", "stages", "data")
    )
    record, record_why = sections.read_run_record(home)
    members = sections.members(home, record)
    why = {"auc": auc.why, "stages": stages.why, "data": data.why, "record": record_why}
    if members["runs"]:  # a mean of runs has no stages
        why["stages"] = ""
    notes = [reason for reason in why.values() if reason] + not_made_by_run(home, record)
    if protocol.is_damaged(home):
        notes.append("protocol.json was changed or damaged: who read the test films is not known; run cxr test again")
    past = _past(home, notes)
    why["overall"] = overall.why
    settings = {**part(record, "parameters"), **part(record, "settings")}
    rows = sections.findings(auc.value, _films(data.value, "test"))
    single = [row for row in rows if not metrics.is_mean(row["finding"])]
    shown = {
        "members": members,
        "roc": sections.roc(home, album, single),
        "stages": sections.stages(stages.value),
        "steps": sections.steps(home),
        "precision": sections.precision(home, album, single),
        "calibration": sections.calibration(home, album),
        "thresholds": sections.thresholds(home, album),
        "subgroups": sections.subgroups(
            home, album, next((row for row in rows if metrics.is_mean(row["finding"])), None)
        ),
        "localisation": sections.localisation(home, album),
        "labels": sections.labels(home, album),
        "external": sections.external(home),
        "published": sections.published(home, album, single),
        "films": [figure for name in page.FILMS if (figure := album.strip(home.figures / name))],
    }
    return {
        "run": home.name,
        "record": record,
        "asked": settings,
        "facts": _facts(record, settings, data.value),
        "contaminated": max(contaminated(data.value) or 0, past["seen"]) or contaminated(data.value),
        "past": past,
        "protocol": protocol.read(home),
        "doubts": part(record, "data").get("doubts", []),
        "left_out": part(part(record, "data"), "left_out").get("films", 0),
        "phantom": bool(record) and not settings.get("data"),
        "mean": next((row for row in rows if metrics.is_mean(row["finding"])), None),
        "findings": single,
        "overall": _rows(overall.value),
        "undefined": [row["finding"] for row in single if row["finding"] in FINDINGS and pd.isna(row["auc"])],
        "gist": headline(single, shown["localisation"], shown["subgroups"]),
        "parts": _rows(data.value),
        "split": split(data.value),
        "stage_figures": _stage_figures(home, album, shown["stages"]),
        "stages_figure": None if shown["stages"] else album.read(home.figures / "stages"),
        "more": album.others(home.figures),
        "lineage": _lineage(home, notes),
        "notebooks": _notebooks(home, record),
        "notes": notes,
        "why": why,
        **shown,
    }


def not_made_by_run(home: paths.Run, record: dict[str, Any]) -> list[str]:
    """Sentences on tables, figures and predictions that are not what the run made; none for a run without a record."""
    entries = {name: part(part(record, "notebooks"), name) for name in part(record, "notebooks")}
    if not any("made" in entry for entry in entries.values()):
        return []
    names: set[str] = set()
    words, again = [], f"cxr run --run {home.name}"
    if members := [str(member.get("run", "")) for member in record.get("members", [])]:
        again = f"cxr ensemble {' '.join(members)} --run {home.name}"
    for name, entry in entries.items():
        made = {file: mark for file, mark in part(entry, "made").items() if file.startswith(SHOWN)}
        names |= made.keys()
        words += [
            f"{file} is not what {name} made: it was changed or damaged since. Run {again} again."
            for file in paths.changed_results(home.root, made)
            if (home.root / file).exists()
        ]
    tables = {file.relative_to(home.root).as_posix() for file in home.tables.glob("*.csv")}
    return words + [f"{file} was not made by the notebooks of this run." for file in sorted(tables - names)]


SHOWN = ("tables/", "figures/", "predictions/")


def part(record: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of a run's record; an empty dict where it is absent or not a dict."""
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def contaminated(data: pd.DataFrame | None) -> int | None:
    """Number of test patients that the network has seen, as the user allowed; None where not recorded."""
    if data is None or "seen_in_training" not in data or data["seen_in_training"].isna().all():
        return None
    return int(data["seen_in_training"].max())


def split(data: pd.DataFrame | None) -> str:
    """Source of the split into train, validation and test, as the evaluation recorded it; "" where not recorded."""
    return "" if data is None or "split" not in data or data.empty else data["split"].iloc[0]


def _read_at(data: pd.DataFrame | None) -> int:
    """Side of the evaluated images in pixels; 0 where the evaluation did not record it."""
    return 0 if data is None or "size" not in data or data["size"].isna().any() or data.empty else int(data["size"][0])


def _past(home: paths.Run, notes: list[str]) -> dict[str, Any]:
    """The checkpoints' lineage: test patients that they have seen, and sentences on what is not known.

    A table that cannot be read goes into ``notes``. Runs of older versions have no table.
    """
    patients, unknown, checked = 0, {}, False
    for name in ("lineage", "lineage_localisation"):
        lineage = sections.read_table(home.tables / f"{name}.csv")
        if lineage.value is not None:
            patients, checked = max(patients, int(lineage.value["patients"].fillna(0).max())), True
            unknown |= dict.fromkeys(text for text in lineage.value["unknown"] if text)
        elif (home.tables / f"{name}.csv").exists():
            notes.append(lineage.why)
    return {"seen": patients, "unknown": list(unknown), "asked": checked}


def _rows(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    return [] if table is None else table.to_dict("records")


def _films(data: pd.DataFrame | None, name: str) -> int | None:
    rows = [] if data is None else data.loc[data["part"] == name, "films"].dropna()
    return int(rows.iloc[0]) if len(rows) else None


def _stage_figures(home: paths.Run, album: page.FigureAlbum, stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures of each stage: its learning curves and its experiment."""
    names = {row["stage"]: row["checkpoint"] for row in stages}
    rows = []
    for k in range(1, 6):
        figures = [album.read(file.with_suffix("")) for file in sorted(home.stage(k).glob("*.png"))]
        if figures:
            rows.append({"stage": k, "checkpoint": names.get(k, ""), "figures": figures})
    return rows


def _counts(data: pd.DataFrame | None) -> dict[str, int]:
    """Films and patients that the evaluation split, so that a folder that has changed since does not count; or {}."""
    rows = pd.DataFrame() if data is None else data[data["part"].isin(["train", "val", "test"])]
    if len(rows) < 3 or not {"films", "patients"} <= {*rows} or rows[["films", "patients"]].isna().any(axis=None):
        return {}
    return {name: int(rows[name].sum()) for name in ("films", "patients")}


def _facts(record: dict[str, Any], settings: dict[str, Any], data: pd.DataFrame | None) -> list[tuple[str, str]]:
    """Facts for the first screen, as names and values: which data, which run; "not recorded" where unknown."""
    films, excluded = _counts(data) or part(record, "data"), part(part(record, "data"), "excluded")
    count = f"{films['films']:,} films of {films['patients']:,} patients" if {"films", "patients"} <= set(films) else ""
    where = (settings.get("data") or "the phantom set") if record else ""
    seconds = sum(entry.get("seconds", 0) for entry in part(record, "notebooks").values())
    settings = settings | ({"size": read_at} if (read_at := _read_at(data)) else {})
    network = [
        f"{settings[name]}{unit}" for name, unit in (("size", " px"), ("batch_size", " a batch")) if name in settings
    ]
    weights = settings.get("weights", "not recorded")
    start = "random weights" if weights == "none" else f"weights {weights}"
    sizes = [f"{page.count(row.films)} {row.part}" for row in ([] if data is None else data.itertuples())]
    sizes = [size for size in sizes if not size.endswith(" all")]
    seed = f"seed {settings['seed']}" if "seed" in settings else ""
    place = Path(str(where)).name if settings.get("data") else where
    facts = [
        ("Films", ", ".join(filter(None, (count, place, exclusion.in_words(excluded) if excluded else "")))),
        ("Split", " · ".join(filter(None, (split(data), " / ".join(sizes))))),
        ("Network", ", ".join(filter(None, ("ResNet-50", start, *network))) if settings else ""),
        ("Schedule", " · ".join(filter(None, (settings.get("schedule", ""), seed)))),
        ("Device", record.get("device", "")),
        (
            "Time",
            f"{progress.clock(seconds)} for the notebooks, {str(record.get('updated', ''))[:10]}" if seconds else "",
        ),
    ]
    if members := [str(member.get("run", "")) for member in record.get("members", [])]:
        mean = f"mean of the {settings.get('of', 'probabilities')} of {page.joined(members)}"
        made = str(record.get("updated", ""))[:10]
        facts = [*facts[:2], ("Network", f"none of its own: {mean}"), ("Made", made)]
    return [(name, value or "not recorded") for name, value in facts]


def _lineage(home: paths.Run, notes: list[str]) -> list[dict[str, Any]]:
    """The best checkpoint of every finished stage and its parent; files that cannot be read go into ``notes``."""
    rows = []
    for k in range(1, 6):
        if not (home.stage(k) / "best.json").is_file():
            continue
        best = sections.read_or_reason(home.stage(k) / "best.json", paths.read_best)
        meta = sections.read_or_reason(home.stage(k) / f"{best.value}.json", paths.read_json) if best.value else best
        if isinstance(meta.value, dict):
            parent = part(meta.value, "parent").get("name") or f"weights {meta.value.get('weights', 'not recorded')}"
            rows.append({**meta.value, "parent": parent, "stage": k, "name": meta.value.get("name", best.value)})
        elif meta.why:
            notes.append(meta.why)
    return rows


def _notebooks(home: paths.Run, record: dict[str, Any]) -> list[dict[str, Any]]:
    entries = part(record, "notebooks")
    files = {file.stem: file for file in home.notebooks.glob("*.ipynb") if "." not in file.stem}
    rows = []
    for name in sorted({*entries, *files}):
        link = f"notebooks/{name}.ipynb" if name in files else ""
        rows.append({"name": name, "link": link, "state": "", "seconds": 0, **entries.get(name, {})})
    return rows


def headline(findings: list[dict[str, Any]], places: dict[str, Any], groups: dict[str, Any]) -> list[dict[str, str]]:
    """The sentences with their titles and the ids of their sections; a text with nothing to say is left out.

    findings: the rows of the AUC table, best first; places and groups as ``sections.localisation`` and ``subgroups``.
    """
    texts = (
        ("findings", "Findings", headline_findings(findings)),
        ("localisation", "Where it looks", headline_pointing(places)),
        ("subgroups", "Patient groups", headline_gaps(groups)),
    )
    return [{"section": section, "title": title, "text": text} for section, title, text in texts if text]


def headline_findings(findings: list[dict[str, Any]]) -> str:
    """Findings whose AUC is shown to differ from the mean of the others, and those not shown to be above chance.

    Every p is adjusted. A finding in too few patients has no p; only its name is given.
    """
    defined = [row for row in findings if row["finding"] in FINDINGS and not pd.isna(row["auc"])]
    tested = [row for row in defined if not pd.isna(row.get("p_chance", float("nan")))]
    if not tested:
        return ""
    mean = sum(row["auc"] for row in tested) / len(tested)
    apart = [row for row in tested if row["p_others"] <= page.SURE]
    high, low = [row for row in apart if row["auc"] > mean], [row for row in apart[::-1] if row["auc"] <= mean]
    sides = (("higher", high), ("lower", low))
    text = " ".join(f"AUC {side} than the mean of the other findings: {_named(rows)}." for side, rows in sides if rows)
    text = text or "No finding's AUC is shown to differ from the mean of the others."
    chance = [row["finding"] for row in tested if not (row["p_chance"] <= page.SURE and row["auc"] > 0.5)]
    text += f" Not shown to be better than chance: {page.listed(chance)}." if chance else ""
    few = [row["finding"] for row in defined if row not in tested]
    return text + (f" Too few patients for a test: {page.listed(few)}." if few else "")


def headline_pointing(places: dict[str, Any]) -> str:
    """Hit rates of the heat maps beside that of a random point, and the findings for which a map is shown to be better.

    A method that was measured on fewer than half of the boxes is left out.
    """
    methods = [method for method in places["methods"] if method["all"]]
    most = max((method["all"]["boxes"] for method in methods), default=0)
    methods = [method for method in methods if method["all"]["boxes"] >= most / 2]
    if not methods:
        return ""
    rates = [f"{page.number(100 * each['all']['hit'], 0)} of 100 cases ({each['name']})" for each in methods]
    chance = page.number(100 * methods[0]["all"]["chance"], 0)
    shown = [f"{page.listed(each['beyond_chance'])} ({each['name']})" for each in methods if each["beyond_chance"]]
    text = f"The maximum of the heat map lies in the marked box in {page.joined(rates)}; a random point in {chance}."
    if shown:
        return f"{text} Shown to be better than a random point for {'; '.join(shown)}."
    return f"{text} For no finding is it shown to be better than a random point."


def headline_gaps(groups: dict[str, Any]) -> str:
    """Differences in mean AUC between groups that are shown; the range of the groups' means where none was tested."""
    gaps = [row for row in groups["gaps"]["rows"] if row["number"] == "auc"]
    shown = [_gap(row) for row in gaps if row["says"] in ("higher", "lower")]
    rest = [f"{row['one']} and {row['other']}" for row in gaps if row["says"] == page.CHANCE]
    text = " ".join(shown)
    if rest:
        text += f" No {'other ' if shown else ''}difference in mean AUC is shown between {'; '.join(rest)}."
    return ((text or _extent(groups["rows"])) + _view(groups["shortcut"]["mean"])).strip()


def _named(rows: list[dict[str, Any]]) -> str:
    """Names and AUC of the first three findings, and the number of the others."""
    names = [f"{display_name(row['finding'])} ({row['auc']:.2f})" for row in rows[:3]]
    return page.joined([*names, *([f"{len(rows) - 3} more"] if len(rows) > 3 else [])])


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
