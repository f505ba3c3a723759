"""Comparison of several runs on one page: settings, results, and whether a difference may be chance.

Two runs are paired on the same test films. The mean over the findings is compared by a bootstrap in which both runs
have the same resamples of the patients, single findings by DeLong's paired test, which allows for several films of a
patient. Runs tested on different films are not paired: their difference would contain the films' difference as well.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
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


Side = RunPredictions | Sequence[RunPredictions]
"""One side of a comparison: a run, or the runs of one recipe from several seeds. A NamedTuple is one run."""


def paired_differences(pairs: Sequence[tuple[Side, Side]]) -> list[pd.DataFrame]:
    """Differences in AUC, second minus first, of each pair: a row per finding, then the mean.

    Columns finding, positives, first, second, difference, low, high (95 %), p and p_holm: over the patients, the
    networks given. first and second are means over a side's seeds. Over the seeds, the films given: first_sd, second_sd
    (NaN for one seed), and by Welch's t seeds_low, seeds_high, seeds_p, seeds_p_holm (NaN unless both sides have two).
    The p values of single findings are adjusted for all findings of all pairs, those of the means for the number of
    pairs. Undefined is NaN.
    """
    sides = [tuple((side,) if isinstance(side, RunPredictions) else (*side,) for side in pair) for pair in pairs]
    boots = {id(run): _bootstrap(run) for pair in sides for side in pair for run in side}
    tables = [_pair(*pair, boots) for pair in sides]
    if tables:
        every = pd.concat(tables, keys=range(len(tables)))
        mean = every["finding"].map(metrics.is_mean).astype(bool)
        for name in ("p", "seeds_p"):
            every[f"{name}_holm"] = np.nan
            for these in (mean, ~mean):
                every.loc[these, f"{name}_holm"] = intervals.holm(every.loc[these, name].to_numpy(np.float64))
        tables = [every.loc[i].reset_index(drop=True) for i in range(len(tables))]
    return tables


def _bootstrap(run: RunPredictions) -> intervals.Bootstrap:
    how = {"replicates": REPLICATES, "seed": SEED, "precision": False}
    return intervals.bootstrap(run.labels, run.probabilities, run.patients, **how)


def mean_auc(reading: RunPredictions) -> float:
    """Mean AUC over those of the 14 findings for which it is defined."""
    return metrics.nanmean(metrics.auc_per_label(reading.labels, reading.probabilities)[metrics.HEADLINE])


def _pair(
    first: tuple[RunPredictions, ...], second: tuple[RunPredictions, ...], boots: Mapping[int, intervals.Bootstrap]
) -> pd.DataFrame:
    labels, patients = first[0].labels, first[0].patients
    aucs = [np.stack([boots[id(run)].auc for run in side]) for side in (first, second)]  # (seeds, 15) each
    rows = []
    for finding in FINDINGS:
        k = column(finding)
        scores = ([run.probabilities[:, k] for run in side] for side in (second, first))
        change = intervals.delong_difference_over_seeds(labels[:, k], *scores, patients)
        rows.append((finding, int(metrics.positives(labels[:, k])), *change, *_seeds(*(side[:, k] for side in aucs))))
    one, other = (intervals.over_seeds([boots[id(run)] for run in side]) for side in (first, second))
    name, positives = metrics.mean_of(len(one.told)), int(metrics.positives(labels[:, metrics.HEADLINE]).sum())
    means = (metrics.nanmean(side[:, metrics.HEADLINE], axis=1) for side in aucs)
    rows.append((name, positives, *intervals.difference(other, one), *_seeds(*means)))
    names = ("finding", "positives", "difference", "low", "high", "p")
    names += ("first", "second", "first_sd", "second_sd", "seeds_low", "seeds_high", "seeds_p")
    return pd.DataFrame(rows, columns=list(names))


def _seeds(first: np.ndarray, second: np.ndarray) -> tuple[float, ...]:
    """Means and SDs of two sides' AUCs over their seeds (n,) and (m,), then the ends and p of their difference."""
    spread = (np.std(side, ddof=1) if len(side) > 1 else np.nan for side in (first, second))
    return (first.mean(), second.mean(), *spread, *intervals.seeds_difference(second, first)[1:])


MOST = len(page.SHAPES)
"""Runs or series on one page, at most: each has its own shape and colour."""

LONG = 120  # characters of a file's name; longer names are replaced by a hash
UNKNOWN = "not recorded"
OF_MEMBERS = "as its members"
"""Shown for a setting that a mean of runs does not have."""


def build(runs: Sequence[str]) -> Path:
    """Write the page of two or more runs into ``outputs/`` and return its path; all are compared with the first.

    Runs that differ in their seed only, named ``base-s0``, ``base-s1`` and so on, are one series: see ``_units``.
    Raises UserError as ``check``, and if a run does not exist.
    """
    check(runs)
    homes = [report.home(run) for run in runs]
    return paths.write_text(address(runs), page.render("comparison.html.j2", **gather(homes)))


def expand(names: Sequence[str]) -> list[str]:
    """Names of runs, each once. A series' name stands for its runs, by seed, where no run has that name."""
    found: list[str] = []
    for name in names:
        named = {own[1]: run for run in paths.runs() if (own := paths.series_of(run)) and own[0] == name}
        is_run = not named or paths.Run(name).root.is_dir()
        found += [name] if is_run else [named[seed] for seed in sorted(named)]
    return list(dict.fromkeys(found))


def check(runs: Sequence[str]) -> None:
    """Raise UserError for fewer than two runs, more than ``MOST`` runs and series, and for a run named twice."""
    units = {own[0] if (own := paths.series_of(run)) else run for run in runs}
    if not (2 <= len(set(runs)) == len(runs) and len(units) <= MOST):
        raise UserError(
            f"{len(runs)} runs cannot be compared on one page; name two to {MOST}, each once (a series of seeds counts "
            "as one)"
        )


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
    runs = [_run(*of_run) for of_run in zip(homes, aucs, readings, strict=True)]
    by_finding = [{} if auc.value is None else _by_finding(auc.value) for auc in aucs]
    for run, reading, rows in zip(runs, readings, by_finding, strict=True):
        run["reading"], run["rows"] = reading.value, rows
    units, notes = _units(runs)
    if len(units) > MOST:
        raise UserError(f"{len(units)} runs cannot be compared on one page, {MOST} can: {' '.join(notes)}")
    pairs = _pairs(units)
    same = {tuple(reading.value.images) if reading.value else None for reading in readings}
    return {
        "runs": runs,
        "units": _drawn(units),
        "series": [unit for unit in units if unit["seeds"]],
        "series_notes": notes,
        "least": _least(units),
        "pairs": pairs,
        "single": any(not pair["why"] and not pair["tested"] for pair in pairs),
        "findings": _findings(units),
        "left": _least_of([unit["rows"] for unit in units]),
        "elsewhere": _elsewhere(homes, runs),
        "settings": _settings(homes, units),
        "same_films": len(same) == 1 and None not in same,
        "phantom": any(run["phantom"] for run in runs),
        "contaminated": [run for run in runs if run["contaminated"]],
        "replicates": REPLICATES,
        "seed": SEED,
    }


def _units(runs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """What is compared: single runs, and series of runs; and sentences on runs that look like a series but are none.

    A series has runs named for their seeds, as ``cxr run --seeds`` names them, that were tested on the same films, and
    whose settings and data differ in the seed only.
    """
    series: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        own = paths.series_of(run["name"])
        series.setdefault(own[0] if own else f" {run['name']}", []).append(run)
    units, notes = [], []
    for name, own in series.items():
        why = _no_series(own) if len(own) > 1 else ""
        if why:
            notes.append(f"The runs of {name} are shown one by one: {why}.")
        units += [_unit(name, own)] if len(own) > 1 and not why else [_unit(run["name"], [run]) for run in own]
    for i, unit in enumerate(units):
        unit["sign"] = page.svg_sign(i)
        for run in unit["runs"]:
            run["sign"] = unit["sign"]
    return units, notes


def _no_series(runs: list[dict[str, Any]]) -> str:
    """Reason why runs of one name and several seeds are no series; "" if they are one."""
    first = runs[0]
    for run in runs:
        if run["reading"] is None:
            return f"{run['name']} has no readable predictions"
        if str(run["asked"].get("seed")) != str(paths.series_of(run["name"])[1]):
            return f"{run['name']} has seed {run['asked'].get('seed', UNKNOWN)}"
        if why_not_paired(first["reading"], run["reading"]):
            return f"{first['name']} and {run['name']} were not tested on the same films and labels"
        names = sorted({*first["asked"], *run["asked"]} - {"run", "seed"})
        if other := [name for name in names if str(first["asked"].get(name)) != str(run["asked"].get(name))]:
            return f"{first['name']} and {run['name']} differ in {', '.join(other)}"
    return ""


def _unit(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A run or a series: name, runs, seeds (empty for a run), mean with interval, SD over seeds, rows of findings."""
    unit = {key: runs[0][key] for key in ("mean", "films", "rows")}
    unit |= {"name": name, "runs": runs, "seeds": [], "sd": float("nan")}
    unit |= {"contaminated": max(run["contaminated"] or 0 for run in runs)}
    unit["members"] = [str(member.get("run", "")) for member in runs[0]["record"].get("members", [])]
    if len(runs) == 1:
        return unit
    boots = [_bootstrap(run["reading"]) for run in runs]
    mean, lows_highs = intervals.over_seeds(boots), intervals.over_seeds(boots).auc_interval
    aucs = np.stack([boot.auc for boot in boots])  # (seeds, 15)
    sds = aucs.std(0, ddof=1)
    rows = {
        finding: {
            "auc": mean.auc[k],
            **dict(zip(("auc_low", "auc_high"), (ends[k] for ends in lows_highs), strict=True)),
            "sd": sds[k],
            "positives": int(metrics.positives(runs[0]["reading"].labels[:, k])),
        }
        for finding, k in ((finding, column(finding)) for finding in FINDINGS)
    }
    by_seed = metrics.nanmean(aucs[:, metrics.HEADLINE], axis=1)
    return unit | {
        "seeds": [paths.series_of(run["name"])[1] for run in runs],
        "mean": page.Value(name, *mean.mean_auc),
        "sd": float(by_seed.std(ddof=1)),
        "by_seed": [float(value) for value in by_seed],
        "rows": rows,
    }


def _run(home: paths.Run, auc: sections.Found, reading: sections.Found) -> dict[str, Any]:
    """One run's name, mean AUC, settings and warnings; ``notes`` lists files that could not be read."""
    record, data = sections.read_run_record(home), sections.read_table(home.tables / "data.csv")
    rows = {} if auc.value is None else _by_finding(auc.value)
    mean = next((row for name, row in rows.items() if metrics.is_mean(name)), {})
    settings = {**report.part(record.value, "parameters"), **report.part(record.value, "settings")}
    notes = [why for why in (record.why, auc.why, data.why, reading.why) if why]
    run = {
        "name": home.name,
        "link": f"{home.name}/{home.report.name}",
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


def _pairs(units: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Differences of every other run or series from the first, with a verdict, or why the two are not paired."""
    first = units[0]
    whys = [_unpaired(first["runs"][0], unit["runs"][0]) for unit in units[1:]]
    sides = [[run["reading"] for run in unit["runs"]] for unit in units]
    paired = [(sides[0], side) for side, why in zip(sides[1:], whys, strict=True) if not why]
    differences = iter(paired_differences(paired))
    pairs = []
    for unit, why in zip(units[1:], whys, strict=True):
        tested = min(len(side["runs"]) for side in (first, unit)) > 1
        pair = {"run": unit, "against": first, "why": why, "tested": tested}
        pairs.append(pair if why else pair | _verdicts(next(differences)))
    return pairs


def _unpaired(one: dict[str, Any], other: dict[str, Any]) -> str:
    lacking = [run["name"] for run in (one, other) if run["reading"] is None]
    if lacking:
        return f"They cannot be paired: there are no readable predictions of {page.joined(lacking)}."
    return why_not_paired(one["reading"], other["reading"])


SIDES = ("higher", "lower")
BETTER = {"higher": "better", "lower": "worse"}
"""Only a difference that holds over patients and over seeds is called so: one seed cannot show that a recipe is better.
"""

HOLDS = {
    "both": "over patients and over seeds",
    "patients": "over patients, not over seeds",
    "seeds": "over seeds, not over patients",
    "neither": page.CHANCE,
    "patients only": "over patients; seeds not tested",
    "untested": page.CHANCE,
    "undefined": "undefined",
}
"""What a difference survives, as ``_survives`` tells it, in words."""


def _survives(row: Mapping[str, Any]) -> str:
    """What a difference survives after adjustment: one of ``HOLDS``. Seeds are tested where both sides have several."""
    if row["says"] == "undefined":
        return "undefined"
    over_patients = row["says"] in SIDES
    if pd.isna(row["seeds_p_holm"]):
        return "patients only" if over_patients else "untested"
    over_seeds = row["seeds_p_holm"] <= page.SURE
    return {(True, True): "both", (True, False): "patients", (False, True): "seeds"}.get(
        (over_patients, bool(over_seeds)), "neither"
    )


def _verdicts(table: pd.DataFrame) -> dict[str, Any]:
    """Rows of a pair with drawings and verdicts, sorted by the difference."""
    rows = page.svg_differences(table, SIDES)
    for row in rows:
        row["holds"] = _survives(row)
        row["side"] = SIDES[0] if row["difference"] > 0 else SIDES[1]
        row["words"] = HOLDS[row["holds"]]
        if row["holds"] not in ("neither", "untested", "undefined"):
            row["words"] = f"{BETTER[row['side']] if row['holds'] == 'both' else row['side']} {row['words']}"
    single = [row for row in rows if not metrics.is_mean(row["finding"])]
    single.sort(key=lambda row: -row["difference"] if row["difference"] == row["difference"] else float("inf"))
    shown = {
        holds: {
            side: [row["finding"] for row in single if (row["holds"], row["side"]) == (holds, side)] for side in SIDES
        }
        for holds in ("both", "patients", "seeds", "patients only")
    }
    return {"rows": single, "mean": rows[-1], "reach": page.reach_of_differences(table), "shown": shown}


def _drawn(units: list[dict[str, Any]]) -> list[dict[str, Any]]:
    least = _least(units)
    for i, unit in enumerate(units):
        unit["mark"] = page.svg_intervals([unit["mean"]], least=least, most=1.0, neutral=0.5, first=i)
    return units


def _least(units: list[dict[str, Any]]) -> float:
    return _lowest(end for unit in units for end in unit["mean"][1:])


def _least_of(by_finding: list[dict[str, dict]]) -> float:
    single = (row for rows in by_finding for name, row in rows.items() if name in FINDINGS)
    return _lowest(row[name] for row in single for name in ("auc", "auc_low"))


def _lowest(values: Iterable[float | None]) -> float:
    """Left end of a scale of AUCs: 0.5, or the lowest value below it."""
    return min([0.5, *(value for value in values if not pd.isna(value))])


def _by_finding(auc: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return auc.drop_duplicates("finding").set_index("finding", drop=False).to_dict("index")


def _findings(units: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of findings with the AUC of every run or series, drawn on one scale, and SDs over the seeds."""
    least, rows = _least_of([unit["rows"] for unit in units]), []
    for finding in FINDINGS:
        values, counts, sds = [], [], []
        for unit in units:
            row = unit["rows"].get(finding, {})
            ends = (row.get(name, float("nan")) for name in ("auc", "auc_low", "auc_high"))
            values.append(page.Value(unit["name"], *ends))
            counts.append(row.get("positives"))
            sds.append(row.get("sd", float("nan")))
        drawing = page.svg_intervals(values, least=least, most=1.0, neutral=0.5)
        one = len({count for count in counts if count is not None}) == 1
        counts = counts[:1] if one else counts
        rows.append({"finding": finding, "values": values, "sds": sds, "positives": counts, "mark": drawing})
    return rows


def _settings(homes: Sequence[paths.Run], units: list[dict[str, Any]]) -> dict[str, Any]:
    """Settings, stages, films and versions: those that differ between runs or series, and those that are the same."""
    by_name = {home.name: home for home in homes}
    settings = [_merged([_recorded(run) | _stages(by_name[run["name"]]) for run in unit["runs"]]) for unit in units]
    names = list(dict.fromkeys(itertools.chain.from_iterable(settings)))
    lacking = [OF_MEMBERS if unit["members"] else UNKNOWN for unit in units]
    values = {name: [own.get(name, why) for own, why in zip(settings, lacking, strict=True)] for name in names}
    rows = [{"name": name, "values": values[name]} for name in names]
    differ = [row for row in rows if len(set(row["values"])) > 1]
    return {"rows": differ, "same": [row for row in rows if row not in differ]}


def _merged(settings: list[dict[str, str]]) -> dict[str, str]:
    """Settings of a series: where its runs differ, such as in the seed, their values one after the other."""
    names = list(dict.fromkeys(itertools.chain.from_iterable(settings)))
    return {name: ", ".join(dict.fromkeys(own.get(name, UNKNOWN) for own in settings)) for name in names}


def _recorded(run: dict[str, Any]) -> dict[str, str]:
    record = run["record"]
    settings = {name: "–" if value == "" else str(value) for name, value in run["asked"].items() if name != "run"}
    films, made = report.part(record, "data"), {"git revision": record.get("git"), "device": record.get("device")}
    made |= {"mean of": ", ".join(str(member.get("run", "")) for member in record.get("members", []))}
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
