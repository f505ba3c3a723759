"""Image files to grey pixels: PNG of any mode and depth, JPEG or DICOM, whole or refused by name, brought to size.

OpenCV decodes, but it returns half a picture for half a file. So the file is checked first: Pillow reads the header,
and the chunks of a PNG are checked against their own checksums. Nothing is allocated for a file whose header promises
more than ``MAX_PIXELS``. Where kornia-rs is installed it decodes PNGs of 8-bit grey and of RGBA, in less than half of
OpenCV's time and to the same pixels. ``decode_chunk`` is what one process does when a store is built.

What each kind of file becomes:

- 8 bits, grey: the pixels of the file. 1, 2 and 4 bits: spread over 0 to 255, as the PNG standard says.
- 16 bits: 8 bits from the bits that the file uses, by the rule of ``bit_depth``.
- Colour and palette: their luminance. A colour that a PNG calls transparent (tRNS) is a colour like the others.
- Alpha channel: dropped if it is the same everywhere. Else the film is laid on black, so transparent parts are black.
- CMYK JPEG: its luminance, if the file says that it is Adobe's. Without this mark nobody knows whether it is a
  negative, so it is refused.
- EXIF orientation, of JPEG and PNG: the film is turned and mirrored as it says. An orientation that is not 1 to 8 is
  ignored.
- DICOM: by its header, see ``dicom``.
- A film that is not square: squeezed by ``shrink``, wherever a film is brought to a store's size.
"""

import errno
import os
import stat
import struct
import warnings
import zlib
from collections import Counter
from contextlib import suppress
from functools import cache, lru_cache
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

DICOM_SUFFIXES = (".dcm", ".dicom")
SUFFIXES = (".png", ".jpg", ".jpeg", *DICOM_SUFFIXES)
MAX_PIXELS = 64_000_000
"""Most pixels of a film: 8000². A full-field digital chest film has about 9 million."""

MAX_BYTES = 1_000_000_000
"""Most bytes of a film's file: ``MAX_PIXELS`` of 16-bit RGBA are 512 million."""

DEPTHS = (8, 10, 12, 14, 16)
"""Bit depths of X-ray detectors and of the files made from them."""

SAMPLE = 16
"""Films of a folder that are decoded to find the bit depths of its 16-bit films."""

SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
"""Errors that say nothing about a file: too many open files, too little memory."""

_PERIOD = 64
"""Longest period of the overlaps, in pixels, for which matrix products are faster (1024 to 224: 32)."""

_FORMATS = ("PNG", "JPEG")
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_ADOBE = b"\xff\xee\0\x0eAdobe"
_ORIENTATION = 0x0112
_UNTURNED = cv2.IMREAD_IGNORE_ORIENTATION
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)


class UnreadableError(UserError):
    """File that the system does not let us read. It says nothing about the file's content."""


class SystemShortageError(UnreadableError):
    """Shortage of the system, such as too many open files. It says nothing about the film that was to be read."""


class Film(NamedTuple):
    """Film as it was decoded, with what the file says of itself and what was assumed.

    ``pixels`` is (height, width) uint8, turned upright. ``mode`` is Pillow's. ``bits`` is the depth from which the 8
    bits were taken, ``largest`` the largest value in the file, and ``basis`` where ``bits`` comes from: ``sBIT``,
    ``folder`` or ``film``; for a file of 8 bits or fewer, ``bits`` is 8 and ``basis`` is "". ``orientation`` is EXIF's,
    1 to 8. ``transparent`` is true if the alpha channel is not the same everywhere. ``colour`` is that of
    ``colour_of``, 0 for grey files.
    """

    pixels: np.ndarray
    mode: str
    bits: int = 8
    largest: int = 255
    basis: str = ""
    orientation: int = 1
    transparent: bool = False
    colour: float = 0.0


def read(path: str | Path) -> np.ndarray:
    """Pixels of a film file, (height, width) uint8, 0 black, upright.

    Raises UserError with the path if the file is absent, empty, truncated, damaged, too large, or not PNG, JPEG or
    DICOM.
    """
    return decode(load(path), path)


def load(path: str | Path, *, start: int = -1) -> bytes:
    """Bytes of a regular file, or its first ``start`` bytes. A pipe is not waited for, and a device is not read.

    Raises UserError if the file is absent, empty, larger than ``MAX_BYTES``, not a regular file or not readable, and
    SystemShortageError if the system has too few file handles or too little memory.
    """
    try:
        with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | _NO_WAIT)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path} cannot be read: it is a pipe or a device, not a file; remove it")
            if status.st_size > MAX_BYTES:
                raise UserError(f"{path} has {status.st_size:,} bytes, more than a film can have; remove it")
            data = file.read(start)
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (OSError, ValueError, MemoryError) as error:
        raise unreadable(path, error) from None
    if not data:
        raise UserError(f"{path} is empty (0 bytes); download it again")
    return data


def unreadable(path: str | Path, error: Exception) -> UnreadableError:
    """Error for a file that the system did not let us read, with the system's reason and what to do.

    It is a SystemShortageError for the reasons in ``SHORTAGES``.
    """
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    reason = os.strerror(number) if number else str(error)
    if number in SHORTAGES:
        advice = "raise the limit with ulimit -n" if number in SHORTAGES[:2] else "close other programs"
        return SystemShortageError(f"{path} cannot be read: {reason}; {advice}, and run again. The file is not damaged")
    if number in (errno.EACCES, errno.EPERM):
        return UnreadableError(f"{path} cannot be read: {reason}; correct its permissions and run again")
    if number in (errno.EISDIR, errno.ENXIO, errno.ENODEV) or not number:
        return UnreadableError(f"{path} cannot be read: {reason}; it must be a file")
    return UnreadableError(f"{path} cannot be read: {reason}; look at the disk or the network, and run again")


def decode(data: bytes, path: str | Path) -> np.ndarray:
    """Pixels (height, width) uint8 from a film's bytes. ``path`` as in ``decode_film``. Raises as ``read``."""
    return decode_film(data, path, colour=False).pixels


def is_dicom(data: bytes, path: str | Path) -> bool:
    """Whether a file is DICOM: by its mark after 128 bytes, or by its name, since old files have no mark."""
    named = str(path).lower().endswith(DICOM_SUFFIXES)
    return data[128:132] == b"DICM" or (named and not data.startswith((_PNG_SIGNATURE, b"\xff\xd8")))


def decode_film(data: bytes, path: str | Path, *, colour: bool = True) -> Film:
    """Film from the bytes of its file, with what was assumed.

    ``path`` names the film in messages, and its folder decides the depth of a 16-bit PNG. Without ``colour``, the
    colour of the film is not measured, which takes as long as decoding it. Raises as ``read``.
    """
    if is_dicom(data, path):
        from cxrlib.data import dicom

        return Film(dicom.decode(data, path), "DICOM")
    mode, (width, height), exif = _header(data, path)
    png = data.startswith(_PNG_SIGNATURE)
    damage, said = _png_chunks(data) if png else (_jpeg_damage(data), {b"eXIf": exif} if exif else {})
    if damage:
        raise UserError(f"{path} is damaged ({damage}); download it again")
    if mode == "CMYK" and _ADOBE not in data:
        raise UserError(f"{path} is CMYK without Adobe's mark, and may be a negative; save it as grey PNG")
    film = None
    with suppress(cv2.error):
        film = _decoded(data, path, mode, (height, width), said.get(b"sBIT", b"")) if png else _plain(data, mode)
    if film is None or film.pixels is None or film.pixels.shape != (height, width):
        raise UserError(f"{path} is damaged (its pixels cannot be decoded); download it again")
    if colour and mode not in _GREY_MODES:
        film = film._replace(colour=colour_of(data))
    orientation = _orientation(said.get(b"eXIf", b""))
    if orientation == 1:
        return film
    return film._replace(pixels=upright(film.pixels, orientation), orientation=orientation)


def _decoded(data: bytes, path: str | Path, mode: str, shape: tuple[int, int], significant: bytes) -> Film:
    """Film of a PNG that is whole, not yet turned. ``significant`` is the content of the sBIT chunk."""
    depth, colour = data[24], data[25]
    if depth == 16:
        return _sixteen_bits(data, path, mode, significant)
    if colour in (4, 6):
        return _with_alpha(data, mode, shape)
    if depth == 8 and colour == 0:
        pixels = _by_kornia(data, shape, "mono")
        if pixels is not None:
            return Film(pixels[..., 0], mode)
    return _plain(data, mode)


def colour_of(data: bytes) -> float:
    """Colour of a PNG or JPEG that its grey does not explain: mean over the pixels, 0 to about 200 of 255.

    A tint says nothing: sepia or the blue of a film's base is a function of the grey. So the differences of red and
    blue from green are taken at up to 128 pixels, and their mean among the pixels of about the same grey is subtracted.
    """
    channels = None
    with suppress(cv2.error):
        channels = _opencv(data, cv2.IMREAD_REDUCED_COLOR_2 | _UNTURNED)
    if channels is None or channels.ndim != 3:
        return 0.0
    if max(channels.shape) > 128:
        channels = cv2.resize(channels, (128, 128), interpolation=cv2.INTER_AREA)
    blue, green, red = (channel.ravel().astype(np.float64) for channel in cv2.split(channels))
    level = ((blue + green + red) / 24).astype(np.int64)  # 32 levels of grey
    count = np.maximum(np.bincount(level, minlength=32), 1)
    apart = [tone - (np.bincount(level, tone, minlength=32) / count)[level] for tone in (red - green, blue - green)]
    return float(np.hypot(*apart).mean())


def _plain(data: bytes, mode: str) -> Film:
    return Film(_opencv(data, cv2.IMREAD_GRAYSCALE | _UNTURNED), mode)


def _opencv(data: bytes, flags: int) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def _with_alpha(data: bytes, mode: str, shape: tuple[int, int]) -> Film:
    """Film with an alpha channel. Its grey is libpng's own, which is any of the colours where all three are equal."""
    channels = _by_kornia(data, shape, "rgba") if mode == "RGBA" else None
    if channels is None:
        channels = _opencv(data, cv2.IMREAD_UNCHANGED)
    if channels is None or channels.ndim != 3:
        return _plain(data, mode)
    grey, second, third, alpha = cv2.split(channels)
    if not (np.array_equal(grey, second) and np.array_equal(grey, third)):
        grey = _opencv(data, cv2.IMREAD_GRAYSCALE | _UNTURNED)
    return _on_black(Film(grey, mode), alpha)


def _on_black(film: Film, alpha: np.ndarray) -> Film:
    """Film laid on black by ``alpha``, which has the file's own depth. Unchanged if alpha is the same everywhere."""
    if film.pixels is None or alpha.min() == alpha.max():
        return film
    full = int(np.iinfo(alpha.dtype).max)
    pixels = (film.pixels.astype(np.uint64) * alpha + full // 2) // full
    return film._replace(pixels=pixels.astype(np.uint8), transparent=True)


def _sixteen_bits(data: bytes, path: str | Path, mode: str, significant: bytes) -> Film:
    values = _opencv(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | _UNTURNED)
    if values is None or values.dtype != np.uint16:
        return Film(None, mode)
    colours = 1 if data[25] in (0, 4) else 3  # sBIT has a byte for each, and one for alpha, which does not count
    largest, said = int(values.max()), max(significant[:colours], default=0)
    beside = () if 8 <= said <= 16 else folder_depths(Path(path).parent)
    bits, basis = bit_depth(largest, said, beside)
    pixels = (values >> (bits - 8)).astype(np.uint8)
    if bits == 16 and data[25] != 0:
        pixels = _plain(data, mode).pixels  # OpenCV's own way from 16-bit colour to 8-bit grey
    film = Film(pixels, mode, bits, largest, basis)
    return _on_black(film, _opencv(data, cv2.IMREAD_UNCHANGED)[..., 3]) if data[25] in (4, 6) else film


def bit_depth(largest: int, said: int = 0, beside: tuple[int, ...] = ()) -> tuple[int, str]:
    """Bits that a 16-bit film uses, and the basis of this: ``sBIT``, ``folder`` or ``film``.

    ``largest`` is the film's largest value, ``said`` the bits in its sBIT chunk (0: none), ``beside`` the depths that
    its folder has. The rule:

    1. A film that says its depth is believed. The PNG standard wants its values scaled up to 16 bits, but many writers
       leave them as they are: if ``said`` bits can hold all values, they were left, else they were scaled up.
    2. Else the film has the smallest depth of its folder that can hold all its values. A scanner has one depth, so a
       dark film among 16-bit films is a dark 16-bit film, and is not stretched.
    3. Else, in a folder without a common depth, the film has the smallest of ``DEPTHS`` that can hold its values.

    A chest film comes near the top of its range: a marker, a bone or the metal of a device is white. All 1,437 films
    of NIH that were looked at reach 0.58 of their range (1st percentile 0.64). So a film hardly ever stays below a
    quarter, where rule 3 would take it for one of two bits less.
    """
    if 8 <= said <= 16:
        return (said if largest < 1 << said else 16), "sBIT"
    own = next(depth for depth in DEPTHS if largest < 1 << depth)
    return min(((depth, "folder") for depth in beside if depth >= own), default=(own, "film"))


def folder_depths(folder: Path) -> tuple[int, ...]:
    """Bit depths of the 16-bit films in a folder, sorted. Empty if they are unknown: one film, or no common depth.

    Up to ``SAMPLE`` films, evenly spaced by name, are decoded once in a process. Each has the smallest of ``DEPTHS``
    that can hold its values. A depth counts if a fifth of the films have it, and at least two: so a folder may
    hold films of two scanners, but a few dark films do not make a depth. Films with an sBIT chunk and black films say
    nothing.
    """
    try:
        return _folder_depths(str(folder), folder.stat().st_mtime_ns)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise unreadable(folder, error) from None


@lru_cache(maxsize=64)
def _folder_depths(folder: str, _changed: int) -> tuple[int, ...]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES[0]))
    depths: Counter[int] = Counter()
    for name in names[:: -(-len(names) // SAMPLE) or 1]:
        try:
            largest = _largest_of_unsaid_depth(load(Path(folder, name)), name)
        except SystemShortageError:
            raise
        except UserError:
            continue
        if largest:
            depths[bit_depth(largest)[0]] += 1
    return tuple(sorted(depth for depth, films in depths.items() if films >= max(2, depths.total() / 5)))


def _largest_of_unsaid_depth(data: bytes, name: str) -> int:
    """Largest value of a 16-bit PNG that does not say its depth. 0 for other and for damaged files."""
    if is_sixteen_bits(data) and header(data, name):
        damage, said = _png_chunks(data)
        if not damage and b"sBIT" not in said:
            with suppress(cv2.error):
                values = _opencv(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
                return 0 if values is None else int(values.max())
    return 0


def is_sixteen_bits(data: bytes) -> bool:
    """Whether the bytes are a PNG of 16 bits, by its header. The first 33 bytes are enough."""
    return data.startswith(_PNG_SIGNATURE) and data[12:16] == b"IHDR" and data[24:25] == b"\x10"


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels turned and mirrored as an EXIF orientation of 1 to 8 asks for, contiguous."""
    if orientation >= 5:
        pixels = pixels.T
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _orientation(exif: bytes) -> int:
    """Orientation in the bytes of EXIF data, 1 to 8. 1 if it has none, or none that makes sense."""
    if exif:
        with suppress(Exception), warnings.catch_warnings():  # Pillow's exceptions for damaged EXIF are of any kind
            warnings.simplefilter("ignore")
            data = Image.Exif()
            data.load(exif)
            if data.get(_ORIENTATION) in range(1, 9):
                return int(data[_ORIENTATION])
    return 1


def size(path: str | Path) -> tuple[int, int]:
    """Width and height of a film from its header, upright, without decoding. Raises as ``read``."""
    return header(load(path), path)[1]


def header(data: bytes, path: str | Path) -> tuple[str, tuple[int, int]]:
    """Pillow mode (``L``, ``RGBA``, ``I;16``, ``P`` …; ``DICOM``) and (width, height) of the upright film from a film's
    bytes.

    Raises UserError if the bytes are neither PNG, JPEG nor DICOM, or if the header has more than ``MAX_PIXELS``.
    """
    mode, (width, height), exif = _header(data, path)
    if data.startswith(_PNG_SIGNATURE) and b"eXIf" in data:
        exif = _png_chunks(data)[1].get(b"eXIf", b"")
    return mode, ((height, width) if _orientation(exif) >= 5 else (width, height))


def _header(data: bytes, path: str | Path) -> tuple[str, tuple[int, int], bytes]:
    """Mode and (width, height) as stored, and the EXIF data of a JPEG. Raises as ``header``."""
    if is_dicom(data, path):
        from cxrlib.data import dicom

        facts = dicom.header(data, path)
        return "DICOM", (facts.columns, facts.rows), b""
    try:
        mode, (width, height), exif = _plain_header(data) or _any_header(data)
    except _BOMBS:
        raise UserError(f"{path} has more than {MAX_PIXELS:,} pixels in its header; remove it") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is neither PNG, JPEG nor DICOM, or its header is damaged; download it again") from None
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise UserError(f"{path} is damaged ({error}); download it again") from None
    if width * height > MAX_PIXELS:
        raise UserError(f"{path} has {width} x {height} pixels in its header, more than {MAX_PIXELS:,}; remove it")
    return mode, (width, height), exif


def _plain_header(data: bytes) -> tuple[str, tuple[int, int], bytes] | None:
    """``_header`` of an 8-bit grey PNG, as nearly all films are: ten times as fast as Pillow. None for other files."""
    if len(data) > 33 and data.startswith(_PNG_SIGNATURE) and data[12:16] == b"IHDR" and data[24:29] == b"\x08\0\0\0\0":
        width, height, checksum = struct.unpack_from(">II5xI", data, 16)
        if width and height and checksum == zlib.crc32(data[12:29]):
            return "L", (width, height), b""
    return None


def _any_header(data: bytes) -> tuple[str, tuple[int, int], bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF, which does not count
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            return image.mode, image.size, image.info.get("exif", b"") if image.format != "PNG" else b""


def shrink(pixels: np.ndarray, size: int) -> np.ndarray:
    """Squeeze (height, width) uint8 to (size, size) by area averaging. A smaller film is enlarged linearly.

    The rule for a film that is not square: each side is brought to ``size`` by itself. Nothing is padded or cut off.
    So a point at x of width w lies at x * size / w, and a box scales along each axis by itself, which is what
    ``records.scale_boxes`` does. It holds wherever a film is brought to size: store, check, plots, predictions.
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


def _by_kornia(data: bytes, shape: tuple[int, int], mode: str) -> np.ndarray | None:
    """Pixels of an 8-bit PNG by kornia-rs, (height, width, channels). None if it is absent or cannot decode them."""
    if decode_image_png_u8 is not None:
        with suppress(Exception):  # it has no narrower exception for damage
            return decode_image_png_u8(data, shape, mode)
    return None


def _png_chunks(data: bytes) -> tuple[str, dict[bytes, bytes]]:
    """Damage in the chunks of a PNG, or "", and the content of its sBIT and eXIf chunks.

    A chunk has a length, a name, data, and a CRC-32 of name and data.
    """
    buffer, start, said = memoryview(data), len(_PNG_SIGNATURE), {}
    while start + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            return "truncated", said
        if zlib.crc32(buffer[start + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            return f"wrong checksum at byte {start}", said
        if name == b"IEND":
            return "", said
        if name in (b"sBIT", b"eXIf"):
            said[name] = data[start + 8 : end - 4]
        start = end
    return "truncated", said


def _jpeg_damage(data: bytes) -> str:
    """Damage of a JPEG: "truncated" if no end marker follows its last scan, else "". A thumbnail has its own marker."""
    end = data.rfind(b"\xff\xd9", max(len(data) - 65536, 0))
    return "truncated" if end < 0 or data.find(b"\xff\xda", end) >= 0 else ""


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
    except SystemShortageError:
        raise
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
    """Side in pixels of the films in an .npy file. 0 if it is absent, truncated, or not a file of films.

    Raises OSError if the system does not let us open it, which says nothing about its content.
    """
    try:
        pixels = np.load(path, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):
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
