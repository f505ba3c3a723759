"""One film file to one grey array: PNG of any mode or JPEG, decoded whole or refused by name.

OpenCV decodes, but it hands out half a picture for half a file. So the file is looked through first: Pillow reads the
header, and the PNG's chunks are checked against their own checksums. Nothing is allocated for a file whose header
promises more than ``MAX_PIXELS``. Where kornia-rs is installed it decodes the plain grey PNGs, in less than half of
OpenCV's time and to the same pixels.
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
"""Largest film taken, in pixels: 8000². A full-field digital chest film has about 9 million."""

_PERIOD = 64
"""Longest repeat of the overlaps in pixels for which products of matrices are the faster way (1024 to 224: 32)."""

_FORMATS = ("PNG", "JPEG")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def read(path: str | Path) -> np.ndarray:
    """Read a film as (height, width) uint8, 0 black. 16-bit pixels keep their upper eight bits; alpha is dropped.

    Raises UserError naming the file where it is absent, empty, truncated, damaged, too large or no PNG or JPEG.
    """
    return decode(load(path), path)


def load(path: str | Path) -> bytes:
    """Bytes of a file. Raises UserError where it is absent, empty or cannot be read."""
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
    """Turn the bytes of a film into (height, width) uint8; ``path`` only goes into messages. Raises as ``read``."""
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
    """Width and height of a film from its header, without decoding it. Raises UserError as ``read`` does."""
    return header(load(path), path)[1]


def header(data: bytes, path: str | Path) -> tuple[str, tuple[int, int]]:
    """Pillow's mode (``L``, ``RGBA``, ``I;16``, ``P`` …) and (width, height) of the bytes of a film.

    Raises UserError where they are neither PNG nor JPEG, or promise more than ``MAX_PIXELS``.
    """
    try:
        mode, (width, height) = _plain_header(data) or _any_header(data)
    except _BOMBS:
        raise UserError(f"{path} claims more than {MAX_PIXELS:,} pixels; not decoded, remove it") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is neither PNG nor JPEG, or its header is damaged; download it again") from None
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise UserError(f"{path} is damaged ({error}); download it again") from None
    if width * height > MAX_PIXELS:
        raise UserError(f"{path} claims {width} x {height} pixels, more than {MAX_PIXELS:,}; not decoded, remove it")
    return mode, (width, height)


def _plain_header(data: bytes) -> tuple[str, tuple[int, int]] | None:
    """``header`` of a PNG of eight grey bits, as nearly all films are, in a tenth of Pillow's time; None of another."""
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
    """Bring (height, width) uint8 to (size, size) by averaging areas; enlarging interpolates linearly.

    A film that is not square is squeezed, so box coordinates scale along each axis by itself.
    """
    if pixels.shape == (size, size):
        return pixels
    if min(pixels.shape) < size:
        return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
    if all(side % size and side // gcd(side, size) <= _PERIOD for side in pixels.shape):
        return _area_average(pixels, size)
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)


def _area_average(pixels: np.ndarray, size: int) -> np.ndarray:
    """What OpenCV gives where neither side is a multiple of ``size``, as products of matrices: in a third of its time.

    The overlaps of old and new pixels repeat, so that a block of old rows makes a few new ones. All sums are of whole
    numbers below 2^24, which float32 holds exactly: the result does not depend on their order. Blocks are also too
    small for a BLAS to start threads on, which would be in the way of the other decoding processes.
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
    """How far each old pixel lies in each new one, up to where that repeats: (new, old) float32, whole numbers."""
    divisor = gcd(side, size)
    old, new = side // divisor, size // divisor
    first, last = np.arange(new)[:, None] * old, np.arange(old) * new
    return np.clip(np.minimum(first + old, last + new) - np.maximum(first, last), 0, None).astype(np.float32)


def _plain_grey(data: bytes, width: int, height: int) -> np.ndarray | None:
    """The pixels of a PNG of eight grey bits; None where OpenCV must see to it."""
    if decode_image_png_u8 is not None:
        with suppress(Exception):  # it raises nothing narrower, for fewer bits as for damage
            return decode_image_png_u8(data, (height, width), "mono")[..., 0]
    return None


def _png_damage(data: bytes) -> str:
    """What is wrong with the chunks of a PNG, or "": each has a length, a name, its data and a CRC-32 of both."""
    view, at = memoryview(data), len(_PNG_SIGNATURE)
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            return "truncated"
        if zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            return f"wrong checksum at byte {at}"
        if name == b"IEND":
            return ""
        at = end
    return "truncated"


def _jpeg_damage(data: bytes) -> str:
    """ "truncated" for a JPEG without its end marker, else ""."""
    return "" if b"\xff\xd9" in data[-65536:] else "truncated"
