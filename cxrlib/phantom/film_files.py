"""Film files of phantom films: the bytes of a PNG of 8 or 16 bits, a JPEG, or a DICOM file, from (S, S) uint8
pixels."""

import hashlib
from io import BytesIO

import cv2
import numpy as np

UID_ROOT = "2.25."
"""Root of unique identifiers that are made from a number (DICOM PS3.5, B.2)."""


def png(pixels: np.ndarray) -> bytes:
    """PNG of 8 bits."""
    return cv2.imencode(".png", pixels)[1].tobytes()


def png_16_bits(pixels: np.ndarray) -> bytes:
    """PNG of 16 bits that uses the whole range."""
    return cv2.imencode(".png", pixels.astype(np.uint16) * 257)[1].tobytes()


def jpeg(pixels: np.ndarray) -> bytes:
    """JPEG of quality 95."""
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def dicom(
    pixels: np.ndarray, *, name: str, sex: str, age: int, view: str, bits: int = 8, inverted: bool = False
) -> bytes:
    """DICOM of a chest film, uncompressed. ``name`` makes the unique identifier, ``inverted`` a MONOCHROME1 film.

    ``bits`` is 8, or 12 in 16. ``view`` "" leaves the view position out.
    """
    from pydicom import Dataset, FileMetaDataset, uid

    values = pixels if bits == 8 else pixels.astype(np.uint16) << (bits - 8)
    values = 2**bits - 1 - values if inverted else values
    film = Dataset()
    film.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    film.SOPInstanceUID = UID_ROOT + str(int.from_bytes(hashlib.sha256(name.encode()).digest()[:14], "big"))
    film.Modality, film.BodyPartExamined, film.ViewPosition = "DX", "CHEST", view
    film.PatientID, film.PatientSex, film.PatientAge = name, sex, f"{age:03d}Y"
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME1" if inverted else "MONOCHROME2"
    film.Rows, film.Columns = values.shape
    film.BitsAllocated = 8 if bits == 8 else 16
    film.BitsStored, film.HighBit, film.PixelRepresentation = bits, bits - 1, 0
    film.PixelData = values.astype("u1" if bits == 8 else "<u2").tobytes()
    film["PixelData"].VR = "OB" if bits == 8 else "OW"
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    file = BytesIO()
    film.save_as(file, enforce_file_format=True)
    return file.getvalue()
