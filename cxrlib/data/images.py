"""Image decoding: a PNG of any mode, or a JPEG, becomes an array of grey pixels. A damaged file raises.

OpenCV decodes half a file into half an image without an error. So the file is checked first: Pillow reads the header,
and the checksums of a PNG's chunks are compared. A file with more than ``MAX_PIXELS`` in its header is not decoded.
If kornia-rs is installed, it decodes 8-bit grey PNGs to the same pixels in less than half of OpenCV's time.
"""

import struct
import warnings
import zlib
from contextlib import suppress
from functools import cache
from io import BytesIO
from math import gcd
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from cxrlib.errors import UserError

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
