"""Decoding: films of each mode become grey; a file that is not a complete film raises with its name."""

import contextlib
import errno
import io
import os
import socket
import struct
import time
import zlib

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from cxrlib import UserError
from cxrlib.data import images, records

RAMP = np.linspace(0, 255, 50)[None].repeat(40, 0).astype(np.uint8)  # (40, 50): not square, so a swapped axis shows


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encode(pixels, mode="L", kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode == "I;16" else image.convert(mode)).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def header(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def with_alpha(mode: str, depth: int, alpha) -> bytes:
    """PNG of RAMP in ``LA`` or ``RGBA`` with this alpha, of 8 or 16 bits."""
    channels = np.dstack([RAMP] * (len(mode) - 1) + [alpha]).astype(">u2" if depth == 16 else "u1")
    channels = channels * np.array(257 if depth == 16 else 1, channels.dtype)
    rows = b"".join(b"\0" + row.astype(channels.dtype).tobytes() for row in channels)
    start = SIGNATURE + header(50, 40, depth, 4 if mode == "LA" else 6)
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def with_chunk(png: bytes, name: bytes, data: bytes, before: bytes = b"IDAT") -> bytes:
    """The PNG with one more chunk."""
    at = png.index(before) - 4
    return png[:at] + chunk(name, data) + png[at:]


def sixteen(values, said: int | None = None) -> bytes:
    """16-bit PNG of these values, with an sBIT chunk that says ``said``."""
    png = cv2.imencode(".png", np.asarray(values, np.uint16))[1].tobytes()
    return png if said is None else with_chunk(png, b"sBIT", bytes([said]))


def with_pixels_chunk(png: bytes, data: bytes) -> bytes:
    """The PNG with other compressed pixels and a valid checksum."""
    at = png.index(b"IDAT") - 4
    length = struct.unpack_from(">I", png, at)[0]
    return png[:at] + chunk(b"IDAT", data) + png[at + 12 + length :]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
def test_every_png_mode_gives_the_grey_that_went_in(mode):
    np.testing.assert_array_equal(images.decode(encode(RAMP, mode), "film"), RAMP)


def test_sixteen_bits_keep_their_upper_eight():
    np.testing.assert_array_equal(images.decode(encode(RAMP.astype(np.uint16) * 257, "I;16"), "film"), RAMP)


@pytest.mark.parametrize("bits", images.DEPTHS)
def test_sixteen_bits_that_hold_fewer_come_out_as_bright_as_they_are(bits):
    full = np.rint(RAMP / 255 * (2**bits - 1)).astype(np.uint16)
    film = images.decode_film(sixteen(full), "film")
    assert np.abs(film.pixels.astype(int) - RAMP).max() <= 1
    assert film.pixels.max() == 255
    assert (film.bits, film.largest, film.basis) == (bits, 2**bits - 1, "film")


@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colour_that_holds_twelve(channels):
    grey = (RAMP.astype(np.uint16) * 16)[..., None].repeat(channels, 2)
    data = cv2.imencode(".png", grey)[1].tobytes()
    film = images.decode_film(data, "film")
    assert film.bits == 12
    if channels == 3:
        np.testing.assert_array_equal(film.pixels, RAMP)


@given(hnp.arrays(np.uint16, (7, 9)))
@settings(max_examples=40, deadline=None)
def test_no_value_is_cut_off_or_swapped_by_the_depth(values):
    film = images.decode_film(sixteen(values), "film")
    assert values.max() < 2**film.bits
    np.testing.assert_array_equal(film.pixels, values >> (film.bits - 8))


@pytest.mark.parametrize(
    ("said", "top", "bits"),
    [(12, 4095, 12), (12, 900, 12), (12, 65535, 16), (12, 4096, 16), (16, 900, 16), (10, 1023, 10), (15, 20000, 15)],
)
def test_a_film_that_says_its_depth_is_believed(said, top, bits):
    film = images.decode_film(sixteen([[0, top]], said), "film")
    assert (film.bits, film.basis) == (bits, "sBIT")
    np.testing.assert_array_equal(film.pixels, [[0, top >> (bits - 8)]])


def test_the_depth_of_alpha_does_not_count():
    data = with_chunk(with_alpha("LA", 16, RAMP), b"sBIT", bytes([12, 16]))
    assert images.decode_film(data, "film").bits == 16  # the values need more than 12
    grey = (RAMP.astype(np.uint16) * 16)[..., None].repeat(4, 2)
    data = with_chunk(cv2.imencode(".png", grey)[1].tobytes(), b"sBIT", bytes([12, 12, 12, 16]))
    assert images.decode_film(data, "film").bits == 12


@pytest.mark.parametrize("said", [0, 3, 17, 255])
def test_a_depth_that_makes_no_sense_is_not_believed(said):
    film = images.decode_film(sixteen([[0, 4000]], said), "film")
    assert (film.bits, film.basis) == (12, "film")


def write_sixteen(folder, tops):
    folder.mkdir(exist_ok=True)
    for i, top in enumerate(tops):
        (folder / f"{i:08d}_000.png").write_bytes(sixteen([[0, top], [top // 2, top]]))


def brightest(folder, i):
    return int(images.read(folder / f"{i:08d}_000.png").max())


def test_a_dark_film_among_sixteen_bit_films_stays_dark(tmp_path):
    write_sixteen(tmp_path / "scanner", [65535] * 9 + [3000])
    write_sixteen(tmp_path / "alone", [3000])
    assert images.folder_depths(tmp_path / "scanner") == (16,)
    assert [brightest(tmp_path / "scanner", i) for i in (0, 9)] == [255, 3000 >> 8]
    assert images.folder_depths(tmp_path / "alone") == ()
    assert brightest(tmp_path / "alone", 0) == 3000 >> 4


def test_a_dark_film_of_a_twelve_bit_scanner_is_as_dark_as_it_is(tmp_path):
    write_sixteen(tmp_path / "scanner", [4095] * 9 + [1000])
    assert [brightest(tmp_path / "scanner", i) for i in (0, 9)] == [255, 1000 >> 4]


def test_films_of_two_scanners_in_a_folder_are_both_read(tmp_path):
    write_sixteen(tmp_path / "two", [4095, 65535] * 8)
    assert images.folder_depths(tmp_path / "two") == (12, 16)
    assert [brightest(tmp_path / "two", i) for i in range(4)] == [255, 255, 255, 255]


def test_one_value_above_the_folders_depth_is_not_cut_off(tmp_path):
    write_sixteen(tmp_path / "marked", [4095] * 9 + [60000])
    assert [brightest(tmp_path / "marked", i) for i in (0, 9)] == [255, 60000 >> 8]


def test_films_that_say_nothing_of_the_depth_have_no_vote(tmp_path):
    """Black films, films of 8 bits, films with sBIT, damaged films and pipes."""
    folder = tmp_path / "mixed"
    write_sixteen(folder, [4095, 4000, 0, 0, 0])
    (folder / "1.png").write_bytes(encode(RAMP))
    (folder / "2.png").write_bytes(sixteen([[65535]], said=16))
    (folder / "3.png").write_bytes(sixteen([[65535]])[:-20])
    (folder / "4.png").write_bytes(b"")
    os.mkfifo(folder / "5.png")
    assert images.folder_depths(folder) == (12,)


def test_a_folder_that_changes_is_looked_at_again(tmp_path):
    write_sixteen(tmp_path / "films", [4095] * 3)
    assert images.folder_depths(tmp_path / "films") == (12,)
    for file in (tmp_path / "films").iterdir():
        file.unlink()
    write_sixteen(tmp_path / "films", [65535] * 3)
    os.utime(tmp_path / "films", ns=(0, 0))
    assert images.folder_depths(tmp_path / "films") == (16,)


@pytest.mark.real
def test_twelve_bits_in_sixteen_are_the_films_they_were_made_from(cases):
    for path in sorted((cases / "twelve_bits_in_sixteen" / "images").iterdir()):
        film = images.decode_film(path.read_bytes(), path)
        assert (film.bits, film.basis) == (12, "folder")
        np.testing.assert_array_equal(film.pixels, images.read(cases / "excel_semicolon" / "images" / path.name))


COLOURS = {"L": RAMP, "RGB": RAMP, "P": RAMP, "RGBA": RAMP, "1": RAMP, "I;16": RAMP.astype(np.uint16) * 257}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "mode"), [*(("PNG", mode) for mode in COLOURS), ("JPEG", "L"), ("JPEG", "RGB")])
def test_the_orientation_of_exif_is_applied(kind, mode, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain, turned = encode(COLOURS[mode], mode, kind), encode(COLOURS[mode], mode, kind, exif=exif)
    film = images.decode_film(turned, "film")
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(encode(images.decode(plain, "film"), exif=exif))))
    np.testing.assert_array_equal(film.pixels, np.asarray(expected))
    assert film.pixels.flags.c_contiguous
    assert film.orientation == orientation
    (tmp_path / "film").write_bytes(turned)
    assert images.size(tmp_path / "film") == expected.size


def test_the_orientation_may_stand_after_the_pixels():
    exif = Image.Exif()
    exif[0x0112] = 6
    late = with_chunk(encode(RAMP), b"eXIf", exif.tobytes()[6:], before=b"IEND")
    np.testing.assert_array_equal(images.decode(late, "film"), np.rot90(RAMP, -1))
    assert images.header(late, "film")[1] == (40, 50)


def exif_data(kind: int, value: bytes) -> bytes:
    """EXIF data with one entry, the orientation, as TIFF type ``kind`` and four bytes of value."""
    return b"MM\0*" + struct.pack(">IHHHI4sI", 8, 1, 0x0112, kind, 1, value, 0)


NONSENSE = {
    "0": (3, b"\0\0\0\0"),
    "9": (3, b"\0\x09\0\0"),
    "70000": (4, struct.pack(">I", 70000)),
    "-1": (9, struct.pack(">i", -1)),
    "text": (2, b"6\0\0\0"),
    "a fraction at no place": (5, struct.pack(">I", 9999)),
    "a type that does not exist": (99, b"\0\x06\0\0"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_an_orientation_that_makes_no_sense_is_ignored(name):
    exif = exif_data(*NONSENSE[name])
    for data in (with_chunk(encode(RAMP), b"eXIf", exif), encode(RAMP, kind="JPEG", exif=b"Exif\0\0" + exif)):
        film = images.decode_film(data, "film")
        assert (film.pixels.shape, film.orientation) == (RAMP.shape, 1)
    good = with_chunk(encode(RAMP), b"eXIf", exif_data(3, b"\0\x06\0\0"))
    assert images.decode_film(good, "film").orientation == 6


@pytest.mark.filterwarnings("error")
@given(st.binary(max_size=60))
@settings(max_examples=60, deadline=None)
def test_damaged_exif_is_ignored_in_silence(exif):
    film = images.decode_film(with_chunk(encode(RAMP), b"eXIf", b"MM\0*" + exif), "film")
    np.testing.assert_array_equal(film.pixels, images.upright(RAMP, film.orientation))


@pytest.mark.real
def test_turned_films_come_out_upright(cases):
    for path in sorted((cases / "exif_turned" / "images").iterdir()):
        np.testing.assert_array_equal(images.read(path), images.read(cases / "excel_semicolon" / "images" / path.name))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("alpha", [0, 100, 255])
def test_an_alpha_that_is_the_same_everywhere_is_dropped(alpha, mode, depth):
    film = images.decode_film(with_alpha(mode, depth, np.full_like(RAMP, alpha)), "film")
    np.testing.assert_array_equal(film.pixels, RAMP)
    assert not film.transparent


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_parts_are_black(mode, depth):
    alpha = np.full_like(RAMP, 255)
    alpha[:10], alpha[10:20] = 0, 51
    film = images.decode_film(with_alpha(mode, depth, alpha), "film")
    assert film.transparent
    assert film.pixels[:10].max() == 0
    np.testing.assert_array_equal(film.pixels[10:20], np.rint(RAMP[10:20] / 5))
    np.testing.assert_array_equal(film.pixels[20:], RAMP[20:])


def test_coloured_films_with_alpha_have_the_grey_of_those_without():
    colour = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    opaque = cv2.imencode(".png", np.dstack([colour, np.full((30, 40), 255, np.uint8)]))[1].tobytes()
    plain = cv2.imencode(".png", colour)[1].tobytes()
    np.testing.assert_array_equal(images.decode(opaque, "film"), images.decode(plain, "film"))


def test_cmyk_is_read_with_adobes_mark_and_refused_without():
    marked = encode(RAMP, "CMYK", "JPEG", quality=95)
    at = marked.index(b"\xff\xee")
    unmarked = marked[:at] + marked[at + 2 + struct.unpack_from(">H", marked, at + 2)[0] :]
    with pytest.raises(UserError, match=r"film\.jpg is CMYK without Adobe's mark"):
        images.decode(unmarked, "film.jpg")


@pytest.mark.parametrize("depth", [2, 4])
def test_two_and_four_bits_are_spread_over_the_range(depth):
    """The PNG standard: value v of n bits is v * 255 / (2^n - 1)."""
    levels = 2**depth
    row = np.arange(levels, dtype=np.uint8)
    packed = np.packbits(np.unpackbits(row[:, None], axis=1)[:, -depth:].ravel()).tobytes()
    data = header(levels, 1, depth) + chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(images.decode(SIGNATURE + data, "film")[0], row * (255 // (levels - 1)))


def test_one_bit_is_black_and_white():
    pixels = images.decode(encode(RAMP, "1"), "film")
    assert set(np.unique(pixels)) == {0, 255}


def test_interlaced_palette_with_transparency():
    pixels = images.decode(encode(RAMP, "P", transparency=3, interlace=1), "film")
    np.testing.assert_array_equal(pixels, RAMP)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg(mode):
    pixels = images.decode(encode(RAMP, mode, "JPEG", quality=95), "film")
    assert np.abs(pixels.astype(int) - RAMP).max() <= 3


@pytest.mark.real
def test_colour_films_of_the_download_read_as_pillow_reads_them(nih_fullres):
    checked = 0
    for path in sorted((nih_fullres / "images").iterdir()):
        with Image.open(path) as film:
            if film.mode != "RGBA":
                continue
            reference = np.asarray(film)[..., 0]
        assert np.abs(images.read(path).astype(int) - reference).max() <= 1
        checked += 1
    assert checked == 6


@pytest.fixture
def both_decoders(monkeypatch):
    """Decoders (decode, decode): with kornia-rs, and with OpenCV only."""
    pytest.importorskip("kornia_rs", reason="kornia-rs, the faster decoder, is not installed")

    def alone(data, path):
        with monkeypatch.context() as patched:
            patched.setattr(images, "decode_image_png_u8", None)
            return images.decode(data, path)

    return images.decode, alone


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)), st.booleans(), st.integers(0, 9))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_decoders_give_the_same_pixels(both_decoders, pixels, interlace, level):
    data = encode(pixels, interlace=interlace, compress_level=level)
    for decode in both_decoders:
        np.testing.assert_array_equal(decode(data, "film"), pixels)


@given(hnp.arrays(np.uint8, (6, 7, 4)), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_decoders_give_the_same_pixels_with_alpha(both_decoders, pixels, grey, opaque, interlace):
    if grey:
        pixels[..., 1] = pixels[..., 2] = pixels[..., 0]
    if opaque:
        pixels[..., 3] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", interlace=interlace)
    one, other = (decode(file.getvalue(), "film") for decode in both_decoders)
    np.testing.assert_array_equal(one, other)
    if opaque:
        np.testing.assert_array_equal(one, cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_GRAYSCALE))


@pytest.mark.real
def test_both_decoders_give_the_same_films(both_decoders, nih_fullres):
    for path in sorted((nih_fullres / "images").iterdir()):
        one, other = (decode(path.read_bytes(), path) for decode in both_decoders)
        np.testing.assert_array_equal(one, other)


def test_a_decoder_that_raises_leaves_it_to_opencv(monkeypatch):
    def raising(*_):
        raise Exception("no")

    monkeypatch.setattr(images, "decode_image_png_u8", raising)
    np.testing.assert_array_equal(images.decode(encode(RAMP), "film"), RAMP)


BROKEN = {
    "empty": b"",
    "text": b"<html>404 Not Found</html>",
    "zeros": bytes(2000),
    "signature only": SIGNATURE,
    "half a PNG": encode(RAMP)[: len(encode(RAMP)) // 2],
    "PNG without its end": encode(RAMP)[:-12],
    "PNG without its last byte": encode(RAMP)[:-1],
    "half a JPEG": encode(RAMP, kind="JPEG")[:300],
    "JPEG without its end": encode(RAMP, kind="JPEG")[:-2],
    "one pixel byte changed": bytes(b ^ (i == 60) for i, b in enumerate(encode(RAMP))),
    "pixels not zlib": with_pixels_chunk(encode(RAMP), b"garbage" * 20),
    "too few pixels": with_pixels_chunk(encode(RAMP), zlib.compress(bytes(500))),
    "no pixels": SIGNATURE + header(9, 9) + chunk(b"IEND", b""),
    "no width": SIGNATURE + header(0, 9) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""),
    "GIF": encode(RAMP, "P", "GIF"),
    "BMP": encode(RAMP, "L", "BMP"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_by_name(name, tmp_path):
    path = tmp_path / "00000001_000.png"
    path.write_bytes(BROKEN[name])
    with pytest.raises(UserError, match=r"00000001_000\.png") as caught:
        images.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (9000, 9000), (2**31 - 1, 2**31 - 1)])
def test_a_decode_bomb_is_refused_by_its_header(width, height):
    bomb = SIGNATURE + header(width, height) + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")
    with pytest.raises(UserError, match=r"film\.png"):
        images.decode(bomb, "film.png")


def test_absent_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="not there"):
        images.read(tmp_path / "absent.png")
    with pytest.raises(UserError, match="cannot be read"):
        images.read(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "zero", "socket", "folder"])
def test_only_regular_files_are_read_and_none_is_waited_for(kind, tmp_path):
    path = tmp_path / "00000001_000.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.close()
    began = time.monotonic()
    for look in (images.read, images.size):
        with pytest.raises(UserError, match=r"00000001_000\.png cannot be read: .*file"):
            look(path)
    assert time.monotonic() - began < 5


def test_a_file_too_large_to_be_a_film_is_not_read(tmp_path):
    with (tmp_path / "film.png").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)  # sparse: it takes no room
    with pytest.raises(UserError, match="more than a film can have"):
        images.read(tmp_path / "film.png")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EMFILE, "ulimit"),
        (errno.ENFILE, "ulimit"),
        (errno.ENOMEM, "close other programs"),
        (errno.EACCES, "permissions"),
        (errno.EIO, "the disk or the network"),
        (errno.ESTALE, "the disk or the network"),
    ],
)
def test_an_error_of_the_system_is_told_as_what_it_is(number, advice, tmp_path, monkeypatch):
    def failing(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(UserError) as caught:
        images.read(tmp_path / "film.png")
    text = str(caught.value)
    assert f"film.png cannot be read: {os.strerror(number)}; " in text
    assert advice in text
    assert "is damaged" not in text
    assert "\n" not in text
    assert isinstance(caught.value, images.SystemShortageError) == (number in images.SHORTAGES)


def test_a_jpeg_cut_off_after_its_thumbnail_is_refused():
    """A thumbnail is a JPEG inside the JPEG, with an end of its own."""
    thumbnail, film = encode(RAMP, kind="JPEG"), encode(np.kron(RAMP, np.ones((8, 8), np.uint8)), kind="JPEG")
    whole = film[:2] + b"\xff\xe2" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + film[2:]
    assert images.decode(whole, "film").shape == (320, 400)
    for share in (0.7, 0.9):
        assert b"\xff\xd9" in whole[: int(len(whole) * share)]
        with pytest.raises(UserError, match="truncated"):
            images.decode(whole[: int(len(whole) * share)], "film")


def test_size_is_width_and_height(tmp_path):
    (tmp_path / "film.png").write_bytes(encode(RAMP))
    assert images.size(tmp_path / "film.png") == (50, 40)


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_changed_bytes_are_refused_or_harmless(at, patch):
    whole = encode(RAMP)
    at %= len(whole)
    damaged = whole[:at] + patch + whole[at + len(patch) :]
    pixels = RAMP
    with contextlib.suppress(UserError):
        pixels = images.decode(damaged, "film.png")
    np.testing.assert_array_equal(pixels, RAMP)


def test_shrink_averages_areas():
    pixels = np.kron(np.array([[0, 100], [200, 60]], np.uint8), np.ones((8, 8), np.uint8))
    np.testing.assert_array_equal(images.shrink(pixels, 2), [[0, 100], [200, 60]])
    assert images.shrink(pixels, 1)[0, 0] == 90


@pytest.mark.parametrize(
    ("side", "size"), [((64, 64), 14), ((96, 64), 20), ((60, 44), 40), ((61, 67), 13), ((63, 9), 6)]
)
def test_shrink_is_the_exact_average_to_the_nearest_grey(side, size):
    """Oracle in whole numbers: each pixel is split into size x size parts, and each new pixel averages its parts."""
    height, width = side
    pixels = np.random.default_rng(size).integers(0, 256, side, dtype=np.uint8)
    parts = np.kron(pixels.astype(np.int64), np.ones((size, size), np.int64)).reshape(size, height, size, width)
    error = images.shrink(pixels, size) - parts.sum((1, 3)) / (height * width)
    assert np.abs(error).max() <= 0.5 + 1e-4


@pytest.mark.real
@pytest.mark.parametrize("size", [224, 96, 320])
def test_shrink_is_opencvs_on_films(size, nih_fullres):
    for path in sorted((nih_fullres / "images").iterdir())[:4]:
        film = images.read(path)
        np.testing.assert_array_equal(
            images.shrink(film, size), cv2.resize(film, (size, size), interpolation=cv2.INTER_AREA)
        )


def test_shrink_keeps_and_enlarges():
    square = RAMP[:40, :40]
    assert images.shrink(square, 40) is square
    assert images.shrink(RAMP, 64).shape == (64, 64)


@pytest.mark.parametrize("side", [(160, 100), (100, 160), (64, 64), (500, 80)])
def test_a_film_that_is_not_square_is_squeezed_and_boxes_with_it(side):
    """One rule for pixels and boxes: a box drawn on the film lies where ``scale_boxes`` puts it at a store's size."""
    height, width = side
    boxes = pd.DataFrame({"image": ["a"], "finding": ["Mass"], "x": [256.0], "y": [512.0], "w": [128.0], "h": [384.0]})
    film = np.zeros(side, np.uint8)
    on_film = records.scale_boxes(boxes, width, height).iloc[0]
    film[int(on_film.y) : int(on_film.y + on_film.h), int(on_film.x) : int(on_film.x + on_film.w)] = 255
    at_size = records.scale_boxes(boxes, 32, 32).iloc[0]
    inside = np.zeros((32, 32), bool)
    inside[int(at_size.y) : int(at_size.y + at_size.h), int(at_size.x) : int(at_size.x + at_size.w)] = True
    np.testing.assert_array_equal(images.shrink(film, 32) > 127, inside)
