"""Protocol of a test: what will be tested, written before the test part is read, and who had read it before.

``protocol.json`` in the run's folder holds *plans* and *readings*; both lists only grow, and the file guards itself
with a hash. A plan says which checkpoint will be tested on which films, in what way, by which figure, and how all that
is chosen was chosen: on validation films. Another plan after a reading is added and marked, never put in its place. A
reading is one way of looking at the test films: a checkpoint, their size and variation, the films. The same look again
gives the same numbers, so it is not counted again. The notebooks after ``06_evaluation`` look at the same films with
the same checkpoint and add none. The mean of several runs is a look of its own.

Every reading is also a small file in ``outputs/readings``, beside a list of the films that were read. So a reading
counts after its run was deleted, and a test part that shares films with another one is noticed.

So a reader can tell a figure that was the first look at the test part from one that was chosen among many.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from cxrlib import UserError, paths, provenance
from cxrlib.data import splits
from cxrlib.training import checkpoint, lineage

FILE = "protocol.json"
PRIMARY = "mean ROC AUC over the 14 findings, with a 95 % interval from 1,000 resamples of the patients"
CHOSEN = {
    "checkpoint": "the best epoch of each stage, by its recipe's number on validation films",
    "calibration": "Platt's line for each finding, fitted on validation films",
    "thresholds": "Youden's rule, best F1 and 90 % sensitivity, on validation films",
    "gate": "the 99 % quantile of the distances of validation films",
}
"""What is chosen in a run, and on what. No code that chooses gets a test film (``tests/test_choosing``)."""
CHOSEN_OF_MEAN = {name: CHOSEN[name] for name in ("calibration", "thresholds")} | {
    "checkpoint": "the members as they were given; of each the best epoch, on validation films",
}
DATED = ("when", "code", "after_readings")
"""Entries of a plan that say when it was written, not what it plans."""
LOOK = ("sha256", "size", "tta", "films")
"""What makes a reading: the checkpoint's hash, image size, variation, and the hash of the films' names."""
COLUMNS = ["run", "relation", "checkpoint", "when", "size", "tta", "films", "shared"]
THIS = "this run"


@dataclass(frozen=True)
class Protocol:
    """Protocol of a run as it stands; ``print`` says in sentences what a reader must know.

    ``plans`` of the run, oldest first. ``looks``: a row for each reading of these films, or of some of them, by any run
    in the outputs folder, with columns ``COLUMNS``. Its relation is "this run", "an ancestor", "a member" (of a mean)
    or "another run"; ``shared`` is how many of the planned films it read. ``notes`` are sentences on what is amiss.
    """

    plans: list[dict[str, Any]]
    looks: pd.DataFrame = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def sentences(self) -> list[str]:
        """How often the test part was read, whether the plan changed after a reading, and what is amiss."""
        changed = [
            f"The plan was {'changed' if at else 'written'} on {plan['when'][:10]}, after "
            f"{_times(plan['after_readings'])} of the test part."
            for at, plan in enumerate(self.plans)
            if plan["after_readings"]
        ]
        return [*_told(self.looks, self.plans[-1]["films"]), *changed, *self.notes]

    def __str__(self) -> str:
        return "\n".join([f"Primary figure: {self.plans[-1]['primary']}.", *self.sentences])


def begin(
    home: paths.Run, line: Sequence[Path], test: pd.DataFrame, *, size: int, tta: str, seed: int, data: str
) -> Protocol:
    """Write the plan of a test, and that the test part is read now; to be called before the first test film is read.

    ``line``: the checkpoints that predict, the last of which is evaluated · ``test``: the test films · ``data``: the
    fingerprint of all films. A damaged or changed protocol is kept under another name, and a note says so.
    Raises UserError where a file cannot be written or a checkpoint cannot be read.
    """
    metas = [checkpoint.read_meta(path) for path in line]
    tested = {"name": metas[-1]["name"], "sha256": metas[-1]["sha256"]}
    how = {"stages": [meta["name"] for meta in metas], "schedule": metas[-1]["recipe"].get("schedule", "")}
    plan = _plan(tested, how, test, CHOSEN, size=size, tta=tta, seed=seed, data=data)
    read = [{"checkpoint": meta["name"], "sha256": meta["sha256"], "size": size, "tta": tta} for meta in metas]
    ancestors = {entry["sha256"] for path in line for entry in lineage.ancestors(path)}
    return _begin(home, plan, read, test, ancestors=ancestors)


def begin_mean(home: paths.Run, members: Sequence[Any], test: pd.DataFrame, *, of: str, data: str) -> Protocol:
    """Write the plan of testing the mean of several runs; to be called before a number of the mean is computed.

    ``members`` as ``ensemble.member`` gives them; ``of``: what is averaged. Else as ``begin``.
    """
    names, weights = sorted(each.name for each in members), sorted(each.weights for each in members)
    tested = {"name": f"mean of {', '.join(names)}", "sha256": provenance.digest([weights, of])}
    size, tta = max(each.size for each in members), "+".join(sorted({each.tta for each in members}))
    plan = _plan(tested, {"stages": names, "of": of}, test, CHOSEN_OF_MEAN, size=size, tta=tta, seed=0, data=data)
    read = {"checkpoint": tested["name"], "sha256": tested["sha256"], "size": size, "tta": tta}
    return _begin(home, plan, [read], test, members={*weights})


def _begin(
    home: paths.Run,
    plan: dict[str, Any],
    read: Iterable[dict[str, Any]],
    test: pd.DataFrame,
    *,
    ancestors: Iterable[str] = (),
    members: Iterable[str] = (),
) -> Protocol:
    kept, notes = _read_or_set_aside(home)
    plans, readings = kept["plans"], kept["readings"]
    films = plan["films"]["hash"]
    earlier = [look for look in _recorded()[0] if look["run"] == home.name]
    if not readings and not notes and earlier:
        notes = ("This run or its protocol was deleted and made anew; its readings from before still count.",)
    elif not readings and not notes and (home.predictions / "test.csv").is_file():
        notes = (
            "There are predictions of test films without a protocol: an earlier version made them, or it was deleted.",
        )
    before = {_key(look) for look in [*readings, *earlier]}
    if not plans or _planned(plans[-1]) != _planned(plan):
        plans = [*plans, {**plan, "after_readings": len(before)}]
    known = {_key(look) for look in readings}
    looks = [{**look, "films": films, "when": _now()} for look in read]
    found = {
        "plans": plans,
        "readings": [*readings, *(look for look in looks if _key(look) not in known)],
        "ancestors": sorted(ancestors),
        "members": sorted(members),
        "notes": list(notes),
    }
    _record(home, films, test, found["readings"])
    if found != kept:
        paths.write_json(home.root / FILE, found, guarded=True)
    return Protocol(plans, *_looks(home, found))


def folder() -> Path:
    """Folder of the readings of all runs: a JSON file for each, and the film list of each set of films."""
    return paths.outputs() / "readings"


def _record(home: paths.Run, films: str, test: pd.DataFrame, readings: Iterable[dict[str, Any]]) -> None:
    """Write the film list and the readings that are not there yet, as files of their own; a whole one stays."""
    if not _listed(films):
        paths.write_text(_film_list(films), "".join(f"{name}\n" for name in _names(test)))
    there = {(look["run"], *_key(look)) for look in _recorded()[0]}
    for look in readings:
        file = folder() / f"{home.name}-{provenance.digest(_key(look))[:16]}.json"
        if (home.name, *_key(look)) not in there:
            paths.write_json(file, {"run": home.name, **look}, guarded=True)


def _recorded() -> tuple[list[dict[str, Any]], int]:
    """All recorded readings, and the number of files that cannot be read."""
    found, damaged = [], 0
    for file in sorted(folder().glob("*.json")):
        try:
            look = paths.read_json(file)
            whole = isinstance(look, dict) and {"run", "checkpoint", "when", *LOOK} <= set(look)
        except UserError:
            whole = False
        found, damaged = ([*found, look], damaged) if whole else (found, damaged + 1)
    return found, damaged


def _film_list(films: str) -> Path:
    return folder() / f"films-{films}.txt"


def _listed(films: str) -> set[str]:
    """Names of the films with this hash, empty where their list is absent or damaged."""
    with suppress(FileNotFoundError, UnicodeDecodeError):
        names = _film_list(films).read_text(encoding="utf-8").splitlines()
        return {*names} if provenance.digest(names)[:16] == films else set()
    return set()


def read(home: paths.Run) -> Protocol | None:
    """The protocol of a run as it stands now, None where it has none or it is damaged."""
    try:
        kept = _checked(paths.read_json(home.root / FILE))
    except UserError:
        return None
    return Protocol(kept["plans"], *_looks(home, kept))


def is_damaged(home: paths.Run) -> bool:
    """Whether the run has a protocol that cannot be read. The next ``begin`` keeps it aside and notes it."""
    return (home.root / FILE).exists() and read(home) is None


def _plan(
    tested: dict[str, str],
    how: dict[str, Any],
    test: pd.DataFrame,
    chosen: dict[str, str],
    **given: Any,
) -> dict[str, Any]:
    official = splits.is_official_test(test["image"])
    against = "the published means on the official test part" if official else "no published result: other films"
    counts = {"number": len(test), "patients": int(test["patient"].nunique()), "official": official}
    return {
        "checkpoint": tested,
        **how,
        "films": {"hash": _films(test), **counts},
        **given,
        "primary": PRIMARY,
        "against": against,
        "chosen": chosen,
        "when": _now(),
        "code": provenance.git_revision(),
    }


def _planned(plan: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in plan.items() if name not in DATED}


def _key(look: dict[str, Any]) -> tuple:
    return tuple(look[name] for name in LOOK)


def _names(test: pd.DataFrame) -> list[str]:
    """Sorted names of films, with the dataset where it has one: ``00000001_000.png``, ``our-hospital/1.png``."""
    sources = test["dataset"] if "dataset" in test else [""] * len(test)
    return sorted(
        f"{source}/{image}" if source else image for source, image in zip(sources, test["image"], strict=True)
    )


def _films(test: pd.DataFrame) -> str:
    """16 hex digits for the set of test films, whatever their order and labels."""
    return provenance.digest(_names(test))[:16]


def _now() -> str:
    """The time in UTC, to the microsecond, so that the order of texts is that of the times."""
    return datetime.now(UTC).isoformat()


def _looks(home: paths.Run, kept: dict[str, Any]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Readings of planned films by all runs, there or deleted, oldest first; and the notes on what is amiss."""
    recorded, damaged = _recorded()
    notes = list(kept["notes"])
    if damaged:
        notes.append(f"Of the records of readings {damaged} cannot be read, so they are not counted.")
    for file in sorted(paths.outputs().glob(f"*/{FILE}")):  # an earlier version made no records
        name = file.parent.name
        try:
            recorded += [{"run": name, **look} for look in _checked(paths.read_json(file))["readings"]]
        except UserError:
            notes.append(f"The protocol of run {name} cannot be read, so its readings may not be counted.")
    first: dict[tuple, dict[str, Any]] = {}
    for look in sorted(recorded, key=lambda look: look["when"]):
        first.setdefault((look["run"], *_key(look)), look)
    shared = _shared_films(kept["plans"][-1]["films"], {look["films"] for look in first.values()})
    rows = [
        {**look, "relation": _relation(look, home, kept), "shared": shared[look["films"]]}
        for look in first.values()
        if shared[look["films"]]
    ]
    return pd.DataFrame(rows, columns=COLUMNS), tuple(notes)


def _relation(look: dict[str, Any], home: paths.Run, kept: dict[str, Any]) -> str:
    if look["run"] == home.name:
        return THIS
    named = {"a member": kept.get("members", []), "an ancestor": kept.get("ancestors", [])}
    return next((relation for relation, hashes in named.items() if look["sha256"] in hashes), "another run")


def _shared_films(planned: dict[str, Any], others: Iterable[str]) -> dict[str, int]:
    """How many of the planned films each set of films has, by its hash; 0 where its list is not there."""
    mine = _listed(planned["hash"])
    return {films: len(mine & _listed(films)) for films in others} | {planned["hash"]: planned["number"]}


def _told(looks: pd.DataFrame, films: dict[str, Any]) -> list[str]:
    same = looks["films"] == films["hash"]
    looks, partly = looks[same], looks[~same]
    own, others = looks[looks["relation"] == THIS], looks[looks["relation"] != THIS]
    first = own["when"].iloc[0]
    before, since = others[others["when"] < first], others[others["when"] >= first]
    words = [f"{_times(len(rows))} by {relation}" for relation, rows in before.groupby("relation")]
    told = f"{', '.join(words)}, first on {before['when'].iloc[0][:10]}" if words else "none in this outputs folder"
    later = [f"Since then other runs have read them: {_times(len(since))}."] if len(since) else []
    overlap = [
        f"Other sets with some of these films: {_times(len(partly))}, at most {partly['shared'].max():,} of "
        f"{films['number']:,} films."
    ]
    return [
        f"Readings of these test films before this run: {told}.",
        f"This run: {_times(len(own))}, checkpoints {own['checkpoint'].nunique()}, first on {first[:10]}. "
        "Nothing was chosen on them.",
        *later,
        *(overlap if len(partly) else []),
    ]


def _times(count: int) -> str:
    return f"{count} reading" + "s" * (count != 1)


def _checked(value: Any) -> dict[str, Any]:
    """The content of a protocol. Raises UserError where it is none."""
    fits = isinstance(value, dict) and all(isinstance(value.get(name), list) for name in ("plans", "readings", "notes"))
    if (
        not fits
        or not all({"sha256", "films", "when"} <= set(look) for look in value["readings"])
        or not value["plans"]
    ):
        raise UserError(f"{FILE} is no protocol")
    return value


def _read_or_set_aside(home: paths.Run) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The run's protocol, empty where there is none; and a note if it was damaged and kept under another name."""
    file = home.root / FILE
    if not file.exists():
        return {"plans": [], "readings": [], "notes": []}, ()
    try:
        kept = _checked(paths.read_json(file))
        return kept, tuple(kept["notes"])
    except UserError:
        number = len(list(home.root.glob("protocol.damaged-*.json"))) + 1
        aside = file.rename(home.root / f"protocol.damaged-{number}.json")
        return {"plans": [], "readings": [], "notes": []}, (
            "The protocol was changed or damaged after it was written, so earlier plans are missing; it is kept as "
            f"{aside.name}. Readings count as far as they are in {folder().name}.",
        )
