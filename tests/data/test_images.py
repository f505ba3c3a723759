"""Decoding: films of each mode become grey; a file that is not a complete film raises with its name."""

import contextlib
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cxrlib import UserError
from cxrlib.data import images

RAMP = np.linspace(0, 255, 50)[None].repeat(40, 0).astype(np.uint8)  # (40, 50): not square, so a swapped axis shows


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encode(pixels, mode="L", kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode == "I;16" else image.convert(mode)).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


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


@pytest.mark.real
def test_both_decoders_give_the_same_films(both_decoders, nih_fullres):
    for path in sorted((nih_fullres / "images").iterdir())[:24]:
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
