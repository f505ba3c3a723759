"""The report of a run: one self-contained HTML file, made from the files in the run's folder.

A file that is missing or damaged is named in its section; the rest of the report is still shown.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from cxrlib import paths, provenance
from cxrlib.errors import UserError
from cxrlib.evaluation import metrics
from cxrlib.labels import FINDINGS
from cxrlib.workbook import gist, limits, page, pictures, progress, sections, tables, words

ROOMS = ("report", "gist", "sections", "limits", "tables", "words", "pictures", "marks", "page", "progress")
TEMPLATES = ("report.html.j2", "quality.html.j2", "limits.html.j2", "page.html.j2", "macros.html.j2")


def build(run: str) -> Path:
    """Write ``outputs/<run>/report.html`` and return its path. Raises UserError if the run does not exist."""
    folder = home(run)
    return paths.write_text(folder.report, page.render("report.html.j2", **gather(folder)))


def home(run: str) -> paths.Run:
    """The folder of a run. Raises UserError with the names of all runs if the run does not exist."""
    folder = paths.Run(run)
    if not folder.root.is_dir():
        names = ", ".join(sorted(file.parent.name for file in paths.outputs().glob("*/run.json"))) or "none yet"
        raise UserError(f"there is no run {run!r} in {paths.outputs()}; there are: {names}")
    return folder


def code_version() -> str:
    """Fingerprint of the report's modules and templates; it changes when one of them changes."""
    here = Path(__file__)
    files = [here.with_name(name) for name in (*(f"{module}.py" for module in ROOMS), *TEMPLATES)]
    return provenance.digest([provenance.file_sha256(file) for file in files])


def gather(home: paths.Run) -> dict[str, Any]:
    """Plain values for the template; ``notes`` lists the run's main files that are missing or damaged."""
    album = pictures.Album()
    auc, overall, stages, data = (
        tables.table(home.tables / f"{name}.csv") for name in ("auc_test", "overall", "stages", "data")
    )
    record, record_why = tables.record(home)
    why = {"auc": auc.why, "stages": stages.why, "data": data.why, "record": record_why}
    notes = [reason for reason in why.values() if reason]
    past = _past(home, notes)
    why["overall"] = overall.why
    settings = {**part(record, "parameters"), **part(record, "settings")}
    rows = sections.findings(auc.value, _films(data.value, "test"))
    single = [row for row in rows if not metrics.is_mean(row["finding"])]
    shown = {
        "roc": sections.roc(home, album, single),
        "stages": sections.stages(stages.value),
        "steps": sections.steps(home),
        "precision": sections.precision(home, album, single),
        "calibration": sections.calibration(home, album),
        "thresholds": sections.thresholds(home, album),
        "subgroups": limits.subgroups(home, album),
        "localisation": limits.localisation(home, album),
        "published": limits.published(home, album, single),
        "films": [figure for name in pictures.FILMS if (figure := album.strip(home.figures / name))],
    }
    return {
        "run": home.name,
        "record": record,
        "asked": settings,
        "facts": _facts(record, settings, data.value),
        "contaminated": max(contaminated(data.value) or 0, past["seen"]) or contaminated(data.value),
        "past": past,
        "doubts": part(record, "data").get("doubts", []),
        "left_out": part(part(record, "data"), "left_out").get("films", 0),
        "phantom": bool(record) and not settings.get("data"),
        "mean": next((row for row in rows if metrics.is_mean(row["finding"])), None),
        "findings": single,
        "overall": _rows(overall.value),
        "undefined": [row["finding"] for row in single if row["finding"] in FINDINGS and pd.isna(row["auc"])],
        "gist": gist.sentences(single, shown["localisation"], shown["subgroups"]),
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
        lineage = tables.table(home.tables / f"{name}.csv")
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


def _stage_figures(home: paths.Run, album: pictures.Album, stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures of each stage: its learning curves and its experiment."""
    names = {row["stage"]: row["checkpoint"] for row in stages}
    rows = []
    for k in range(1, 6):
        figures = [album.read(file.with_suffix("")) for file in sorted(home.stage(k).glob("*.png"))]
        if figures:
            rows.append({"stage": k, "checkpoint": names.get(k, ""), "figures": figures})
    return rows


def _facts(record: dict[str, Any], settings: dict[str, Any], data: pd.DataFrame | None) -> list[tuple[str, str]]:
    """Facts for the first screen, as names and values: which data, which run; "not recorded" where unknown."""
    films = part(record, "data")
    count = f"{films['films']:,} films of {films['patients']:,} patients" if {"films", "patients"} <= set(films) else ""
    where = (settings.get("data") or "the phantom set") if record else ""
    seconds = sum(entry.get("seconds", 0) for entry in part(record, "notebooks").values())
    settings = settings | ({"size": read_at} if (read_at := _read_at(data)) else {})
    network = [
        f"{settings[name]}{unit}" for name, unit in (("size", " px"), ("batch_size", " a batch")) if name in settings
    ]
    weights = settings.get("weights", "not recorded")
    start = "random weights" if weights == "none" else f"weights {weights}"
    sizes = [f"{words.count(row.films)} {row.part}" for row in ([] if data is None else data.itertuples())]
    sizes = [size for size in sizes if not size.endswith(" all")]
    seed = f"seed {settings['seed']}" if "seed" in settings else ""
    facts = [
        ("Films", ", ".join(filter(None, (count, Path(str(where)).name if settings.get("data") else where)))),
        ("Split", " · ".join(filter(None, (split(data), " / ".join(sizes))))),
        ("Network", ", ".join(filter(None, ("ResNet-50", start, *network))) if settings else ""),
        ("Schedule", " · ".join(filter(None, (settings.get("schedule", ""), seed)))),
        ("Device", record.get("device", "")),
        (
            "Time",
            f"{progress.clock(seconds)} for the notebooks, {str(record.get('updated', ''))[:10]}" if seconds else "",
        ),
    ]
    return [(name, value or "not recorded") for name, value in facts]


def _lineage(home: paths.Run, notes: list[str]) -> list[dict[str, Any]]:
    """The best checkpoint of every finished stage and its parent; files that cannot be read go into ``notes``."""
    rows = []
    for k in range(1, 6):
        if not (home.stage(k) / "best.json").is_file():
            continue
        best = tables.read(home.stage(k) / "best.json", lambda file: str(json.loads(file.read_text())["best"]))
        meta = tables.read(home.stage(k) / f"{best.value}.json", paths.read_json) if best.value else best
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
