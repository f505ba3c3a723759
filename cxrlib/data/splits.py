"""Split of films into train, validation and test by patient: the same for every run on the same films.

The test part is the official one if ``test_list.txt`` or ``train_val_list.txt`` is in the data folder. The validation
patients are drawn from the rest. Each finding is about as frequent among them as in the whole rest. The draw has a seed
of its own, ``SEED``: a run's seed does not change it, so that runs of several seeds share their validation and test
films, and can be averaged and compared.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib import UserError, labels, metrics, paths, randomness
from cxrlib.data import images, records, sources, tables
from cxrlib.data.tables import Assume, keep_silent

TRAIN_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"
OTHER_NAMES = {TRAIN_LIST: "train_val_list_NIH.txt", TEST_LIST: "test_list_NIH.txt"}
"""Names of the lists in resized copies of the dataset."""

OFFICIAL_FILMS = 25_596
OFFICIAL_NAMES = "38ca5ef7f756092946f57c1a59faca882ed589a1ab1f72590b45dc06c6d5e1cc"
"""SHA-256 of the names in the dataset's ``test_list.txt``, sorted, one per line."""

RIGHT_LISTS = "take the lists that belong to these films, or remove both to split by patient at random"
"""Advice for lists that contradict the films."""

TEST_FRACTION = 0.2
"""Test share without official lists: 70 % of the films train, 10 % validation, 20 % test."""

SEED = 0
"""Seed of the draw in every run."""

ROUNDS, SWAPS = 200, 64
"""Steps that improve a random draw of patients towards equal prevalence, and swaps tried per step: see ``_draw``."""

NIH_STEM = r"\d{8}_\d{3}"
"""Name of an NIH film without its ending."""

_NAMES = ("train", "val", "test")
_ORDER, _SWAPS = 2, 3  # purposes of random numbers; ``batches`` uses 0 and 1
_LINE = re.compile(
    r"""["']?(?P<folders>.*[/\\])?(?P<name>[^/\\,;\t"']+?)["']?"""
    r"""(?P<labels>(?:[\s,;]+[01](?:\.0)?){14,15})?[\s,;]*""",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Parts:
    """Films for training, validation and testing; no patient is in two parts. ``source`` describes the split."""

    train: pd.DataFrame
    val: pd.DataFrame
    test: pd.DataFrame
    source: str
    seed: int


def make(films: pd.DataFrame, folder: str | Path, *, val_fraction: float = 0.1, seed: int = SEED) -> Parts:
    """Split films by patient into train, validation and test.

    ``val_fraction`` is a share of the films outside the official test list. Without official lists it is a share of all
    films, and ``TEST_FRACTION`` is the test share. A random split depends on the films' patients and on ``seed``, which
    every run leaves as it is.
    Raises UserError if a list contradicts the films, or if there are too few patients.
    """
    if not 0 < val_fraction < 0.5:
        raise UserError(f"val_fraction is {val_fraction}; give a share of films between 0 and 0.5")
    found, in_val = sources.other(Path(folder)), None
    if found:
        in_test, in_val, source = found.split(films)
    else:
        in_test, source = _official(films, Path(folder))
    if in_test is None:
        in_test = _draw(films, TEST_FRACTION, seed, stream=1, least=3)
        unit = found.unit if found else "patient"
        source = f"drawn by {unit} (70/10/20, seed {seed}): {Path(folder).name} holds no official lists"
        val_fraction = val_fraction / (1 - TEST_FRACTION)
    rest = films[~in_test]
    in_val = _draw(rest, val_fraction, seed, stream=0) if in_val is None else in_val[~in_test]
    tables = [part.reset_index(drop=True) for part in (rest[~in_val], rest[in_val], films[in_test])]
    for a, b in combinations(tables, 2):
        if shared := overlap(a, b):
            raise AssertionError(f"{shared} patients are in two parts of the split")
    return Parts(*tables, source, seed)


def is_official_test(images: Iterable[str]) -> bool:
    """Whether these image names are those of the official test part, all 25,596 of them and no other."""
    names = "\n".join(sorted({*images}))
    return hashlib.sha256(names.encode()).hexdigest() == OFFICIAL_NAMES


def overlap(a: pd.DataFrame, b: pd.DataFrame) -> int:
    """Number of patients with films in both tables."""
    return len(np.intersect1d(a["patient"], b["patient"]))


def summary(parts: Parts) -> pd.DataFrame:
    """Counts per part, one row each: films, patients, then the films with each of the 15 labels.

    Where labels are unknown, further columns such as "Mass known" count the films whose label is known.
    """
    tables = [getattr(parts, name) for name in _NAMES]
    matrices = [records.label_matrix(part) for part in tables]
    rows = [
        [len(part), part["patient"].nunique(), *metrics.positives(matrix)]
        for part, matrix in zip(tables, matrices, strict=True)
    ]
    table = pd.DataFrame(rows, list(_NAMES), ["films", "patients", *labels.LABELS])
    known = np.stack([metrics.is_known(matrix).sum(0) for matrix in matrices])  # (3, 15)
    for k in np.flatnonzero((known < table[["films"]].to_numpy()).any(0)):
        table[f"{labels.LABELS[k]} known"] = known[:, k]
    return table


def write(parts: Parts, path: Path) -> Path:
    """Write the split as CSV: a row per film, columns image, patient, part."""
    table = pd.concat([getattr(parts, name)[["image", "patient"]].assign(part=name) for name in _NAMES])
    return paths.write_csv(path, table)


def read_list(path: Path, on_assumed: Assume = keep_silent) -> pd.Index:
    """Films of an official list, one per line: their names without the ending, in the list's order.

    A line may have folders before the name, no ending, or 14 or 15 labels of 0 and 1 behind it, which are not used. The
    first line may be a header. ``on_assumed`` is told of these.
    Raises UserError if the list is empty or unreadable, if a line is no film's name, or if a film is there twice.
    """
    text = tables.read_text(path, on_assumed)
    lines = [(i + 1, line) for i, line in enumerate(map(str.strip, text.splitlines())) if line]
    if lines and _is_header(lines[0][1]):
        on_assumed(f"{path.name} with a header", [lines.pop(0)[1][:60]])
    if not lines:
        raise UserError(f"{path} is empty; download it again, or remove both lists to split by patient at random")
    if any(mark in text for mark in "/\\,;\t\"' "):
        names = _parse_lines(lines, path, on_assumed)
    else:
        names = [line for _, line in lines]
    bare = [name for name in names if not name.lower().endswith(images.SUFFIXES)]
    on_assumed(f"{path.name} with names without an ending", bare)
    names = pd.Index(map(_bare if bare else records.stem, names), dtype=str)
    if names.has_duplicates:
        raise UserError(f"{path} has {names[names.duplicated()][0]} twice; download it again")
    return names


def _parse_lines(lines: list[tuple[int, str]], path: Path, on_assumed: Assume) -> list[str]:
    """Names in the numbered lines of a list that have more than a name. Raises UserError for another line."""
    matches = [_LINE.fullmatch(line) for _, line in lines]
    if wrong := next((row for row, match in zip(lines, matches, strict=True) if match is None), None):
        raise UserError(f"{path}, line {wrong[0]}: {wrong[1][:60]!r} is no film's name; write one name a line")
    for part, what in (("folders", "folders before the names"), ("labels", "labels behind the names, not used")):
        on_assumed(f"{path.name} with {what}", [match[0][:60] for match in matches if match[part]])
    return [match["name"] for match in matches]


def _bare(name: str) -> str:
    return records.stem(name) if name.lower().endswith(images.SUFFIXES) else name


def _is_header(line: str) -> bool:
    """Whether the first line of a list is a header, such as ``Image Index``: a word for names, and no digit in it."""
    is_word = re.match(r"\W*(image|film|file|name|path)", line, re.IGNORECASE)
    return bool(is_word) and not re.search(r"\d|[/\\]|\.(png|jpe?g|dcm|dicom)\W*$", line, re.IGNORECASE)


def read_lists(folder: Path, on_assumed: Assume = keep_silent) -> dict[str, pd.Index]:
    """Films of a data folder's official lists, by the list's usual name. Raises as ``read_list``."""
    return {name: read_list(path, on_assumed) for name, path in find_lists(folder).items()}


def find_lists(folder: Path) -> dict[str, Path]:
    """Paths of a data folder's official lists, by the list's usual name; none for another dataset than NIH's."""
    if sources.other(folder):
        return {}
    found = {name: records.find(folder, (name, other)) for name, other in OTHER_NAMES.items()}
    return {name: path for name, path in found.items() if path}


def unlisted(films: pd.DataFrame, lists: dict[str, pd.Index]) -> dict[str, list[str]]:
    """Names in each list that are not in the table: of films that a part of the dataset does not have."""
    stems = _stems([*films["image"].tolist(), *films.attrs.get("missing", [])])
    return {name: list(listed[~listed.isin(stems)]) for name, listed in lists.items()}


def contradictions(films: pd.DataFrame, lists: dict[str, pd.Index]) -> Iterator[tuple[str, list]]:
    """Contradictions between lists and films: a description of each, and the films or patients concerned (or [])."""
    if len(lists) == 1:  # a misspelt name would put its film into the other part
        for name, others in unlisted(films, lists).items():
            strange = [other for other in others if not re.fullmatch(NIH_STEM, other)]
            yield f"films are in {name}, are not in the CSV, and are not named as NIH's", strange
    in_train, in_test = _sides(films, lists)
    yield "films are in both lists", films["image"][in_train & in_test].tolist()
    yield "films of the CSV are in neither list", films["image"][~(in_train | in_test)].tolist()
    shared = np.intersect1d(films["patient"][in_train], films["patient"][in_test])
    yield "patients are in both lists, a leak", shared.tolist()
    empty = [name for name, side in ((TRAIN_LIST, in_train), (TEST_LIST, in_test)) if not side.any()]
    yield "parts of the official split have no film of the CSV", empty


def _official(films: pd.DataFrame, folder: Path) -> tuple[np.ndarray | None, str]:
    """Whether each film is in the official test part, (N,) bool, and a description. None and "" without lists."""
    lists = read_lists(folder)
    if not lists:
        return None, ""
    for fault, cases in contradictions(films, lists):
        if cases:
            raise UserError(f"{folder}: {len(cases)} {fault}, first {cases[0]}; {RIGHT_LISTS}")
    others = sum(map(len, unlisted(films, lists).values()))
    source = f"official lists of {folder.name} ({' and '.join(lists)})"
    return _sides(films, lists)[1], source + (f", {others:,} of their films not in the table" if others else "")


def _sides(films: pd.DataFrame, lists: dict[str, pd.Index]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each film is for training, and for testing, (N,) bool each. An absent list counts as all other films."""
    stems = _stems(films["image"].tolist())
    inside = {name: stems.isin(listed) for name, listed in lists.items()}
    if len(inside) == 1:
        other = TEST_LIST if TRAIN_LIST in inside else TRAIN_LIST
        inside[other] = ~next(iter(inside.values()))
    return inside[TRAIN_LIST], inside[TEST_LIST]


def _stems(names: Iterable[str]) -> pd.Index:
    return pd.Index(map(records.stem, names), dtype=str)


def _draw(films: pd.DataFrame, fraction: float, seed: int, stream: int, least: int = 2) -> np.ndarray:
    """Draw patients with about ``fraction`` of the films; (N,) bool. The prevalences are close to those of all films.

    The random draw is improved in ``ROUNDS`` steps. Each step tries ``SWAPS`` random swaps of a drawn patient for
    another, and keeps the best one if it makes ``_distance`` smaller. Raises UserError for fewer than ``least``
    patients: two for one draw, three if the rest is to be drawn from once more.
    """
    patients, of_film = np.unique(films["patient"].to_numpy(), return_inverse=True)
    if len(patients) < least:
        raise UserError(f"{len(patients)} patients cannot be split into train, validation and test; give more films")
    columns = _counted(records.label_matrix(films))
    counts = np.stack([np.bincount(of_film, column, len(patients)) for column in columns.T], 1)  # (P, C)
    order = randomness.permutation(len(patients), seed, stream, _ORDER)
    n = int(np.searchsorted(counts[order, -1].cumsum(), fraction * len(films))) + 1
    n = min(n, max(1, len(patients) - 2))  # the rest may be drawn from once more
    total, distance = counts[order[:n]].sum(0), _distance(counts, fraction)
    swaps = randomness.raw(ROUNDS * 2 * SWAPS, seed, stream, _SWAPS).reshape(ROUNDS, 2, SWAPS)
    for raw in swaps:
        out, into = randomness.below(raw[0], n), n + randomness.below(raw[1], len(patients) - n)
        swapped = total - counts[order[out]] + counts[order[into]]  # (SWAPS, C)
        best = int(distance(swapped).argmin())
        if distance(swapped[best]) < distance(total):
            total = swapped[best]
            order[[out[best], into[best]]] = order[[into[best], out[best]]]
    return np.isin(of_film, order[:n])


def _counted(matrix: np.ndarray) -> np.ndarray:
    """What a draw balances, of each film, (N, C) bool: labels that are 1, unknown labels if any, and the film itself.

    Labels (N, 15) of 0, 1 and NaN. With as many positives and unknowns as expected, the negatives are so too.
    """
    unknown = ~metrics.is_known(matrix)
    return np.c_[matrix == 1, unknown[:, unknown.any(0)], np.ones(len(matrix), bool)]


def _distance(counts: np.ndarray, fraction: float) -> Callable[[np.ndarray], np.ndarray]:
    """Distance function of draws with counts (..., C) from ``fraction`` of all patients' counts (P, C).

    It is chi-square, plus 100 for each label that several patients have and that is on one side of the draw only.
    """
    total = counts.sum(0)
    expected = fraction * total
    shared = (counts > 0).sum(0) > 1

    def distance(draw: np.ndarray) -> np.ndarray:
        chi_square = ((draw - expected) ** 2 / np.maximum(expected, 1e-9)).sum(-1)
        return chi_square + 100 * (shared & ((draw == 0) | (draw == total))).sum(-1)

    return distance
