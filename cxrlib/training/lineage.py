"""The line of a checkpoint: which one a stage starts from, what it came from, and who was seen on the way.

Every checkpoint carries the line itself: each ancestor's name, hash and recipe, and every patient and picture that any
of them was trained or validated on, so that a test on them is refused even where the ancestors' files are gone.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from torchvision.models import ResNet50_Weights

from cxrlib import paths, provenance
from cxrlib.data import patients
from cxrlib.data.store import Store
from cxrlib.errors import UserError
from cxrlib.training import checkpoint, seen, tensors
from cxrlib.training.seen import Seen

STAGES = (1, 2, 3, 4, 5)
UNKNOWN = "unknown"
LIST = ".films.txt"
"""Ending, after the weights' own file name, of the list of films that they were trained on: an image name, a patient's
number, or dataset:number a line."""
ROLES = {"trained": "was trained on", "validated": "chose its epoch and thresholds"}
"""In which way a film was seen, and that in words."""

Past = dict[str, Seen]
"""Who was seen, by role."""


@dataclass(frozen=True)
class Lineage:
    """Where a stage starts: what its checkpoints say of their past.

    ``weights`` are the initial weights' name at the head of the line · ``epochs_so_far`` before the stage ·
    ``ancestors`` from the oldest to the parent · ``origin`` what the initial weights had seen, ``UNKNOWN`` where nobody
    says · ``gaps`` what else nobody knows, in words · ``before`` whom the ancestors saw · ``parts`` the batches that
    the stage trains and validates on.
    """

    weights: str
    epochs_so_far: int
    ancestors: tuple[dict[str, Any], ...]
    origin: str
    gaps: tuple[str, ...]
    before: Past = field(repr=False)
    parts: tuple[Any, ...] = field(repr=False)

    @property
    def parent(self) -> dict[str, Any] | None:
        return self.ancestors[-1] if self.ancestors else None

    @cached_property
    def past(self) -> Past:
        """Whom the ancestors and the stage saw. Every film of the stage is looked at, once: 5 s for 86,524 of 224²."""
        own = [seen.of(part.films, getattr(part, "store", None)) for part in self.parts]
        return joined(self.before, dict(zip(ROLES, own, strict=False)))


def of(parent: Path | None, weights: str, *parts: Any) -> Lineage:
    """The line of a stage that starts from ``parent``, or from the initial ``weights``.

    ``parts`` are the batches trained on and those validated on, with their ``films`` and their ``store`` of pixels.
    Raises UserError where the parent's JSON is absent, changed, damaged or of another format.
    """
    if parent is None:
        began, before = origin(weights)
        return Lineage(weights, 0, (), began, (), before, parts)
    meta, before = checkpoint.read_meta(parent), past(parent)
    line = (*meta["ancestors"], _ancestor(meta))
    return Lineage(meta["weights"], meta["epochs_so_far"], line, meta["origin"], gaps(meta), before, parts)


def parent(run: paths.Run, stage: int, ckpt: str = "") -> Path | None:
    """The checkpoint that a stage starts from: ``ckpt`` if given, else the best of the run's stage before.

    None for stage 1 without ``ckpt``: it starts from the initial weights.
    Raises UserError where the checkpoint, or the stage before, is not there.
    """
    if ckpt:
        return checkpoint.resolve(ckpt, run)
    return checkpoint.best(run.stage(stage - 1)) if stage > 1 else None


def line(run: paths.Run) -> list[Path]:
    """The best checkpoint of every finished stage of a run, in the order of the stages, each the next one's parent.

    Raises UserError where no stage is finished, and where a stage was trained from something else than the finished
    stage before it as it is now, as after that one was trained anew.
    """
    found = [checkpoint.best(run.stage(k)) for k in STAGES if (run.stage(k) / "best.json").is_file()]
    if not found:
        raise UserError(f"{run.root} has no finished stage; run 01_stage1 first, or name a checkpoint by ckpt=")
    for before, after in itertools.pairwise(map(checkpoint.read_meta, found)):
        _check_child(run, before, after)
    return found


def _check_child(run: paths.Run, before: dict[str, Any], after: dict[str, Any]) -> None:
    parent = after["ancestors"][-1] if after["ancestors"] else {"name": "the starting weights", "sha256": ""}
    if parent["sha256"] != before["sha256"]:
        again = f"cxr train --run {run.name} --stage {after['stage']}"
        raise UserError(
            f"run {run.name}: stage {after['stage']} ({after['name']}) was not trained from stage {before['stage']} as "
            f"it is now ({before['name']}, {before['sha256'][:8]}) but from {parent['name']} ({parent['sha256'][:8]}); "
            f"train it and the stages after it again ({again}), or name one checkpoint by ckpt="
        )


def ancestors(path: Path) -> list[dict[str, Any]]:
    """The line from the first stage to this checkpoint itself: name, sha256, stage, schedule, lr, epochs, data."""
    meta = checkpoint.read_meta(path)
    return [*meta["ancestors"], _ancestor(meta)]


def family(path: Path) -> pd.DataFrame:
    """A checkpoint's ancestors and itself, oldest first: one row each, with rate, epochs and validation AUC."""
    rows = pd.DataFrame(ancestors(path))
    rows["sha256"] = rows["sha256"].str[:12]
    return rows[["name", "schedule", "stage", "lr", "epochs", "epochs_so_far", "val_auc", "data", "sha256"]]


def card(path: Path) -> pd.DataFrame:
    """What a checkpoint says of itself, as a table of one column."""
    meta, known = checkpoint.read_meta(path), past(path)
    shown = {
        "checkpoint": meta["name"],
        "parent": (meta["parent"] or {"name": f"weights {meta['weights']}"})["name"],
        "trained groups": " ".join(meta["recipe"]["groups"]),
        "epochs so far": meta["epochs_so_far"],
        "mean validation AUC": meta["metrics"].get("val_auc"),
        **{f"patients {role}, with all ancestors": known[role].count for role in ROLES},
        "of the datasets": ", ".join(sorted({name for who in known.values() for name in who.patients})),
        "initial weights had seen": meta["origin"],
        "sha256": meta["sha256"][:16],
    }
    return pd.Series(shown, name="", dtype=object).to_frame()


def past(path: Path) -> Past:
    """Whom a checkpoint or any of its ancestors saw. Raises UserError where that is damaged, or was changed."""
    meta = checkpoint.read_meta(path)
    return _unpacked(meta, tensors.inside(path))


def gaps(meta: dict[str, Any]) -> tuple[str, ...]:
    """What a checkpoint's record leaves out beside its origin, in words: an older version kept less of it."""
    if meta["format"] > 1:
        return tuple(meta["gaps"])
    return (f"the validation patients and the pictures of {meta['name']}, which an older version made",)


def joined(one: Past, other: Past) -> Past:
    return {role: one.get(role, Seen()) | other.get(role, Seen()) for role in ROLES}


def refuse_leak(
    line: Sequence[Path], films: pd.DataFrame, pixels: Store | None, *, allow: bool = False
) -> pd.DataFrame:
    """Ask every checkpoint of a line whether it or an ancestor saw what is to be tested; ``allow`` lets that pass.

    A film was seen where its patient was, or its picture under whatever name. Returns a row per checkpoint:
    checkpoint, origin, seen (how many patients it saw), patients (of the tested ones, how many), films (whose picture
    was seen), first (one such film, in words) and unknown (what nobody knows of its past, in words).
    Raises UserError naming checkpoint, film and what it met unless ``allow``.
    """
    tested, count = seen.Tested.of(films, pixels), films["patient"].nunique()
    rows = [_ask(path, tested) for path in line]
    for row in rows:
        if row["patients"] and not allow:
            raise UserError(
                f"checkpoint {row['checkpoint']} or an ancestor saw {row['patients']} of the {count} patients to be "
                f"tested, so a result on them means nothing: {row['first']}. "
                "Take films of other patients, or allow the leak knowingly by allow_leak"
            )
    return pd.DataFrame(rows)


def origin(weights: str) -> tuple[str, Past]:
    """What the starting weights were trained on, in words, and whom they saw.

    "none" and torchvision's names have seen no chest films. A checkpoint of this workbook brings its own past, from
    its file, the JSON beside it or one of the same hash among the runs; for any file a list beside it
    (``w.pth.films.txt``) is read. Without either the answer is ``UNKNOWN``.
    Raises UserError naming the line of a list that cannot be read, or a checkpoint that was changed.
    """
    if weights == "none":
        return "nothing", {}
    if weights in ResNet50_Weights.__members__:
        return "ImageNet, no chest films", {}
    file = paths.resolve(weights)
    own, known = _own(file) if file.is_file() else ("", {})
    listed = Path(f"{file}{LIST}")
    if listed.is_file():
        people = _listed(listed)
        known = joined(known, {"trained": people})
        own = f"{people.count} patients listed in {listed.name}" + (f"; {own}" if own not in ("", UNKNOWN) else "")
    return own or UNKNOWN, known


def _own(file: Path) -> tuple[str, Past]:
    """The past of one of our checkpoints by its file, wherever it lies now; "" and nobody for a stranger's."""
    inside = tensors.inside(file) if file.suffix == checkpoint.SUFFIX else {}
    if checkpoint.is_described(file):
        meta = checkpoint.load(file).meta
    elif inside:
        meta = inside  # its JSON is lost, and was a copy of this
    else:
        twin = checkpoint.by_hash(provenance.file_sha256(file))
        if twin is None:
            return "", {}
        meta, inside = checkpoint.read_meta(twin), tensors.inside(twin)
    known = _unpacked(meta, inside)
    if meta["origin"] == UNKNOWN or gaps(meta):
        return UNKNOWN, known
    return f"{sum(who.count for who in known.values())} patients, as checkpoint {meta['name']}", known


def _listed(file: Path) -> Seen:
    """The patients of a list beside foreign weights."""
    names, people = [], {}
    for number, text in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        dataset, _, patient = text.strip().rpartition(":")
        if patient.isdigit():
            people.setdefault(dataset or patients.UNNAMED, []).append(int(patient))
        elif "_" in patient and patient.partition("_")[0].isdigit():
            names.append((patient, int(patient.partition("_")[0])))
        elif patient or dataset:
            raise UserError(f"{file}, line {number}: {text!r} is neither an image name nor a patient's number")
    by_number = Seen({dataset: pd.unique(pd.Series(sorted(found))) for dataset, found in people.items()})
    return by_number | Seen(patients.of(pd.DataFrame(names, columns=["image", "patient"]).astype({"patient": "int64"})))


def _ask(path: Path, tested: seen.Tested) -> dict[str, Any]:
    """One checkpoint's row of ``refuse_leak``."""
    meta, known = checkpoint.read_meta(path), past(path)
    unknown, began = list(gaps(meta)), meta["origin"]
    if began == UNKNOWN:  # what nobody knew when it was trained may have been found since
        began, more = origin(meta["weights"])
        known = joined(known, more)
        unknown += [f"what the starting weights {Path(meta['weights']).name} had seen"] if began == UNKNOWN else []
    films, pictures, first = set(), set(), ""
    for role, words in ROLES.items():
        by_patient, by_picture = tested.by_patient(known[role]), tested.by_picture(known[role])
        met = [f"film {{}} is of patient {who}, who {words}" for who in by_patient.values()]
        met += [f"film {{}} is the picture {name}, which {words}" for name in by_picture.values()]
        where = [*by_patient, *by_picture]
        first = first or (met[0].format(tested.films["image"].iloc[where[0]]) if met else "")
        films, pictures = films | {*where}, pictures | {*by_picture}
    return {
        "checkpoint": meta["name"],
        "origin": began,
        "seen": sum(who.count for who in known.values()),
        "patients": int(tested.films["patient"].iloc[sorted(films)].nunique()),
        "films": len(pictures),
        "first": first,
        "unknown": "; ".join(unknown),
    }


def _unpacked(meta: dict[str, Any], inside: dict[str, Any]) -> Past:
    try:
        if meta["format"] == 1:  # it named no dataset, and only who was trained on
            return {"trained": Seen({patients.UNNAMED: seen.unpack(meta["patients"])}), "validated": Seen()}
        return {role: seen.unpacked(meta["seen"][role], inside["pictures"][role]) for role in ROLES}
    except seen.DAMAGED as error:
        raise UserError(f"checkpoint {meta['name']} has a damaged list of patients ({error}); train it again") from None


def _ancestor(meta: dict[str, Any]) -> dict[str, Any]:
    recipe = meta["recipe"]
    return {
        "name": meta["name"],
        "sha256": meta["sha256"],
        "stage": meta["stage"],
        "schedule": recipe["schedule"],
        "lr": recipe["lr"],
        "epochs": meta["epoch"],
        "epochs_so_far": meta["epochs_so_far"],
        "data": meta["data"],
        "val_auc": meta["metrics"].get("val_auc"),
    }
