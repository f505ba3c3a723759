"""Lineage of a checkpoint: its ancestors, the patients and images they saw, and the guard against testing on them.

Every checkpoint carries the name, hash and recipe of each ancestor, and every patient and image that any of them was
trained or validated on, so that a test on them is refused even where the ancestors' files are gone.

A film is *trained* on, or it chose epoch, calibration and thresholds (*validated*); both are kept, apart. Each film's
patient is kept with the dataset that numbers it, and its image as a pixel hash with the film's name: about 1.9 MB
for the 86,524 films outside the official test part, two thirds of it hashes, which do not compress.
"""

import base64
import hashlib
import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torchvision.models import ResNet50_Weights

from cxrlib import UserError, paths, provenance
from cxrlib.data import film_identity, splits
from cxrlib.data.store import Store
from cxrlib.training import checkpoint

DAMAGED = (ValueError, zlib.error, UnicodeDecodeError, TypeError, KeyError, AttributeError)
"""Errors of unpacking where the text was changed or cut short."""


@dataclass(frozen=True)
class Seen:
    """Patients by dataset, and images: file ``names`` (N,) with their pixel ``hashes`` (N, 2) uint64."""

    patients: Mapping[str, np.ndarray] = field(default_factory=dict)
    names: np.ndarray = field(default_factory=lambda: np.empty(0, object))
    hashes: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.uint64))

    def __or__(self, other: "Seen") -> "Seen":
        """Union of both, without duplicates."""
        none = np.empty(0, np.int64)
        datasets = sorted({*self.patients, *other.patients})
        both = {name: np.union1d(self.patients.get(name, none), other.patients.get(name, none)) for name in datasets}
        return Seen(both, *_distinct([*self.names, *other.names], np.concatenate([self.hashes, other.hashes])))

    @property
    def count(self) -> int:
        """Number of patients."""
        return sum(map(len, self.patients.values()))

    def packed_patients(self) -> dict[str, str]:
        return {dataset: pack_numbers(numbers) for dataset, numbers in self.patients.items()}

    def packed_pictures(self) -> dict[str, str]:
        names = _compress("\n".join(self.names).encode())
        return {"names": names, "hashes": _encode(self.hashes.astype("<u8").tobytes())}


def seen_in(films: pd.DataFrame, pixels: Store | None = None) -> Seen:
    """Patients of films and, with ``pixels``, their images. An image with almost no contrast is left out."""
    if pixels is None:
        return Seen(film_identity.patients_by_dataset(films))
    amplitudes = film_identity.film_amplitudes(pixels, films)
    valid = ~np.isnan(amplitudes[:, 0])
    names = films["image"].to_numpy(object)[valid].tolist()
    return Seen(film_identity.patients_by_dataset(films), *_distinct(names, film_identity.hashes(amplitudes[valid])))


def unpack_seen(people: Mapping[str, str], pictures: Mapping[str, str] | None = None) -> Seen:
    """The inverse of ``packed_patients`` and ``packed_pictures``. Raises ``DAMAGED`` where a text was changed."""
    by_dataset = {dataset: unpack_numbers(text) for dataset, text in people.items()}
    if pictures is None:
        return Seen(by_dataset)
    names = zlib.decompress(base64.b64decode(pictures["names"], validate=True)).decode()
    hashes = np.frombuffer(base64.b64decode(pictures["hashes"], validate=True), "<u8").astype(np.uint64).reshape(-1, 2)
    images = np.array(names.split("\n") if names else [], object)
    if len(images) != len(hashes):
        raise ValueError(f"{len(images)} names for {len(hashes)} images")
    return Seen(by_dataset, images, hashes)


@dataclass(frozen=True)
class TestedFilms:
    """Test films, with what identifies them: ``rows`` of ``patients_by_film``, and ``amplitudes`` of their images."""

    films: pd.DataFrame
    rows: pd.DataFrame
    amplitudes: np.ndarray | None
    _compared: dict[bytes, np.ndarray] = field(default_factory=dict, repr=False)
    """Cached matches by hash of the seen images: the stages of a run mostly saw the same films."""

    @classmethod
    def of(cls, films: pd.DataFrame, pixels: Store | None) -> "TestedFilms":
        amplitudes = film_identity.film_amplitudes(pixels, films) if pixels is not None else None
        return cls(films, film_identity.patients_by_film(films), amplitudes)

    def by_patient(self, seen: Seen) -> dict[int, str]:
        """Films of patients that were seen: position of the film, and the patient as ``nih:13``.

        A patient number without a dataset, on either side, matches this number in every dataset.
        """
        unnamed = seen.patients.get(film_identity.UNNAMED, [])
        union = np.concatenate([np.empty(0, np.int64), *seen.patients.values()])
        matches: dict[int, str] = {}
        for dataset, rows in self.rows.groupby("dataset"):
            numbers = union if dataset == film_identity.UNNAMED else np.union1d(seen.patients.get(dataset, []), unnamed)
            for row in rows[np.isin(rows["patient"], numbers)].itertuples():
                matches.setdefault(row.film, f"{dataset}:{row.patient}")
        return matches

    def by_picture(self, seen: Seen) -> dict[int, str]:
        """Films whose image was seen: position of the film, and the name of the seen image."""
        if self.amplitudes is None or not len(seen.names):
            return {}
        key = hashlib.sha256(seen.hashes.tobytes()).digest()
        if key not in self._compared:
            self._compared[key] = film_identity.match_hashes(self.amplitudes, seen.hashes)
        matches = self._compared[key]
        return {int(film): str(seen.names[matches[film]]) for film in np.flatnonzero(matches >= 0)}


def pack_numbers(numbers: np.ndarray) -> str:
    """Compressed text of distinct integers: sorted, differences, zlib, base64. 25,000 patients take 12 kB."""
    differences = np.diff(np.unique(numbers).astype("<i8"), prepend=0).astype("<i8")
    return _compress(differences.tobytes())


def unpack_numbers(text: str) -> np.ndarray:
    """Inverse of ``pack_numbers``, sorted. Raises ValueError or zlib.error where the text is damaged."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<i8").cumsum().astype(np.int64)


def _distinct(names: list[str], hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Names and hashes sorted by name, without duplicate pairs."""
    rows = pd.DataFrame({"name": names, "high": hashes[:, 0], "low": hashes[:, 1]})
    rows = rows.drop_duplicates().sort_values(["name", "high", "low"])
    return rows["name"].to_numpy(object), rows[["high", "low"]].to_numpy(np.uint64)


def _compress(content: bytes) -> str:
    return _encode(zlib.compress(content, 9))


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


STAGES = (1, 2, 3, 4, 5)
UNKNOWN = "unknown"
LIST = ".films.txt"
"""Suffix of the list of training films beside a weights file: an image, a patient number or dataset:number per line."""
ROLES = {"trained": "was trained on", "validated": "chose its epoch and thresholds"}
"""Roles of a film that a checkpoint saw, each with its words for a message."""

SeenByRole = dict[str, Seen]
"""Patients and images that were seen, by role."""


@dataclass(frozen=True)
class Lineage:
    """Lineage of a stage, up to its start, with the stage's own batches.

    ``weights``: name of the initial weights · ``epochs_so_far``: epochs before the stage · ``ancestors``: from the
    oldest to the parent · ``origin``: training data of the initial weights in words, or ``UNKNOWN`` · ``gaps``: other
    unknown facts, in words · ``before``: patients and images that the ancestors saw · ``parts``: the training and
    validation batches of the stage · ``teachers``: name and hash of the checkpoints that its soft labels come from.
    """

    weights: str
    epochs_so_far: int
    ancestors: tuple[dict[str, Any], ...]
    origin: str
    gaps: tuple[str, ...]
    before: SeenByRole = field(repr=False)
    parts: tuple[Any, ...] = field(repr=False)
    teachers: tuple[dict[str, str], ...] = ()

    @property
    def parent(self) -> dict[str, Any] | None:
        return self.ancestors[-1] if self.ancestors else None

    @cached_property
    def past(self) -> SeenByRole:
        """Patients and images that the ancestors and the stage saw. Reads all images once: 86,524 of 224² in 5 s."""
        stage = [seen_in(part.films, getattr(part, "store", None)) for part in self.parts]
        return join_seen(self.before, dict(zip(ROLES, stage, strict=False)))


def of_stage(parent: Path | None, weights: str, *parts: Any) -> Lineage:
    """The lineage of a stage that starts from ``parent``, or from the initial ``weights``.

    ``parts`` are the training and validation batches, with their ``films``, their ``store`` of pixels and perhaps
    ``soft`` labels. What the teachers of those saw counts as seen by the ancestors.
    Raises UserError where the JSON of the parent or of a teacher is absent, changed, damaged or of another format.
    """
    soft = next((part.soft for part in parts if getattr(part, "soft", None)), None)
    teachers = [checkpoint.read_meta(path) for path in soft.teachers] if soft else []
    if parent is None:
        weights_origin, before = origin_of_weights(weights)
        line = Lineage(weights, 0, (), weights_origin, (), before, parts)
    else:
        meta = checkpoint.read_meta(parent)
        past = (*meta["ancestors"], _ancestor(meta))
        how = (past, meta["origin"], unknowns(meta), seen_by(parent), parts)
        line = Lineage(meta["weights"], meta["epochs_so_far"], *how)
    if not soft:
        return line
    before = line.before
    for path in soft.teachers:
        before = join_seen(before, seen_by(path))
    gaps = dict.fromkeys([*line.gaps, *(gap for meta in teachers for gap in _gaps_of_teacher(meta))])
    names = tuple({"name": meta["name"], "sha256": meta["sha256"]} for meta in teachers)
    return replace(line, before=before, gaps=tuple(gaps), teachers=names)


def _gaps_of_teacher(meta: dict[str, Any]) -> list[str]:
    """Unknown facts of a teacher's lineage, in words."""
    start = [f"what the starting weights of the teacher {meta['name']} had seen"] if meta["origin"] == UNKNOWN else []
    return [*unknowns(meta), *start]


def parent_of_stage(run: paths.Run, stage: int, ckpt: str = "") -> Path | None:
    """The parent checkpoint of a stage: ``ckpt`` if given, else the best one of the run's previous stage.

    None for stage 1 without ``ckpt``, which starts from the initial weights.
    Raises UserError where the checkpoint or the previous stage does not exist.
    """
    if ckpt:
        return checkpoint.resolve(ckpt, run)
    return checkpoint.best(run.stage(stage - 1)) if stage > 1 else None


def stage_checkpoints(run: paths.Run) -> list[Path]:
    """The best checkpoints of a run's finished stages, in order. Each is the parent of the next.

    Raises UserError where no stage is finished, and for a mean of runs, which has no network. Also where a checkpoint
    is not the parent of the next one, for example after a stage was trained again.
    """
    paths.check_has_network(run)
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


def ancestors_table(path: Path) -> pd.DataFrame:
    """Lineage table of a checkpoint, oldest ancestor first, itself last: rate, epochs and validation AUC of each."""
    rows = pd.DataFrame(ancestors(path))
    rows["sha256"] = rows["sha256"].str[:12]
    return rows[["name", "schedule", "stage", "lr", "epochs", "epochs_so_far", "val_auc", "data", "sha256"]]


def checkpoint_table(path: Path) -> pd.DataFrame:
    """Checkpoint facts, as a table of one column."""
    meta, seen_by_role = checkpoint.read_meta(path), seen_by(path)
    facts = {
        "checkpoint": meta["name"],
        "parent": (meta["parent"] or {"name": f"weights {meta['weights']}"})["name"],
        **({"teachers": ", ".join(one["name"] for one in meta["teachers"])} if meta.get("teachers") else {}),
        "trained groups": " ".join(meta["recipe"]["groups"]),
        "epochs so far": meta["epochs_so_far"],
        "mean validation AUC": meta["metrics"].get("val_auc"),
        **{f"patients {role}, with all ancestors": seen_by_role[role].count for role in ROLES},
        "of the datasets": ", ".join(sorted({name for entry in seen_by_role.values() for name in entry.patients})),
        "initial weights had seen": meta["origin"],
        "sha256": meta["sha256"][:16],
    }
    return pd.Series(facts, name="", dtype=object).to_frame()


def seen_by(path: Path) -> SeenByRole:
    """Patients and images that a checkpoint or an ancestor saw. Raises UserError where they are damaged or changed."""
    meta = checkpoint.read_meta(path)
    return _unpacked(meta, checkpoint.read_header(path))


def unknowns(meta: dict[str, Any]) -> tuple[str, ...]:
    """Unknown facts of a checkpoint's lineage besides its origin, in words: older versions recorded less."""
    if meta["format"] > 1:
        return tuple(meta["gaps"])
    return (f"the validation patients and the images of {meta['name']}, which an older version made",)


def join_seen(one: SeenByRole, other: SeenByRole) -> SeenByRole:
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
    tested, count = TestedFilms.of(films, pixels), films["patient"].nunique()
    rows = [_check_leak(path, tested, official=splits.is_official_test(films["image"])) for path in line]
    for row in rows:
        if row["patients"] and not allow:
            raise UserError(
                f"checkpoint {row['checkpoint']} or an ancestor saw {row['patients']} of the {count} patients to be "
                f"tested, so a result on them means nothing: {row['first']}. "
                "Take films of other patients, or allow the leak knowingly by allow_leak"
            )
    return pd.DataFrame(rows)


def patients_trained_on(path: Path, films: pd.DataFrame) -> list[str]:
    """Patients of these films that a checkpoint or an ancestor was trained on, as ``nih:13``, sorted."""
    seen = seen_by(path).get("trained", Seen())
    return sorted({*TestedFilms.of(films, None).by_patient(seen).values()})


def origin_of_weights(weights: str) -> tuple[str, SeenByRole]:
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
        weights_past = join_seen(weights_past, {"trained": trained})
        more = f"; {words}" if words not in ("", UNKNOWN) else ""
        words = f"{trained.count} patients listed in {list_file.name}{more}"
    return words or UNKNOWN, weights_past


def _workbook_origin(file: Path) -> tuple[str, SeenByRole]:
    """Origin of weights that are a checkpoint of this workbook, in any folder; "" and {} for other files."""
    header = checkpoint.read_header(file) if file.suffix == checkpoint.SUFFIX else {}
    if checkpoint.has_description(file):
        meta = checkpoint.load(file).meta
    elif header:
        meta = header  # the JSON is lost; the header has a copy of what is needed
    else:
        copy = checkpoint.by_hash(provenance.file_sha256(file))
        if copy is None:
            return "", {}
        meta, header = checkpoint.read_meta(copy), checkpoint.read_header(copy)
    weights_past = _unpacked(meta, header)
    if meta["origin"] == UNKNOWN or unknowns(meta):
        return UNKNOWN, weights_past
    return f"{sum(entry.count for entry in weights_past.values())} patients, as checkpoint {meta['name']}", weights_past


def _read_list(file: Path) -> Seen:
    """Patients in the list beside a weights file."""
    names, numbers = [], {}
    for number, text in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        dataset, _, patient = text.strip().rpartition(":")
        if patient.isdigit():
            numbers.setdefault(dataset or film_identity.UNNAMED, []).append(int(patient))
        elif "_" in patient and patient.partition("_")[0].isdigit():
            names.append((patient, int(patient.partition("_")[0])))
        elif patient or dataset:
            raise UserError(f"{file}, line {number}: {text!r} is neither an image name nor a patient's number")
    by_number = Seen({dataset: pd.unique(pd.Series(sorted(values))) for dataset, values in numbers.items()})
    return by_number | Seen(
        film_identity.patients_by_dataset(
            pd.DataFrame(names, columns=["image", "patient"]).astype({"patient": "int64"})
        )
    )


def _check_leak(path: Path, tested: TestedFilms, *, official: bool = False) -> dict[str, Any]:
    """The row of one checkpoint in ``refuse_leak``; on the ``official`` test part only patients count as seen."""
    meta, seen_by_role = checkpoint.read_meta(path), seen_by(path)
    unknown, weights_origin = list(unknowns(meta)), meta["origin"]
    if weights_origin == UNKNOWN:  # a list of its films may have been added after the training
        weights_origin, weights_past = origin_of_weights(meta["weights"])
        seen_by_role = join_seen(seen_by_role, weights_past)
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


def _unpacked(meta: dict[str, Any], header: dict[str, Any]) -> SeenByRole:
    try:
        if meta["format"] == 1:  # it has training patients only, without a dataset
            return {"trained": Seen({film_identity.UNNAMED: unpack_numbers(meta["patients"])}), "validated": Seen()}
        return {role: unpack_seen(meta["seen"][role], header["pictures"][role]) for role in ROLES}
    except DAMAGED as error:
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
