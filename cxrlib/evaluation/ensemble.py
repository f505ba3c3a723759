"""Mean of several runs' predictions: the members read and checked, and their probabilities averaged film by film.

Averaging needs no network: a run leaves the probabilities of its validation and test films as CSV. Members must have
predicted the same films with the same labels in both parts, or the mean would be of nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.special import expit

from cxrlib import UserError, paths, provenance
from cxrlib.evaluation import predict
from cxrlib.labels import differ

PROBABILITIES, LOGITS = "probabilities", "logits"
WAYS = (PROBABILITIES, LOGITS)
"""What is averaged. The mean of logits is less drawn to the middle where the members disagree."""

PARTS = {"val": "validation", "test": "test"}
LOWEST, HIGHEST = 1e-46, 1e-17
"""Replace p = 0 and 1 - p = 0 in a logit: smaller than any other value in float32 (p) and in float64 (1 - p)."""


def average(members: Sequence[np.ndarray], of: str = PROBABILITIES) -> np.ndarray:
    """Mean of probabilities (N, 15), one array per member, film by film and label by label: (N, 15), 0..1.

    ``of`` "logits" averages log odds and gives their probability. The same bits in any order of the members.
    Raises UserError for no member, arrays of different shapes, and another ``of``.
    """
    if of not in WAYS:
        raise UserError(f"the mean of {of!r} is unknown; choose {' or '.join(WAYS)}")
    shapes = {np.shape(member) for member in members}
    if len(shapes) != 1:
        raise UserError(f"{len(members)} members of {len(shapes)} shapes cannot be averaged; they must be of one")
    stack = np.sort(np.asarray(members, np.float64), axis=0)  # in a sum the order can change the last bit
    if of == PROBABILITIES:
        return np.clip(stack.mean(0), stack[0], stack[-1])  # rounding may leave the members' range
    logits = np.log(np.maximum(stack, LOWEST)) - np.log(np.maximum(1 - stack, HIGHEST))
    return np.clip(expit(logits.mean(0)), stack[0], stack[-1])


@dataclass(frozen=True)
class Member:
    """A run to average: its record, the hash of the checkpoint that predicted, image size, and hashes of both CSVs."""

    name: str
    record: dict
    weights: str
    size: int
    tta: str
    hashes: dict[str, str]

    @property
    def home(self) -> paths.Run:
        return paths.Run(self.name)

    @property
    def key(self) -> list:
        """What the mean depends on."""
        films = self.record["data"]
        return [self.name, self.weights, self.size, self.hashes, films["fingerprint"], films.get("contents", {})]


def member(name: str) -> Member:
    """A run as a member, its predictions not yet read, but compared with what the run recorded of them.

    Raises UserError for a run that is absent, has no record or no predictions, whose predictions were changed, and for
    a run that is a mean itself.
    """
    home = paths.Run(name)
    if not home.run_json.is_file():
        there = ", ".join(paths.runs()) or "none yet"
        raise UserError(f"there is no run {name!r} with a record in {paths.outputs()}; there are: {there}")
    if of := paths.averaged(home):
        raise UserError(f"{name} is itself the mean of {', '.join(of)}; name these in its place")
    record, files = paths.read_json(home.run_json), {part: home.predictions / f"{part}.csv" for part in PARTS}
    again = f"cxr run --run {name} predicts again"
    if not isinstance(record, dict) or "fingerprint" not in (record.get("data") or {}):
        raise UserError(f"run {name} has no record of its films in run.json; {again}")
    for file in files.values():
        if not file.is_file() or not predict.cache_note(file).is_file():
            raise UserError(f"run {name} has no predictions/{file.name} with its note yet; {again}")
        predict.check_unchanged(file)
    made = {
        file: mark
        for entry in record.get("notebooks", {}).values()
        for file, mark in entry.get("made", {}).items()
        if file in {f"predictions/{part}.csv" for part in PARTS}
    }
    if changed := paths.changed_results(home.root, made):
        raise UserError(f"{changed[0]} of run {name} is not what the run made: it was changed since; {again}")
    notes = [paths.read_json(predict.cache_note(file)) for file in files.values()]
    whole = all(isinstance(note, dict) and note.get("weights") and note.get("size") for note in notes)
    if not whole or notes[0]["weights"] != notes[1]["weights"]:
        raise UserError(f"run {name}: validation and test films were not predicted by one checkpoint; {again}")
    hashes = {part: provenance.file_sha256(file) for part, file in files.items()}
    return Member(name, record, notes[0]["weights"], int(notes[1]["size"]), str(notes[1].get("tta", "none")), hashes)


def read(
    members: Sequence[Member], films: Mapping[str, pd.DataFrame] | None = None
) -> dict[str, list[predict.Predictions]]:
    """Predictions of each part ("val", "test"), one per member, in the order of ``films``, else of the first member.

    Raises UserError where two members are of other data, films, patients or labels, and as ``predict.read``, which
    ``films`` are for.
    """
    for one, other in combinations(members, 2):
        if one.record["data"]["fingerprint"] != other.record["data"]["fingerprint"]:
            raise UserError(
                f"{one.name} and {other.name} are of other data ({_data(one)} and {_data(other)}); only runs on the "
                "same films and labels can be averaged"
            )
    said = {part: [predict.read(each.home.predictions / f"{part}.csv") for each in members] for part in PARTS}
    aligned = {}
    for part, own in said.items():
        pairs = [(members[0].name, each.name) for each in members]
        aligned[part] = [_aligned(part, pair, own[0], one) for pair, one in zip(pairs, own, strict=True)]
        if films is not None:
            first = predict.read(members[0].home.predictions / f"{part}.csv", films[part])
            aligned[part] = [_aligned(part, pair, first, one) for pair, one in zip(pairs, own, strict=True)]
    return aligned


def _data(one: Member) -> str:
    films = one.record["data"]
    return f"{films.get('films', 0):,} films of {films.get('folder') or 'the phantom set'}"


def _aligned(
    part: str, names: tuple[str, str], first: predict.Predictions, own: predict.Predictions
) -> predict.Predictions:
    """A member's predictions in the order of the first member's films. UserError where the two do not agree."""
    pair = " and ".join(names)
    if {*first.images} != {*own.images}:
        shared = len({*first.images} & {*own.images})
        why = "; a run whose validation part was drawn by its seed is trained again by cxr run" if part == "val" else ""
        raise UserError(
            f"the {PARTS[part]} films of {pair} differ ({len(first.images):,} and {len(own.images):,}, {shared:,} of "
            f"them the same), so they cannot be averaged{why}"
        )
    places = {image: row for row, image in enumerate(own.images)}
    rows = np.array([places[image] for image in first.images], np.int64)
    own = predict.Predictions(first.images, own.patients[rows], own.labels[rows], own.probabilities[rows])
    other = differ(first.labels, own.labels).any(1) | (first.patients != own.patients)
    if other.any():
        film = first.images[int(np.argmax(other))]
        raise UserError(
            f"{pair} have other labels or patients for {other.sum():,} {PARTS[part]} films, the first {film}; run cxr "
            "run again for the one that is older"
        )
    return own
