"""How a store is built: in chunks of films, by several processes, so that nothing finished is done twice.

A build works in ``partial-<key>/`` inside the store's folder. Its disk space is claimed first, and the claimed file
put in place whole, by a rename; then each chunk of rows is decoded, written, synced, and only then noted in a file of
its own. After ``kill -9`` the next build goes on behind the last note, and rows that an older store or another partial
build already has are copied, not decoded. Notes beside a file that is not whole count for nothing.
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
"""Films in a chunk: what a killed build may lose per process."""

_COLUMNS = ("name", "bytes", "mtime_ns", "source_crc", "width", "height", "pixel_crc")
_SERIAL_BYTES = 32_000_000
"""Below this much to decode, starting processes takes longer than it saves."""


@cache
def decoder() -> str:
    """Version of the code that makes pixels of a film's file; what another one made is not used again."""
    return provenance.code_version(chunks, without=("cxrlib.errors", "cxrlib.labels", "cxrlib.paths"))


@dataclass(frozen=True)
class Sources:
    """Films to be held, sorted by name: their files and each file's (bytes, mtime_ns) as it is now."""

    names: list[str]
    paths: list[str]
    stamps: list[tuple[int, int]]


def sources(films: pd.DataFrame, *, allow_missing: bool) -> Sources:
    """Look at every film's file. Raises UserError for one that is gone, unless ``allow_missing`` leaves it out."""
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
        raise UserError(f"none of the {len(films)} films is there any more, first {films['path'].iloc[0]}")
    return Sources(names, files, stamps)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished store. Raises UserError where it is absent, damaged or of another format."""
    path = folder / MANIFEST
    manifest = paths.read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not a store of format {FORMAT}; delete {folder} to have it made again")
    if not {"size", "pixels", "fingerprint", "films", "missing"} <= manifest.keys():
        raise UserError(f"{path} is damaged; delete {folder} to have it made again")
    return manifest


def held(manifest: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(bytes, mtime_ns) of every source that a store was made from, those that could not be decoded included."""
    films = manifest["films"]
    stamps = dict(zip(films["name"], zip(films["bytes"], films["mtime_ns"], strict=True), strict=True))
    return stamps | {name: (entry["bytes"], entry["mtime_ns"]) for name, entry in manifest["missing"].items()}


def refusal(failed: dict[str, str]) -> UserError:
    """The error for films that cannot be decoded, naming the first ones."""
    first = "; ".join(list(failed.values())[:3])
    return UserError(f"{len(failed)} films cannot be decoded: {first}. Mend them, or use --allow-missing")


def build(
    folder: Path,
    size: int,
    wanted: Sources,
    kept: set[str],
    workers: int | None,
    progress: bool,
    allow_missing: bool,
) -> None:
    """Decode and publish; the caller holds the store's lock, and cleans up. Raises as ``store.build`` does."""
    plan = _plan(wanted, kept, _reusable(folder, size))
    partial = folder / f"partial-{decoder()}-{provenance.digest([FORMAT, size, [list(row[:3]) for row in plan]])}"
    try:
        _claim(folder, partial, size, len(plan))
        _decode(partial, size, plan, workers, progress)
        _publish(folder, partial, size, len(plan), allow_missing)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"cannot write the store {folder}: {error.strerror}; choose another folder") from None
        if not any(partial.glob("chunk-*.json")):
            shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{folder}: the disk is full; make room and run again, finished parts are kept") from None


def _plan(wanted: Sources, kept: set[str], reusable: dict[str, chunks.Row]) -> list[chunks.Task]:
    """A task per row of the new store, sorted by name: copy what is already decoded as it is now, decode the rest."""
    plan = []
    for name, path, stamp in zip(wanted.names, wanted.paths, wanted.stamps, strict=True):
        row = reusable.get(name)
        plan.append(chunks.Task(name, *stamp, path, row if row and (row.bytes, row.mtime_ns) == stamp else None))
    whole = kept & reusable.keys()  # not those that could not be decoded, nor those whose pixels are lost
    plan += [chunks.Task(name, reusable[name].bytes, reusable[name].mtime_ns, "", reusable[name]) for name in whole]
    return sorted(plan, key=lambda task: task.name)


def _reusable(folder: Path, size: int) -> dict[str, chunks.Row]:
    """Rows that this code has decoded already: of the finished store, and of the noted chunks of partial builds."""
    found: dict[str, chunks.Row] = {}
    for partial in sorted(folder.glob(f"partial-{decoder()}-*")):
        if chunks.side(partial / chunks.PIXELS) == size:
            for note in sorted(partial.glob("chunk-*.json")):
                found.update(_rows(partial / chunks.PIXELS, _note(note), int(note.stem.split("-")[1]) * CHUNK))
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        if manifest.get("code") == decoder() and chunks.side(folder / manifest["pixels"]) == size:
            found.update(_rows(folder / manifest["pixels"], manifest["films"], 0))
    return found


def _rows(pixels: Path, columns: dict[str, list], start: int) -> Iterator[tuple[str, chunks.Row]]:
    reasons = columns.get("reason") or [""] * len(columns["name"])
    for i, (values, reason) in enumerate(zip(zip(*(columns[c] for c in _COLUMNS), strict=True), reasons, strict=True)):
        if not reason:
            yield values[0], chunks.Row(str(pixels), start + i, *values[1:])


def _claim(folder: Path, partial: Path, size: int, films: int) -> None:
    """Make the file for the pixels and claim its space on the disk. Raises UserError where there is not enough."""
    if chunks.side(partial / chunks.PIXELS) == size:
        return
    notes = [_note_path(partial, at) for at in range(0, films, CHUNK)]
    if all(note.exists() for note in notes) and chunks.side(folder / _name(size, _joined(notes))) == size:
        return  # a build was killed between naming the pixels and writing the manifest
    shutil.rmtree(partial, ignore_errors=True)  # notes speak of rows that are not there
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
    left = [at for at in range(0, len(plan), CHUNK) if not _note_path(partial, at).exists()]
    jobs = {at: (str(partial / chunks.PIXELS), size, at, plan[at : at + CHUNK]) for at in left}
    todo = sum(len(job[3]) for job in jobs.values())
    weight = sum(task.bytes for job in jobs.values() for task in job[3] if task.row is None)
    workers = min(workers or (pool.cores() if weight > _SERIAL_BYTES else 1), len(jobs))
    with tqdm(total=len(plan), initial=len(plan) - todo, unit="film", desc=f"store {size}²",
              disable=not progress, mininterval=0.5, smoothing=0.1) as bar:  # fmt: skip
        for at, columns in pool.run(chunks.work, jobs, workers):
            paths.write_text(_note_path(partial, at), json.dumps(columns))
            bar.update(len(columns["name"]))


def _publish(folder: Path, partial: Path, size: int, films: int, allow_missing: bool) -> None:
    """Name the pixels after their fingerprint and write the manifest, which makes the store visible."""
    columns = _joined([_note_path(partial, at) for at in range(0, films, CHUNK)])
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
    if chunks.side(pixels) != size:  # it is there where a build was killed before the manifest
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
            old.unlink(missing_ok=True)  # who has it open keeps it


def _name(size: int, columns: dict[str, list]) -> str:
    """File name of the pixels: by a fingerprint of the films that could be decoded and of what is on them."""
    good = [i for i, reason in enumerate(columns["reason"]) if not reason]
    names, pixels = ([columns[column][i] for i in good] for column in ("name", "pixel_crc"))
    return f"pixels-{provenance.digest([FORMAT, size, names, pixels])}.npy"


def _joined(notes: list[Path]) -> dict[str, list]:
    columns: dict[str, list] = {name: [] for name in (*_COLUMNS, "reason")}
    for note in map(_note, notes):
        for name, values in columns.items():
            values.extend(note[name])
    return columns


def _note_path(partial: Path, at: int) -> Path:
    return partial / f"chunk-{at // CHUNK:05d}.json"


def _note(path: Path) -> dict[str, list]:
    return paths.read_json(path)
