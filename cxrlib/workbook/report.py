"""The report of a run: one self-contained HTML file, made from what the run left in its folder.

Whatever is missing or damaged is said in its place; the rest is shown all the same.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from cxrlib import paths, provenance, theme
from cxrlib.errors import UserError
from cxrlib.labels import FINDINGS, NO_FINDING
from cxrlib.workbook import marks, pictures, progress

MEAN = "mean of 14"

NEEDED = {
    "auc_test": ("finding", "positives", "auc", "auc_low", "auc_high", "ap", "ap_low", "ap_high"),
    "stages": ("stage", "checkpoint", "groups", "lr", "epochs", "val_auc", "val_low", "val_high", "test_auc"),
    "data": ("part", "films", "patients"),
    "roc_test": ("finding", "rate", "sensitivity"),
}


def build(run: str) -> Path:
    """Write ``outputs/<run>/report.html`` and give its path. Raises UserError where there is no such run."""
    home = paths.Run(run)
    if not home.root.is_dir():
        raise UserError(f"there is no run {run!r} in {paths.outputs()}")
    page = _template().render(**gather(home))
    return paths.write_text(home.report, page)


def code_version() -> str:
    """Fingerprint of what makes the report: it changes with its code or its template."""
    here = Path(__file__)
    files = [here, *(here.with_name(name) for name in ("marks.py", "pictures.py", "report.html.j2"))]
    return provenance.digest([provenance.file_sha256(file) for file in files])


def gather(home: paths.Run) -> dict[str, Any]:
    """All that the template shows, in plain values; ``notes`` says what is missing."""
    notes: list[str] = []
    auc, stages, data = (_table(home.tables / f"{name}.csv", notes) for name in ("auc_test", "stages", "data"))
    record = _record(home, notes)
    asked = {**record.get("parameters", {}), **record.get("settings", {})}
    findings = _findings(auc, _films(data, "test"))
    return {
        "run": home.name,
        "made": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        "record": record,
        "asked": asked,
        "facts": _facts(record, asked, data, stages),
        "contaminated": _contaminated(data),
        "left_out": record.get("data", {}).get("left_out", {}).get("films", 0),
        "phantom": bool(record) and not asked.get("data"),
        "mean": next((row for row in findings if row["finding"] == MEAN), None),
        "findings": [row for row in findings if row["finding"] != MEAN],
        "best_and_worst": _best_and_worst(findings),
        "parts": [] if data is None else data.to_dict("records"),
        "curves": _curves(home, findings),
        "roc": pictures.read(home.figures / "roc_test"),
        "stages": _stages(home, stages),
        "stages_figure": pictures.read(home.figures / "stages"),
        "films": [figure for name in pictures.FILMS if (figure := pictures.read(home.figures / name))],
        "more": pictures.others(home.figures),
        "lineage": _lineage(home, notes),
        "notebooks": _notebooks(home, record),
        "notes": notes,
    }


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"name": theme.name, "clock": progress.clock, "number": number, "thousands": "{:,}".format}
    return environment.get_template("report.html.j2")


def number(value: Any, digits: int = 3) -> str:
    """A number as a reader wants it; an undefined one is a dash."""
    return "–" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def _read(file: Path, notes: list[str], reader: Callable[[Path], Any]) -> Any:
    """What a reader makes of a file; where that fails, None and a note that says why."""
    where = f"{file.parent.name}/{file.name}"
    if not file.is_file():
        notes.append(f"{where} is not there yet.")
        return None
    try:
        return reader(file)
    except (UserError, ValueError, KeyError, TypeError, OSError) as error:
        notes.append(f"{where} cannot be read: {error}")
        return None


def _table(file: Path, notes: list[str]) -> pd.DataFrame | None:
    def reader(file: Path) -> pd.DataFrame:
        table = pd.read_csv(file)
        lacking = [column for column in NEEDED[file.stem] if column not in table]
        if lacking:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        return table

    return _read(file, notes, reader)


def _record(home: paths.Run, notes: list[str]) -> dict[str, Any]:
    found = _read(home.run_json, notes, paths.read_json)
    return found if isinstance(found, dict) else {}


def _films(data: pd.DataFrame | None, part: str) -> int | None:
    rows = [] if data is None else data.loc[data["part"] == part, "films"]
    return int(rows.iloc[0]) if len(rows) else None


def _findings(auc: pd.DataFrame | None, films: int | None) -> list[dict[str, Any]]:
    """Rows of the AUC table, best first, with prevalence and drawing; those undefined last."""
    if auc is None:
        return []
    columns = ["auc", "auc_low", "auc_high", "ap", "ap_low", "ap_high"]
    auc = auc.assign(**{name: pd.to_numeric(auc[name], errors="coerce") for name in columns})
    least = min(0.4, auc["auc_low"].min(), auc["auc"].min())  # left end of the drawings' scale
    rows = []
    for row in auc.sort_values("auc", ascending=False, na_position="last", kind="stable").to_dict("records"):
        sides = row["auc"], row["auc_low"], row["auc_high"]
        row["mark"] = marks.interval(*sides, least=least, most=1.0, neutral=0.5)
        row["prevalence"] = row["positives"] / films if films else None
        row["films"], row["least"] = films, least
        row["reason"] = row.get("reason") if isinstance(row.get("reason"), str) else ""
        rows.append(row)
    return sorted(rows, key=lambda row: row["finding"] in (NO_FINDING, MEAN))


def _best_and_worst(findings: list[dict[str, Any]]) -> tuple[str, str] | None:
    """The three findings read best and the three read least well, in words."""
    told = [f"{theme.name(row['finding'])} ({row['auc']:.2f})" for row in findings if _told(row)]
    return (", ".join(told[:3]), ", ".join(told[:-4:-1])) if len(told) >= 6 else None


def _told(row: dict[str, Any]) -> bool:
    return row["finding"] in FINDINGS and not pd.isna(row["auc"])


def _curves(home: paths.Run, findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A ROC curve per finding from the numbers beside the figure; empty where there are none."""
    points = _table(home.figures / "roc_test.csv", [])
    if points is None:
        return []
    rows = {row["finding"]: row for row in findings}
    drawn = ((finding, marks.roc(own)) for finding, own in points.groupby("finding", sort=False) if finding in FINDINGS)
    return [{"finding": finding, "mark": mark, "row": rows.get(finding)} for finding, mark in drawn]


def _stages(home: paths.Run, stages: pd.DataFrame | None) -> list[dict[str, Any]]:
    if stages is None:
        return []
    for column in ("test_low", "test_high", "difference", "difference_low", "difference_high", "p_holm"):
        stages[column] = pd.to_numeric(stages[column], errors="coerce") if column in stages else float("nan")
    reach = max(0.02, stages[["difference_low", "difference_high", "difference"]].abs().max(axis=None))
    rows = []
    for row in stages.to_dict("records"):
        sides = row["difference"], row["difference_low"], row["difference_high"]
        row["mark"] = marks.interval(*sides, least=-reach, most=reach, neutral=0, unit="difference in AUC")
        row["helped"] = _helped(*sides)
        row["figures"] = [
            pictures.read(file.with_suffix("")) for file in sorted(home.stage(int(row["stage"])).glob("*.png"))
        ]
        rows.append(row)
    return rows


def _helped(difference: float, low: float, high: float) -> str:
    """What a difference with its interval says, in words."""
    if pd.isna(difference):
        return "first stage" if pd.isna(low) else ""
    if low > 0:
        return "better"
    return "worse" if high < 0 else "no sure difference"


def _facts(record: dict, asked: dict, data: pd.DataFrame | None, stages: pd.DataFrame | None) -> list[tuple[str, str]]:
    """The first screen's answers: which data, which run. An answer that is not known is "not recorded"."""
    films = record.get("data", {})
    count = f"{films['films']:,} films of {films['patients']:,} patients" if "patients" in films else ""
    where = (asked.get("data") or "the phantom set") if record else ""
    source = films.get("source", "")
    seconds = sum(entry.get("seconds", 0) for entry in record.get("notebooks", {}).values())
    network = [f"{asked[name]}{unit}" for name, unit in (("size", " px"), ("batch_size", " a batch")) if name in asked]
    start = {"none": "random weights"}.get(asked.get("weights"), f"weights {asked.get('weights')}") if asked else ""
    sizes = [] if data is None else [f"{row.films:,} {row.part}" for row in data.itertuples() if row.part != "all"]
    answers = [
        ("Films", ", ".join(filter(None, (count, Path(where).name if asked.get("data") else where)))),
        ("Split", " · ".join(filter(None, (source, " / ".join(sizes))))),
        ("Network", ", ".join(filter(None, ("ResNet-50", start, *network))) if asked else ""),
        (
            "Schedule",
            " · ".join(filter(None, (asked.get("schedule", ""), f"seed {asked['seed']}" if "seed" in asked else ""))),
        ),
        ("Device", record.get("device", "")),
        ("Time", f"{progress.clock(seconds)} for the notebooks, {record.get('updated', '')[:10]}" if seconds else ""),
    ]
    return [(name, answer or "not recorded") for name, answer in answers]


def _contaminated(data: pd.DataFrame | None) -> int:
    """Patients of the test part that the network was trained on, where that was knowingly allowed."""
    if data is None or "seen_in_training" not in data:
        return 0
    return int(data["seen_in_training"].fillna(0).max())


def _lineage(home: paths.Run, notes: list[str]) -> list[dict[str, Any]]:
    """The best checkpoint of every finished stage, and what it came from."""
    rows = []
    for k in range(1, 6):
        best = home.stage(k) / "best.json"
        if not best.is_file():
            continue
        named = _read(best, notes, lambda file: json.loads(file.read_text())["best"])
        meta = _read(home.stage(k) / f"{named}.json", notes, paths.read_json) if named else None
        if isinstance(meta, dict):
            parent = (meta.get("parent") or {}).get("name") or f"weights {meta.get('weights', 'not recorded')}"
            rows.append({**meta, "parent": parent, "stage": k, "name": meta.get("name", named)})
    return rows


def _notebooks(home: paths.Run, record: dict) -> list[dict[str, Any]]:
    entries = record.get("notebooks", {})
    files = {file.stem: file for file in home.notebooks.glob("*.ipynb") if "." not in file.stem}
    rows = []
    for name in sorted({*entries, *files}):
        link = f"notebooks/{name}.ipynb" if name in files else ""
        rows.append({"name": name, "link": link, "state": "", "seconds": 0, **entries.get(name, {})})
    return rows
