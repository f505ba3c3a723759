"""Lineage of a checkpoint: its ancestors, its initial weights, and the patients that any of them saw.

Every checkpoint holds its lineage: name, hash and recipe of each ancestor, and every patient and image of their
training and validation. So the leak guard refuses a test on those films even if the ancestors' files are deleted.
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
from cxrlib.data import patients, splits
from cxrlib.data.store import Store
from cxrlib.errors import UserError
from cxrlib.training import checkpoint, seen, tensors
from cxrlib.training.seen import Seen

STAGES = (1, 2, 3, 4, 5)
UNKNOWN = "unknown"
LIST = ".films.txt"
"""Suffix of the list of training films beside a weights file: an image, a patient number or dataset:number per line."""
ROLES = {"trained": "was trained on", "validated": "chose its epoch and thresholds"}
"""Roles of a film that a checkpoint saw, each with its words for a message."""

Past = dict[str, Seen]
"""Patients and images that were seen, by role."""


@dataclass(frozen=True)
class Lineage:
    """Lineage of a stage, up to its start, with the stage's own batches.

    ``weights``: name of the initial weights · ``epochs_so_far``: epochs before the stage · ``ancestors``: from the
    oldest to the parent · ``origin``: training data of the initial weights in words, or ``UNKNOWN`` · ``gaps``: other
    unknown facts, in words · ``before``: patients and images that the ancestors saw · ``parts``: the training and
    validation batches of the stage.
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
        """Patients and images that the ancestors and the stage saw. Reads all images once: 86,524 of 224² in 5 s."""
        stage = [seen.of(part.films, getattr(part, "store", None)) for part in self.parts]
        return joined(self.before, dict(zip(ROLES, stage, strict=False)))


def of(parent: Path | None, weights: str, *parts: Any) -> Lineage:
    """The lineage of a stage that starts from ``parent``, or from the initial ``weights``.

    ``parts`` are the training and validation batches, with their ``films`` and their ``store`` of pixels.
    Raises UserError where the parent's JSON is absent, changed, damaged or of another format.
    """
    if parent is None:
        weights_origin, before = origin(weights)
        return Lineage(weights, 0, (), weights_origin, (), before, parts)
    meta, before = checkpoint.read_meta(parent), past(parent)
    line = (*meta["ancestors"], _ancestor(meta))
    return Lineage(meta["weights"], meta["epochs_so_far"], line, meta["origin"], gaps(meta), before, parts)


def parent(run: paths.Run, stage: int, ckpt: str = "") -> Path | None:
    """The parent checkpoint of a stage: ``ckpt`` if given, else the best one of the run's previous stage.

    None for stage 1 without ``ckpt``, which starts from the initial weights.
    Raises UserError where the checkpoint or the previous stage does not exist.
    """
    if ckpt:
        return checkpoint.resolve(ckpt, run)
    return checkpoint.best(run.stage(stage - 1)) if stage > 1 else None


def line(run: paths.Run) -> list[Path]:
    """The best checkpoints of a run's finished stages, in order. Each is the parent of the next.

    Raises UserError where no stage is finished. Also where a checkpoint is not the parent of the next one, for example
    after a stage was trained again.
    """
    best = [checkpoint.best(run.stage(k)) for k in STAGES if (run.stage(k) / "best.json").is_file()]
    if not best:
        raise UserError(f"{run.root} has no finished stage; run 01_stage1 first, or name a checkpoint by ckpt=")
    for before, after in itertools.pairwise(map(checkpoint.read_meta, best)):
        _check_child(run, before, after)
    return best


def _check_child(run: paths.Run, before: dict[str, Any], after: dict[str, Any]) -> None:
    parent = after["ancestors"][-1] if after["ancestors"] else {"name": "the starting weights", "sha256": ""}
    if parent["sha256"] != before["sha256"]:
        command = f"cxr train --run {run.name} --stage {after['stage']}"
        raise UserError(
            f"run {run.name}: stage {after['stage']} ({after['name']}) was not trained from stage {before['stage']} as "
            f"it is now ({before['name']}, {before['sha256'][:8]}) but from {parent['name']} ({parent['sha256'][:8]}); "
            f"train it and the stages after it again ({command}), or name one checkpoint by ckpt="
        )


def ancestors(path: Path) -> list[dict[str, Any]]:
    """Ancestors, oldest first, and the checkpoint itself: name, sha256, stage, schedule, lr, epochs, data and so on."""
    meta = checkpoint.read_meta(path)
    return [*meta["ancestors"], _ancestor(meta)]


def family(path: Path) -> pd.DataFrame:
    """Lineage table of a checkpoint, oldest ancestor first, itself last: rate, epochs and validation AUC of each."""
    rows = pd.DataFrame(ancestors(path))
    rows["sha256"] = rows["sha256"].str[:12]
    return rows[["name", "schedule", "stage", "lr", "epochs", "epochs_so_far", "val_auc", "data", "sha256"]]


def card(path: Path) -> pd.DataFrame:
    """Checkpoint facts, as a table of one column."""
    meta, seen_by_role = checkpoint.read_meta(path), past(path)
    facts = {
        "checkpoint": meta["name"],
        "parent": (meta["parent"] or {"name": f"weights {meta['weights']}"})["name"],
        "trained groups": " ".join(meta["recipe"]["groups"]),
        "epochs so far": meta["epochs_so_far"],
        "mean validation AUC": meta["metrics"].get("val_auc"),
        **{f"patients {role}, with all ancestors": seen_by_role[role].count for role in ROLES},
        "of the datasets": ", ".join(sorted({name for entry in seen_by_role.values() for name in entry.patients})),
        "initial weights had seen": meta["origin"],
        "sha256": meta["sha256"][:16],
    }
    return pd.Series(facts, name="", dtype=object).to_frame()


def past(path: Path) -> Past:
    """Patients and images that a checkpoint or an ancestor saw. Raises UserError where they are damaged or changed."""
    meta = checkpoint.read_meta(path)
    return _unpacked(meta, tensors.inside(path))


def gaps(meta: dict[str, Any]) -> tuple[str, ...]:
    """Unknown facts of a checkpoint's lineage besides its origin, in words: older versions recorded less."""
    if meta["format"] > 1:
        return tuple(meta["gaps"])
    return (f"the validation patients and the images of {meta['name']}, which an older version made",)


def joined(one: Past, other: Past) -> Past:
    return {role: one.get(role, Seen()) | other.get(role, Seen()) for role in ROLES}


def refuse_leak(
    line: Sequence[Path], films: pd.DataFrame, pixels: Store | None, *, allow: bool = False
) -> pd.DataFrame:
    """Leak guard: check whether a checkpoint of the line, or an ancestor, saw a test film.

    A film counts as seen if its patient was seen, or its image under any name. Returns a row per checkpoint:
    checkpoint, origin, seen (number of patients that it saw), patients (number of test patients that it saw), films
    (number of test images that it saw), first (one such film, in words), unknown (unknown facts of its lineage).
    On the official test part, whole, an image that another patient's training film shows too is no leak of ours: it
    counts in ``films`` and stands in ``unknown``, and the test goes on.
    Raises UserError that names checkpoint and film, unless ``allow``.
    """
    tested, count = seen.Tested.of(films, pixels), films["patient"].nunique()
    rows = [_check_leak(path, tested, official=splits.is_official_test(films["image"])) for path in line]
    for row in rows:
        if row["patients"] and not allow:
            raise UserError(
                f"checkpoint {row['checkpoint']} or an ancestor saw {row['patients']} of the {count} patients to be "
                f"tested, so a result on them means nothing: {row['first']}. "
                "Take films of other patients, or allow the leak knowingly by allow_leak"
            )
    return pd.DataFrame(rows)


def origin(weights: str) -> tuple[str, Past]:
    """Origin of the initial weights: their training data in words, and the patients and images that they saw.

    "none" and torchvision's weights saw no chest films. A checkpoint of this workbook has its lineage in its file, in
    the JSON beside it, or in a run's checkpoint of the same hash. For any file, a list beside it (``w.pth.films.txt``)
    is read too. Without these the origin is ``UNKNOWN``.
    Raises UserError that names a bad line of the list, or a changed checkpoint.
    """
    if weights == "none":
        return "nothing", {}
    if weights in ResNet50_Weights.__members__:
        return "ImageNet, no chest films", {}
    file = paths.resolve(weights)
    words, weights_past = _workbook_origin(file) if file.is_file() else ("", {})
    list_file = Path(f"{file}{LIST}")
    if list_file.is_file():
        trained = _read_list(list_file)
        weights_past = joined(weights_past, {"trained": trained})
        more = f"; {words}" if words not in ("", UNKNOWN) else ""
        words = f"{trained.count} patients listed in {list_file.name}{more}"
    return words or UNKNOWN, weights_past


def _workbook_origin(file: Path) -> tuple[str, Past]:
    """Origin of weights that are a checkpoint of this workbook, in any folder; "" and {} for other files."""
    header = tensors.inside(file) if file.suffix == checkpoint.SUFFIX else {}
    if checkpoint.is_described(file):
        meta = checkpoint.load(file).meta
    elif header:
        meta = header  # the JSON is lost; the header has a copy of what is needed
    else:
        copy = checkpoint.by_hash(provenance.file_sha256(file))
        if copy is None:
            return "", {}
        meta, header = checkpoint.read_meta(copy), tensors.inside(copy)
    weights_past = _unpacked(meta, header)
    if meta["origin"] == UNKNOWN or gaps(meta):
        return UNKNOWN, weights_past
    return f"{sum(entry.count for entry in weights_past.values())} patients, as checkpoint {meta['name']}", weights_past


def _read_list(file: Path) -> Seen:
    """Patients in the list beside a weights file."""
    names, numbers = [], {}
    for number, text in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        dataset, _, patient = text.strip().rpartition(":")
        if patient.isdigit():
            numbers.setdefault(dataset or patients.UNNAMED, []).append(int(patient))
        elif "_" in patient and patient.partition("_")[0].isdigit():
            names.append((patient, int(patient.partition("_")[0])))
        elif patient or dataset:
            raise UserError(f"{file}, line {number}: {text!r} is neither an image name nor a patient's number")
    by_number = Seen({dataset: pd.unique(pd.Series(sorted(values))) for dataset, values in numbers.items()})
    return by_number | Seen(patients.of(pd.DataFrame(names, columns=["image", "patient"]).astype({"patient": "int64"})))


def _check_leak(path: Path, tested: seen.Tested, *, official: bool = False) -> dict[str, Any]:
    """The row of one checkpoint in ``refuse_leak``; on the ``official`` test part only patients count as seen."""
    meta, seen_by_role = checkpoint.read_meta(path), past(path)
    unknown, weights_origin = list(gaps(meta)), meta["origin"]
    if weights_origin == UNKNOWN:  # a list of its films may have been added after the training
        weights_origin, weights_past = origin(meta["weights"])
        seen_by_role = joined(seen_by_role, weights_past)
        if weights_origin == UNKNOWN:
            unknown.append(f"what the starting weights {Path(meta['weights']).name} had seen")
    films, images, pairs, first = set(), set(), {}, ""
    for role, words in ROLES.items():
        by_patient, by_image = tested.by_patient(seen_by_role[role]), tested.by_picture(seen_by_role[role])
        leaks = [f"film {{}} is of patient {patient}, who {words}" for patient in by_patient.values()]
        images |= {*by_image}
        if official:
            pairs |= {film: name for film, name in by_image.items() if film not in by_patient}
            by_image = {}
        leaks += [f"film {{}} is the image {name}, which {words}" for name in by_image.values()]
        rows = [*by_patient, *by_image]
        first = first or (leaks[0].format(tested.films["image"].iloc[rows[0]]) if leaks else "")
        films |= {*rows}
    if pairs:
        film, name = next(iter(pairs.items()))
        unknown.append(
            f"why {len(pairs)} images of the official test part look like another patient's film that it saw, such as "
            f"{tested.films['image'].iloc[film]} and {name}"
        )
    return {
        "checkpoint": meta["name"],
        "origin": weights_origin,
        "seen": sum(entry.count for entry in seen_by_role.values()),
        "patients": int(tested.films["patient"].iloc[sorted(films)].nunique()),
        "films": len(images),
        "first": first,
        "unknown": "; ".join(unknown),
    }


def _unpacked(meta: dict[str, Any], header: dict[str, Any]) -> Past:
    try:
        if meta["format"] == 1:  # it has training patients only, without a dataset
            return {"trained": Seen({patients.UNNAMED: seen.unpack(meta["patients"])}), "validated": Seen()}
        return {role: seen.unpacked(meta["seen"][role], header["pictures"][role]) for role in ROLES}
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
