"""DICOM films: the header's facts, and the pixels as an array of grey pixels as any other film's. Else it raises.

A stored value becomes a grey in the standard's order (DICOM PS3.3, PS3.4 N.2):

1. Bits Stored and High Bit cut the value out of its cell, Pixel Representation gives it a sign (PS3.5 8.1.1).
2. Padding is set aside, while values are still as stored (C.7.5.1.1.2). It ends up black.
3. Modality: a lookup table, or rescale slope and intercept (C.11.1).
4. VOI: the first lookup table, else the first window: LINEAR, LINEAR_EXACT or SIGMOID (C.11.2). Without either, values
   of up to 8 bits keep their full range, as an 8-bit PNG does; deeper ones are spread from the least to the largest.
5. Inversion comes last: for MONOCHROME1 the least value is white (C.7.6.3.1.2). In DX images Presentation LUT Shape
   INVERSE says the same once more (C.8.11.3), not the opposite, so one or both of them invert once. Greys are then
   P-values, 0 black (PS3.14): bone is bright and air dark.

All steps map single values, so they run on a table of all stored values and the film is looked up in it.

pydicom quotes values in its warnings, logs and exceptions. None of these passes through here: messages name codes of
the standard only, so no name, identifier, date or institution of a patient can be in them.
pydicom is imported with the first film, since that takes about a second.
"""

import logging
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from cxrlib import UserError
from cxrlib.data import images, jpeg_lossless

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

MAX_BYTES = 4 * images.MAX_PIXELS
"""Most bytes of a file, and of a deflated file once inflated."""

_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # float, double and integer pixel data
_UNDEFINED = 0xFFFFFFFF  # length of an element that ends with a mark
_RADIOGRAPHS = ("CR", "DX", "RG", "RF", "DR")
_CAPTURES = ("OT", "SC")
_OTHERS = re.compile("BMD|CT|ECG|ES|GM|IO|IVUS|MG|MR|NM|OCT|OP|OPT|PT|PX|RTDOSE|RTIMAGE|RTSTRUCT|SM|SR|US|XA|XC")
_SOP_CLASSES = (
    "ComputedRadiographyImageStorage",
    "DigitalXRayImageStorageForPresentation",
    "DigitalXRayImageStorageForProcessing",
    "XRayRadiofluoroscopicImageStorage",
    "SecondaryCaptureImageStorage",
    "MultiFrameGrayscaleByteSecondaryCaptureImageStorage",
    "MultiFrameGrayscaleWordSecondaryCaptureImageStorage",
)
_CHEST = re.compile("CHEST|THORAX|LUNG|RIB|HEART")
_ELSEWHERE = re.compile(
    "ABDOMEN|ANKLE|ARM|BREAST|CALCANEUS|CLAVICLE|COCCYX|CSPINE|ELBOW|EXTREMITY|FEMUR|FINGER|FOOT|FOREARM|HAND|HEAD|HIP|"
    "HUMERUS|JAW|KNEE|LEG|LSPINE|MANDIBLE|NECK|PELVIS|SACRUM|SCAPULA|SHOULDER|SINUS|SKULL|SPINE|THUMB|TOE|TSPINE|WRIST"
)
"""Body parts of PS3.16 Annex L that are no chest film. Other values, in whatever language, say nothing."""

_OBLIQUE = {"LAO", "LLO", "LPO", "OBL", "OBLIQUE", "RAO", "RLO", "RPO"}
_LATERAL = {"LAT", "LATERAL", "LL", "RL"}
_VIEWS = {"POSTERO-ANTERIOR": "PA", "ANTERO-POSTERIOR": "AP"}
_DAYS = {"D": 1, "W": 7, "M": 365.25 / 12, "Y": 365.25, "": 365.25}  # some software leaves the Y out

_DEFLATED = b"\2\0\x10\0UI\x16\0" + b"1.2.840.10008.1.2.1.99"  # element of the transfer syntax
_EXPLICIT = _DEFLATED.replace(b".99", bytes(3))
_JPEG = "1.2.840.10008.1.2.4."
_RLE = "1.2.840.10008.1.2.5"
_OWN = ("", "")  # ``jpeg_lossless``, without a plugin
_PILLOW = ("pillow", "pillow")
_CHARLS = ("pyjpegls", "pyjpegls")
_OPENJPEG = ("pylibjpeg", "pylibjpeg pylibjpeg-openjpeg")
_LIBJPEG_STREAMS = {0xC0: "JPEG baseline", 0xC1: "JPEG extended", 0xC2: "progressive JPEG"}
_LOSSLESS, _JPEG_LS, _JPEG_2000 = {0xC3: "JPEG lossless"}, {0xF7: "JPEG-LS"}, {0x4F: "JPEG 2000"}
_STREAMS = {**_LIBJPEG_STREAMS, **_LOSSLESS, **_JPEG_LS, **_JPEG_2000}
_DECODERS = {
    _JPEG + "50": (_LIBJPEG_STREAMS, [_PILLOW]),
    _JPEG + "51": (_LIBJPEG_STREAMS, [_PILLOW]),
    _JPEG + "57": (_LOSSLESS, [_OWN]),
    _JPEG + "70": (_LOSSLESS, [_OWN]),
    _JPEG + "80": (_JPEG_LS, [_CHARLS, ("gdcm", "python-gdcm")]),
    _JPEG + "81": (_JPEG_LS, [_CHARLS, ("gdcm", "python-gdcm")]),
    _JPEG + "90": (_JPEG_2000, [_OPENJPEG, _PILLOW]),
    _JPEG + "91": (_JPEG_2000, [_OPENJPEG, _PILLOW]),
    _JPEG + "201": (_JPEG_2000, [_OPENJPEG]),
    _JPEG + "202": (_JPEG_2000, [_OPENJPEG]),
    _JPEG + "203": (_JPEG_2000, [_OPENJPEG]),
    _RLE: ({}, [("pydicom", "pydicom")]),
}
"""Per encoding: the codes of streams that it may hold, and pydicom's plugins with their packages, best one first.

One plugin alone sees a film; pydicom would hand a damaged one to all of them in turn. GDCM ends the process on damaged
JPEG lossless and pylibjpeg-rle panics on damaged RLE, so neither is used for these.
"""


@dataclass(frozen=True)
class Header:
    """Facts from a film's header."""

    rows: int
    columns: int
    view: str
    """``PA``, ``AP`` or "" if the header does not say."""
    sex: str
    """``M``, ``F`` or "" if the header does not say, or says another."""
    age: float
    """Years, NaN if the header does not say. Ages below two years are in fractions."""
    presentation: bool | None
    """True if the film is meant to be looked at, False if it still is to be processed, None if not said."""


class _Cell(NamedTuple):
    """Layout of a pixel in the file. ``shift`` counts the unused bits below the value."""

    allocated: int
    stored: int
    shift: int
    signed: bool


class _Stream(NamedTuple):
    """Facts from the head of a compressed stream. ``kind`` is its code in ``_STREAMS``."""

    kind: int
    rows: int
    columns: int
    samples: int
    precision: int


def looks_like(data: bytes) -> bool:
    """DICOM or not, by a file's first bytes: the mark after the preamble, else a plausible first element.

    Files without a preamble start with an element of group 2 or 8. 132 bytes are enough.
    """
    if data[128:132] == b"DICM":
        return True
    if len(data) < 132:
        return False
    if data[:4] in (b"\x00\x08\x00\x05", b"\x00\x08\x00\x08", b"\x00\x08\x00\x16"):
        return data[4:6] in (b"CS", b"UI")  # big endian is always explicit
    group, element, length = struct.unpack_from("<HHI", data)
    explicit = data[4:6] in (b"UL", b"CS", b"UI", b"OB")
    return group in (2, 8) and element <= 0x60 and (explicit or length <= 64)


def read(path: str | Path) -> np.ndarray:
    """Pixels of a DICOM film, (rows, columns) uint8, 0 black. Raises UserError with the path as ``decode``."""
    return decode(load(path), path)


def load(path: str | Path) -> bytes:
    """Bytes of a file. Raises UserError if it is absent, empty, no plain file, larger than a film, or unreadable."""
    _plain_file(path)
    return images.load(path)


def examine(path: str | Path) -> Header:
    """Header of a file, of which only the part before the pixels is read. Raises as ``header``."""
    _plain_file(path)
    try:
        with Path(path).open("rb") as file:
            if file.read(1):
                return _careful(path, _header_of, file, path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or 'an error of the disk'}") from None
    raise UserError(f"{path} is empty (0 bytes); download it again")


def header(data: bytes, path: str | Path) -> Header:
    """Header from a film's bytes, without decoding. ``path`` is for messages only.

    Raises UserError if the bytes are not DICOM, or not one grey frontal film of a chest of up to ``MAX_PIXELS``.
    """
    return _careful(path, _header_of, BytesIO(data), path)


def decode(data: bytes, path: str | Path) -> np.ndarray:
    """Pixels (rows, columns) uint8 from a film's bytes, bone bright and air dark. ``path`` is for messages only.

    A film whose header names the wrong end as white comes out as a negative. Raises UserError as ``header``, and if
    pixels are absent, truncated, damaged, or in an encoding without a decoder.
    """
    return _careful(path, _pixels_of, data, path)


def _plain_file(path: str | Path) -> None:
    """Raise UserError for a pipe, a device or a folder, on which reading would never end, and for a huge file."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'a wrong path'}") from None
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is not a file (a folder, a pipe or a device); leave it out")
    if found.st_size > MAX_BYTES:
        raise UserError(f"{path} has {found.st_size:,} bytes, more than {MAX_BYTES:,}, as no film has; leave it out")


def _careful(path: str | Path, function: Callable, *args):
    """Call ``function``. Any exception but UserError becomes a UserError that knows nothing of the first.

    pydicom and the decoders raise whatever a damaged file leads to, and quote it.
    """
    try:
        import pydicom  # noqa: F401 (before its logs are held back, since it sets their level itself)
    except ImportError:
        raise UserError(f"{path} is DICOM, and pydicom, which reads it, is missing: pip install pydicom") from None
    with _quiet():
        try:
            return function(*args)
        except UserError:
            raise
        except Exception:
            pass
    raise UserError(f"{path} is damaged (its header or its pixels cannot be decoded); export it again")


_silence = Lock()
_calls: list[ExitStack] = []  # one entry per running call, all of them the same


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back pydicom's warnings and logs. Calls may overlap in threads: the first starts it, the last ends it."""
    with _silence:
        _calls.append(_calls[0] if _calls else _hold_back())
    try:
        yield
    finally:
        with _silence:
            undo = _calls.pop()
            if not _calls:
                undo.close()


def _hold_back() -> ExitStack:
    """Start of ``_quiet``. Closing the stack undoes it."""
    undo = ExitStack()
    undo.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", module="pydicom|pylibjpeg|openjpeg|PIL|" + re.escape(__name__))
    for name in ("pydicom", "pylibjpeg"):
        logger = logging.getLogger(name)
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL + 1)
    return undo


def _header_of(file: BinaryIO, path: str | Path) -> Header:
    dataset, _ = _parse(file, path, pixels=False)
    return _checked(dataset, path)


def _pixels_of(data: bytes, path: str | Path) -> np.ndarray:
    dataset, little = _parse(BytesIO(data), path, pixels=True)
    film = _checked(dataset, path)
    cell = _cell(dataset, path)
    codes, cell = _codes(dataset, film, cell, path)
    return _table(dataset, cell, codes, little=little)[codes]


def _parse(file: BinaryIO, path: str | Path, *, pixels: bool) -> tuple["Dataset", bool]:
    """Dataset of a file, and whether it is little endian. Raises UserError if it ends before its time."""
    from pydicom.filereader import read_partial

    file.seek(0)
    head = file.read(4096)
    if not looks_like(head):
        raise UserError(f"{path} is not DICOM, or its header is damaged; export it again")
    file.seek(0)
    if _DEFLATED in head:
        file = BytesIO(_inflated(file.read(), path))
    seen = []

    def stop(tag, _vr, length) -> bool:
        seen.append((tag, length))
        return tag in _PIXELS and not pixels

    dataset = read_partial(file, stop_when=stop, force=True)
    _, little = dataset.original_encoding
    tag, length = seen[-1] if seen else (None, 0)
    if tag in _PIXELS and not pixels:
        return dataset, little
    value = dataset.get_item(tag).value if tag in dataset else b""
    cut = isinstance(value, bytes) and length != _UNDEFINED and len(value) < length
    if cut or (seen and tag not in dataset):
        raise UserError(f"{path} is truncated (it ends in the middle of an element); export or download it again")
    if not any(tag in dataset for tag in _PIXELS):
        _check_kind(dataset, path)
        raise UserError(f"{path} has no pixels, or is truncated; export it again with its image")
    return dataset, little


def _inflated(data: bytes, path: str | Path) -> bytes:
    """Bytes of a deflated file as those of a plain one (PS3.5 A.5). A bomb of more than ``MAX_BYTES`` raises."""
    length = struct.unpack_from("<I", data, 140)[0]  # group 2 follows the preamble and starts with its own length
    start = 144 + length
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    body = inflater.decompress(data[start:], MAX_BYTES)
    if inflater.unconsumed_tail:
        raise UserError(f"{path} inflates to more than {MAX_BYTES:,} bytes, as no film does; leave it out")
    if not inflater.eof:
        raise UserError(f"{path} is truncated (its deflated part does not end); export or download it again")
    return data[:start].replace(_DEFLATED, _EXPLICIT) + body


def _checked(dataset: "Dataset", path: str | Path) -> Header:
    """Header of one grey frontal chest film. Anything else raises UserError."""
    _check_kind(dataset, path)
    if (_number(dataset, "NumberOfFrames") or 1) != 1:
        raise UserError(f"{path} has several frames, and a film has one; export the frame that you mean")
    photometric = _text(dataset, "PhotometricInterpretation")
    if (_number(dataset, "SamplesPerPixel") or 1) != 1 or photometric.startswith(("RGB", "YBR", "PALETTE")):
        raise UserError(f"{path} is in colour, and films are grey; export the original film")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UserError(f"{path} does not say which end of its greys is white (MONOCHROME1 or 2); export it again")
    rows, columns = (_number(dataset, side) or 0 for side in ("Rows", "Columns"))
    if min(rows, columns) < 1:
        raise UserError(f"{path} has no size in its header (Rows, Columns); export it again")
    if rows * columns > images.MAX_PIXELS:
        raise UserError(
            f"{path} has {columns} x {rows} pixels in its header, more than {images.MAX_PIXELS:,}; remove it"
        )
    sex = _text(dataset, "PatientSex")
    intent = _text(dataset, "PresentationIntentType")
    return Header(
        rows=rows,
        columns=columns,
        view=_view(dataset, path),
        sex=sex if sex in ("M", "F") else "",
        age=_age(_text(dataset, "PatientAge")),
        presentation={"FOR PRESENTATION": True, "FOR PROCESSING": False}.get(intent),
    )


def _check_kind(dataset: "Dataset", path: str | Path) -> None:
    """Raise UserError for what is no radiograph of a chest, by SOP class, Modality and body part.

    A header that says nothing passes, since anonymised films have lost these. A secondary capture or "other" image may
    be a scanned letter, so it must name the chest or a frontal view. A named part elsewhere is refused always.
    """
    from pydicom import uid

    sop = uid.UID(str(dataset.get("SOPClassUID") or ""))
    if sop.name != sop and sop not in [getattr(uid, name) for name in _SOP_CLASSES]:
        raise UserError(f"{path} is no chest film (SOP class: {sop.name}); leave it out")
    modality, part = _text(dataset, "Modality"), _text(dataset, "BodyPartExamined")
    if modality and modality not in (*_RADIOGRAPHS, *_CAPTURES):
        said = modality if _OTHERS.fullmatch(modality) else "none of " + ", ".join(_RADIOGRAPHS)
        raise UserError(f"{path} is no chest film (Modality: {said}); leave it out")
    if _ELSEWHERE.fullmatch(part):
        raise UserError(f"{path} is no chest film (Body Part Examined: {part}); leave it out")
    view = _text(dataset, "ViewPosition")
    if modality in _CAPTURES and not _CHEST.search(part) and view not in ("PA", "AP"):
        raise UserError(
            f"{path} may be no chest film (Modality {modality}, neither body part CHEST nor view PA or AP); leave it "
            "out, or export the original film"
        )


def _view(dataset: "Dataset", path: str | Path) -> str:
    """``PA``, ``AP`` or "". Raises UserError if the header says that the film is lateral or oblique.

    Sources in this order: View Position, the view's code, Patient Position (where it does not belong, but some software
    writes it). Patient Orientation tells a lateral too.
    """
    words = re.findall("[A-Z]+", _text(dataset, "ViewPosition"))
    codes = dataset.get("ViewCodeSequence")
    meaning = _text(codes[0], "CodeMeaning") if codes and not words else ""
    said = {*words, *re.findall("[A-Z-]+", meaning)}
    frontal = words[:1] in (["PA"], ["AP"])
    if said & _OBLIQUE:
        kind = "oblique"
    elif (said & _LATERAL and "DECUBITUS" not in said) or (not frontal and _sagittal(dataset)):
        kind = "lateral"
    elif frontal:
        return words[0]
    else:
        position = "" if words else _text(dataset, "PatientPosition")
        return next((view for term, view in _VIEWS.items() if term in said or view == position), "")
    raise UserError(f"{path} is {kind} by its header, and only frontal films (PA, AP) are read; leave it out")


def _sagittal(dataset: "Dataset") -> bool:
    """Whether rows or columns run to the patient's front or back (A, P). In a frontal film neither does."""
    ends = dataset.get("PatientOrientation") or ""
    return any(str(end).strip().upper()[:1] in ("A", "P") for end in ([ends] if isinstance(ends, str) else ends))


def _age(text: str) -> float:
    """Years from an age such as 062Y, 018M, 006W, 010D or 62. NaN for anything else, and for more than 120 years."""
    found = re.fullmatch(r"(\d{1,3})([DWMY]?)", text)
    years = int(found[1]) * _DAYS[found[2]] / 365.25 if found else float("nan")
    return years if years <= 120 else float("nan")


def _text(dataset: "Dataset", keyword: str) -> str:
    """Text of an element in capitals, of several values the first. "" if it is absent."""
    value = dataset.get(keyword)
    if value is not None and not isinstance(value, str) and hasattr(value, "__len__"):
        value = value[0] if len(value) else None
    return "" if value is None else str(value).strip().upper()


def _number(dataset: "Dataset", keyword: str) -> int | None:
    value = dataset.get(keyword)
    return None if value is None or value == "" else int(value)


def _cell(dataset: "Dataset", path: str | Path) -> _Cell:
    """Layout of a pixel by the header. Raises UserError for floating numbers and for layouts that contradict."""
    allocated = _number(dataset, "BitsAllocated")
    stored = _number(dataset, "BitsStored") or allocated
    if allocated not in (8, 16) or "PixelData" not in dataset:
        raise UserError(f"{path} has pixels of neither 8 nor 16 bits, as no film has; export the original film")
    high = _number(dataset, "HighBit")
    shift = 0 if high is None else high + 1 - stored
    if not 1 <= stored <= allocated or not 0 <= shift <= allocated - stored:
        raise UserError(f"{path} is damaged (Bits Allocated, Bits Stored and High Bit contradict); export it again")
    return _Cell(allocated, stored, shift, _number(dataset, "PixelRepresentation") == 1)


def _codes(dataset: "Dataset", film: Header, cell: _Cell, path: str | Path) -> tuple[np.ndarray, _Cell]:
    """Stored values as unsigned codes below 2^stored, (rows, columns) uint8 or uint16, and the layout that they have.

    A negative value has the upper half of the codes (two's complement).
    """
    syntax = _syntax(dataset, path)
    element = dataset["PixelData"]
    if syntax.is_encapsulated != element.is_undefined_length:
        said, found = ("compressed", "plain") if syntax.is_encapsulated else ("plain", "compressed")
        raise UserError(f"{path} is damaged (its header says {said} pixels, and they are {found}); export it again")
    plugin = ""
    if syntax.is_encapsulated:
        plugin = _plugin(syntax, path)
        cell = _check_stream(element.value, syntax, film, cell, path)
    elif len(element.value) < film.rows * film.columns * cell.allocated // 8:
        raise UserError(f"{path} is truncated (it has fewer pixels than its header says); export or download it again")
    codes = _decode(element, syntax, plugin, film, cell)
    codes = codes.astype(codes.dtype.newbyteorder("="), copy=False).view(f"u{codes.itemsize}")
    return (codes >> cell.shift) & (2**cell.stored - 1), cell


def _syntax(dataset: "Dataset", path: str | Path) -> "UID":
    """Transfer syntax of a dataset. A file without one in its header is plain, as it has been read."""
    from pydicom import uid

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        implicit, little = dataset.original_encoding
        plain = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        return uid.ImplicitVRLittleEndian if implicit else plain
    if syntax.name == syntax or not syntax.is_transfer_syntax:
        raise UserError(f"{path} does not say how its pixels are encoded (Transfer Syntax UID); export it again")
    return syntax


def _plugin(syntax: "UID", path: str | Path) -> str:
    """First of pydicom's plugins for an encoding that is installed. None raises UserError with the command for it."""
    from pydicom.pixels import get_decoder

    if syntax not in _DECODERS:
        raise UserError(f"{path} is encoded as {syntax.name}, which cannot be decoded here; export it uncompressed")
    wanted = _DECODERS[syntax][1]
    installed = get_decoder(syntax).available_plugins
    for plugin, _ in wanted:
        if not plugin or plugin in installed:
            return plugin
    raise UserError(f"{path} is encoded as {syntax.name}, whose decoder is missing: pip install {wanted[0][1]}")


def _check_stream(data: bytes, syntax: "UID", film: Header, cell: _Cell, path: str | Path) -> _Cell:
    """Layout of the decoded pixels. Raises UserError if a compressed stream is not what the header says.

    The decoders believe the stream's size, so it is compared before they make room for it.
    """
    from pydicom.encaps import get_frame

    stream = get_frame(data, 0, number_of_frames=1)
    if syntax == _RLE:
        return cell
    found, allowed = _stream(stream), _DECODERS[syntax][0]
    if found is None:
        raise UserError(f"{path} is damaged (its pixels are not encoded as its header says); export it again")
    if found.kind not in allowed:
        raise UserError(
            f"{path} is damaged (its header says {' or '.join(allowed.values())}, and its pixels are "
            f"{_STREAMS[found.kind]}); export it again"
        )
    if found.samples != 1:
        raise UserError(f"{path} is in colour, and films are grey; export the original film")
    if (found.rows, found.columns) != (film.rows, film.columns):
        raise UserError(
            f"{path} is damaged ({film.columns} x {film.rows} pixels in its header, {found.columns} x {found.rows} in "
            "its compressed part); export it again"
        )
    if b"\xff\xd9" not in stream[-65536:]:
        raise UserError(f"{path} is truncated (its compressed pixels do not end); export or download it again")
    if allowed is _LIBJPEG_STREAMS and found.precision != 8:
        raise UserError(
            f"{path} is encoded as JPEG of {found.precision} bits, for which no free decoder is known; "
            "export it uncompressed or as JPEG 2000"
        )
    if not 1 <= found.precision <= 16:
        raise UserError(f"{path} has pixels of {found.precision} bits, as no film has; export the original film")
    return _Cell(8 if found.precision <= 8 else 16, min(cell.stored, found.precision), 0, cell.signed)


def _stream(data: bytes) -> _Stream | None:
    """Facts from the head of a JPEG, JPEG-LS or JPEG 2000 stream. None if it is none of them."""
    start = data[:512].find(b"\xff\x4f\xff\x51")  # a few files keep the boxes of JP2 before the stream
    if start == 0 or (start > 0 and data[4:8] == b"jP  "):
        right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
        samples, depth = struct.unpack_from(">HB", data, start + 40)
        return _Stream(0x4F, bottom - top, right - left, samples, (depth & 0x7F) + 1)
    if not data.startswith(b"\xff\xd8"):
        return None
    start = 2
    while start + 10 <= len(data) and data[start] == 0xFF:
        code, length = data[start + 1], struct.unpack_from(">H", data, start + 2)[0]
        if code == 0xFF:  # a filling byte
            start += 1
        elif code in _STREAMS:
            precision, rows, columns, samples = struct.unpack_from(">BHHB", data, start + 4)
            return _Stream(code, rows, columns, samples, precision)
        else:
            start += 2 + length
    return None


def _decode(element, syntax: "UID", plugin: str, film: Header, cell: _Cell) -> np.ndarray:
    """Pixels as pydicom decodes them, (rows, columns), with the unused bits as they are. Only checked numbers go in."""
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder

    if _DECODERS.get(syntax, ({}, []))[0] is _LOSSLESS:
        return jpeg_lossless.decode(get_frame(element.value, 0, number_of_frames=1))
    pixels, _ = get_decoder(syntax).as_array(
        element.value,
        index=0,
        decoding_plugin=plugin,
        correct_unused_bits=False,
        rows=film.rows,
        columns=film.columns,
        number_of_frames=1,
        samples_per_pixel=1,
        bits_allocated=cell.allocated,
        bits_stored=cell.stored,
        pixel_representation=int(cell.signed),
        photometric_interpretation="MONOCHROME2",
        pixel_keyword="PixelData",
        pixel_vr=element.VR,
    )
    return pixels


def _table(dataset: "Dataset", cell: _Cell, codes: np.ndarray, *, little: bool) -> np.ndarray:
    """Grey of every code, (2^stored,) uint8: steps 2 to 5 of the standard's order."""
    values = _signed(np.arange(2**cell.stored), cell.stored, signed=cell.signed)
    padding = _padding(dataset, values, cell)
    scaled = _modality(dataset, values, little=little)
    greys = _interest(dataset, scaled, little=little)
    if greys is None:
        used = np.ones(len(values), bool) if cell.stored <= 8 else _used(codes, len(values)) & ~padding
        greys = _full_range(scaled, used)
    inverse = _text(dataset, "PresentationLUTShape") == "INVERSE"
    if inverse or _text(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        greys = 255 - greys
    return np.where(padding, 0, np.rint(np.clip(greys, 0, 255))).astype(np.uint8)


def _signed(codes: np.ndarray | int, bits: int, *, signed: bool) -> np.ndarray | int:
    """Values of codes of ``bits`` bits, by two's complement if ``signed``."""
    sign = (1 << (bits - 1)) if signed else 0
    return ((codes & ((1 << bits) - 1)) ^ sign) - sign


def _padding(dataset: "Dataset", values: np.ndarray, cell: _Cell) -> np.ndarray:
    """Which values are padding, from Pixel Padding Value to its Range Limit in either order (C.7.5.1.1.2).

    Some software writes them without the sign that the pixels have, so their 16 bits are read again.
    """
    ends = [_number(dataset, f"PixelPadding{end}") for end in ("Value", "RangeLimit")]
    if ends[0] is None:
        return np.zeros(len(values), bool)
    low, high = sorted(_signed(ends[0] if end is None else end, 16, signed=cell.signed) for end in ends)
    return (values >= low) & (values <= high)


def _modality(dataset: "Dataset", values: np.ndarray, *, little: bool) -> np.ndarray:
    """Values in the maker's unit: by the lookup table, else by slope and intercept, else as stored (C.11.1)."""
    from pydicom.pixels import apply_modality_lut

    if tables := dataset.get("ModalityLUTSequence"):
        return _lookup(tables[0], values, little=little)[0]
    if "" in (_text(dataset, "RescaleSlope"), _text(dataset, "RescaleIntercept")):
        return values
    scaled = apply_modality_lut(values, dataset)
    if not np.isfinite(scaled).all():
        raise ValueError("rescale slope or intercept")
    return scaled


def _interest(dataset: "Dataset", scaled: np.ndarray, *, little: bool) -> np.ndarray | None:
    """Greys from 0 to 255 by the first VOI lookup table or window (C.11.2). None if there is no valid one."""
    if tables := dataset.get("VOILUTSequence"):
        greys, depth = _lookup(tables[0], scaled, little=little)
        return greys * (255 / max(2**depth - 1, greys.max()))
    return _window(dataset, scaled)


def _window(dataset: "Dataset", scaled: np.ndarray) -> np.ndarray | None:
    """Greys from 0 to 255 by the first window. None if there is none, or if its width is not possible.

    pydicom's function derives its output range from the dataset that it is given, wrongly for a negative slope. So it
    is given one of 8 bits.
    """
    from pydicom import Dataset
    from pydicom.pixels import apply_windowing

    numbers = [_text(dataset, keyword) for keyword in ("WindowCenter", "WindowWidth")]
    if "" in numbers:
        return None
    centre, width = map(float, numbers)
    function = _text(dataset, "VOILUTFunction") or "LINEAR"
    if not np.isfinite([centre, width]).all() or width < (1 if function == "LINEAR" else 1e-9):
        return None
    window = Dataset()
    window.PhotometricInterpretation, window.PixelRepresentation, window.BitsStored = "MONOCHROME2", 0, 8
    window.WindowCenter, window.WindowWidth, window.VOILUTFunction = centre, width, function
    return apply_windowing(scaled, window)


def _lookup(item: "Dataset", values: np.ndarray, *, little: bool) -> tuple[np.ndarray, int]:
    """Values by a lookup table, and the bits of its entries (C.11.1.1). Values beyond its ends have the end's entry.

    pydicom's function wraps for a table of more than 256 entries of 8 bits, and knows no table of bytes.
    """
    entries, first, depth = (int(number) for number in item.LUTDescriptor)
    entries = (entries & 0xFFFF) or 65536
    if values.min() < 0:
        first = _signed(first, 16, signed=True)
    data = item["LUTData"].value
    if isinstance(data, bytes):
        width = 1 if len(data) in (entries, entries + 1) and len(data) < 2 * entries else 2
        data = np.frombuffer(data[: entries * width], "u1" if width == 1 else "<u2" if little else ">u2")
    table = np.asarray(data, np.float64).reshape(-1) % 65536
    if len(table) < entries:
        raise ValueError("lookup table too short")
    return table[np.clip(np.rint(values).astype(np.int64) - first, 0, entries - 1)], depth


def _used(codes: np.ndarray, count: int) -> np.ndarray:
    """Which of ``count`` codes occur in a film."""
    used = np.zeros(count, bool)
    used[codes] = True
    return used


def _full_range(scaled: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Greys from 0 to 255, spread from the least of the used values to the largest. Black if there is only one."""
    if not used.any():
        return np.zeros(len(scaled))
    low, high = scaled[used].min(), scaled[used].max()
    return (scaled - low) * (255 / ((high - low) or 1))
