"""``cxr ensemble``: the mean of several runs' predictions, as a run with tables, figures and report but no network.

Its ``run.json`` lists the members. The mean is made from their predictions, their checkpoints and the code: while these
are what they were, and its own files are what it made, the same command does nothing.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlib import UserError, paths, provenance
from cxrlib.workbook import run_record

if TYPE_CHECKING:  # imported in the functions: they bring torch, and a wrong name should be told at once
    import pandas as pd

    from cxrlib.data import splits
    from cxrlib.data.store import Store
    from cxrlib.evaluation.ensemble import Member
    from cxrlib.evaluation.predict import Predictions

STEP = "ensemble"
"""Name of the averaging among the steps in ``run.json``."""

USUAL = "mean"
"""Name of the run if none is given."""

DECISIONS = "decisions.json"
"""Calibration and thresholds of the mean, in the run's folder: it has no checkpoint that could carry them."""


def run(members: Sequence[str], *, name: str = USUAL, of: str = "probabilities", allow_leak: bool = False) -> Path:
    """Average the predictions of ``members`` into the run ``name``, unless that is done, and return its report's path.

    ``of``: one of ``ensemble.WAYS``. With ``allow_leak`` a member that has seen a test patient, or was trained on a
    validation patient, is taken all the same, and the report says so.
    Raises UserError for fewer than two members, a name twice, a ``name`` that another run has, and for members that do
    not agree (see ``ensemble.read``).
    """
    home = _check_names(members, name)
    before = run_record.read(home)
    from cxrlib.evaluation import ensemble

    if of not in ensemble.WAYS:
        raise UserError(f"--of {of!r} is unknown; choose {' or '.join(ensemble.WAYS)}")
    own = [ensemble.member(each) for each in members]
    code = provenance.code_version(__name__, without=run_record.NOT_IN_CODE)
    made_by = provenance.digest([[each.key for each in own], of, allow_leak, code])
    if _is_done(home, before, made_by):
        print(f"Run {name} is unchanged: the mean of {', '.join(members)}.")
        return _report(home, before, again=False)
    if reason := _why_again(home, before, own):
        print(reason)
    began, record = time.time(), _record(home, before, own, of, allow_leak)
    opened = _open(own[0])
    parts = _parts(own[0], opened.parts)
    said = ensemble.read(own, {"val": parts.val, "test": parts.test})
    seen, doubts = _check_leaks(own, parts, opened.store, allow_leak)
    record["data"] = record["data"] | {"doubts": [*record["data"].get("doubts", []), *doubts]}
    with paths.lock_folder(home.root):
        _plan(home, own, parts.test, of, str(record["data"]["fingerprint"]))
        _write(home, parts, said, own, of, opened.store, seen)
        record["notebooks"][STEP] = _entry(home, made_by, began)
        record["updated"] = provenance.now()
        return _report(home, record, again=True)


def _check_names(members: Sequence[str], name: str) -> paths.Run:
    """The folder of the mean. Raises UserError for names that cannot be averaged, before a file is read."""
    home = paths.Run(name)
    doubled = [member for i, member in enumerate(members) if member in members[:i]]
    if doubled:
        raise UserError(f"run {doubled[0]} is named twice; a mean counts each member once")
    if len(members) < 2:
        raise UserError(f"{len(members)} run cannot be averaged; name two or more")
    if name in members:
        raise UserError(f"run {name} is a member; give the mean another name with --run")
    trained = home.root.is_dir() and not paths.averaged(home)
    if trained and (home.run_json.is_file() or any(home.root.glob("stage*"))):
        raise UserError(f"run {name} is not a mean but has stages or notebooks of its own; give another --run")
    return home


def _record(home: paths.Run, before: dict, members: Sequence["Member"], of: str, allow_leak: bool) -> dict[str, Any]:
    """The record of the mean: what the report and later calls read."""
    values = _values(members[0])
    shared = {key: values[key] for key in ("data", "allow_missing", "exclude", "uncertain") if key in values}
    described = [{"run": each.name, "weights": each.weights, "size": each.size, "tta": each.tta} for each in members]
    return {
        "run": home.name,
        "created": before.get("created", provenance.now()),
        "members": described,
        "settings": {"run": home.name, **shared, "of": of, "allow_leak": allow_leak},
        "parameters": {},
        "data": dict(members[0].record["data"]),
        "git": provenance.git_revision(),
        "versions": provenance.versions(),
        "notebooks": {},
    }


def _values(member: "Member") -> dict[str, Any]:
    """Settings of a member's run, in the types of the notebooks' parameters where all stages have them."""
    return {**member.record.get("settings", {}), **member.record.get("parameters", {})}


def _open(member: "Member") -> Any:
    """The films of a member's run, as it opened them."""
    from cxrlib import dataset

    values = _values(member)
    types = {"allow_missing": bool, "exclude": str, "uncertain": str}
    how = {name: kind(values[name]) for name, kind in types.items() if name in values}
    return dataset.open(str(values.get("data", "")), member.size, **how)


def _parts(member: "Member", parts: "splits.Parts") -> "splits.Parts":
    """The parts that a member's run tested on: of another dataset than its own there is more to test on."""
    from cxrlib.evaluation import external
    from cxrlib.training import checkpoint

    path = checkpoint.by_hash(member.weights)
    films = parts.test
    return external.divide(parts) if path and external.is_external(external.datasets_seen(path), films) else parts


def _check_leaks(
    members: Sequence["Member"], parts: "splits.Parts", pixels: "Store", allow: bool
) -> tuple["pd.DataFrame", list[str]]:
    """What each member's line has seen, as ``lineage.refuse_leak`` tells it, and doubts about the validation part.

    Validation films chose each member's epoch, and may; that a member was trained on them may not be. Raises UserError
    for a leak, and for a member whose checkpoint is gone, unless ``allow``.
    """
    import pandas as pd

    from cxrlib.training import checkpoint, lineage

    files = {member.name: checkpoint.by_hash(member.weights) for member in members}
    gone = [name for name, file in files.items() if file is None]
    if gone and not allow:
        raise UserError(
            f"the checkpoint that predicted for run {gone[0]} is gone, so nobody can tell whom it saw; cxr run --run "
            f"{gone[0]} predicts again, or take it knowingly with --allow-leak"
        )
    known = {name: file for name, file in files.items() if file is not None}
    rows = pd.DataFrame()
    if known:
        rows = lineage.refuse_leak(list(known.values()), parts.test, pixels, allow=True)
        rows["checkpoint"] = [
            f"{name}: {checkpoint}" for name, checkpoint in zip(known, rows["checkpoint"], strict=True)
        ]
    for name, leak in zip(known, rows.to_dict("records"), strict=True):
        if leak["patients"] and not allow:
            raise UserError(
                f"run {name} or an ancestor saw {leak['patients']} of the test patients: {leak['first']}; leave it "
                "out, or allow the leak knowingly with --allow-leak"
            )
    doubts = [_trained_on_validation(name, file, parts.val, allow) for name, file in known.items()]
    nothing = {"origin": lineage.UNKNOWN, "seen": 0, "patients": 0, "films": 0, "first": ""}
    unknown = {name: f"what run {name} had seen, whose checkpoint is gone" for name in gone}
    lost = [{"checkpoint": name, **nothing, "unknown": text} for name, text in unknown.items()]
    return pd.DataFrame([*rows.to_dict("records"), *lost]), [doubt for doubt in doubts if doubt]


def _trained_on_validation(name: str, file: Path, val: "pd.DataFrame", allow: bool) -> str:
    """A doubt about a member that was trained on validation patients, "" for any other. UserError unless ``allow``."""
    from cxrlib.training import lineage

    patients = lineage.patients_trained_on(file, val)
    if not patients:
        return ""
    what = f"run {name} or an ancestor was trained on {len(patients)} validation patients, such as {patients[0]}"
    if not allow:
        raise UserError(
            f"{what}, on whom calibration and thresholds would be chosen; leave it out, or allow the leak knowingly "
            "with --allow-leak"
        )
    return f"{what}, so calibration and thresholds are chosen on films that it knows"


def _plan(home: paths.Run, members: Sequence["Member"], test: "pd.DataFrame", of: str, data: str) -> None:
    """Write the protocol of the mean, before a number of it is computed on test films."""
    from cxrlib.evaluation import protocol

    plan = protocol.begin_mean(home, members, test, of=of, data=data)
    paths.write_csv(home.tables / "protocol.csv", plan.looks)
    print(plan)


def _write(
    home: paths.Run,
    parts: "splits.Parts",
    said: dict[str, list["Predictions"]],
    members: Sequence["Member"],
    of: str,
    pixels: "Store",
    seen: "pd.DataFrame",
) -> None:
    """Write predictions, tables and figures of the mean."""
    import matplotlib as mpl
    from tqdm.auto import tqdm

    from cxrlib.data import splits
    from cxrlib.evaluation import ensemble, predict, thresholds
    from cxrlib.plots import common
    from cxrlib.report import from_predictions

    mpl.use("Agg")  # no window is opened
    common.use_theme()
    mean = {part: ensemble.average([one.probabilities for one in own], of) for part, own in said.items()}
    for part, values in mean.items():
        predict.write(home.predictions / f"{part}.csv", getattr(parts, part), values)
    counts = splits.summary(parts).assign(seen_in_training=[None, None, seen["patients"].max()])
    counts = counts.rename_axis("part").assign(split=parts.source, size=members[0].size)
    paths.write_csv(home.tables / "data.csv", counts, index=True)
    paths.write_csv(home.tables / "lineage.csv", seen)
    with tqdm(total=len(from_predictions.STEPS) + 1, unit="step", ncols=79) as bar:

        def watch(step: str) -> None:
            bar.set_description(step)
            bar.update()

        how = {"pixels": pixels, "gamma": _gamma(members), "watch": watch}
        made = from_predictions.write(home, parts, mean["val"], mean["test"], **how)
        watch("members")
        _write_members(home, members, said, mean)
    kept = {**made.calibration.as_dict(), "made_on": made.made_on}
    decisions = {thresholds.CALIBRATION: kept, thresholds.THRESHOLDS: thresholds.as_dict(made.chosen)}
    paths.write_json(home.root / DECISIONS, decisions, guarded=True)


def _gamma(members: Sequence["Member"]) -> float:
    """γ of the focal loss that all members were trained with; 0 if theirs differ, or one is not known.

    The correction of the focal bias is exact for one network; for the mean of networks of one γ it is the same curve.
    """
    from cxrlib.training import checkpoint

    files = [checkpoint.by_hash(member.weights) for member in members]
    recipes = [checkpoint.read_meta(file)["recipe"] if file else {} for file in files]
    gammas = {recipe["gamma"] if recipe.get("loss") == "focal" else 0.0 for recipe in recipes}
    return float(gammas.pop()) if len(gammas) == 1 else 0.0


def _write_members(
    home: paths.Run,
    members: Sequence["Member"],
    said: dict[str, list["Predictions"]],
    mean: dict[str, np.ndarray],
) -> None:
    """Write ``tables/members.csv`` and ``member_findings.csv``: the mean minus each member, as runs are compared."""
    import pandas as pd

    from cxrlib import metrics
    from cxrlib.report import comparison

    runs = [comparison.RunPredictions(one.images, one.patients, one.labels, one.probabilities) for one in said["test"]]
    averaged = comparison.RunPredictions(*runs[0][:3], mean["test"])
    differences = comparison.paired_differences([(run, averaged) for run in runs])
    rows, findings = [], []
    for member, table, val in zip(members, differences, said["val"], strict=True):
        table = table.rename(columns={"first": "auc", "second": "mean_auc"})
        last = table.iloc[-1].to_dict()
        aucs = {"val_auc": val.probabilities, "mean_val_auc": mean["val"]}
        aucs = {name: metrics.mean_auc(val.labels, values) for name, values in aucs.items()}
        facts = {"size": member.size, "tta": member.tta, "weights": member.weights[:16]}
        rows.append({"member": member.name, **last, **aucs, **facts})
        findings.append(table.iloc[:-1].assign(member=member.name))
    paths.write_csv(home.tables / "members.csv", pd.DataFrame(rows))
    table = pd.concat(findings)
    table = table[["member", *table.columns.drop("member")]]
    paths.write_csv(home.tables / "member_findings.csv", table)


def _entry(home: paths.Run, made_by: str, began: float) -> dict[str, Any]:
    """The averaging's entry in the record, with the marks of all files that it made."""
    names = sorted(run_record.files_written_since(home.root, began))
    marks = {name: paths.result_mark(home.root / name) for name in names}
    return {
        "state": "done",
        "fingerprint": made_by,
        "outputs": names,
        "made": marks,
        "seconds": round(time.time() - began, 1),
    }


def _is_done(home: paths.Run, before: dict, made_by: str) -> bool:
    entry = before.get("notebooks", {}).get(STEP, {})
    made = entry.get("made", {})
    return entry.get("fingerprint") == made_by and bool(made) and not paths.changed_results(home.root, made)


def _why_again(home: paths.Run, before: dict, members: Sequence["Member"]) -> str:
    """A sentence on why a mean is made again; "" for a new one."""
    made = before.get("notebooks", {}).get(STEP, {}).get("made", {})
    if not made:
        return ""
    if changed := paths.changed_results(home.root, made):
        return f"Run {home.name} is averaged again: {changed[0]} is not what it made."
    earlier = {member["run"]: member["weights"] for member in before["members"]}
    others = [each.name for each in members if earlier.get(each.name) != each.weights]
    why = f"{', '.join(others)} changed" if others else "a member, a setting or the program changed"
    return f"Run {home.name} is averaged again: {why}."


def _report(home: paths.Run, record: dict[str, Any], *, again: bool) -> Path:
    """Write the report where it is not up to date, and the record."""
    from cxrlib.report import report

    code = report.code_version()
    whole = paths.result_mark(home.report)[:1] == record.get("report_mark", [])[:1]
    if again or not whole or record.get("report") != code:
        paths.write_json(home.run_json, record, guarded=True)
        report.build(home.name)
        record = record | {"report": code, "report_mark": paths.result_mark(home.report)}
        paths.write_json(home.run_json, record, guarded=True)
    return home.report
