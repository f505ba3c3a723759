"""Decoding of a chunk of films into rows of a store's pixel file, as one process does it."""

import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cxrlib import paths
from cxrlib.data import images
from cxrlib.errors import UserError

PIXELS = "pixels.npy"


class Row(NamedTuple):
    """Row of a decoded film: position of its pixels; size, time and CRC-32 of its source; CRC-32 of its pixels."""

    file: str
    at: int
    bytes: int
    mtime_ns: int
    source_crc: int
    width: int
    height: int
    pixel_crc: int


class Task(NamedTuple):
    """Task for one row: copy ``row`` if the film is already decoded, else decode the file at ``path``."""

    name: str
    bytes: int
    mtime_ns: int
    path: str
    row: Row | None


def work(pixels: str, size: int, start: int, tasks: list[Task]) -> dict[str, list]:
    """Write the rows from ``start`` on and sync them to disk. Returns the columns name, reason and those of ``Row``.

    ``reason`` says why a film could not be decoded, or is "". The row of such a film is black and must not be used.
    """
    block = np.zeros((len(tasks), size, size), np.uint8)
    decoded = {file: np.load(file, mmap_mode="r") for file in {task.row.file for task in tasks if task.row}}
    rows, reasons = zip(*(_fill(*pair, size, decoded) for pair in zip(block, tasks, strict=True)), strict=True)
    columns = {"name": [task.name for task in tasks], "reason": list(reasons)}
    columns |= {name: [getattr(row, name) for row in rows] for name in Row._fields[2:]}
    with Path(pixels).open("r+b") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        file.seek(start * size * size, os.SEEK_CUR)
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return columns


def _fill(target: np.ndarray, task: Task, size: int, decoded: dict[str, np.ndarray]) -> tuple[Row, str]:
    """Fill the pixels of one task, (size, size) uint8. Returns its row, and the reason if it failed."""
    if task.row is not None:
        pixels = decoded[task.row.file][task.row.at]
        if zlib.crc32(pixels) == task.row.pixel_crc:
            target[:] = pixels
            return task.row, ""
    empty = Row("", 0, task.bytes, task.mtime_ns, 0, 0, 0, 0)
    try:
        data = images.load(task.path)
        film = images.decode(data, task.path)
    except UserError as error:
        return empty, str(error)
    target[:] = images.shrink(film, size)
    height, width = film.shape
    return empty._replace(source_crc=zlib.crc32(data), width=width, height=height, pixel_crc=zlib.crc32(target)), ""


def allocate(path: Path, shape: tuple[int, int, int]) -> None:
    """Make an .npy file of zeros and reserve its disk space, so that a full disk raises now and not in a memory map."""
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        start, length = file.tell(), int(np.prod(shape, dtype=np.int64))
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), start, length)
        else:
            file.truncate(start + length)


def side(path: Path) -> int:
    """Side in pixels of the films in an .npy file. 0 if it is absent, truncated, or not a file of films."""
    try:
        pixels = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return 0
    return pixels.shape[1] if pixels.ndim == 3 and pixels.dtype == np.uint8 else 0


def compact(source: Path, rows: list[int], target: Path) -> None:
    """Write these rows of an .npy file to another file, 128 at a time."""
    old = np.load(source, mmap_mode="r")
    with paths.atomic(target) as temporary:
        allocate(temporary, (len(rows), *old.shape[1:]))
        new = np.load(temporary, mmap_mode="r+")
        for start in range(0, len(rows), 128):
            new[start : start + 128] = old[rows[start : start + 128]]
        new.flush()
