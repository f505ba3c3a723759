"""DICOM films: greys against the arrays that they were made from, refusals in one line, and nobody's name anywhere."""

import json
import logging
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pydicom", reason="pydicom is not installed")
import dicom_files
from dicom_files import dataset, encode, film
from pydicom import Dataset, dcmread, uid
from pydicom.datadict import DicomDictionary, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from cxrlib import UserError
from cxrlib.data import dicom, images

SYNTAXES = {**dicom_files.RAW, **dicom_files.LOSSLESS}
SENTINEL = "ZQXJ"  # in no word of the project


def spread(values: np.ndarray) -> np.ndarray:
    """Greys of a film without a window: from its least value to its largest."""
    values = values.astype(float)
    return np.rint((values - values.min()) * 255 / (values.max() - values.min())).astype(np.uint8)


def greys(values: np.ndarray, **options) -> np.ndarray:
    return dicom.decode(encode(dataset(values, **options)), "film.dcm")


def refusal(data: bytes) -> str:
    """The one line with which a film is refused."""
    with pytest.raises(UserError) as caught:
        dicom.decode(data, "film.dcm")
    message = str(caught.value)
    assert message.startswith("film.dcm ")
    assert "\n" not in message
    return message


def table(entries: list[int] | bytes, first: int, bits: int, *, count: int | None = None) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) if count is None else count, first, bits])
    data = entries if isinstance(entries, bytes) else np.array(entries, "<u2").tobytes()
    item.add_new("LUTData", "OW", data)
    return Sequence([item])


# Encodings


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_lossless_encoding_gives_the_array_back(syntax, bits, signed):
    if "JPEG l" in syntax or syntax == "JPEG-LS":
        pytest.importorskip("gdcm", reason="GDCM, which makes these files, is not installed")
    values = film(bits, signed=signed)
    data = encode(dataset(values, bits=bits), SYNTAXES[syntax])
    np.testing.assert_array_equal(dicom.decode(data, "film.dcm"), spread(values))
    head = dicom.header(data, "film.dcm")
    assert (head.rows, head.columns, head.view, head.sex, head.age) == (40, 48, "PA", "F", 47)


@pytest.mark.parametrize("quality", [50, 95])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_baseline_is_as_pillow_decodes_it(tmp_path, quality, progressive):
    values = film(8)
    stream = dicom_files.jpeg(values, quality=quality, progressive=progressive)
    data = dicom_files.pack(dataset(values), stream, uid.JPEGBaseline8Bit)
    path = dicom_files.write(tmp_path / "film.dcm", data)
    np.testing.assert_array_equal(dicom.read(path), dcmread(path).pixel_array)


def test_jpeg_of_8_bits_in_a_header_of_16_is_read():
    values = film(8)
    head = dataset(values.astype(np.uint16), bits=16)
    data = dicom_files.pack(head, dicom_files.jpeg(values, quality=100, subsampling=0), uid.JPEGBaseline8Bit)
    assert np.abs(dicom.decode(data, "film.dcm").astype(int) - values).max() < 8


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big endian"])
def test_a_file_without_preamble_and_meta_information_is_read(syntax):
    values = film(12)
    data = dicom_files.bare(encode(dataset(values, bits=12), SYNTAXES[syntax]))
    assert dicom.looks_like(data)
    np.testing.assert_array_equal(dicom.decode(data, "film.dcm"), spread(values))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_value_of_any_depth_is_cut_out_of_its_cell(data):
    bits = data.draw(st.integers(2, 16))
    values = film(bits, signed=data.draw(st.booleans()), shape=(5, 7), seed=data.draw(st.integers(0, 999)))
    allocated = values.dtype.itemsize * 8
    shift = data.draw(st.integers(0, allocated - bits))
    head = dataset(values, bits=bits, shift=shift)
    unused = np.random.default_rng(0).integers(0, 2**allocated, values.shape)  # overlays were kept there once
    used = ((1 << bits) - 1) << shift
    cells = np.frombuffer(head.PixelData, f"<u{allocated // 8}").reshape(values.shape)
    head.PixelData = (cells | (unused & ~used)).astype(cells.dtype).tobytes()
    syntax = data.draw(
        st.sampled_from([uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
    )
    if len(head.PixelData) % 2:
        head.PixelData += b"\0"
    if syntax == uid.ExplicitVRBigEndian and allocated == 8:
        syntax = uid.ImplicitVRLittleEndian
    np.testing.assert_array_equal(dicom.decode(encode(head, syntax), "film.dcm"), spread(values))


def test_film_of_8_bits_keeps_its_values():
    values = np.clip(film(8), 20, 200)
    np.testing.assert_array_equal(greys(values), values)


# From stored values to greys


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME1", "INVERSE", True),  # said twice, meant once
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_white_is_bone_whichever_way_the_header_says_it(photometric, shape, inverted):
    values = film(8)
    extra = {"PresentationLUTShape": shape} if shape else {}
    expected = 255 - values if inverted else values
    np.testing.assert_array_equal(greys(values, PhotometricInterpretation=photometric, **extra), expected)


def window(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, as they are written there."""
    x = values.astype(float)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return np.rint(255 / (1 + np.exp(-4 * (x - centre) / width)))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        ramp = ((x - centre) / width + 0.5) * 255
    return np.rint(np.where(x <= centre - width / 2, 0, np.where(x > centre + width / 2, 255, ramp)))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (1000, 500), (100, 1), (3000.5, 2000.25), (0, 50)])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_window_is_applied_as_the_standard_says(function, centre, width, signed):
    values = film(12, signed=signed)
    found = greys(values, bits=12, WindowCenter=centre, WindowWidth=width, VOILUTFunction=function)
    np.testing.assert_array_equal(found, window(values, centre, width, function))


def test_first_of_several_windows_counts_and_linear_is_the_rule():
    values = film(12)
    found = greys(values, bits=12, WindowCenter=[1000, 3000], WindowWidth=[900, 10])
    np.testing.assert_array_equal(found, window(values, 1000, 900, "LINEAR"))


@pytest.mark.parametrize(("centre", "width"), [(1000, 0), (1000, -5), ("", ""), (1000, None)])
def test_impossible_window_is_as_none(centre, width):
    values = film(12)
    extra = {} if width is None else {"WindowWidth": width}
    np.testing.assert_array_equal(greys(values, bits=12, WindowCenter=centre, **extra), spread(values))


@pytest.mark.parametrize("slope", [1, 2.5, -1, -0.25])
@pytest.mark.parametrize("windowed", [False, True])
def test_window_is_in_the_unit_that_rescaling_gives(slope, windowed):
    values = film(12)
    scaled = values.astype(float) * slope - 1024
    extra = {"WindowCenter": 500 * slope, "WindowWidth": 900} if windowed else {}
    expected = window(scaled, 500 * slope, 900, "LINEAR") if windowed else spread(scaled)
    found = greys(values, bits=12, RescaleSlope=slope, RescaleIntercept=-1024, RescaleType="US", **extra)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("syntax", ["implicit", "explicit"])
@pytest.mark.parametrize("first", [0, 100])
def test_modality_table_is_as_pydicom_applies_it(syntax, first):
    values = film(12)
    entries = (np.sqrt(np.arange(3000)) * 1000).astype(int).tolist()
    head = dataset(
        values, bits=12, ModalityLUTSequence=table(entries, first, 16), WindowCenter=20000, WindowWidth=30000
    )
    data = encode(head, SYNTAXES[syntax])
    expected = window(apply_modality_lut(values.astype(np.int32), head), 20000, 30000, "LINEAR")
    np.testing.assert_array_equal(dicom.decode(data, "film.dcm"), expected)


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("first", [-50, 0, 700])
def test_voi_table_is_as_pydicom_applies_it_and_comes_before_a_window(bits, first):
    values = film(12, signed=first < 0)
    entries = (np.linspace(0, 1, 2000) ** 2 * (2**bits - 1)).astype(int).tolist()
    head = dataset(values, bits=12, VOILUTSequence=table(entries, first, bits), WindowCenter=10, WindowWidth=5)
    data = encode(head)
    expected = apply_voi_lut(values.astype(np.int32), head) * (255 / (2**bits - 1))
    np.testing.assert_array_equal(dicom.decode(data, "film.dcm"), np.rint(expected))


def test_voi_table_of_bytes_has_more_than_256_entries():
    values = film(12)
    entries = bytes(255 - x // 16 for x in range(4096))
    np.testing.assert_array_equal(greys(values, bits=12, VOILUTSequence=table(entries, 0, 8)), 255 - values // 16)


def test_table_of_65536_entries_has_0_in_its_descriptor():
    values = film(16)
    found = greys(values, VOILUTSequence=table(list(range(65536)), 0, 16, count=0))
    np.testing.assert_array_equal(found, spread(values))


def test_big_endian_table_is_read():
    values = film(12)
    head = dataset(values, bits=12, VOILUTSequence=table([], 0, 12, count=4096))
    head.VOILUTSequence[0].LUTData = np.arange(4096)[::-1].astype(">u2").tobytes()
    data = encode(head, uid.ExplicitVRBigEndian)
    np.testing.assert_array_equal(dicom.decode(data, "film.dcm"), spread(4095 - values.astype(int)))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("limit", [None, 40, -40])
def test_padding_is_black_and_left_out_of_the_range(photometric, signed, limit):
    values = np.clip(film(12, signed=signed), *((-1000, 1000) if signed else (100, 3000)))
    low, high = int(values.min()), int(values.max())
    pad = low - 60
    values[:, :5] = pad
    values[:, 5:7] = pad + (limit or 0)
    kind = "SS" if signed else "US"
    head = dataset(values, bits=12, PhotometricInterpretation=photometric)
    head.add_new("PixelPaddingValue", kind, int(pad))
    if limit:
        head.add_new("PixelPaddingRangeLimit", kind, int(pad) + limit)
    expected = np.rint((values[:, 7:].astype(float) - low) * 255 / (high - low))
    if photometric == "MONOCHROME1":
        expected = np.rint(255 - (values[:, 7:].astype(float) - low) * 255 / (high - low))
    found = dicom.decode(encode(head), "film.dcm")
    assert not found[:, :7].any()
    np.testing.assert_array_equal(found[:, 7:], expected)


def test_padding_written_without_its_sign_is_understood():
    values = np.clip(film(16, signed=True), -1000, 1000)
    values[:, :5] = -2000
    head = dataset(values)
    head.add_new("PixelPaddingValue", "US", 65536 - 2000)
    found = dicom.decode(encode(head), "film.dcm")
    assert not found[:, :5].any()
    np.testing.assert_array_equal(found[:, 5:], spread(values[:, 5:]))


def test_constant_film_is_black_and_no_error():
    assert not greys(np.full((8, 8), 700, np.uint16), bits=12).any()


# Header


@pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, as it makes the file
@pytest.mark.parametrize(
    ("age", "years"),
    [
        ("047Y", 47),
        ("62", 62),
        ("018M", 1.5),
        ("052W", 364 / 365.25),
        ("010D", 10 / 365.25),
        ("411Y", None),
        ("", None),
    ],
)
def test_age_is_in_years_whatever_its_unit(age, years):
    found = dicom.header(encode(dataset(film(8), PatientAge=age)), "film.dcm").age
    assert np.isnan(found) if years is None else found == pytest.approx(years)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, as it makes the file
@pytest.mark.parametrize(
    ("elements", "view"),
    [
        ({"ViewPosition": "PA"}, "PA"),
        ({"ViewPosition": "ap"}, "AP"),
        ({"ViewPosition": "AP SUPINE"}, "AP"),
        ({"ViewPosition": ""}, ""),
        ({"ViewPosition": "", "PatientPosition": "AP"}, "AP"),
        ({"ViewPosition": "", "PatientPosition": "HFS"}, ""),
        ({"ViewPosition": "", "PatientOrientation": ["L", "F"]}, ""),
        ({"ViewPosition": "LATERAL DECUBITUS"}, ""),
    ],
)
def test_view_comes_from_where_the_header_has_it(elements, view):
    assert dicom.header(encode(dataset(film(8), **elements)), "film.dcm").view == view


@pytest.mark.parametrize(("meaning", "view"), [("postero-anterior", "PA"), ("antero-posterior", "AP"), ("frontal", "")])
def test_view_comes_from_its_code(meaning, view):
    code = Dataset()
    code.CodeMeaning = meaning
    head = dataset(film(8), ViewPosition="", ViewCodeSequence=[code])
    assert dicom.header(encode(head), "film.dcm").view == view


@pytest.mark.parametrize(("sex", "found"), [("M", "M"), ("F", "F"), ("O", ""), ("", "")])
def test_sex_is_m_f_or_unknown(sex, found):
    assert dicom.header(encode(dataset(film(8), PatientSex=sex)), "film.dcm").sex == found


@pytest.mark.parametrize(("intent", "found"), [("FOR PRESENTATION", True), ("FOR PROCESSING", False), ("", None)])
def test_presentation_intent_is_told(intent, found):
    assert dicom.header(encode(dataset(film(8), PresentationIntentType=intent)), "film.dcm").presentation is found


def test_examine_reads_the_header_without_the_pixels(tmp_path):
    data = encode(dataset(film(8), PatientAge="033Y"))
    path = dicom_files.write(tmp_path / "film.dcm", data[:-1000])
    assert dicom.examine(path).age == 33
    with pytest.raises(UserError, match="truncated"):
        dicom.read(path)


# Refusals


def several(modality: str, name: str = "ComputedRadiographyImageStorage") -> dict:
    return {"Modality": modality, "SOPClassUID": getattr(uid, name)}


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        (several("CT"), "Modality: CT"),
        (several("MR"), "Modality: MR"),
        (several("CR", "CTImageStorage"), "SOP class: CT Image Storage"),
        (several("DX", "DigitalMammographyXRayImageStorageForPresentation"), "SOP class: Digital Mammography"),
        (several("HOUSE"), "none of CR, DX"),
        ({"Modality": "OT", "BodyPartExamined": None, "ViewPosition": None}, "Modality OT"),
        ({"BodyPartExamined": "KNEE"}, "KNEE"),
        ({"NumberOfFrames": 3}, "several frames"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour"),
        ({"PhotometricInterpretation": "YBR_FULL_422"}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"PhotometricInterpretation": None}, "which end"),
        ({"ViewPosition": "LL"}, "lateral"),
        ({"ViewPosition": "RL"}, "lateral"),
        ({"ViewPosition": "LATERAL"}, "lateral"),
        ({"ViewPosition": "RAO"}, "oblique"),
        ({"ViewPosition": "", "PatientOrientation": ["A", "F"]}, "lateral"),
        ({"ViewPosition": "", "PatientOrientation": ["F", "P"]}, "lateral"),
        ({"PixelData": None}, "no pixels"),
        ({"Rows": None}, "no size"),
        ({"Rows": 60000, "Columns": 60000}, "60000 x 60000"),
        ({"Rows": 41}, "truncated"),
        ({"HighBit": 3}, "contradict"),
        ({"BitsStored": 13}, "contradict"),
        ({"BitsAllocated": 32}, "neither 8 nor 16 bits"),
        ({"RescaleSlope": "1e400", "RescaleIntercept": 0}, "damaged"),
    ],
)
def test_what_is_no_film_is_refused_with_its_reason(elements, reason):
    assert reason in refusal(encode(dataset(film(8), **elements)))


@pytest.mark.parametrize(
    "elements",
    [
        several("CR"),
        several("RG"),
        several("RF", "XRayRadiofluoroscopicImageStorage"),
        several("CR", "SecondaryCaptureImageStorage"),
        several("OT", "SecondaryCaptureImageStorage"),
        several("OT", "SecondaryCaptureImageStorage") | {"BodyPartExamined": "", "ViewPosition": "AP"},
        {"Modality": None, "BodyPartExamined": None, "ViewPosition": None},
        {"BodyPartExamined": "TORAX"},
        {"NumberOfFrames": 1},
    ],
)
def test_films_of_other_machines_and_anonymised_ones_are_read(elements):
    values = film(8)
    np.testing.assert_array_equal(greys(values, **elements), values)


def test_lateral_by_its_code_is_refused():
    code = Dataset()
    code.CodeMeaning = "left lateral"
    assert "lateral" in refusal(encode(dataset(film(8), ViewPosition="", ViewCodeSequence=[code])))


def test_report_without_pixels_is_called_by_its_class():
    report = dataset(film(8), PixelData=None, SOPClassUID=uid.BasicTextSRStorage, Modality="SR")
    assert "SOP class: Basic Text SR" in refusal(encode(report))


@pytest.mark.parametrize(
    "content", [b"x", b"\x89PNG\r\n\x1a\n" + bytes(300), bytes(300), b"a letter " * 40, b"%PDF-1.7" * 40]
)
def test_other_files_are_not_dicom(content):
    assert not dicom.looks_like(content)
    assert "not DICOM" in refusal(content)


@pytest.mark.parametrize(
    "syntax", ["implicit", "explicit", "deflated", "RLE", "JPEG 2000", "JPEG lossless", "baseline"]
)
def test_a_truncated_file_never_gives_a_part_of_a_film(syntax):
    values = film(8)
    if syntax == "JPEG lossless":
        data = dicom_files.pack(dataset(values), dicom_files.jpeg_lossless(values, 8), uid.JPEGLosslessSV1)
    elif syntax == "baseline":
        data = dicom_files.pack(dataset(values), dicom_files.jpeg(values), uid.JPEGBaseline8Bit)
    else:
        data = encode(dataset(values), SYNTAXES[syntax])
    for end in np.linspace(1, len(data) - 10, 40).astype(int):
        refusal(data[:end])
    for end in range(len(data) - 9, len(data)):  # a missing last mark takes nothing from the film
        with suppress(UserError):
            np.testing.assert_array_equal(dicom.decode(data[:end], "film.dcm"), dicom.decode(data, "film.dcm"))


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGBaseline8Bit, uid.JPEGLosslessSV1])
@pytest.mark.parametrize("left", [0.3, 0.7, 0.95])
def test_a_truncated_stream_in_a_whole_file_is_refused(syntax, left):
    values = film(8)
    streams = {
        uid.JPEGBaseline8Bit: lambda: dicom_files.jpeg(values),
        uid.JPEGLosslessSV1: lambda: dicom_files.jpeg_lossless(values, 8),
        uid.JPEG2000Lossless: lambda: bytes(encode(dataset(values), uid.JPEG2000Lossless).split(b"\xff\x4f", 1)[1]),
    }
    stream = streams[syntax]()
    stream = b"\xff\x4f" + stream if syntax == uid.JPEG2000Lossless else stream
    reason = refusal(dicom_files.pack(dataset(values), stream[: int(left * len(stream))], syntax))
    assert "truncated" in reason or "damaged" in reason


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (uid.JPEG2000Lossless, "says JPEG 2000, and its pixels are JPEG baseline"),
        (uid.JPEGLosslessSV1, "says JPEG lossless, and its pixels are JPEG baseline"),
        (uid.JPEGLSLossless, "says JPEG-LS, and its pixels are JPEG baseline"),
        (uid.RLELossless, "damaged"),
        (uid.ExplicitVRLittleEndian, "says plain pixels, and they are compressed"),
        (uid.MPEG2MPML, "export it uncompressed"),
        ("1.2.3.4.5", "does not say how its pixels are encoded"),
        (uid.CTImageStorage, "does not say how its pixels are encoded"),
    ],
)
def test_a_transfer_syntax_that_lies_is_refused(said, reason):
    values = film(8)
    data = dicom_files.pack(dataset(values), dicom_files.jpeg(values), uid.JPEGBaseline8Bit)
    told = str(uid.JPEGBaseline8Bit).encode()
    length = 26  # as long as both, padded; the group's length stays right
    at = data.index(told)
    old = len(told) + len(told) % 2
    head = data[: at - 2] + length.to_bytes(2, "little") + str(said).encode().ljust(length, b"\0") + data[at + old :]
    group = int.from_bytes(data[140:144], "little") + length - old
    assert reason in refusal(head[:140] + group.to_bytes(4, "little") + head[144:])


def test_plain_pixels_in_a_file_that_says_compressed_are_refused():
    data = encode(dataset(film(8)))
    told = str(uid.ExplicitVRLittleEndian).encode() + b"\0"
    other = str(uid.RLELossless).encode() + b"\0"
    assert "says compressed pixels, and they are plain" in refusal(data.replace(told, other))


def test_streams_size_is_compared_before_it_is_decoded():
    huge = dicom_files.jpeg_lossless(film(8), 8).replace(b"\0\x28\0\x30", b"\xff\xff\xff\xff", 1)
    assert "48 x 40 pixels in its header, 65535 x 65535" in refusal(
        dicom_files.pack(dataset(film(8)), huge, uid.JPEGLossless)
    )


def test_colour_in_the_stream_alone_is_refused():
    stream = dicom_files.jpeg(np.zeros((40, 48, 3), np.uint8))
    assert "colour" in refusal(dicom_files.pack(dataset(film(8)), stream, uid.JPEGBaseline8Bit))


def test_jpeg_of_12_bits_has_no_free_decoder():
    stream = bytearray(dicom_files.jpeg(film(8)))
    at = stream.index(b"\xff\xc0")
    stream[at + 1], stream[at + 4] = 0xC1, 12
    head = dataset(film(12), bits=12)
    assert "JPEG of 12 bits" in refusal(dicom_files.pack(head, bytes(stream), uid.JPEGExtended12Bit))


@pytest.mark.parametrize(
    ("syntax", "package"),
    [(uid.JPEG2000Lossless, "pip install pylibjpeg pylibjpeg-openjpeg"), (uid.JPEGLSLossless, "pyjpegls")],
)
def test_missing_decoder_is_named_with_its_command(monkeypatch, syntax, package):
    import pydicom.pixels

    class Bare:
        available_plugins = ()

    data = dicom_files.pack(dataset(film(8)), b"\xff\x4f", syntax)
    monkeypatch.setattr(pydicom.pixels, "get_decoder", lambda _: Bare)
    reason = refusal(data)
    assert package in reason
    assert syntax.name in reason


def test_missing_pydicom_is_named_with_its_command(monkeypatch):
    data = encode(dataset(film(8)))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert "pip install pydicom" in refusal(data)


def test_deflated_bomb_is_refused(monkeypatch):
    data = encode(dataset(np.zeros((2000, 2000), np.uint8)), uid.DeflatedExplicitVRLittleEndian)
    assert len(data) < 10_000
    monkeypatch.setattr(dicom, "MAX_BYTES", 1_000_000)
    assert "inflates to more than" in refusal(data)


def test_sequences_nested_without_end_are_refused():
    open_items = (b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff") * 3000
    data = encode(dataset(film(8)))
    at = data.index(b"\x08\0\x16\0")
    refusal(data[:at] + open_items + data[at:])


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(["implicit", "explicit", "RLE", "JPEG 2000"]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=5),
)
def test_damage_anywhere_gives_a_film_or_one_line(syntax, changes):
    data = bytearray(DAMAGED[syntax])
    for place, value in changes:
        data[place % len(data)] = value
    with suppress(UserError):
        assert dicom.decode(bytes(data), "film.dcm").dtype == np.uint8


DAMAGED = {
    name: encode(dataset(film(12, shape=(33, 34)), bits=12), SYNTAXES[name])
    for name in ("implicit", "explicit", "RLE", "JPEG 2000")
}


# Files


@pytest.mark.parametrize("call", [dicom.read, dicom.load, dicom.examine])
def test_pipe_device_folder_empty_and_absent_files_are_refused(tmp_path, call):
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "device.dcm").symlink_to("/dev/zero")
    (tmp_path / "loop.dcm").symlink_to(tmp_path / "loop.dcm")
    (tmp_path / "folder.dcm").mkdir()
    (tmp_path / "empty.dcm").touch()
    for name, reason in {
        "pipe": "not a file",
        "device": "not a file",
        "loop": "cannot be read",
        "folder": "not a file",
        "empty": "0 bytes",
        "absent": "not there",
    }.items():
        with pytest.raises(UserError, match=reason) as caught:
            call(tmp_path / f"{name}.dcm")
        assert f"{name}.dcm" in str(caught.value)


def test_huge_file_is_not_read(tmp_path):
    with (tmp_path / "huge.dcm").open("wb") as file:
        file.truncate(dicom.MAX_BYTES + 1)
    with pytest.raises(UserError, match="bytes, more than"):
        dicom.read(tmp_path / "huge.dcm")


# Privacy


def labelled(**elements) -> Dataset:
    """Film with the sentinel in every element that can hold a text, sequences and wrong kinds of text included."""
    film_ = dataset(film(8))
    texts = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT", "UI", "DA", "DT", "TM", "AS", "IS", "DS"}
    needed = {
        "SOPClassUID",
        "Modality",
        "BodyPartExamined",
        "ViewPosition",
        "PhotometricInterpretation",
        "NumberOfFrames",
    }
    needed |= {"PatientOrientation", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
            if vr in texts and keyword and keyword not in needed and tag > 0x0008_0000:
                add(film_, tag, vr)
        item = Dataset()
        add(item, 0x0010_0010, "PN")
        film_.ReferencedStudySequence = [item]
        for keyword, value in elements.items():
            if value == SENTINEL:
                add(film_, tag_for_keyword(keyword), "LO")
            else:
                setattr(film_, keyword, value)
    return film_


def add(target: Dataset, tag: int, vr: str) -> None:
    """Set a text as it might stand in a file, without pydicom's checks."""
    text = (SENTINEL + " " * 2).encode()
    target[Tag(tag)] = RawDataElement(Tag(tag), vr, len(text), text, 0, False, True, True)


VARIANTS = [
    {},
    {"Modality": SENTINEL},
    {"SOPClassUID": SENTINEL},
    {"BodyPartExamined": SENTINEL},
    {"PhotometricInterpretation": SENTINEL},
    {"NumberOfFrames": SENTINEL},
    {"WindowCenter": SENTINEL},
    {"RescaleSlope": SENTINEL, "RescaleIntercept": SENTINEL},
    {"ViewPosition": "LL"},
    {"Rows": 60000, "Columns": 60000},
]
SCRIPT = """
import logging, sys, traceback
logging.basicConfig(level=logging.DEBUG)
from cxrlib.data import dicom
from cxrlib import UserError
for path in sys.argv[1:]:
    for call in (dicom.read, dicom.examine):
        try:
            found = call(path)
            print(found if call is dicom.examine else found.shape)
        except UserError:
            traceback.print_exc()
"""


def test_no_text_of_a_file_is_in_any_output_log_or_warning(tmp_path):
    paths = []
    for number, (elements, syntax) in enumerate(product(VARIANTS, ["implicit", "explicit"])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = encode(labelled(**elements), SYNTAXES[syntax])
        assert data.count(SENTINEL.encode()) > 500
        for kind, content in {"whole": data, "cut": data[: len(data) // 2]}.items():
            paths.append(dicom_files.write(tmp_path / f"{number}{kind}.dcm", content))
    found = subprocess.run(
        [sys.executable, "-W", "always", "-c", SCRIPT, *map(str, paths)], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.count("(40, 48)") >= 2
    assert found.stderr.count("UserError") >= len(paths)
    assert SENTINEL not in found.stdout + found.stderr
    assert "Warning" not in found.stderr


def test_exception_keeps_no_other_exception_with_values():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = encode(labelled(NumberOfFrames=SENTINEL))
    with pytest.raises(UserError) as caught:
        dicom.decode(data, "film.dcm")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_warnings_and_logs_are_as_before_after_calls_in_threads():
    data = [encode(dataset(film(8))), b"no film"] * 20
    before = list(warnings.filters), logging.getLogger("pydicom").level

    def call(content: bytes) -> bool:
        try:
            return dicom.decode(content, "film.dcm").size > 0
        except UserError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(call, data)) == 20
    assert (list(warnings.filters), logging.getLogger("pydicom").level) == before


def test_importing_the_module_does_not_import_pydicom():
    code = (
        "import sys, json, cxrlib.data.dicom; print(json.dumps([x for x in ('pydicom', 'gdcm') if x in sys.modules]))"
    )
    assert json.loads(subprocess.check_output([sys.executable, "-c", code])) == []


# Real files


def test_real_pair_that_differs_in_photometric_interpretation_alone_is_a_film_and_its_negative(dicom_folder):
    """Both files hold the same stored values, and one byte of the header tells them apart."""
    first, second = (dicom.read(dicom_folder / f"cr_monochrome{number}_jpeg.dcm") for number in (1, 2))
    assert first.shape == (1024, 1024)
    np.testing.assert_array_equal(first, 255 - second)
    assert dicom.examine(dicom_folder / "cr_monochrome1_jpeg.dcm") == dicom.Header(1024, 1024, "PA", "M", 62, None)


def test_real_film_keeps_its_stored_values(dicom_folder):
    path = dicom_folder / "dx_chest_pa.dcm"
    np.testing.assert_array_equal(dicom.read(path), dcmread(path).pixel_array)
    assert dicom.examine(path) == dicom.Header(1024, 1024, "PA", "M", 81, None)


def test_real_ct_is_refused(dicom_folder):
    for call in (dicom.read, dicom.examine):
        with pytest.raises(UserError, match="Modality: CT"):
            call(dicom_folder / "not_a_chest_film_ct.dcm")


@pytest.fixture(name="dicom_folder")
def _dicom_folder(dicom):
    return dicom


def test_limit_is_that_of_other_films():
    assert dicom.MAX_BYTES == 4 * images.MAX_PIXELS
