"""Which films train, validate and test: by patient, never by film, and the same for a seed.

The test part is the official one where ``test_list.txt`` and ``train_val_list.txt`` lie in the data folder.
Validation patients are drawn from the rest so that every finding is about as frequent among them as among all.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib import labels, paths, philox
from cxrlib.data import records
from cxrlib.errors import UserError

TRAIN_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"
OTHER_NAMES = {TRAIN_LIST: "train_val_list_NIH.txt", TEST_LIST: "test_list_NIH.txt"}
"""What re-sized mirrors of the dataset call the lists."""

OFFICIAL_FILMS = 25_596
OFFICIAL_NAMES = "38ca5ef7f756092946f57c1a59faca882ed589a1ab1f72590b45dc06c6d5e1cc"
"""SHA-256 of the names in the dataset's ``test_list.txt``, sorted, one per line."""

TEST_FRACTION = 0.2
"""Share of films tested on where no list says which: 70 % train, 10 % validation, 20 % test."""

ROUNDS, SWAPS = 200, 64
"""How long a random draw of patients is improved towards equal prevalence: see ``_draw``."""

_ORDER, _SWAPS = 2, 3  # purposes of random numbers; ``draws`` has 0 and 1


@dataclass(frozen=True)
class Parts:
    """Films to train on, validate on and test on; no patient is in two of them. ``source`` says who split them."""

    train: pd.DataFrame
    val: pd.DataFrame
    test: pd.DataFrame
    source: str
    seed: int


def make(films: pd.DataFrame, folder: str | Path, *, val_fraction: float = 0.1, seed: int = 0) -> Parts:
    """Split films by patient into train, validation and test.

    With official lists ``val_fraction`` is the share of the films outside the test list; without them it is the
    share of all films, beside ``TEST_FRACTION`` for testing. A draw depends on the films' patients and on ``seed``.
    Raises UserError where a list contradicts the films, or too few patients are there.
    """
    if not 0 < val_fraction < 0.5:
        raise UserError(f"val_fraction is {val_fraction}; give a share of films between 0 and 0.5")
    in_test, source = _official(films, Path(folder))
    if in_test is None:
        in_test = _draw(films, TEST_FRACTION, seed, stream=1)
        source = f"drawn by patient (70/10/20, seed {seed}): {Path(folder).name} holds no official lists"
        val_fraction = val_fraction / (1 - TEST_FRACTION)
    rest = films[~in_test]
    in_val = _draw(rest, val_fraction, seed, stream=0)
    parts = Parts(_part(rest[~in_val]), _part(rest[in_val]), _part(films[in_test]), source, seed)
    _assert_disjoint(parts)
    return parts


def is_official_test(images: Iterable[str]) -> bool:
    """Whether these image names are those of the official test part, all 25,596 of them and no other."""
    names = "\n".join(sorted({*images}))
    return hashlib.sha256(names.encode()).hexdigest() == OFFICIAL_NAMES


def overlap(a: pd.DataFrame, b: pd.DataFrame) -> int:
    """Number of patients with films in both tables."""
    return len(np.intersect1d(a["patient"], b["patient"]))


def summary(parts: Parts) -> pd.DataFrame:
    """One row per part: films, patients, then the films with each of the 15 labels."""
    rows = {
        name: [len(part), part["patient"].nunique(), *records.label_matrix(part).sum(0, dtype=int)]
        for name, part in (("train", parts.train), ("val", parts.val), ("test", parts.test))
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["films", "patients", *labels.LABELS])


def write(parts: Parts, path: Path) -> Path:
    """Write down who was trained, validated and tested on: a row per film, columns image, patient, part."""
    named = (("train", parts.train), ("val", parts.val), ("test", parts.test))
    table = pd.concat([part[["image", "patient"]].assign(part=name) for name, part in named])
    return paths.write_text(path, table.to_csv(index=False))


def read_list(path: Path) -> pd.Index:
    """Film names of an official list, one a line. Raises UserError where it is empty, unreadable or repeats a name."""
    try:
        names = pd.Index([line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()], dtype=str)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); download it again") from None
    if names.empty:
        raise UserError(f"{path} is empty; download it again, or remove both lists to split by patient at random")
    if names.has_duplicates:
        raise UserError(f"{path} names {names[names.duplicated()][0]} twice; download it again")
    return names


def read_lists(folder: Path) -> dict[str, pd.Index]:
    """Film names of the official lists that lie in a data folder, by the list's usual name. Raises as ``read_list``."""
    return {name: read_list(path) for name, path in find_lists(folder).items()}


def find_lists(folder: Path) -> dict[str, Path]:
    """The official lists that lie in a data folder, by the list's usual name."""
    found = {name: [folder / name, folder / other] for name, other in OTHER_NAMES.items()}
    there = {name: [path for path in files if path.is_file()] for name, files in found.items()}
    return {name: files[0] for name, files in there.items() if files}


def contradictions(films: pd.DataFrame, lists: dict[str, pd.Index]) -> Iterator[tuple[str, list]]:
    """What is wrong between lists and films: each fault in words, and the films or patients that it concerns."""
    known = pd.Index(films["image"]).append(pd.Index(films.attrs.get("missing", []), dtype=str))
    for name, listed in lists.items():
        yield f"films are in {name} and not in the CSV", list(listed.difference(known, sort=False))
    in_train, in_test = _sides(films, lists)
    yield "films are in both lists", films["image"][in_train & in_test].tolist()
    yield "films of the CSV are in neither list", films["image"][~(in_train | in_test)].tolist()
    shared = np.intersect1d(films["patient"][in_train], films["patient"][in_test])
    yield "patients are in both lists, a leak", shared.tolist()


def _official(films: pd.DataFrame, folder: Path) -> tuple[np.ndarray | None, str]:
    """Which films are in the official test part, (N,) bool, and that in words; None and "" where no list is there."""
    lists = read_lists(folder)
    if not lists:
        return None, ""
    for fault, concerned in contradictions(films, lists):
        if concerned:
            raise UserError(f"{folder}: {len(concerned)} {fault}, first {concerned[0]}; download the lists again")
    return _sides(films, lists)[1], f"official lists of {folder.name} ({' and '.join(lists)})"


def _sides(films: pd.DataFrame, lists: dict[str, pd.Index]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each film is to be trained on, and tested on, (N,) bool each; a list that is absent is all the rest."""
    inside = {name: films["image"].isin(listed).to_numpy() for name, listed in lists.items()}
    if len(inside) == 1:
        other = TEST_LIST if TRAIN_LIST in inside else TRAIN_LIST
        inside[other] = ~next(iter(inside.values()))
    return inside[TRAIN_LIST], inside[TEST_LIST]


def _draw(films: pd.DataFrame, fraction: float, seed: int, stream: int) -> np.ndarray:
    """(N,) bool: the films of about ``fraction`` drawn by patient, prevalences as near to those of all as can be.

    A random draw of patients, then ``ROUNDS`` times the best of ``SWAPS`` random swaps of a patient inside for one
    outside, where it brings the counts of labels nearer. Raises UserError for fewer than three patients.
    """
    patients, of_film = np.unique(films["patient"].to_numpy(), return_inverse=True)
    if len(patients) < 3:
        raise UserError(f"{len(patients)} patients cannot be split into train, validation and test; give more films")
    marks = np.c_[records.label_matrix(films), np.ones(len(films))]  # (N, 16), the last column counts films
    counts = np.stack([np.bincount(of_film, column, len(patients)) for column in marks.T], 1)  # (P, 16)
    order = philox.permutation(len(patients), seed, stream, _ORDER)
    inside = int(np.searchsorted(counts[order, -1].cumsum(), fraction * len(films))) + 1
    inside = min(inside, len(patients) - 2)
    drawn, distance = counts[order[:inside]].sum(0), _distance(counts, fraction)
    swaps = philox.raw(ROUNDS * 2 * SWAPS, seed, stream, _SWAPS).reshape(ROUNDS, 2, SWAPS)
    for raw in swaps:
        out, into = philox.below(raw[0], inside), inside + philox.below(raw[1], len(patients) - inside)
        swapped = drawn - counts[order[out]] + counts[order[into]]  # (SWAPS, 16)
        best = int(distance(swapped).argmin())
        if distance(swapped[best]) < distance(drawn):
            drawn = swapped[best]
            order[[out[best], into[best]]] = order[[into[best], out[best]]]
    return np.isin(of_film, order[:inside])


def _distance(counts: np.ndarray, fraction: float) -> Callable[[np.ndarray], np.ndarray]:
    """Measure of how far draws with label counts (..., 16) are from ``fraction`` of each label of all patients (P, 16):
    chi-square, and 100 more for every label that several patients have and that a draw leaves on one side only."""
    total = counts.sum(0)
    expected = fraction * total
    shared = (counts > 0).sum(0) > 1

    def distance(drawn: np.ndarray) -> np.ndarray:
        chi_square = ((drawn - expected) ** 2 / np.maximum(expected, 1e-9)).sum(-1)
        return chi_square + 100 * (shared & ((drawn == 0) | (drawn == total))).sum(-1)

    return distance


def _part(films: pd.DataFrame) -> pd.DataFrame:
    return films.reset_index(drop=True)


def _assert_disjoint(parts: Parts) -> None:
    for a, b in ((parts.train, parts.val), (parts.train, parts.test), (parts.val, parts.test)):
        shared = overlap(a, b)
        if shared:
            raise AssertionError(f"{shared} patients are in two parts of the split")
