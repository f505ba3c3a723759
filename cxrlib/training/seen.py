"""Patients and images that a checkpoint saw, packed small enough to be part of every checkpoint.

A film was used for training (*trained*), or to choose epoch, calibration and thresholds (*validated*). Both are stored
separately: each film's patient with its dataset, and the image's pixel hash with the film's name. That is about 1.9 MB
for the 86,524 films outside the official test part. Two thirds are hashes, which do not compress.
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
        return {dataset: pack(numbers) for dataset, numbers in self.patients.items()}

    def packed_pictures(self) -> dict[str, str]:
        names = _compress("\n".join(self.names).encode())
        return {"names": names, "hashes": _encode(self.hashes.astype("<u8").tobytes())}


def of(films: pd.DataFrame, pixels: Store | None = None) -> Seen:
    """Patients of films and, with ``pixels``, their images. An image with almost no contrast is left out."""
    if pixels is None:
        return Seen(patients.of(films))
    amplitudes = pixel_hash.amplitudes(pixels, films)
    valid = ~np.isnan(amplitudes[:, 0])
    names = films["image"].to_numpy(object)[valid].tolist()
    return Seen(patients.of(films), *_distinct(names, pixel_hash.of(amplitudes[valid])))


def unpacked(people: Mapping[str, str], pictures: Mapping[str, str] | None = None) -> Seen:
    """The inverse of ``packed_patients`` and ``packed_pictures``. Raises ``DAMAGED`` where a text was changed."""
    by_dataset = {dataset: unpack(text) for dataset, text in people.items()}
    if pictures is None:
        return Seen(by_dataset)
    names = zlib.decompress(base64.b64decode(pictures["names"], validate=True)).decode()
    hashes = np.frombuffer(base64.b64decode(pictures["hashes"], validate=True), "<u8").astype(np.uint64).reshape(-1, 2)
    images = np.array(names.split("\n") if names else [], object)
    if len(images) != len(hashes):
        raise ValueError(f"{len(images)} names for {len(hashes)} images")
    return Seen(by_dataset, images, hashes)


@dataclass(frozen=True)
class Tested:
    """Test films, with what identifies them: ``rows`` of ``patients.by_film``, and ``amplitudes`` of their images."""

    films: pd.DataFrame
    rows: pd.DataFrame
    amplitudes: np.ndarray | None
    _compared: dict[bytes, np.ndarray] = field(default_factory=dict, repr=False)
    """Cached matches by hash of the seen images: the stages of a run mostly saw the same films."""

    @classmethod
    def of(cls, films: pd.DataFrame, pixels: Store | None) -> "Tested":
        amplitudes = pixel_hash.amplitudes(pixels, films) if pixels is not None else None
        return cls(films, patients.by_film(films), amplitudes)

    def by_patient(self, seen: Seen) -> dict[int, str]:
        """Films of patients that were seen: position of the film, and the patient as ``nih:13``.

        A patient number without a dataset, on either side, matches this number in every dataset.
        """
        unnamed = seen.patients.get(patients.UNNAMED, [])
        union = np.concatenate([np.empty(0, np.int64), *seen.patients.values()])
        matches: dict[int, str] = {}
        for dataset, rows in self.rows.groupby("dataset"):
            numbers = union if dataset == patients.UNNAMED else np.union1d(seen.patients.get(dataset, []), unnamed)
            for row in rows[np.isin(rows["patient"], numbers)].itertuples():
                matches.setdefault(row.film, f"{dataset}:{row.patient}")
        return matches

    def by_picture(self, seen: Seen) -> dict[int, str]:
        """Films whose image was seen: position of the film, and the name of the seen image."""
        if self.amplitudes is None or not len(seen.names):
            return {}
        key = hashlib.sha256(seen.hashes.tobytes()).digest()
        if key not in self._compared:
            self._compared[key] = pixel_hash.match(self.amplitudes, seen.hashes)
        matches = self._compared[key]
        return {int(film): str(seen.names[matches[film]]) for film in np.flatnonzero(matches >= 0)}


def pack(numbers: np.ndarray) -> str:
    """Compressed text of distinct integers: sorted, differences, zlib, base64. 25,000 patients take 12 kB."""
    differences = np.diff(np.unique(numbers).astype("<i8"), prepend=0).astype("<i8")
    return _compress(differences.tobytes())


def unpack(text: str) -> np.ndarray:
    """Inverse of ``pack``, sorted. Raises ValueError or zlib.error where the text is damaged."""
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
