"""Every film decoded once: a memory map of grey pixels and a manifest beside it, shared between runs.

A store is a folder. ``pixels-<fingerprint>.npy`` holds (N, size, size) uint8, area-averaged, sorted by film name;
``manifest.json`` says for every row which source file it came from (its bytes, time and checksum). The manifest is
written last and by a rename, so a store is either whole or not there. A later ``build`` looks at the sources' sizes
and times and decodes anew only what has changed or come in; how it is built is in ``builder``.
"""

import hashlib
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from cxrlib import paths
from cxrlib.data import builder, records
from cxrlib.errors import UserError


@dataclass(frozen=True)
class Store:
    """A finished store. ``missing`` names the films that could not be decoded, with the reason.

    ``film_sizes`` counts the source files by their size, such as ``{"1024x1024": 96}``, or 224x224 of a mirror.
    """

    folder: Path
    size: int
    names: list[str]
    pixels: np.memmap  # (N, size, size) uint8, read-only
    fingerprint: str
    missing: dict[str, str]
    film_sizes: dict[str, int] = field(default_factory=dict)
    sums: np.ndarray | None = None  # (N,) uint32, CRC-32 of each film's pixels; None where there is no manifest

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.names)

    def gather(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy the films at these positions of ``pixels`` into ``out``, (len(rows), size, size) uint8.

        Read from the file where the system can read at a position, not through the map: the first look at a film then
        costs no more than the next, and a disk reads that film alone. Raises UserError where the file is cut short.
        """
        handle, film = self._open(), self.size * self.size
        if handle is None:
            np.take(self.pixels, rows, axis=0, out=out, mode="clip")
            return
        try:
            for target, row in zip(out, rows.tolist(), strict=True):
                if os.preadv(handle, [target], self.pixels.offset + row * film) != film:
                    raise UserError(f"{self.pixels.filename} is damaged; delete {self.folder} to have it made again")
        finally:
            os.close(handle)

    def _open(self) -> int | None:
        """A handle of the file of pixels; None where they are in memory only, or a newer store has taken its place."""
        if isinstance(self.pixels, np.memmap) and hasattr(os, "preadv"):
            with suppress(OSError):
                return os.open(self.pixels.filename, os.O_RDONLY)
        return None

    def rows(self, films: pd.DataFrame) -> np.ndarray:
        """Position of every film in ``pixels``, (len(films),) int64. Raises UserError naming a film that is absent."""
        found = self._index.get_indexer(films["image"]).astype(np.int64)
        if (found < 0).any():
            name = films["image"][found < 0].iloc[0]
            why = self.missing.get(name, "it was not among the films the store was built for")
            raise UserError(f"{self.folder} has no film {name}: {why}; build the store for these films first")
        return found

    def pixels_of(self, films: pd.DataFrame) -> str:
        """16 hex digits for the stored pixels of exactly these films, in this order.

        What else the store holds, and in how many goes it was built, does not count.
        """
        rows = self.rows(films)
        sums = [zlib.crc32(self.pixels[row]) for row in rows] if self.sums is None else self.sums[rows]
        return hashlib.sha256(np.array([self.size, *sums], "<u4").tobytes()).hexdigest()[:16]

    def present(self, films: pd.DataFrame) -> pd.DataFrame:
        """The films that the store holds; the others are added to ``attrs["missing"]``."""
        held = films["image"].isin(self._index)
        kept = films[held].reset_index(drop=True)
        kept.attrs["missing"] = [*films.attrs.get("missing", []), *films["image"][~held]]
        return kept


def build(
    films: pd.DataFrame,
    size: int,
    *,
    folder: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
    allow_missing: bool = False,
) -> Store:
    """Open the store of these films at ``size`` pixels, after decoding what it does not yet hold.

    Films that the store holds beside these stay in it while their files are there. ``workers`` processes decode
    (default: one per core where it pays). An interrupted build goes on where it was; a second builder waits.
    With ``allow_missing`` films that cannot be decoded are left out and named in ``Store.missing``.
    Raises UserError naming them otherwise, or where the disk has no room.
    """
    if not 8 <= size <= 4096:
        raise UserError(f"a store of {size} pixels a side makes no sense; give a size from 8 to 4096")
    if films.empty:
        raise UserError("there are no films to build a store of")
    folder = Path(folder) if folder else default_folder(films, size)
    sources = builder.sources(films, allow_missing=allow_missing)
    if not _complete(folder, size, films, sources, allow_missing):
        with _alone(folder, progress):
            if not _complete(folder, size, films, sources, allow_missing):
                kept = _others(folder, size, films)
                builder.build(folder, size, sources, kept, workers, progress, allow_missing)
    _sweep(folder)
    return load(folder)


def load(folder: str | Path) -> Store:
    """Open a finished store without looking at its sources. Raises UserError where there is none or it is damaged."""
    folder = Path(folder)
    for attempt in (1, 2):  # a builder may put a newer file in place between the two reads
        manifest = builder.read_manifest(folder)
        pixels = folder / manifest["pixels"]
        try:
            mapped = np.load(pixels, mmap_mode="r")
            break
        except FileNotFoundError:
            if attempt == 2:
                raise UserError(f"{pixels} is gone; delete {folder} to have the store made again") from None
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"{pixels} is damaged ({error}); delete {folder} to have it made again") from None
    size, names = manifest["size"], manifest["films"]["name"]
    if mapped.shape != (len(names), size, size) or mapped.dtype != np.uint8:
        raise UserError(f"{pixels} does not fit its manifest; delete {folder} to have the store made again")
    missing = {name: entry["reason"] for name, entry in manifest["missing"].items()}
    films, sums = manifest["films"], np.array(manifest["films"]["pixel_crc"], np.uint32)
    return Store(folder, size, names, mapped, manifest["fingerprint"], missing, _film_sizes(films), sums)


def default_folder(films: pd.DataFrame, size: int) -> Path:
    """Where the store of a data folder lies: in ``outputs/stores``, named after the folder, its place and the size."""
    data = data_folder(films)
    place = hashlib.sha256(str(data).encode()).hexdigest()[:8]
    return paths.outputs() / "stores" / f"{data.name or 'films'}-{place}-{size}"


def data_folder(films: pd.DataFrame) -> Path:
    """The data folder that the films lie in: their common folder, above any ``images`` or ``images_001``."""
    folder = Path(os.path.commonpath({os.path.dirname(path) for path in films["path"]}))  # noqa: PTH120 (fast)
    while folder.name.startswith("images") and folder.parent != folder:
        folder = folder.parent
    return folder


def _film_sizes(columns: dict[str, list]) -> dict[str, int]:
    sizes = Counter(zip(columns["width"], columns["height"], strict=True))
    return {f"{width}x{height}": count for (width, height), count in sizes.most_common()}


def _complete(folder: Path, size: int, films: pd.DataFrame, sources: builder.Sources, allow_missing: bool) -> bool:
    """Whether the store holds every source as it is now and no film whose file is gone."""
    if not (folder / builder.MANIFEST).is_file():
        return False
    manifest = builder.read_manifest(folder)
    if manifest["size"] != size:
        raise UserError(f"{folder} is a store of {manifest['size']} pixels, not {size}; give another folder")
    if manifest.get("code") != builder.decoder():
        return False
    held = builder.held(manifest)
    failed = [name for name in sources.names if name in manifest["missing"]]
    for name, stamp in zip(sources.names, sources.stamps, strict=True):
        if held.get(name) != stamp:
            return False
    if failed and not allow_missing:
        raise builder.refusal({name: manifest["missing"][name]["reason"] for name in failed})
    return len(held) == len(sources.names) or not _gone(films, held)


def _gone(films: pd.DataFrame, held: dict) -> set[str]:
    extra = held.keys() - set(films["image"])
    return extra - records.scan(data_folder(films)).keys() if extra else set()


def _others(folder: Path, size: int, films: pd.DataFrame) -> set[str]:
    """Films in the store that are not asked for now and whose files are still there: they stay."""
    if not (folder / builder.MANIFEST).is_file():
        return set()
    held = builder.held(builder.read_manifest(folder))
    return held.keys() - set(films["image"]) - _gone(films, held)


def _sweep(folder: Path) -> None:
    """Remove what a killed build has left beside the finished store, unless another builder is at work."""
    left = [*folder.glob("partial-*"), *folder.glob(".*.tmp")]
    if left:
        with suppress(Timeout, OSError), FileLock(folder / ".lock", timeout=0):
            for path in left:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _alone(folder: Path, progress: bool) -> Iterator[None]:
    """Hold the store for this process; a second builder waits for the first, and then finds the work done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress:
                print(f"another process builds {folder}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder for the store") from None
    try:
        yield
    finally:
        lock.release()
