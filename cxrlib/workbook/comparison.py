"""Comparison of several runs on one page: settings, AUC, and whether a difference may be chance."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cxrlib import paths, provenance
from cxrlib.errors import UserError
from cxrlib.evaluation import metrics
from cxrlib.labels import FINDINGS
from cxrlib.workbook import marks, page, pairing, report, sections, tables, words

MOST = len(marks.SHAPES)
"""Runs on one page, at most: each has its own shape and colour."""

LONG = 120  # characters of a file's name; longer names are replaced by a hash
UNKNOWN = "not recorded"


def build(runs: Sequence[str]) -> Path:
    """Write the page of two or more runs into ``outputs/`` and return its path; all are compared with the first.

    Raises UserError as ``check``, and if a run does not exist.
    """
    check(runs)
    homes = [report.home(run) for run in runs]
    return paths.write_text(address(runs), page.render("comparison.html.j2", **gather(homes)))


def check(runs: Sequence[str]) -> None:
    """Raise UserError for fewer than two or more than ``MOST`` runs, and for a run named twice."""
    if not 2 <= len(set(runs)) == len(runs) <= MOST:
        raise UserError(f"{len(runs)} runs cannot be compared on one page; name two to {MOST}, each once")


def address(runs: Sequence[str]) -> Path:
    """Path of the page of these runs."""
    name = f"compare-{'-'.join(runs)}"
    if len(name) > LONG:
        name = f"compare-{len(runs)}-runs-{provenance.digest(list(runs))}"
    return paths.outputs() / f"{name}.html"


def gather(homes: Sequence[paths.Run]) -> dict[str, Any]:
    """Plain values for the template."""
    aucs = [tables.table(home.tables / "auc_test.csv") for home in homes]
    readings = [pairing.read(home) for home in homes]
    runs = [_run(i, *of_run) for i, of_run in enumerate(zip(homes, aucs, readings, strict=True))]
    pairs = _pairs(runs, readings)
    by_finding = [{} if auc.value is None else _by_finding(auc.value) for auc in aucs]
    same = {tuple(reading.value.images) if reading.value else None for reading in readings}
    return {
        "runs": _drawn(runs),
        "least": _least(runs),
        "pairs": pairs,
        "findings": _findings(runs, by_finding),
        "left": _least_of(by_finding),
        "settings": _settings(homes, runs),
        "same_films": len(same) == 1 and None not in same,
        "phantom": any(run["phantom"] for run in runs),
        "contaminated": [run for run in runs if run["contaminated"]],
        "replicates": pairing.REPLICATES,
        "seed": pairing.SEED,
    }


def _run(i: int, home: paths.Run, auc: tables.Found, reading: tables.Found) -> dict[str, Any]:
    """One run's name, mean AUC, settings and warnings; ``notes`` lists files that could not be read."""
    record, data = tables.record(home), tables.table(home.tables / "data.csv")
    rows = {} if auc.value is None else _by_finding(auc.value)
    mean = next((row for name, row in rows.items() if metrics.is_mean(name)), {})
    settings = {**report.part(record.value, "parameters"), **report.part(record.value, "settings")}
    notes = [why for why in (record.why, auc.why, data.why, reading.why) if why]
    run = {
        "name": home.name,
        "link": f"{home.name}/{home.report.name}",
        "sign": marks.sign(i),
        "record": record.value,
        "asked": settings,
        "mean": marks.Value(home.name, *(mean.get(name, float("nan")) for name in ("auc", "auc_low", "auc_high"))),
        "films": len(reading.value.images) if reading.value else None,
        "contaminated": report.contaminated(data.value),
        "split": report.split(data.value),
        "phantom": bool(record.value) and not settings.get("data"),
        "notes": notes,
    }
    if reading.value and not pd.isna(run["mean"].value):
        again = pairing.mean_auc(reading.value)
        if abs(again - run["mean"].value) > 5e-4:
            notes.append(
                f"The mean AUC is {run['mean'].value:.3f} in tables/auc_test.csv and {again:.3f} by "
                "predictions/test.csv: the files are of different evaluations; run 06_evaluation again."
            )
    return run


def _pairs(runs: list[dict[str, Any]], readings: list[tables.Found]) -> list[dict[str, Any]]:
    """Differences of every other run from the first, with a verdict, or why the two are not paired."""
    first = readings[0].value
    whys = [_unpaired(runs[0], run, first, other.value) for run, other in zip(runs[1:], readings[1:], strict=True)]
    paired = [(first, other.value) for other, why in zip(readings[1:], whys, strict=True) if not why]
    differences = iter(pairing.differences(paired))
    return [
        {"run": run, "against": runs[0], "why": why, **({} if why else _verdicts(next(differences)))}
        for run, why in zip(runs[1:], whys, strict=True)
    ]


def _unpaired(one: dict[str, Any], other: dict[str, Any], first: Any, second: Any) -> str:
    lacking = [run["name"] for run, reading in ((one, first), (other, second)) if reading is None]
    if lacking:
        return f"They cannot be paired: there are no readable predictions of {words.joined(lacking)}."
    return pairing.why_not(first, second)


def _verdicts(table: pd.DataFrame) -> dict[str, Any]:
    """Rows of a pair with drawings and verdicts, sorted by the difference."""
    rows = marks.differences(table)
    single = [row for row in rows if not metrics.is_mean(row["finding"])]
    single.sort(key=lambda row: -row["difference"] if row["difference"] == row["difference"] else float("inf"))
    sides = {side: [row["finding"] for row in single if row["says"] == side] for side in ("better", "worse")}
    return {"rows": single, "mean": rows[-1], "reach": marks.reach(table), **sides}


def _drawn(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    least = _least(runs)
    for i, run in enumerate(runs):
        run["mark"] = marks.intervals([run["mean"]], least=least, most=1.0, neutral=0.5, first=i)
    return runs


def _least(runs: list[dict[str, Any]]) -> float:
    return _lowest(end for run in runs for end in run["mean"][1:])


def _least_of(by_finding: list[dict[str, dict]]) -> float:
    single = (row for rows in by_finding for name, row in rows.items() if name in FINDINGS)
    return _lowest(row[name] for row in single for name in ("auc", "auc_low"))


def _lowest(values: Iterable[float | None]) -> float:
    """Left end of a scale of AUCs: 0.5, or the lowest value below it."""
    return min([0.5, *(value for value in values if not pd.isna(value))])


def _by_finding(auc: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return auc.drop_duplicates("finding").set_index("finding", drop=False).to_dict("index")


def _findings(runs: list[dict[str, Any]], by_finding: list[dict[str, dict]]) -> list[dict[str, Any]]:
    """Rows of findings with every run's AUC, drawn on one scale."""
    least, rows = _least_of(by_finding), []
    for finding in FINDINGS:
        values, counts = [], []
        for run, own in zip(runs, by_finding, strict=True):
            row = own.get(finding, {})
            ends = (row.get(name, float("nan")) for name in ("auc", "auc_low", "auc_high"))
            values.append(marks.Value(run["name"], *ends))
            counts.append(row.get("positives"))
        drawing = marks.intervals(values, least=least, most=1.0, neutral=0.5)
        one = len({count for count in counts if count is not None}) == 1
        rows.append({"finding": finding, "values": values, "positives": counts[:1] if one else counts, "mark": drawing})
    return rows


def _settings(homes: Sequence[paths.Run], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Settings, stages, films and versions: those that differ between the runs, and those that are the same."""
    settings = [_recorded(run) | _stages(home) for home, run in zip(homes, runs, strict=True)]
    names = list(dict.fromkeys(itertools.chain.from_iterable(settings)))
    rows = [{"name": name, "values": [own.get(name, UNKNOWN) for own in settings]} for name in names]
    differ = [row for row in rows if len(set(row["values"])) > 1]
    return {"rows": differ, "same": [row for row in rows if row not in differ]}


def _recorded(run: dict[str, Any]) -> dict[str, str]:
    record = run["record"]
    settings = {name: "–" if value == "" else str(value) for name, value in run["asked"].items() if name != "run"}
    films, made = report.part(record, "data"), {"git revision": record.get("git"), "device": record.get("device")}
    made |= {"films": films.get("films"), "films' fingerprint": films.get("fingerprint"), "split": run["split"]}
    return settings | {name: str(value) for name, value in {**made, **report.part(record, "versions")}.items() if value}


def _stages(home: paths.Run) -> dict[str, str]:
    """Layer groups, loss, learning rate and epochs of each stage, in words."""
    table = tables.table(home.tables / "stages.csv").value
    return {
        f"stage {row['stage']}": f"{row['trained']}{', ' + row['loss'] + ' loss' if row['loss'] else ''}, "
        f"rate {words.small(row['lr'])}, {words.count(row['epochs'])} epochs"
        for row in sections.stages(table)
    }
