"""Comparison of several runs on one page: settings, results, and whether a difference may be chance.

Two runs are paired on the same test films. The mean over the findings is compared by a bootstrap in which both runs
have the same resamples of the patients, single findings by DeLong's paired test, which allows for several films of a
patient. Runs tested on different films are not paired: their difference would contain the films' difference as well.
"""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cxrlib import UserError, metrics, paths, provenance
from cxrlib.evaluation import intervals
from cxrlib.labels import FINDINGS, column, differ
from cxrlib.report import page, report, sections

REPLICATES, SEED = 1000, 0


class RunPredictions(NamedTuple):
    """Predictions of a run on its test films, sorted by image: patients (N,), labels and probabilities (N, 15)."""

    images: list[str]
    patients: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


def read_predictions(home: paths.Run) -> sections.Found:
    """The run's predictions as ``RunPredictions``, or why there are none."""
    from cxrlib.evaluation import predict  # imports torch, which the report of one run does not need

    def reader(file) -> RunPredictions:
        rows = predict.read(file)
        order = np.argsort(np.array(rows.images), kind="stable")
        images = [rows.images[i] for i in order]
        return RunPredictions(images, rows.patients[order], rows.labels[order], rows.probabilities[order])

    return sections.read_or_reason(home.predictions / "test.csv", reader)


def why_not_paired(one: RunPredictions, other: RunPredictions) -> str:
    """Reason why two runs cannot be paired; "" if they were tested on the same films with the same labels."""
    if one.images != other.images:
        shared, sizes = len({*one.images} & {*other.images}), (len(one.images), len(other.images))
        return (
            f"They were tested on different films ({sizes[0]:,} and {sizes[1]:,}, {shared:,} of them the same). "
            "No difference is computed, because it would partly come from the films."
        )
    if count := int((differ(one.labels, other.labels).any(1) | (one.patients != other.patients)).sum()):
        return f"They were tested on the same films, but {count:,} have other labels or patients; they are not paired."
    return ""


def paired_differences(pairs: Sequence[tuple[RunPredictions, RunPredictions]]) -> list[pd.DataFrame]:
    """Differences in AUC, second minus first, of each pair: a row per finding, then the mean.

    Columns finding, positives, first, second, difference, low, high (95 %), p and p_holm. The p values of single
    findings are adjusted for all findings of all pairs, those of the means for the number of pairs. Undefined is NaN.
    """
    tables = [_pair(*pair) for pair in pairs]
    if tables:
        every = pd.concat(tables, keys=range(len(tables)))
        every["p_holm"] = np.nan
        mean = every["finding"].map(metrics.is_mean).astype(bool)
        for these in (mean, ~mean):
            every.loc[these, "p_holm"] = intervals.holm(every.loc[these, "p"].to_numpy())
        tables = [every.loc[i].reset_index(drop=True) for i in range(len(tables))]
    return tables


def mean_auc(reading: RunPredictions) -> float:
    """Mean AUC over those of the 14 findings for which it is defined."""
    return metrics.nanmean(metrics.auc_per_label(reading.labels, reading.probabilities)[metrics.HEADLINE])


def _pair(first: RunPredictions, second: RunPredictions) -> pd.DataFrame:
    labels, patients = first.labels, first.patients
    how = {"replicates": REPLICATES, "seed": SEED, "precision": False}
    boots = [intervals.bootstrap(labels, run.probabilities, patients, **how) for run in (first, second)]
    rows = []
    for finding in FINDINGS:
        k = column(finding)
        scores = second.probabilities[:, k], first.probabilities[:, k]
        change = intervals.delong_difference(labels[:, k], *scores, patients)
        rows.append((finding, int(metrics.positives(labels[:, k])), boots[0].auc[k], boots[1].auc[k], *change))
    name, positives = metrics.mean_of(len(boots[0].told)), int(metrics.positives(labels[:, metrics.HEADLINE]).sum())
    means = (boot.mean_auc.value for boot in boots)
    rows.append((name, positives, *means, *intervals.difference(boots[1], boots[0])))
    names = ("finding", "positives", "first", "second", "difference", "low", "high", "p")
    return pd.DataFrame(rows, columns=list(names))


MOST = len(page.SHAPES)
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
    aucs = [sections.read_table(home.tables / "auc_test.csv") for home in homes]
    readings = [read_predictions(home) for home in homes]
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
        "elsewhere": _elsewhere(homes, runs),
        "settings": _settings(homes, runs),
        "same_films": len(same) == 1 and None not in same,
        "phantom": any(run["phantom"] for run in runs),
        "contaminated": [run for run in runs if run["contaminated"]],
        "replicates": REPLICATES,
        "seed": SEED,
    }


def _run(i: int, home: paths.Run, auc: sections.Found, reading: sections.Found) -> dict[str, Any]:
    """One run's name, mean AUC, settings and warnings; ``notes`` lists files that could not be read."""
    record, data = sections.read_run_record(home), sections.read_table(home.tables / "data.csv")
    rows = {} if auc.value is None else _by_finding(auc.value)
    mean = next((row for name, row in rows.items() if metrics.is_mean(name)), {})
    settings = {**report.part(record.value, "parameters"), **report.part(record.value, "settings")}
    notes = [why for why in (record.why, auc.why, data.why, reading.why) if why]
    run = {
        "name": home.name,
        "link": f"{home.name}/{home.report.name}",
        "sign": page.svg_sign(i),
        "record": record.value,
        "asked": settings,
        "mean": page.Value(home.name, *(mean.get(name, float("nan")) for name in ("auc", "auc_low", "auc_high"))),
        "films": len(reading.value.images) if reading.value else None,
        "contaminated": report.contaminated(data.value),
        "split": report.split(data.value),
        "phantom": bool(record.value) and not settings.get("data"),
        "notes": notes,
    }
    if reading.value and not pd.isna(run["mean"].value):
        again = mean_auc(reading.value)
        if abs(again - run["mean"].value) > 5e-4:
            notes.append(
                f"The mean AUC is {run['mean'].value:.3f} in tables/auc_test.csv and {again:.3f} by "
                "predictions/test.csv: the files are of different evaluations; run 06_evaluation again."
            )
    return run


def _elsewhere(homes: Sequence[paths.Run], runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs that tested a checkpoint on another dataset: the mean there beside the mean at home, and the drop."""
    results = [sections.external(home) for home in homes]
    return [{"run": run, **result["mean"]} for run, result in zip(runs, results, strict=True) if result["rows"]]


def _pairs(runs: list[dict[str, Any]], readings: list[sections.Found]) -> list[dict[str, Any]]:
    """Differences of every other run from the first, with a verdict, or why the two are not paired."""
    first = readings[0].value
    whys = [_unpaired(runs[0], run, first, other.value) for run, other in zip(runs[1:], readings[1:], strict=True)]
    paired = [(first, other.value) for other, why in zip(readings[1:], whys, strict=True) if not why]
    differences = iter(paired_differences(paired))
    return [
        {"run": run, "against": runs[0], "why": why, **({} if why else _verdicts(next(differences)))}
        for run, why in zip(runs[1:], whys, strict=True)
    ]


def _unpaired(one: dict[str, Any], other: dict[str, Any], first: Any, second: Any) -> str:
    lacking = [run["name"] for run, reading in ((one, first), (other, second)) if reading is None]
    if lacking:
        return f"They cannot be paired: there are no readable predictions of {page.joined(lacking)}."
    return why_not_paired(first, second)


def _verdicts(table: pd.DataFrame) -> dict[str, Any]:
    """Rows of a pair with drawings and verdicts, sorted by the difference."""
    rows = page.svg_differences(table)
    single = [row for row in rows if not metrics.is_mean(row["finding"])]
    single.sort(key=lambda row: -row["difference"] if row["difference"] == row["difference"] else float("inf"))
    sides = {side: [row["finding"] for row in single if row["says"] == side] for side in ("better", "worse")}
    return {"rows": single, "mean": rows[-1], "reach": page.reach_of_differences(table), **sides}


def _drawn(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    least = _least(runs)
    for i, run in enumerate(runs):
        run["mark"] = page.svg_intervals([run["mean"]], least=least, most=1.0, neutral=0.5, first=i)
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
            values.append(page.Value(run["name"], *ends))
            counts.append(row.get("positives"))
        drawing = page.svg_intervals(values, least=least, most=1.0, neutral=0.5)
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
    table = sections.read_table(home.tables / "stages.csv").value
    return {
        f"stage {row['stage']}": f"{row['trained']}{', ' + row['loss'] + ' loss' if row['loss'] else ''}, "
        f"rate {page.small(row['lr'])}, {page.count(row['epochs'])} epochs"
        for row in sections.stages(table)
    }
