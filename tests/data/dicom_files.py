"""Small DICOM files for the tests, made by pydicom, GDCM and Pillow in any encoding."""

import struct
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from pydicom import Dataset, FileMetaDataset, uid
from pydicom.encaps import encapsulate

RAW = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
}
LOSSLESS = {
    "RLE": uid.RLELossless,
    "JPEG lossless 57": uid.JPEGLossless,
    "JPEG lossless 70": uid.JPEGLosslessSV1,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG 2000": uid.JPEG2000Lossless,
}


def film(bits: int = 12, *, signed: bool = False, shape: tuple[int, int] = (40, 48), seed: int = 0) -> np.ndarray:
    """Values of a film of noise over a slope. Both ends of the range occur, in uint8, int8, uint16 or int16."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 0.9, shape[0] * shape[1]).reshape(shape) + rng.uniform(0, 0.1, shape)
    values = np.rint(slope * (2**bits - 1)).astype(int)
    values.flat[0], values.flat[-1] = 0, 2**bits - 1
    return (values - (2 ** (bits - 1) if signed else 0)).astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def dataset(values: np.ndarray, *, bits: int | None = None, shift: int = 0, **elements) -> Dataset:
    """Dataset of a frontal chest film with these values. ``elements`` are set last, and None removes one."""
    allocated = values.dtype.itemsize * 8
    bits = bits or allocated
    film = Dataset()
    film.SOPClassUID, film.SOPInstanceUID = uid.DigitalXRayImageStorageForPresentation, "1.2.3"
    film.Modality, film.BodyPartExamined, film.ViewPosition = "DX", "CHEST", "PA"
    film.PatientSex, film.PatientAge = "F", "047Y"
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.Rows, film.Columns = values.shape
    film.BitsAllocated, film.BitsStored, film.HighBit = allocated, bits, bits - 1 + shift
    film.PixelRepresentation = int(values.dtype.kind == "i")
    codes = values.view(f"u{allocated // 8}") & (2**bits - 1)
    film.PixelData = (codes << shift).astype(f"<u{allocated // 8}").tobytes()
    film["PixelData"].VR = "OW" if allocated > 8 else "OB"
    for keyword, value in elements.items():
        if value is None:
            delattr(film, keyword)
        else:
            setattr(film, keyword, value)
    return film


def encode(film: Dataset, syntax: str = uid.ExplicitVRLittleEndian) -> bytes:
    """Bytes of a file. A compressed syntax compresses the pixels, without loss."""
    if syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless):
        return _by_gdcm(film, syntax)
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    if syntax in (uid.RLELossless, uid.JPEG2000Lossless):
        film.compress(syntax, generate_instance_uid=False)
    elif syntax == uid.ExplicitVRBigEndian and film.get("BitsAllocated") == 16:
        film.PixelData = np.frombuffer(film.PixelData, "<u2").astype(">u2").tobytes()
    film.file_meta.TransferSyntaxUID = uid.UID(syntax)
    file = BytesIO()
    film.save_as(file, enforce_file_format=True)
    return file.getvalue()


def pack(film: Dataset, stream: bytes, syntax: str) -> bytes:
    """Bytes of a file with a compressed stream as its pixels, whatever its header says."""
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = uid.UID(syntax)
    film.PixelData = encapsulate([stream])
    film["PixelData"].VR = "OB"
    film["PixelData"].is_undefined_length = True
    file = BytesIO()
    film.save_as(file, enforce_file_format=True)
    return file.getvalue()


def jpeg(values: np.ndarray, **options) -> bytes:
    file = BytesIO()
    Image.fromarray(values).save(file, "JPEG", **options)
    return file.getvalue()


def bare(data: bytes) -> bytes:
    """The same file without preamble and file meta information."""
    return data[144 + int.from_bytes(data[140:144], "little") :]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _by_gdcm(film: Dataset, syntax: str) -> bytes:
    """Bytes of a file whose pixels GDCM compresses. It works from file to file only."""
    import gdcm

    kinds = {
        uid.JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
        uid.JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
        uid.JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless,
    }
    with TemporaryDirectory() as folder:
        plain, packed = Path(folder, "plain.dcm"), Path(folder, "packed.dcm")
        plain.write_bytes(encode(film))
        reader = gdcm.ImageReader()
        reader.SetFileName(str(plain))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(kinds[syntax]))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(packed))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return packed.read_bytes()


def jpeg_lossless(values: np.ndarray, bits: int, *, predictor: int = 1, restart: int = 0, point: int = 0) -> bytes:
    """JPEG lossless stream with any predictor, pixel by pixel as the standard tells it. Every category has 5 bits.

    ``restart`` is a number of rows.
    """
    rows, columns = values.shape
    pixels = (values.astype(int) >> point).tolist()
    body, marks = b"", 0
    for top in range(0, rows, restart or rows):
        text = ""
        for y in range(top, min(top + (restart or rows), rows)):
            for x in range(columns):
                change = (pixels[y][x] - _guess(pixels, y, x, top, predictor, 1 << (bits - point - 1))) & 0xFFFF
                change -= 65536 if change > 32768 else 0
                category = abs(change).bit_length()
                extra = change if change > 0 else change + (1 << category) - 1
                text += f"{category:05b}" + (f"{extra:0{category}b}" if 0 < category < 16 else "")
        text += "1" * (-len(text) % 8)
        body += int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
        if restart and top + restart < rows:
            body += bytes([0xFF, 0xD0 + marks % 8])
            marks += 1
    frame = struct.pack(">BHHBBBB", bits, rows, columns, 1, 1, 0x11, 0)
    table = bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    head = _segment(0xC3, frame) + _segment(0xC4, table)
    head += _segment(0xDD, struct.pack(">H", restart * columns)) if restart else b""
    return b"\xff\xd8" + head + _segment(0xDA, bytes([1, 1, 0, predictor, 0, point])) + body + b"\xff\xd9"


def _segment(code: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(data) + 2) + data


def _guess(pixels: list[list[int]], y: int, x: int, top: int, predictor: int, middle: int) -> int:
    """Prediction of a pixel, ISO 10918-1 table H.1."""
    if y == top:
        return pixels[y][x - 1] if x else middle
    if not x:
        return pixels[y - 1][0]
    a, b, c = pixels[y][x - 1], pixels[y - 1][x], pixels[y - 1][x - 1]
    return (a, b, c, a + b - c, a + ((b - c) >> 1), b + ((a - c) >> 1), (a + b) >> 1)[predictor - 1]
