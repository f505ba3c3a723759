"""JPEG lossless streams give the pixels that they were made from, and a damaged one raises ValueError."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("pydicom", reason="pydicom is not installed")
import dicom_files

from cxrlib.data import jpeg_lossless


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize(("restart", "point"), [(0, 0), (7, 0), (1, 0), (0, 3)])
def test_every_predictor_gives_the_pixels_back(predictor, restart, point):
    values = dicom_files.film(12)
    stream = dicom_files.jpeg_lossless(values, 12, predictor=predictor, restart=restart, point=point)
    np.testing.assert_array_equal(jpeg_lossless.decode(stream), values >> point << point)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 16), st.integers(1, 7), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_noise_of_any_depth_and_shape_comes_back(bits, predictor, rows, columns, seed):
    values = np.random.default_rng(seed).integers(0, 2**bits, (rows, columns)).astype(np.uint16)
    stream = dicom_files.jpeg_lossless(values, bits, predictor=predictor)
    np.testing.assert_array_equal(jpeg_lossless.decode(stream), values)


@pytest.mark.parametrize("block", [8, 64, 1024])
@pytest.mark.parametrize("stretch", [8, 64])
def test_where_the_stream_is_cut_into_blocks_and_stretches_does_not_matter(monkeypatch, block, stretch):
    monkeypatch.setattr(jpeg_lossless, "_BLOCK", block)
    monkeypatch.setattr(jpeg_lossless, "_STRETCH", stretch)
    values = dicom_files.film(16, shape=(15, 70))
    np.testing.assert_array_equal(jpeg_lossless.decode(dicom_files.jpeg_lossless(values, 16)), values)


@pytest.mark.parametrize("left", [0, 2, 20, 40, 60, 100, 0.5, 0.9, 0.99])
def test_a_truncated_stream_raises(left):
    stream = dicom_files.jpeg_lossless(dicom_files.film(12), 12)
    with pytest.raises(ValueError):  # noqa: PT011
        jpeg_lossless.decode(stream[: left if left > 1 or left == 0 else int(left * len(stream))])


def test_a_stream_with_two_sizes_raises():
    stream = dicom_files.jpeg_lossless(dicom_files.film(12), 12)
    with pytest.raises(ValueError, match="two sizes"):
        jpeg_lossless.decode(stream[:2] + stream[2:15] + stream[2:])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 400), st.integers(0, 255)), min_size=1, max_size=4))
@example([(6, 17)])  # a precision of 17 bits
def test_damage_gives_pixels_of_the_same_shape_or_valueerror(changes):
    stream = bytearray(dicom_files.jpeg_lossless(dicom_files.film(12, shape=(12, 16)), 12))
    size = bytes(stream[7:11])  # the size is compared with the header's before
    for place, value in changes:
        stream[place % len(stream)] = value
    stream[7:11] = size
    with suppress(ValueError):
        assert jpeg_lossless.decode(bytes(stream)).dtype == np.uint16
