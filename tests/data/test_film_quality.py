"""Film quality: negatives and turned films are found among real films, and others hardly ever alarm."""

import cv2
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from cxrlib.data import film_quality, images
from cxrlib.phantom import phantom

NEGATIVES = {"00017999_000.png", "00017625_000.png"}
"""Films that NIH ships as negatives."""

UPSIDE_DOWN = "00003490_011.png"


def films(folder) -> dict[str, np.ndarray]:
    return {path.name: images.read(path) for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def usual(nih_1k, nih_more) -> list[np.ndarray]:
    """1,434 films that stand upright and are no negatives."""
    both = {**films(nih_1k / "images"), **films(nih_more / "images")}
    return [pixels for name, pixels in both.items() if name not in {*NEGATIVES, UPSIDE_DOWN}]


def positions(pictures) -> list[str]:
    return [film_quality.position(np.ascontiguousarray(picture)) for picture in pictures]


@pytest.mark.real
def test_the_negatives_of_the_download_are_found_and_nothing_else_alarms(nih_1k):
    found = {name: film_quality.position(pixels) for name, pixels in films(nih_1k / "images").items()}
    alarms = {name: position for name, position in found.items() if position}
    assert alarms == {**dict.fromkeys(NEGATIVES, "negative"), UPSIDE_DOWN: "upside down"}


@pytest.mark.real
def test_films_that_the_template_has_not_seen_do_not_alarm(nih_more, nih_fullres):
    for folder in (nih_more, nih_fullres):
        assert not any(positions(films(folder / "images").values()))


@pytest.mark.real
def test_films_that_lie_on_their_side_are_found(odd_films):
    assert positions(films(odd_films / "turned").values()) == ["to the left"] * 20


@pytest.mark.real
def test_odd_films_do_not_alarm(odd_films):
    assert not any(film_quality.position(images.read(path)) for path in odd_films.glob("*.*g"))


CHANGES = {
    "to the left": 1419,
    "upside down": 1420,
    "to the right": 1419,
    "negative": 1420,
    "negative, to the left": 1419,
    "negative, upside down": 1420,
    "negative, to the right": 1419,
}
"""Changed films that are named rightly, of 1,434."""


def changed(film: np.ndarray, lies: film_quality.Position) -> np.ndarray:
    film = np.ascontiguousarray(np.rot90(film, lies.quarters))
    return 255 - film if lies.negative else film


@pytest.mark.real
@pytest.mark.parametrize("lies", film_quality.POSITIONS[1:], ids=str)
def test_changed_films_are_found_as_often_as_the_module_says(lies, usual):
    """Within 4 films, because another OpenCV may round another way."""
    assert len(usual) == 1434
    found = CHANGES[str(lies)]
    called = positions(changed(film, lies) for film in usual)
    assert f"{found:,}" in film_quality.__doc__
    assert abs(called.count(str(lies)) - found) <= 4
    assert len(called) - called.count(str(lies)) - called.count("") <= 1 + 4


def test_the_model_is_symmetric():
    film = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    found, mirrored = (film_quality.distances(np.ascontiguousarray(one)) for one in (film, film[:, ::-1]))
    np.testing.assert_allclose(found[[0, 3, 2, 1, 4, 7, 6, 5]], mirrored, rtol=1e-6)


def test_the_distance_is_that_of_the_modules_gaussian():
    """Against SciPy's Gaussian of the covariance that ``EVEN``, ``ODD`` and ``REST`` describe."""
    halves = [np.fromstring(text, sep=" ").reshape(-1, 8, 4) for text in (film_quality.EVEN, film_quality.ODD)]
    modes = np.concatenate(
        [np.dstack([half, sign * half[..., ::-1]]) for half, sign in zip(halves, (1, -1), strict=True)]
    )
    modes = modes.reshape(16, 64) / 100
    gauss = multivariate_normal(film_quality.TEMPLATE.ravel() / 100, modes.T @ modes + film_quality.REST * np.eye(64))
    film = np.random.default_rng(0).integers(20, 230, (8, 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    small = film_quality.standardised(film[::8, ::8].astype(float))
    best = gauss.logpdf(film_quality.TEMPLATE.ravel() / 100)
    assert film_quality.distances(film)[0] == pytest.approx(2 * (best - gauss.logpdf(small.ravel())), rel=1e-6)


@pytest.mark.real
def test_mirrored_films_do_not_alarm(usual):
    assert not any(positions(film[:, ::-1] for film in usual))


@pytest.mark.real
def test_real_films_have_usual_grey_levels(usual):
    assert not any(film_quality.unusual_grey(pixels) for pixels in usual)
    assert all("nearly black" in film_quality.unusual_grey(pixels >> 4) for pixels in usual[:200])


@pytest.mark.parametrize("side", [64, 128])
def test_drawn_films_do_not_alarm(side, tmp_path):
    folder = phantom.write(tmp_path / "drawn", images=200, size=side, seed=0)
    drawn = films(folder / "images")
    assert not any(positions(drawn.values()))
    assert not any(film_quality.unusual_grey(pixels) for pixels in drawn.values())
    assert set(positions(255 - pixels for pixels in drawn.values())) == {"negative"}


@pytest.mark.parametrize("side", [(1, 1), (1, 50), (7, 3), (64, 64), (200, 90)])
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_film_without_contrast_is_upright(grey, side):
    assert film_quality.position(np.full(side, grey, np.uint8)) == ""


def test_noise_does_not_alarm():
    rng = np.random.default_rng(0)
    assert positions(rng.integers(0, 256, (500, 20, 20), dtype=np.uint8)).count("") >= 497


def test_a_frame_does_not_hide_a_negative():
    """As in 00005618_000: a film inside a frame of one grey."""
    film = cv2.resize((128 + 0.5 * film_quality.TEMPLATE).astype(np.uint8), (60, 60), interpolation=cv2.INTER_LINEAR)
    for frame in (0, 255):
        for picture, expected in ((film, ""), (255 - film, "negative")):
            framed = cv2.copyMakeBorder(picture, 30, 10, 5, 25, cv2.BORDER_CONSTANT, value=frame)
            assert film_quality.position(framed) == expected


def test_grey_levels_are_counted():
    pixels = np.repeat(np.array([[0, 10, 10, 200]], np.uint8), 4, 0)
    assert film_quality.grey_levels(pixels) == (55.0, 3)
