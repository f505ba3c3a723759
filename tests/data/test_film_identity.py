"""Pixel hash: copies of an image are recognised, and different images are not confused."""

import cv2
import numpy as np

from cxrlib.data import film_identity, images, records
from cxrlib.phantom import phantom


def test_real_films_are_known_by_their_pixels_and_none_is_taken_for_another(nih_1k, nih_fullres):
    films = records.read(nih_1k)
    small = np.stack([images.read(path) for path in films["path"]])
    found = film_identity.image_amplitudes(small)
    hashes = film_identity.hashes(found)
    own, patient = np.arange(len(films)), films["patient"].to_numpy()
    changes = {
        "a store of 64": (lambda film: images.shrink(film, 64), 1.0),
        "a mirror at 224": (lambda film: images.shrink(film, 224), 1.0),
        "JPEG 50": (lambda film: jpeg(film, 50), 1.0),
        "JPEG 75 of 64": (lambda film: jpeg(images.shrink(film, 64), 75), 0.99),
        "a negative": (lambda film: 255 - film, 1.0),
    }
    for words, (change, least) in changes.items():
        which = film_identity.match_hashes(
            film_identity.image_amplitudes(np.stack([change(film) for film in small])), hashes
        )
        assert (which >= 0).mean() >= least, words
        # 00002658_001 and _002 are the same image
        assert (patient[which[which >= 0]] == patient[which >= 0]).all(), words
        assert (which[which >= 0] == own[which >= 0]).mean() > 0.99, words
    originals = records.read(nih_fullres)
    large = np.stack([images.shrink(images.read(path), 224) for path in originals["path"]])
    which = film_identity.match_hashes(film_identity.image_amplitudes(large), hashes)
    assert films["image"].iloc[which].tolist() == originals["image"].tolist()


def jpeg(film, quality):
    return cv2.imdecode(cv2.imencode(".jpg", film, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


def test_phantom_films_are_not_taken_for_each_other(tmp_path):
    """Drawings are more alike than real films. The demo must still work."""
    films = records.read(phantom.write(tmp_path / "p", images=300, size=64))
    found = film_identity.image_amplitudes(np.stack([images.read(path) for path in films["path"]]))
    np.testing.assert_array_equal(film_identity.match_hashes(found, film_identity.hashes(found)), np.arange(300))


def test_films_without_structure_are_nobodys_picture():
    rng = np.random.default_rng(0)
    blank = [np.full((64, 64), grey, np.uint8) for grey in (0, 90, 255)]
    nearly = [(90 + rng.integers(0, 3, (64, 64))).astype(np.uint8) for _ in range(3)]
    shaded = [np.tile(np.linspace(0, top, 64), (64, 1)).astype(np.uint8) for top in (3, 9)]
    structured = cv2.resize(rng.integers(0, 255, (16, 16)).astype(np.uint8), (64, 64))
    found = film_identity.image_amplitudes(np.stack([*blank, *nearly, *shaded, structured]))
    assert np.isnan(found[:-1]).all(1).tolist() == [True] * 8
    assert film_identity.match_hashes(found, film_identity.hashes(found[-1:])).tolist() == [-1] * 8 + [0]
