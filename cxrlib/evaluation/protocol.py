"""Protocol of a test: what will be tested, written before the test part is read, and who had read it before.

``protocol.json`` in the run's folder holds *plans* and *readings*; both lists only grow, and the file guards itself
with a hash. A plan says which checkpoint will be tested on which films, in what way, by which figure, and how all that
is chosen was chosen: on validation films. Another plan after a reading is added and marked, never put in its place. A
reading is one way of looking at the test films: a checkpoint, their size and variation, the films. The same look again
gives the same numbers, so it is not counted again. The notebooks after ``06_evaluation`` look at the same films with
the same checkpoint and add none.

So a reader can tell a figure that was the first look at the test part from one that was chosen among many.
"""

from collections.abc import Sequence
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
DATED = ("when", "code", "after_readings")
"""Entries of a plan that say when it was written, not what it plans."""
COLUMNS = ["run", "relation", "checkpoint", "when", "size", "tta", "films"]


@dataclass(frozen=True)
class Protocol:
    """Protocol of a run as it stands; ``print`` says in sentences what a reader must know.

    ``plans`` of the run, oldest first. ``looks``: a row for each reading of these films by any run in the outputs
    folder, with columns ``COLUMNS``; its relation is "this run", "an ancestor" or "another run". ``notes`` are
    sentences on what is amiss.
    """

    plans: list[dict[str, Any]]
    looks: pd.DataFrame = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def sentences(self) -> list[str]:
        """How often the test part was read, whether the plan changed after a reading, and what is amiss."""
        late = [plan for plan in self.plans if plan["after_readings"]]
        changed = [
            f"The plan was changed on {plan['when'][:10]}, after {_times(plan['after_readings'])} of the test part."
            for plan in late
        ]
        return [*_told(self.looks), *changed, *self.notes]

    def __str__(self) -> str:
        return "\n".join([f"Primary figure: {self.plans[-1]['primary']}.", *self.sentences])


def begin(
    home: paths.Run, line: Sequence[Path], test: pd.DataFrame, *, size: int, tta: str, seed: int, data: str
) -> Protocol:
    """Write the plan of a test, and that the test part is read now; to be called before the first test film is read.

    ``line``: the checkpoints that predict, the last of which is evaluated · ``test``: the test films · ``data``: the
    fingerprint of all films. A damaged or changed protocol is kept under another name, and a note says so.
    Raises UserError where the file cannot be written or a checkpoint cannot be read.
    """
    kept, notes = _read_or_set_aside(home)
    plans, readings = kept["plans"], kept["readings"]
    films, metas = _films(test), [checkpoint.read_meta(path) for path in line]
    if not readings and not notes and (home.predictions / "test.csv").is_file():
        notes = (
            "There are predictions of test films without a protocol: an earlier version made them, or it was deleted.",
        )
    plan = _plan(metas, test, films, size=size, tta=tta, seed=seed, data=data)
    if not plans or _planned(plans[-1]) != _planned(plan):
        plans = [*plans, {**plan, "after_readings": len(readings)}]
    known, how = [_key(look) for look in readings], {"size": size, "tta": tta, "films": films, "when": _now()}
    looks = [{"checkpoint": meta["name"], "sha256": meta["sha256"], **how} for meta in metas]
    found = {
        "plans": plans,
        "readings": [*readings, *(look for look in looks if _key(look) not in known)],
        "ancestors": sorted({entry["sha256"] for path in line for entry in lineage.ancestors(path)}),
        "notes": list(notes),
    }
    if found != kept:
        paths.write_json(home.root / FILE, found, guarded=True)
    return Protocol(plans, *_looks(home, found))


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
    metas: list[dict[str, Any]], test: pd.DataFrame, films: str, *, size: int, tta: str, seed: int, data: str
) -> dict[str, Any]:
    official = splits.is_official_test(test["image"])
    against = "the published means on the official test part" if official else "no published result: other films"
    tested = metas[-1]
    return {
        "checkpoint": {"name": tested["name"], "sha256": tested["sha256"]},
        "stages": [meta["name"] for meta in metas],
        "schedule": tested["recipe"].get("schedule", ""),
        "films": {"hash": films, "number": len(test), "patients": int(test["patient"].nunique()), "official": official},
        "data": data,
        "size": size,
        "tta": tta,
        "seed": seed,
        "primary": PRIMARY,
        "against": against,
        "chosen": CHOSEN,
        "when": _now(),
        "code": provenance.git_revision(),
    }


def _planned(plan: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in plan.items() if name not in DATED}


def _key(look: dict[str, Any]) -> tuple:
    return tuple(look[name] for name in ("sha256", "size", "tta", "films"))


def _films(test: pd.DataFrame) -> str:
    """16 hex digits for the set of test films, whatever their order and labels."""
    return provenance.digest(sorted(test["image"]))[:16]


def _now() -> str:
    """The time in UTC, to the microsecond, so that the order of texts is that of the times."""
    return datetime.now(UTC).isoformat()


def _looks(home: paths.Run, kept: dict[str, Any]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Readings of the planned films by all runs in ``outputs``, oldest first; and the notes on what is amiss."""
    films, ancestors = kept["plans"][-1]["films"]["hash"], {*kept.get("ancestors", [])}
    rows, notes = [], list(kept["notes"])
    for file in sorted(paths.outputs().glob(f"*/{FILE}")):
        name = file.parent.name
        try:
            looks = _checked(paths.read_json(file))["readings"]
        except UserError:
            notes.append(f"The protocol of run {name} cannot be read, so its readings are not counted.")
            continue
        for look in looks:
            other = "an ancestor" if look["sha256"] in ancestors else "another run"
            relation = "this run" if name == home.name else other
            rows += [{"run": name, "relation": relation, **look}] if look["films"] == films else []
    looks = pd.DataFrame(rows, columns=COLUMNS).sort_values("when", kind="stable", ignore_index=True)
    return looks, tuple(notes)


def _told(looks: pd.DataFrame) -> list[str]:
    own, others = looks[looks["relation"] == "this run"], looks[looks["relation"] != "this run"]
    first = own["when"].iloc[0]
    before, since = others[others["when"] < first], others[others["when"] >= first]
    words = [f"{_times(len(rows))} by {relation}" for relation, rows in before.groupby("relation")]
    told = f"{', '.join(words)}, first on {before['when'].iloc[0][:10]}" if words else "none in this outputs folder"
    later = [f"Since then other runs have read them: {_times(len(since))}."] if len(since) else []
    return [
        f"Readings of these test films before this run: {told}.",
        f"This run: {_times(len(own))}, checkpoints {own['checkpoint'].nunique()}, first on {first[:10]}. "
        "Nothing was chosen on them.",
        *later,
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
            "The protocol was changed or damaged after it was written, so earlier readings may be missing; it is kept "
            f"as {aside.name}.",
        )
