"""Checksums of stored films: which rows of a pixel file are not what was written, and a note that they were checked.

A power cut can leave zeros at a file's end, and a disk can flip a bit. The manifest holds a CRC-32 of each film's
pixels; here they are compared, by several threads, since ``zlib.crc32`` lets them run at the same time. The note
``.verified.json`` in the store's folder holds size, time and inode of the manifest and of the pixel file as they were
when all films had their sums. While these are the same, nothing is read again.
"""

import os
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cxrlib import UserError, paths
from cxrlib.data import parallel

NOTE = ".verified.json"
MOST_THREADS = 8
"""More threads wait for the disk or for memory."""
_READ = 4_000_000  # bytes at once


def shape(file: Path) -> tuple[int, ...]:
    """Shape (N, size, size) of a file of pixels; () if it is absent, cut short, or its header is damaged.

    Raises OSError if the system does not let us open it, which says nothing about its content.
    """
    try:
        pixels = np.load(file, mmap_mode="r")
        return pixels.shape if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.flags.c_contiguous else ()
    except FileNotFoundError:
        return ()
    except OSError:
        raise
    except Exception:  # a damaged header can end in many ways
        return ()


def damaged_rows(file: Path, size: int, blocks: Iterable[tuple[int, Sequence[int]]]) -> list[list[int]]:
    """Rows of a pixel file (N, size, size) uint8 whose CRC-32 is another one, for each block.

    A block is its first row and the sums of the rows from there on. A row that the file does not have is damaged.
    Raises OSError if the system does not let us read the file.
    """
    offset, film = np.load(file, mmap_mode="r").offset, size * size

    def check(block: tuple[int, Sequence[int]]) -> list[int]:
        first, sums = block
        with file.open("rb", buffering=0) as opened:  # not the memory map: an error of the disk would end the process
            opened.seek(offset + first * film)
            found = [crc for at in range(0, len(sums), step) for crc in _sums(opened, film, len(sums[at : at + step]))]
        return [first + i for i, (is_, was) in enumerate(zip(found, sums, strict=True)) if is_ != was]

    step = max(_READ // film, 1)
    with ThreadPoolExecutor(min(parallel.cores(), MOST_THREADS)) as pool:
        return list(pool.map(check, blocks))


def _sums(opened: Any, film: int, count: int) -> list[int]:
    """CRC-32 of the next ``count`` films; -1 for one that is cut short."""
    data = memoryview(bytearray(count * film))
    done = 0
    while done < len(data) and (got := opened.readinto(data[done:])):  # one read gives at most 2 GB
        done += got
    return [zlib.crc32(data[at : at + film]) if at + film <= done else -1 for at in range(0, len(data), film)]


def is_noted(*files: Path) -> bool:
    """Whether these files of a store are as they were when the note was written. False for a damaged note."""
    with suppress(OSError, UserError):
        return paths.read_json(files[0].parent / NOTE) == _stamps(files)
    return False


def note(*files: Path) -> None:
    """Write down that these files were checked. A folder that cannot be written is checked each time."""
    with suppress(OSError, UserError):
        paths.write_json(files[0].parent / NOTE, _stamps(files), guarded=True)


def _stamps(files: Iterable[Path]) -> dict[str, list[int]]:
    stats = {file.name: os.stat(file) for file in files}  # noqa: PTH116
    return {name: [stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in stats.items()}
