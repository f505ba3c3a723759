"""Image files to grey pixels: PNG of any mode or JPEG, decoded whole or refused by name, and brought to size.

OpenCV decodes, but it returns half a picture for half a file. So the file is checked first: Pillow reads the header,
and the chunks of a PNG are checked against their own checksums. Nothing is allocated for a file whose header promises
more than ``MAX_PIXELS``. Where kornia-rs is installed it decodes plain grey PNGs, in less than half of OpenCV's time
and to the same pixels. ``decode_chunk`` is what one process does when a store is built.
"""

import os
import struct
import warnings
import zlib
from contextlib import suppress
from functools import cache
from io import BytesIO
from math import gcd
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from cxrlib import UserError, paths

try:
    from kornia_rs.io import decode_image_png_u8
except ImportError:
    decode_image_png_u8 = None

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 64_000_000
"""Most pixels of a film: 8000². A full-field digital chest film has about 9 million."""

_PERIOD = 64
"""Longest period of the overlaps, in pixels, for which matrix products are faster (1024 to 224: 32)."""

_FORMATS = ("PNG", "JPEG")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def read(path: str | Path) -> np.ndarray:
    """Pixels of a film file, (height, width) uint8, 0 black. 16-bit pixels keep the upper 8 bits; alpha is dropped.

    Raises UserError with the path if the file is absent, empty, truncated, damaged, too large, or not PNG or JPEG.
    """
    return decode(load(path), path)


def load(path: str | Path) -> bytes:
    """Bytes of a file. Raises UserError if it is absent, empty or not readable."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not data:
        raise UserError(f"{path} is empty (0 bytes); download it again")
    return data


def decode(data: bytes, path: str | Path) -> np.ndarray:
    """Pixels (height, width) uint8 from a film's bytes. ``path`` is for messages only. Raises as ``read``."""
    mode, (width, height) = header(data, path)
    png = data.startswith(_PNG_SIGNATURE)
    damage = _png_damage(data) if png else _jpeg_damage(data)
    if damage:
        raise UserError(f"{path} is damaged ({damage}); download it again")
    pixels = _plain_grey(data, width, height) if png and mode == "L" else None
    if pixels is None:
        with suppress(cv2.error):
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if pixels is None or pixels.size != width * height:
        raise UserError(f"{path} is damaged (its pixels cannot be decoded); download it again")
    return pixels


def size(path: str | Path) -> tuple[int, int]:
    """Width and height of a film from its header, without decoding. Raises as ``read``."""
    return header(load(path), path)[1]


def header(data: bytes, path: str | Path) -> tuple[str, tuple[int, int]]:
    """Pillow mode (``L``, ``RGBA``, ``I;16``, ``P`` …) and (width, height) from a film's bytes.

    Raises UserError if the bytes are neither PNG nor JPEG, or if the header has more than ``MAX_PIXELS``.
    """
    try:
        mode, (width, height) = _plain_header(data) or _any_header(data)
    except _BOMBS:
        raise UserError(f"{path} has more than {MAX_PIXELS:,} pixels in its header; remove it") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is neither PNG nor JPEG, or its header is damaged; download it again") from None
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise UserError(f"{path} is damaged ({error}); download it again") from None
    if width * height > MAX_PIXELS:
        raise UserError(f"{path} has {width} x {height} pixels in its header, more than {MAX_PIXELS:,}; remove it")
    return mode, (width, height)


def _plain_header(data: bytes) -> tuple[str, tuple[int, int]] | None:
    """``header`` of an 8-bit grey PNG, as nearly all films are: ten times as fast as Pillow. None for other files."""
    if len(data) > 33 and data.startswith(_PNG_SIGNATURE) and data[12:16] == b"IHDR" and data[24:29] == b"\x08\0\0\0\0":
        width, height, checksum = struct.unpack_from(">II5xI", data, 16)
        if width and height and checksum == zlib.crc32(data[12:29]):
            return "L", (width, height)
    return None


def _any_header(data: bytes) -> tuple[str, tuple[int, int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            return image.mode, image.size


def shrink(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize (height, width) uint8 to (size, size) by area averaging. A smaller film is enlarged linearly.

    The aspect ratio is not kept, so box coordinates scale separately along each axis.
    """
    if pixels.shape == (size, size):
        return pixels
    if min(pixels.shape) < size:
        return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
    if all(side % size and side // gcd(side, size) <= _PERIOD for side in pixels.shape):
        return _area_average(pixels, size)
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)


def _area_average(pixels: np.ndarray, size: int) -> np.ndarray:
    """Area average by matrix products: as OpenCV if neither side is a multiple of ``size``, in a third of the time.

    The overlaps of old and new pixels are periodic, so each block of old rows gives a few new rows. All sums are whole
    numbers below 2^24 and exact in float32, so their order does not matter. The blocks are too small for BLAS threads,
    which would slow down the other decoding processes.
    """
    down, across = (_overlaps(side, size) for side in pixels.shape)
    means = np.empty((size, size), np.float32)
    blocks = pixels.astype(np.float32).reshape(-1, down.shape[1], pixels.shape[1])
    for block, rows in zip(blocks, means.reshape(len(blocks), len(down), size), strict=True):
        rows[:] = ((down @ block).reshape(-1, across.shape[1]) @ across.T).reshape(rows.shape)
    means *= np.float32(1 / (down.shape[1] * across.shape[1]))
    return np.rint(means, out=means).astype(np.uint8)


@cache
def _overlaps(side: int, size: int) -> np.ndarray:
    """Overlap of each old pixel with each new pixel in one period, (new, old) float32 of whole numbers."""
    divisor = gcd(side, size)
    old, new = side // divisor, size // divisor
    first, last = np.arange(new)[:, None] * old, np.arange(old) * new
    return np.clip(np.minimum(first + old, last + new) - np.maximum(first, last), 0, None).astype(np.float32)


def _plain_grey(data: bytes, width: int, height: int) -> np.ndarray | None:
    """Pixels of an 8-bit grey PNG by kornia-rs. None if kornia-rs is absent or cannot decode it."""
    if decode_image_png_u8 is not None:
        with suppress(Exception):  # it has no narrower exception, neither for damage nor for fewer than 8 bits
            return decode_image_png_u8(data, (height, width), "mono")[..., 0]
    return None


def _png_damage(data: bytes) -> str:
    """Damage in the chunks of a PNG, or "". A chunk has a length, a name, data, and a CRC-32 of name and data."""
    buffer, start = memoryview(data), len(_PNG_SIGNATURE)
    while start + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            return "truncated"
        if zlib.crc32(buffer[start + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            return f"wrong checksum at byte {start}"
        if name == b"IEND":
            return ""
        start = end
    return "truncated"


def _jpeg_damage(data: bytes) -> str:
    """Damage of a JPEG: "truncated" if it has no end marker, else ""."""
    return "" if b"\xff\xd9" in data[-65536:] else "truncated"


PIXEL_FILE = "pixels.npy"


class DecodedFilm(NamedTuple):
    """Row of a decoded film: position of its pixels; size, time and CRC-32 of its source; CRC-32 of its pixels."""

    file: str
    at: int
    bytes: int
    mtime_ns: int
    source_crc: int
    width: int
    height: int
    pixel_crc: int


class DecodeTask(NamedTuple):
    """Task for one row: copy ``row`` if the film is already decoded, else decode the file at ``path``."""

    name: str
    bytes: int
    mtime_ns: int
    path: str
    row: DecodedFilm | None


def decode_chunk(pixels: str, size: int, start: int, tasks: list[DecodeTask]) -> dict[str, list]:
    """Write the rows from ``start`` on and sync them to disk. Returns the columns name, reason and those of ``Row``.

    ``reason`` says why a film could not be decoded, or is "". The row of such a film is black and must not be used.
    """
    block = np.zeros((len(tasks), size, size), np.uint8)
    decoded = {file: np.load(file, mmap_mode="r") for file in {task.row.file for task in tasks if task.row}}
    rows, reasons = zip(*(_fill_row(*pair, size, decoded) for pair in zip(block, tasks, strict=True)), strict=True)
    columns = {"name": [task.name for task in tasks], "reason": list(reasons)}
    columns |= {name: [getattr(row, name) for row in rows] for name in DecodedFilm._fields[2:]}
    with Path(pixels).open("r+b") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        file.seek(start * size * size, os.SEEK_CUR)
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return columns


def _fill_row(
    target: np.ndarray, task: DecodeTask, size: int, decoded: dict[str, np.ndarray]
) -> tuple[DecodedFilm, str]:
    """Fill the pixels of one task, (size, size) uint8. Returns its row, and the reason if it failed."""
    if task.row is not None:
        pixels = decoded[task.row.file][task.row.at]
        if zlib.crc32(pixels) == task.row.pixel_crc:
            target[:] = pixels
            return task.row, ""
    empty = DecodedFilm("", 0, task.bytes, task.mtime_ns, 0, 0, 0, 0)
    try:
        data = load(task.path)
        film = decode(data, task.path)
    except UserError as error:
        return empty, str(error)
    target[:] = shrink(film, size)
    height, width = film.shape
    return empty._replace(source_crc=zlib.crc32(data), width=width, height=height, pixel_crc=zlib.crc32(target)), ""


def allocate_pixel_file(path: Path, shape: tuple[int, int, int]) -> None:
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


def side_of_pixel_file(path: Path) -> int:
    """Side in pixels of the films in an .npy file. 0 if it is absent, truncated, or not a file of films."""
    try:
        pixels = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return 0
    return pixels.shape[1] if pixels.ndim == 3 and pixels.dtype == np.uint8 else 0


def copy_rows(source: Path, rows: list[int], target: Path) -> None:
    """Write these rows of an .npy file to another file, 128 at a time."""
    old = np.load(source, mmap_mode="r")
    with paths.atomic(target) as temporary:
        allocate_pixel_file(temporary, (len(rows), *old.shape[1:]))
        new = np.load(temporary, mmap_mode="r+")
        for start in range(0, len(rows), 128):
            new[start : start + 128] = old[rows[start : start + 128]]
        new.flush()
