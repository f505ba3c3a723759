"""Who was seen: patients and pictures, in a form small enough to travel in every checkpoint.

A film is *trained* on, or it chose epoch, calibration and thresholds (*validated*); both are kept, apart. Each film's
patient is kept with the dataset that numbers it, and its picture as a pixel hash with the film's name: about 1.9 MB
for the 86,524 films outside the official test part, two thirds of it hashes, which do not compress.
"""

import base64
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cxrlib.data import patients, pixel_hash
from cxrlib.data.store import Store

DAMAGED = (ValueError, zlib.error, UnicodeDecodeError, TypeError, KeyError, AttributeError)
"""What unpacking raises where the text was changed or cut."""


@dataclass(frozen=True)
class Seen:
    """Patients by dataset, and the pictures of films: ``names`` (N,) and ``hashes`` (N, 2) uint64, row by row."""

    patients: Mapping[str, np.ndarray] = field(default_factory=dict)
    names: np.ndarray = field(default_factory=lambda: np.empty(0, object))
    hashes: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.uint64))

    def __or__(self, other: "Seen") -> "Seen":
        """Both together, nobody twice."""
        nobody = np.empty(0, np.int64)
        datasets = sorted({*self.patients, *other.patients})
        both = {
            name: np.union1d(self.patients.get(name, nobody), other.patients.get(name, nobody)) for name in datasets
        }
        return Seen(both, *_distinct([*self.names, *other.names], np.concatenate([self.hashes, other.hashes])))

    @property
    def count(self) -> int:
        """How many patients."""
        return sum(map(len, self.patients.values()))

    def packed_patients(self) -> dict[str, str]:
        return {dataset: pack(numbers) for dataset, numbers in self.patients.items()}

    def packed_pictures(self) -> dict[str, str]:
        return {"names": _text("\n".join(self.names).encode()), "hashes": _plain(self.hashes.astype("<u8").tobytes())}


def of(films: pd.DataFrame, pixels: Store | None = None) -> Seen:
    """The patients of films and, where there are ``pixels``, their pictures; a film without structure has none."""
    if pixels is None:
        return Seen(patients.of(films))
    found = pixel_hash.amplitudes(pixels, films)
    known = ~np.isnan(found[:, 0])
    return Seen(
        patients.of(films), *_distinct(films["image"].to_numpy(object)[known].tolist(), pixel_hash.of(found[known]))
    )


def unpacked(people: Mapping[str, str], pictures: Mapping[str, str] | None = None) -> Seen:
    """The inverse of ``packed_patients`` and ``packed_pictures``. Raises ``DAMAGED`` where a text was changed."""
    by_dataset = {dataset: unpack(text) for dataset, text in people.items()}
    if pictures is None:
        return Seen(by_dataset)
    names = zlib.decompress(base64.b64decode(pictures["names"], validate=True)).decode()
    hashes = np.frombuffer(base64.b64decode(pictures["hashes"], validate=True), "<u8").astype(np.uint64).reshape(-1, 2)
    listed = np.array(names.split("\n") if names else [], object)
    if len(listed) != len(hashes):
        raise ValueError(f"{len(listed)} names for {len(hashes)} pictures")
    return Seen(by_dataset, listed, hashes)


@dataclass(frozen=True)
class Tested:
    """Films to be tested, with all that they are recognised by: ``rows`` as ``patients.by_film``, and amplitudes."""

    films: pd.DataFrame
    rows: pd.DataFrame
    amplitudes: np.ndarray | None
    _compared: dict[bytes, np.ndarray] = field(default_factory=dict, repr=False)
    """What was found among hashes compared before: the stages of a run have mostly seen the same films."""

    @classmethod
    def of(cls, films: pd.DataFrame, pixels: Store | None) -> "Tested":
        found = pixel_hash.amplitudes(pixels, films) if pixels is not None else None
        return cls(films, patients.by_film(films), found)

    def by_patient(self, seen: Seen) -> dict[int, str]:
        """Films of patients that were seen: position of the film, and the patient as ``nih:13``.

        A number that no dataset claims, on either side, is taken for anybody's of that number.
        """
        anybody = seen.patients.get(patients.UNNAMED, [])
        everybody = np.concatenate([np.empty(0, np.int64), *seen.patients.values()])
        found: dict[int, str] = {}
        for dataset, own in self.rows.groupby("dataset"):
            known = everybody if dataset == patients.UNNAMED else np.union1d(seen.patients.get(dataset, []), anybody)
            for row in own[np.isin(own["patient"], known)].itertuples():
                found.setdefault(row.film, f"{dataset}:{row.patient}")
        return found

    def by_picture(self, seen: Seen) -> dict[int, str]:
        """Films whose picture was seen: position of the film, and the name that the picture had then."""
        if self.amplitudes is None or not len(seen.names):
            return {}
        key = hashlib.sha256(seen.hashes.tobytes()).digest()
        if key not in self._compared:
            self._compared[key] = pixel_hash.match(self.amplitudes, seen.hashes)
        which = self._compared[key]
        return {int(film): str(seen.names[which[film]]) for film in np.flatnonzero(which >= 0)}


def pack(numbers: np.ndarray) -> str:
    """Distinct whole numbers as compressed text: sorted, differences, zlib, base64. 25,000 patients take 12 kB."""
    steps = np.diff(np.unique(numbers).astype("<i8"), prepend=0).astype("<i8")
    return _text(steps.tobytes())


def unpack(text: str) -> np.ndarray:
    """The numbers that ``pack`` was given, sorted. Raises ValueError or zlib.error where the text is damaged."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<i8").cumsum().astype(np.int64)


def _distinct(names: list[str], hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Names and hashes sorted by name, each pair of them once."""
    rows = pd.DataFrame({"name": names, "high": hashes[:, 0], "low": hashes[:, 1]})
    rows = rows.drop_duplicates().sort_values(["name", "high", "low"])
    return rows["name"].to_numpy(object), rows[["high", "low"]].to_numpy(np.uint64)


def _text(content: bytes) -> str:
    return _plain(zlib.compress(content, 9))


def _plain(content: bytes) -> str:
    return base64.b64encode(content).decode()
