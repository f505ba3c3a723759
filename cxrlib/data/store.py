"""Store of decoded films: a memory map of grey pixels and a manifest beside it, shared between runs.

A store is a folder. ``pixels-<fingerprint>.npy`` holds (N, size, size) uint8, area-averaged, sorted by film name;
``manifest.json`` says for every row which source file it came from (its bytes, time and checksum). The manifest is
written last and by a rename, so a store is either whole or not there. A later ``build`` looks at the sizes and times of
the sources and decodes only what has changed or is new.

A build works in ``partial-<key>/`` inside the store's folder. Its disk space is claimed first, and the claimed file is
put in place whole, by a rename; then each chunk of rows is decoded, written, synced, and only then noted in a file of
its own. After ``kill -9`` the next build goes on after the last note. Rows that an older store or another partial build
already has are copied, not decoded. Notes beside a file that is not whole are ignored.

A film that could not be read or decoded is tried again by each build, because the reason may be gone while size and
time of its file are as they were: a network disk failed for a moment, or a permission was corrected. An error of the
system, such as too many open files, is never taken for damage: the store stays as it is.

Pixels are compared with their CRC-32 in the manifest when a store is opened that was touched since the last time (see
``pixel_sums``), and those of a stopped build when it goes on. A build decodes damaged films again, and says so.
"""

import errno
import hashlib
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from cxrlib import UserError, disk, paths, provenance
from cxrlib.data import images, parallel, pixel_sums, records, sources, splits

FORMAT = 1
MANIFEST = "manifest.json"
CHUNK = 128
"""Films in a chunk. A killed build loses at most one chunk per process."""

_COLUMNS = ("name", "bytes", "mtime_ns", "source_crc", "width", "height", "pixel_crc")
_SERIAL_BYTES = 32_000_000
"""Bytes to decode below which starting processes takes longer than it saves."""


@cache
def decoder_version() -> str:
    """Version of the code that makes pixels from a film's file. Pixels of another version are not reused."""
    return provenance.code_version(images, without=("cxrlib", "cxrlib.labels", "cxrlib.paths"))


def way_of_decoding(sources: "SourceFiles") -> str:
    """Version of the decoder, and the bit depths of the folders that hold 16-bit films without a depth of their own.

    Further films may change a folder's depths (see ``images.bit_depth``). All its films are then decoded again.
    """
    step = max(len(sources.paths) // (2 * images.SAMPLE), 1)
    folders = sorted({os.path.dirname(path) for path in sources.paths[::step] if _is_sixteen_bits(path)})  # noqa: PTH120
    depths = [images.folder_depths(Path(folder)) for folder in folders]
    return decoder_version() + (f"-{provenance.digest([list(found) for found in depths])}" if any(depths) else "")


def _is_sixteen_bits(path: str) -> bool:
    try:
        return images.is_sixteen_bits(images.load(path, start=33))
    except images.SystemShortageError:
        raise
    except UserError:
        return False


@dataclass(frozen=True)
class SourceFiles:
    """Films of a store, sorted by name, with the path and the present (bytes, mtime_ns) of each file."""

    names: list[str]
    paths: list[str]
    stamps: list[tuple[int, int]]


def source_files(films: pd.DataFrame, *, allow_missing: bool) -> SourceFiles:
    """Sources of these films. A film whose file is gone raises UserError; ``allow_missing`` leaves it out."""
    names, files, stamps = [], [], []
    for name, path in sorted(zip(films["image"], films["path"], strict=True)):
        try:
            status = os.stat(path)  # noqa: PTH116 (ten times as fast as Path.stat on 112,120 files)
        except FileNotFoundError:
            if not allow_missing:
                raise UserError(f"{path or name} is not there; restore the film, or use --allow-missing") from None
            continue
        except OSError as error:
            if not allow_missing:
                raise images.unreadable(path, error) from None
            continue
        names.append(name)
        files.append(path)
        stamps.append((status.st_size, status.st_mtime_ns))
    if not names:
        raise UserError(f"none of the {len(films)} films exists any more, first {films['path'].iloc[0]}")
    return SourceFiles(names, files, stamps)


class DamagedStoreError(UserError):
    """A store that is not as it was written. ``build`` decodes again what is damaged in it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; run cxr run or cxr store again, which decodes what is damaged again")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Manifest of a finished store. Raises UserError if it is absent, damaged or of another format.

    Its guard is checked when the store is opened, and only if the file was touched.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{path} is not there")
    try:
        manifest = paths.read_json(path, check=False)
    except UserError:
        raise DamagedStoreError(f"{path} is damaged") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DamagedStoreError(f"{path} is damaged or not a store of format {FORMAT}")
    if not _has_shape(manifest):
        raise DamagedStoreError(f"{path} is damaged")
    return manifest


def _has_shape(manifest: dict[str, Any]) -> bool:
    """Whether all that is read of a manifest is there and of its type."""
    kinds = {"size": int, "pixels": str, "fingerprint": str, "films": dict, "missing": dict}
    if not all(isinstance(manifest.get(name), kind) for name, kind in kinds.items()):
        return False
    columns = [manifest["films"].get(name) for name in _COLUMNS]
    entries = manifest["missing"].values()
    return all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns) and all(
        isinstance(entry, dict) and {"bytes", "mtime_ns", "reason"} <= entry.keys() for entry in entries
    )


def _damage(folder: Path, manifest: dict[str, Any]) -> list[int] | None:
    """Rows of a store that are not what was written; None if the manifest or the whole pixel file cannot be used.

    Files that were checked and not touched since are not read again.
    """
    pixels = folder / Path(manifest["pixels"]).name
    if pixel_sums.is_noted(pixels, folder / MANIFEST):
        return []
    try:
        paths.check_guard(folder / MANIFEST, manifest)
        size, names, sums = manifest["size"], manifest["films"]["name"], manifest["films"]["pixel_crc"]
        sound = manifest["fingerprint"] == provenance.digest([FORMAT, size, names, sums])
        sound &= all(len(manifest["films"][column]) == len(names) for column in _COLUMNS)
    except (UserError, KeyError, TypeError, ValueError):
        return None
    if not sound or pixel_sums.shape(pixels) != (len(names), size, size):
        return None
    blocks = [(start, sums[start : start + CHUNK]) for start in range(0, len(sums), CHUNK)]
    rows = [row for block in pixel_sums.damaged_rows(pixels, size, blocks) for row in block]
    if not rows:
        pixel_sums.note(pixels, folder / MANIFEST)
    return rows


def sources_in(manifest: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Sources of a store by name, as (bytes, mtime_ns). Films that could not be decoded are included."""
    films = manifest["films"]
    stamps = dict(zip(films["name"], zip(films["bytes"], films["mtime_ns"], strict=True), strict=True))
    return stamps | {name: (entry["bytes"], entry["mtime_ns"]) for name, entry in manifest["missing"].items()}


def refusal(failed: dict[str, str]) -> UserError:
    """UserError for films that cannot be decoded, with the reasons of the first three."""
    first = "; ".join(list(failed.values())[:3])
    return UserError(f"{len(failed)} films cannot be decoded: {first}. Repair them, or use --allow-missing")


def decode_into(
    folder: Path,
    size: int,
    wanted: SourceFiles,
    kept: set[str],
    workers: int | None,
    progress: bool,
    allow_missing: bool,
) -> None:
    """Build the store's files. The caller holds the lock and cleans up. Raises as ``store.build``."""
    code = way_of_decoding(wanted)
    plan = _plan(wanted, kept, _reusable(folder, size, code))
    partial = folder / f"partial-{code}-{provenance.digest([FORMAT, size, [list(row[:3]) for row in plan]])}"
    try:
        _reserve(folder, partial, size, len(plan))
        _decode(partial, size, plan, workers, progress)
        _publish(folder, partial, size, len(plan), code, allow_missing)
    except (OSError, disk.DiskError) as error:
        if disk.number(error) in disk.FULL and not any(partial.glob("chunk-*.json")):
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _plan(wanted: SourceFiles, kept: set[str], reusable: dict[str, images.DecodedFilm]) -> list[images.DecodeTask]:
    """Tasks of a build, one per row of the new store, sorted by name. A row decoded from the present file is copied."""
    plan = []
    for name, path, stamp in zip(wanted.names, wanted.paths, wanted.stamps, strict=True):
        row = reusable.get(name)
        plan.append(images.DecodeTask(name, *stamp, path, row if row and (row.bytes, row.mtime_ns) == stamp else None))
    others = kept & reusable.keys()  # without films that could not be decoded or whose pixels are lost
    plan += [
        images.DecodeTask(name, reusable[name].bytes, reusable[name].mtime_ns, "", reusable[name]) for name in others
    ]
    return sorted(plan, key=lambda task: task.name)


def _reusable(folder: Path, size: int, code: str) -> dict[str, images.DecodedFilm]:
    """Sound rows decoded in this way: in the finished store and in partial builds' chunks with a note.

    The note of a chunk with a damaged row is deleted, so that the chunk is decoded again.
    """
    rows: dict[str, images.DecodedFilm] = {}
    for partial in sorted(folder.glob(f"partial-{code}-*")):
        _take_back(folder, partial, size)
        if _side(pixels := partial / images.PIXEL_FILE) == size:
            for columns, start in _sound_chunks(partial, size):
                rows.update(_rows(pixels, columns, start))
    if (folder / MANIFEST).is_file():
        with suppress(DamagedStoreError):
            manifest = read_manifest(folder)
            damaged = _damage(folder, manifest) if manifest.get("code") == code and manifest["size"] == size else None
            if damaged is not None:
                found = _rows(folder / manifest["pixels"], manifest["films"], 0)
                lost = set(damaged)
                rows.update((name, row) for name, row in found if row.at not in lost)
    return rows


def _side(pixels: Path) -> int:
    """Side of the films in a pixel file, 0 if it cannot be used."""
    return (*pixel_sums.shape(pixels), 0, 0)[1]


def _sound_chunks(partial: Path, size: int) -> list[tuple[dict[str, list], int]]:
    """Columns and first row of each noted chunk whose pixels are as they were written. Deletes the other notes."""
    notes = {note: (_note(note), int(note.stem.split("-")[1]) * CHUNK) for note in sorted(partial.glob("chunk-*.json"))}
    blocks = [(start, columns["pixel_crc"]) for columns, start in notes.values()]
    films = 0
    for (note, (columns, start)), bad in zip(
        list(notes.items()), pixel_sums.damaged_rows(partial / images.PIXEL_FILE, size, blocks), strict=True
    ):
        bad = [row for row in bad if not columns["reason"][row - start]]  # the row of a refused film is black
        if bad:
            note.unlink()
            del notes[note]
            films += len(columns["name"])
    if films:
        print(f"{partial}: pixels of a stopped build are damaged; {films:,} films are decoded again")
    return list(notes.values())


def _take_back(folder: Path, partial: Path, size: int) -> None:
    """Put the pixels of a build back that was killed after it renamed them and before it wrote the manifest."""
    notes = sorted(partial.glob("chunk-*.json"))
    if notes and not (partial / images.PIXEL_FILE).exists():
        pixels = folder / _name(size, _joined(notes))
        if _side(pixels) == size:
            pixels.replace(partial / images.PIXEL_FILE)


def _rows(pixels: Path, columns: dict[str, list], start: int) -> Iterator[tuple[str, images.DecodedFilm]]:
    reasons = columns.get("reason") or [""] * len(columns["name"])
    for i, (values, reason) in enumerate(zip(zip(*(columns[c] for c in _COLUMNS), strict=True), reasons, strict=True)):
        if not reason:
            yield values[0], images.DecodedFilm(str(pixels), start + i, *values[1:])


def _reserve(folder: Path, partial: Path, size: int, films: int) -> None:
    """Make the pixel file and reserve its disk space. Raises UserError if the disk has too little space."""
    if pixel_sums.shape(partial / images.PIXEL_FILE) == (films, size, size):
        return
    shutil.rmtree(partial, ignore_errors=True)  # its notes describe rows that do not exist
    disk.require(
        partial.parent, room(films, size), "the store", "choose a smaller size, or put CXR_OUTPUTS on another disk"
    )
    partial.mkdir()
    try:
        with paths.atomic(partial / images.PIXEL_FILE) as temporary:
            images.allocate_pixel_file(temporary, (films, size, size))
    except (OSError, disk.DiskError):
        shutil.rmtree(partial, ignore_errors=True)
        raise


def room(films: int, size: int) -> int:
    """Disk space of a store in bytes: a byte per pixel, 2 % for the manifest, and 10 MB."""
    return films * size * size * 51 // 50 + 10_000_000


def _decode(partial: Path, size: int, plan: list[images.DecodeTask], workers: int | None, progress: bool) -> None:
    starts = [start for start in range(0, len(plan), CHUNK) if not _is_done(_note_path(partial, start))]
    jobs = {start: (str(partial / images.PIXEL_FILE), size, start, plan[start : start + CHUNK]) for start in starts}
    tasks = [task for job in jobs.values() for task in job[3]]
    to_decode = sum(task.bytes for task in tasks if task.row is None)
    workers = min(workers or (parallel.cores() if to_decode > _SERIAL_BYTES else 1), len(jobs))
    look = {"unit": "film", "desc": f"store {size}²", "mininterval": 0.5, "smoothing": 0.1}
    with tqdm(total=len(plan), initial=len(plan) - len(tasks), disable=not progress, **look) as bar:
        for start, columns in parallel.run_in_processes(images.decode_chunk, jobs, workers):
            paths.write_json(_note_path(partial, start), columns, guarded=True, indent=None)
            bar.update(len(columns["name"]))


def _is_done(note: Path) -> bool:
    """Whether a chunk has a note, and no film in it was refused. A refused film is tried again."""
    return note.exists() and not any(_note(note)["reason"])  # a damaged note is gone by now


def _publish(folder: Path, partial: Path, size: int, films: int, code: str, allow_missing: bool) -> None:
    """Rename the pixel file by its fingerprint and write the manifest. After that the store is complete."""
    columns = _joined([_note_path(partial, start) for start in range(0, films, CHUNK)])
    pixels = folder / _name(size, columns)
    reasons = columns.pop("reason")
    failed = {name: reason for name, reason in zip(columns["name"], reasons, strict=True) if reason}
    if failed and (not allow_missing or len(failed) == films):
        raise refusal(failed)
    missing = {
        name: {"bytes": nbytes, "mtime_ns": mtime, "reason": reason}
        for name, nbytes, mtime, reason in zip(*(columns[c] for c in _COLUMNS[:3]), reasons, strict=True)
        if reason
    }
    good = [i for i, reason in enumerate(reasons) if not reason]
    columns = {name: [values[i] for i in good] for name, values in columns.items()}
    if failed:
        images.copy_rows(partial / images.PIXEL_FILE, good, pixels)
    else:
        (partial / images.PIXEL_FILE).replace(pixels)
    fingerprint = pixels.stem.removeprefix("pixels-")
    manifest = {
        "format": FORMAT,
        "size": size,
        "pixels": pixels.name,
        "fingerprint": fingerprint,
        "code": code,
    }
    manifest |= {"missing": missing, "films": columns}
    paths.write_json(folder / MANIFEST, manifest, guarded=True, indent=None)
    for old in folder.glob("pixels-*.npy"):
        if old != pixels:
            old.unlink(missing_ok=True)  # processes that have it open can still read it


def _name(size: int, columns: dict[str, list]) -> str:
    """File name of the pixels, with a fingerprint of the decoded films' names and pixels."""
    good = [i for i, reason in enumerate(columns["reason"]) if not reason]
    names, pixels = ([columns[column][i] for i in good] for column in ("name", "pixel_crc"))
    return f"pixels-{provenance.digest([FORMAT, size, names, pixels])}.npy"


def _joined(notes: list[Path]) -> dict[str, list]:
    """Columns of all notes together."""
    columns: dict[str, list] = {name: [] for name in (*_COLUMNS, "reason")}
    for note in map(_note, notes):
        for name, values in columns.items():
            values.extend(note[name])
    return columns


def _note_path(partial: Path, start: int) -> Path:
    return partial / f"chunk-{start // CHUNK:05d}.json"


def _note(path: Path) -> dict[str, list]:
    """Columns of a chunk; empty for a damaged note, which is deleted."""
    with suppress(UserError):
        columns = paths.read_json(path)
        if isinstance(columns, dict) and {*_COLUMNS, "reason"} <= columns.keys():
            return columns
    path.unlink(missing_ok=True)
    return {name: [] for name in (*_COLUMNS, "reason")}


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
                    raise DamagedStoreError(f"{self.pixels.filename} is damaged")
        except OSError as error:
            raise images.unreadable(self.pixels.filename, error) from None
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
    Otherwise they raise UserError. A film that could not be decoded before is tried again. A full disk raises UserError
    too, and so does any other error of the system, with its own reason; the store is then kept.
    """
    if not 8 <= size <= 4096:
        raise UserError(f"store size is {size} pixels; give a size from 8 to 4096")
    if films.empty:
        raise UserError("there are no films to build a store of")
    folder = Path(folder) if folder else default_folder(films, size)
    sources = source_files(films, allow_missing=allow_missing)
    try:
        if not _complete(folder, size, films, sources, allow_missing):
            with _locked(folder, progress):
                if not _complete(folder, size, films, sources, allow_missing):
                    _print_damage(folder)
                    kept = _others(folder, films)
                    decode_into(folder, size, sources, kept, workers, progress, allow_missing)
        _clean_up(folder)
        return load(folder)
    except (OSError, disk.DiskError) as error:
        raise _not_used(folder, error, need=room(len(films), size)) from None


def _not_used(folder: Path, error: OSError | disk.DiskError, need: int = 0) -> UserError:
    """UserError for a store that the system did not let us read or write, with the system's reason.

    need: bytes of the whole store, 0 if nothing was to be written.
    """
    place, code = getattr(error, "filename", None) or getattr(error, "path", folder), disk.number(error)
    kept = f"What is in the store {folder} is kept"
    if code in disk.FULL:
        return disk.fault(folder, code, need=need, kept=kept, advice="choose a smaller size")
    if isinstance(error, disk.DiskError):
        return error
    if code in images.SHORTAGES:
        return images.unreadable(place, error)
    reason = os.strerror(code) if code else error
    if code in (errno.EIO, errno.EROFS):
        return disk.fault(Path(place), code, kept=kept, verb="read or write")
    return UserError(
        f"cannot read or write {place}: {reason}; correct this, or choose another folder. "
        f"What is in the store {folder} is kept"
    )


def load(folder: str | Path) -> Store:
    """Open a finished store without a look at its sources.

    Raises UserError if it is absent or damaged, or if the system does not let us read it.
    """
    folder = Path(folder)
    try:
        return _opened(folder)
    except OSError as error:
        raise _not_used(folder, error) from None


def _opened(folder: Path) -> Store:
    for attempt in (1, 2):  # a builder may replace the pixel file after the manifest was read
        manifest = read_manifest(folder)
        pixels = folder / Path(manifest["pixels"]).name
        damaged = _damage(folder, manifest)
        with suppress(FileNotFoundError):
            if damaged is None and pixels.exists():
                raise DamagedStoreError(f"the store {folder} is damaged as a whole")
            if damaged:
                raise DamagedStoreError(f"{pixels} is damaged at {_films(manifest, damaged)}")
            mapped = np.load(pixels, mmap_mode="r")
            break
        if attempt == 2:
            raise DamagedStoreError(f"{pixels} is gone")
    missing = {name: entry["reason"] for name, entry in manifest["missing"].items()}
    films, sums = manifest["films"], np.array(manifest["films"]["pixel_crc"], np.uint32)
    values = (manifest["size"], films["name"], mapped, manifest["fingerprint"], missing, _film_sizes(films), sums)
    return Store(folder, *values)


def _films(manifest: dict[str, Any], rows: list[int]) -> str:
    return f"{len(rows):,} film{'s' * (len(rows) > 1)}, first {manifest['films']['name'][rows[0]]}"


def _print_damage(folder: Path) -> None:
    """Say which films a build decodes again because the store is damaged. Says nothing for a sound or a new store."""
    if not (folder / MANIFEST).is_file():
        return
    try:
        manifest = read_manifest(folder)
        damaged = _damage(folder, manifest)
    except DamagedStoreError:
        damaged = None
    if damaged is None:
        print(f"the store {folder} is damaged; its films are decoded again now")
    elif damaged:
        print(f"the store {folder} is damaged at {_films(manifest, damaged)}; decoded again now")


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


def _complete(folder: Path, size: int, films: pd.DataFrame, sources: SourceFiles, allow_missing: bool) -> bool:
    """Whether the store holds each source in its present state, and no film whose file is gone."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        manifest = read_manifest(folder)
    except DamagedStoreError:
        return False
    damaged = _damage(folder, manifest)
    if damaged is None:
        return False
    if manifest["size"] != size:
        raise UserError(f"{folder} is a store of {manifest['size']} pixels, not {size}; give another folder")
    if manifest.get("code") != way_of_decoding(sources):
        return False
    stamps = sources_in(manifest)
    if any(stamps.get(name) != stamp for name, stamp in zip(sources.names, sources.stamps, strict=True)):
        return False
    failed = _tried_again(manifest["missing"], sources)
    still = {name: reason for name, reason in failed.items() if reason}
    if still and not allow_missing:
        raise refusal(still)
    if any(reason != manifest["missing"][name]["reason"] for name, reason in failed.items()):
        return False
    return not damaged and (len(stamps) == len(sources.names) or not _gone(films, stamps))


def _tried_again(missing: dict[str, Any], sources: SourceFiles) -> dict[str, str]:
    """Reasons why the sources that the store could not decode cannot be decoded now, by name; "" for one that can."""
    reasons = {}
    for name, path in zip(sources.names, sources.paths, strict=True):
        if name in missing:
            try:
                images.read(path)
                reasons[name] = ""
            except images.SystemShortageError:
                raise
            except UserError as error:
                reasons[name] = str(error)
    return reasons


def _gone(films: pd.DataFrame, stamps: dict) -> set[str]:
    """Names in the store that are not in ``films`` and whose files no longer exist."""
    extra = stamps.keys() - set(films["image"])
    return (
        extra - records.files_of_films(extra, records.scan(sources.above(data_folder(films))))[0].keys()
        if extra
        else set()
    )


def _others(folder: Path, films: pd.DataFrame) -> set[str]:
    """Names in the store that are not in ``films`` and whose files still exist. The store keeps them."""
    try:
        stamps = sources_in(read_manifest(folder))
    except UserError:
        return set()  # absent or damaged
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
        raise _not_used(folder, error) from None
    try:
        yield
    finally:
        lock.release()


def folder_fingerprints(folder: Path, films: pd.DataFrame) -> dict[str, str]:
    """Fingerprints of a data folder, 16 hex digits each: ``films``, ``tables`` and ``boxes``.

    ``films`` covers each film file's name, size and time, as a store does, and which files this user may not read. A
    copied or touched file counts as changed; its pixels are compared when they are read. ``tables`` covers the bytes of
    the label table, of the official lists and of ``dataset.txt``. ``boxes`` covers the bytes of the box file.
    """
    here = source_files(films, allow_missing=True)
    tables = {"labels": records.find_table(folder), "dataset": records.find_dataset(folder)}
    tables |= splits.find_lists(folder) | sources.tables_of(folder)
    locked = [name for name, path in zip(here.names, here.paths, strict=True) if not os.access(path, os.R_OK)]
    seen = [here.names, [list(stamp) for stamp in here.stamps], *([locked] if locked else [])]
    return {
        "films": provenance.digest(seen),
        "tables": provenance.digest({name: _file_hash(path) for name, path in tables.items()}),
        "boxes": provenance.digest(_file_hash(records.find_boxes(folder))),
    }


def _file_hash(path: Path | None) -> list[str]:
    """Name and hash of a file, or names, sizes and times in a folder of reports. Empty if it is absent."""
    if path and path.is_dir():
        return [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in sorted(path.iterdir())]
    return [path.name, provenance.file_sha256(path)] if path and path.is_file() else []
