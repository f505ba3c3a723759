"""Builder of a store: chunks of films, decoded by several processes. A build that was killed is resumed.

A build works in ``partial-<key>/`` inside the store's folder. First it reserves the disk space of the pixel file and
puts that file in place by a rename. Then each chunk of rows is decoded, written and synced; after that a note file
``chunk-<number>.json`` records it. After ``kill -9`` the next build continues with the chunks that have no note. Rows
that an older store or another partial build has are copied, not decoded. If the pixel file is incomplete, the notes are
ignored.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from cxrlib import paths, provenance
from cxrlib.data import chunks, pool
from cxrlib.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
CHUNK = 128
"""Films in a chunk. A killed build loses at most one chunk per process."""

_COLUMNS = ("name", "bytes", "mtime_ns", "source_crc", "width", "height", "pixel_crc")
_SERIAL_BYTES = 32_000_000
"""Bytes to decode below which starting processes takes longer than it saves."""


@cache
def decoder() -> str:
    """Version of the code that makes pixels from a film's file. Pixels of another version are not reused."""
    return provenance.code_version(chunks, without=("cxrlib.errors", "cxrlib.labels", "cxrlib.paths"))


@dataclass(frozen=True)
class Sources:
    """Films of a store, sorted by name, with the path and the present (bytes, mtime_ns) of each file."""

    names: list[str]
    paths: list[str]
    stamps: list[tuple[int, int]]


def sources(films: pd.DataFrame, *, allow_missing: bool) -> Sources:
    """Sources of these films. A film whose file is gone raises UserError; ``allow_missing`` leaves it out."""
    names, files, stamps = [], [], []
    for name, path in sorted(zip(films["image"], films["path"], strict=True)):
        try:
            status = os.stat(path)  # noqa: PTH116 (ten times as fast as Path.stat on 112,120 files)
        except OSError as error:
            if not allow_missing:
                raise UserError(f"{path or name}: {error.strerror}; restore the film, or use --allow-missing") from None
            continue
        names.append(name)
        files.append(path)
        stamps.append((status.st_size, status.st_mtime_ns))
    if not names:
        raise UserError(f"none of the {len(films)} films exists any more, first {films['path'].iloc[0]}")
    return Sources(names, files, stamps)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Manifest of a finished store. Raises UserError if it is absent, damaged or of another format."""
    path = folder / MANIFEST
    manifest = paths.read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not a store of format {FORMAT}; delete {folder} so that it is made again")
    if not {"size", "pixels", "fingerprint", "films", "missing"} <= manifest.keys():
        raise UserError(f"{path} is damaged; delete {folder} so that it is made again")
    return manifest


def held(manifest: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Sources of a store by name, as (bytes, mtime_ns). Films that could not be decoded are included."""
    films = manifest["films"]
    stamps = dict(zip(films["name"], zip(films["bytes"], films["mtime_ns"], strict=True), strict=True))
    return stamps | {name: (entry["bytes"], entry["mtime_ns"]) for name, entry in manifest["missing"].items()}


def refusal(failed: dict[str, str]) -> UserError:
    """UserError for films that cannot be decoded, with the reasons of the first three."""
    first = "; ".join(list(failed.values())[:3])
    return UserError(f"{len(failed)} films cannot be decoded: {first}. Repair them, or use --allow-missing")


def build(
    folder: Path,
    size: int,
    wanted: Sources,
    kept: set[str],
    workers: int | None,
    progress: bool,
    allow_missing: bool,
) -> None:
    """Build the store's files. The caller holds the lock and cleans up. Raises as ``store.build``."""
    plan = _plan(wanted, kept, _reusable(folder, size))
    partial = folder / f"partial-{decoder()}-{provenance.digest([FORMAT, size, [list(row[:3]) for row in plan]])}"
    try:
        _reserve(folder, partial, size, len(plan))
        _decode(partial, size, plan, workers, progress)
        _publish(folder, partial, size, len(plan), allow_missing)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"cannot write the store {folder}: {error.strerror}; choose another folder") from None
        if not any(partial.glob("chunk-*.json")):
            shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{folder}: the disk is full; make room and run again; finished parts are kept") from None


def _plan(wanted: Sources, kept: set[str], reusable: dict[str, chunks.Row]) -> list[chunks.Task]:
    """Tasks of a build, one per row of the new store, sorted by name. A row decoded from the present file is copied."""
    plan = []
    for name, path, stamp in zip(wanted.names, wanted.paths, wanted.stamps, strict=True):
        row = reusable.get(name)
        plan.append(chunks.Task(name, *stamp, path, row if row and (row.bytes, row.mtime_ns) == stamp else None))
    others = kept & reusable.keys()  # without films that could not be decoded or whose pixels are lost
    plan += [chunks.Task(name, reusable[name].bytes, reusable[name].mtime_ns, "", reusable[name]) for name in others]
    return sorted(plan, key=lambda task: task.name)


def _reusable(folder: Path, size: int) -> dict[str, chunks.Row]:
    """Rows decoded by this version of the code: in the finished store and in partial builds' chunks with a note."""
    rows: dict[str, chunks.Row] = {}
    for partial in sorted(folder.glob(f"partial-{decoder()}-*")):
        if chunks.side(partial / chunks.PIXELS) == size:
            for note in sorted(partial.glob("chunk-*.json")):
                rows.update(_rows(partial / chunks.PIXELS, _note(note), int(note.stem.split("-")[1]) * CHUNK))
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        if manifest.get("code") == decoder() and chunks.side(folder / manifest["pixels"]) == size:
            rows.update(_rows(folder / manifest["pixels"], manifest["films"], 0))
    return rows


def _rows(pixels: Path, columns: dict[str, list], start: int) -> Iterator[tuple[str, chunks.Row]]:
    reasons = columns.get("reason") or [""] * len(columns["name"])
    for i, (values, reason) in enumerate(zip(zip(*(columns[c] for c in _COLUMNS), strict=True), reasons, strict=True)):
        if not reason:
            yield values[0], chunks.Row(str(pixels), start + i, *values[1:])


def _reserve(folder: Path, partial: Path, size: int, films: int) -> None:
    """Make the pixel file and reserve its disk space. Raises UserError if the disk has too little space."""
    if chunks.side(partial / chunks.PIXELS) == size:
        return
    notes = [_note_path(partial, start) for start in range(0, films, CHUNK)]
    if all(note.exists() for note in notes) and chunks.side(folder / _name(size, _joined(notes))) == size:
        return  # a build was killed after it renamed the pixel file and before it wrote the manifest
    shutil.rmtree(partial, ignore_errors=True)  # its notes describe rows that do not exist
    need = films * size * size
    free = shutil.disk_usage(partial.parent).free
    if need + need // 50 + 10_000_000 > free:
        raise UserError(
            f"{partial.parent}: the store needs {need / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free; "
            "make room, choose a smaller size, or put CXR_OUTPUTS on another disk"
        )
    partial.mkdir()
    try:
        with paths.atomic(partial / chunks.PIXELS) as temporary:
            chunks.allocate(temporary, (films, size, size))
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _decode(partial: Path, size: int, plan: list[chunks.Task], workers: int | None, progress: bool) -> None:
    starts = [start for start in range(0, len(plan), CHUNK) if not _note_path(partial, start).exists()]
    jobs = {start: (str(partial / chunks.PIXELS), size, start, plan[start : start + CHUNK]) for start in starts}
    tasks = [task for job in jobs.values() for task in job[3]]
    to_decode = sum(task.bytes for task in tasks if task.row is None)
    workers = min(workers or (pool.cores() if to_decode > _SERIAL_BYTES else 1), len(jobs))
    look = {"unit": "film", "desc": f"store {size}²", "mininterval": 0.5, "smoothing": 0.1}
    with tqdm(total=len(plan), initial=len(plan) - len(tasks), disable=not progress, **look) as bar:
        for start, columns in pool.run(chunks.work, jobs, workers):
            paths.write_text(_note_path(partial, start), json.dumps(columns))
            bar.update(len(columns["name"]))


def _publish(folder: Path, partial: Path, size: int, films: int, allow_missing: bool) -> None:
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
    if chunks.side(pixels) != size:  # else a build was killed before it wrote the manifest
        if failed:
            chunks.compact(partial / chunks.PIXELS, good, pixels)
        else:
            (partial / chunks.PIXELS).replace(pixels)
    fingerprint = pixels.stem.removeprefix("pixels-")
    manifest = {"format": FORMAT, "size": size, "pixels": pixels.name, "fingerprint": fingerprint, "code": decoder()}
    text = json.dumps(manifest | {"missing": missing, "films": columns}, separators=(",", ":"))
    paths.write_text(folder / MANIFEST, text + "\n")
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
    return paths.read_json(path)
