"""Store of decoded films: a memory map of grey pixels and a manifest, shared by all runs. Each film is decoded once.

A store is a folder. ``pixels-<fingerprint>.npy`` holds (N, size, size) uint8, resized by area averaging, sorted by film
name. ``manifest.json`` records for each row its source file's size, time and checksum. The manifest is written last and
atomically, so a store is complete or absent. A later ``build`` compares the files' sizes and times with the manifest,
and decodes only changed and new films. ``builder`` has the details.
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
    """A finished store. ``missing`` maps the name of each film that could not be decoded to the reason.

    ``film_sizes`` counts the source films by size, such as ``{"1024x1024": 96}``.
    """

    folder: Path
    size: int
    names: list[str]
    pixels: np.memmap  # (N, size, size) uint8, read-only
    fingerprint: str
    missing: dict[str, str]
    film_sizes: dict[str, int] = field(default_factory=dict)
    sums: np.ndarray | None = None  # (N,) uint32, CRC-32 of each film's pixels; None without a manifest

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.names)

    def gather(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy the pixels at these positions into ``out``, (len(rows), size, size) uint8.

        If the system has ``preadv``, this reads the file and not the memory map. The first read of a film is then as
        fast as later ones, and the disk reads only that film. Raises UserError if the file is truncated.
        """
        handle, film = self._open(), self.size * self.size
        if handle is None:
            np.take(self.pixels, rows, axis=0, out=out, mode="clip")
            return
        try:
            for target, row in zip(out, rows.tolist(), strict=True):
                if os.preadv(handle, [target], self.pixels.offset + row * film) != film:
                    raise UserError(f"{self.pixels.filename} is damaged; delete {self.folder} so that it is made again")
        finally:
            os.close(handle)

    def _open(self) -> int | None:
        """File handle of the pixels. None if they are only in memory, or if a newer store has replaced the file."""
        if isinstance(self.pixels, np.memmap) and hasattr(os, "preadv"):
            with suppress(OSError):
                return os.open(self.pixels.filename, os.O_RDONLY)
        return None

    def rows(self, films: pd.DataFrame) -> np.ndarray:
        """Position of each film in ``pixels``, (len(films),) int64. Raises UserError for a film that is absent."""
        rows = self._index.get_indexer(films["image"]).astype(np.int64)
        if (rows < 0).any():
            name = films["image"][rows < 0].iloc[0]
            reason = self.missing.get(name, "the store was built without it")
            raise UserError(f"{self.folder} has no film {name}: {reason}; build the store for these films first")
        return rows

    def pixels_of(self, films: pd.DataFrame) -> str:
        """Fingerprint of these films' stored pixels in this order, 16 hex digits. Other films do not count."""
        rows = self.rows(films)
        sums = [zlib.crc32(self.pixels[row]) for row in rows] if self.sums is None else self.sums[rows]
        return hashlib.sha256(np.array([self.size, *sums], "<u4").tobytes()).hexdigest()[:16]

    def present(self, films: pd.DataFrame) -> pd.DataFrame:
        """Films that are in the store. The names of the others are added to ``attrs["missing"]``."""
        in_store = films["image"].isin(self._index)
        result = films[in_store].reset_index(drop=True)
        result.attrs["missing"] = [*films.attrs.get("missing", []), *films["image"][~in_store]]
        return result


def build(
    films: pd.DataFrame,
    size: int,
    *,
    folder: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
    allow_missing: bool = False,
) -> Store:
    """Build the store of these films at ``size`` pixels and open it. Only films that it does not hold are decoded.

    Other films in the store are kept as long as their files exist. ``workers`` is the number of processes (default: one
    per core if there is enough to decode). An interrupted build is resumed; a second builder waits for the first.
    With ``allow_missing`` films that cannot be decoded are left out and listed in ``Store.missing``.
    Otherwise they raise UserError. A full disk raises UserError too.
    """
    if not 8 <= size <= 4096:
        raise UserError(f"store size is {size} pixels; give a size from 8 to 4096")
    if films.empty:
        raise UserError("there are no films to build a store of")
    folder = Path(folder) if folder else default_folder(films, size)
    sources = builder.sources(films, allow_missing=allow_missing)
    if not _complete(folder, size, films, sources, allow_missing):
        with _locked(folder, progress):
            if not _complete(folder, size, films, sources, allow_missing):
                kept = _others(folder, films)
                builder.build(folder, size, sources, kept, workers, progress, allow_missing)
    _clean_up(folder)
    return load(folder)


def load(folder: str | Path) -> Store:
    """Open a finished store without a look at its sources. Raises UserError if it is absent or damaged."""
    folder = Path(folder)
    for attempt in (1, 2):  # a builder may replace the pixel file after the manifest was read
        manifest = builder.read_manifest(folder)
        pixels = folder / manifest["pixels"]
        try:
            mapped = np.load(pixels, mmap_mode="r")
            break
        except FileNotFoundError:
            if attempt == 2:
                raise UserError(f"{pixels} is gone; delete {folder} so that the store is made again") from None
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"{pixels} is damaged ({error}); delete {folder} so that it is made again") from None
    size, names = manifest["size"], manifest["films"]["name"]
    if mapped.shape != (len(names), size, size) or mapped.dtype != np.uint8:
        raise UserError(f"{pixels} does not fit its manifest; delete {folder} so that the store is made again")
    missing = {name: entry["reason"] for name, entry in manifest["missing"].items()}
    films, sums = manifest["films"], np.array(manifest["films"]["pixel_crc"], np.uint32)
    return Store(folder, size, names, mapped, manifest["fingerprint"], missing, _film_sizes(films), sums)


def default_folder(films: pd.DataFrame, size: int) -> Path:
    """Default folder of a store: ``outputs/stores/<name of the data folder>-<hash of its path>-<size>``."""
    data = data_folder(films)
    path_hash = hashlib.sha256(str(data).encode()).hexdigest()[:8]
    return paths.outputs() / "stores" / f"{data.name or 'films'}-{path_hash}-{size}"


def data_folder(films: pd.DataFrame) -> Path:
    """Data folder of the films: their common folder, above any ``images`` or ``images_001``."""
    folder = Path(os.path.commonpath({os.path.dirname(path) for path in films["path"]}))  # noqa: PTH120 (fast)
    while folder.name.startswith("images") and folder.parent != folder:
        folder = folder.parent
    return folder


def _film_sizes(columns: dict[str, list]) -> dict[str, int]:
    sizes = Counter(zip(columns["width"], columns["height"], strict=True))
    return {f"{width}x{height}": count for (width, height), count in sizes.most_common()}


def _complete(folder: Path, size: int, films: pd.DataFrame, sources: builder.Sources, allow_missing: bool) -> bool:
    """Whether the store holds each source in its present state, and no film whose file is gone."""
    if not (folder / builder.MANIFEST).is_file():
        return False
    manifest = builder.read_manifest(folder)
    if manifest["size"] != size:
        raise UserError(f"{folder} is a store of {manifest['size']} pixels, not {size}; give another folder")
    if manifest.get("code") != builder.decoder():
        return False
    stamps = builder.held(manifest)
    failed = [name for name in sources.names if name in manifest["missing"]]
    if any(stamps.get(name) != stamp for name, stamp in zip(sources.names, sources.stamps, strict=True)):
        return False
    if failed and not allow_missing:
        raise builder.refusal({name: manifest["missing"][name]["reason"] for name in failed})
    return len(stamps) == len(sources.names) or not _gone(films, stamps)


def _gone(films: pd.DataFrame, stamps: dict) -> set[str]:
    """Names in the store that are not in ``films`` and whose files no longer exist."""
    extra = stamps.keys() - set(films["image"])
    return extra - records.scan(data_folder(films)).keys() if extra else set()


def _others(folder: Path, films: pd.DataFrame) -> set[str]:
    """Names in the store that are not in ``films`` and whose files still exist. The store keeps them."""
    if not (folder / builder.MANIFEST).is_file():
        return set()
    stamps = builder.held(builder.read_manifest(folder))
    return stamps.keys() - set(films["image"]) - _gone(films, stamps)


def _clean_up(folder: Path) -> None:
    """Delete what a killed build left beside the finished store, unless another builder is running."""
    leftovers = [*folder.glob("partial-*"), *folder.glob(".*.tmp")]
    if leftovers:
        with suppress(Timeout, OSError), FileLock(folder / ".lock", timeout=0):
            for path in leftovers:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _locked(folder: Path, progress: bool) -> Iterator[None]:
    """Lock the store for this process. A second builder waits for the first, and then finds the store complete."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress:
                print(f"waiting for another process that builds {folder}")
            lock.acquire()
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder for the store") from None
    try:
        yield
    finally:
        lock.release()
