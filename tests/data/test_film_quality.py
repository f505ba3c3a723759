"""Film quality: negatives and turned films are found among real films, and others hardly ever alarm."""

import cv2
import numpy as np
import pytest

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
    "negative": (lambda film: 255 - film, 1421),
    "to the left": (lambda film: np.rot90(film, 1), 1380),
    "upside down": (lambda film: np.rot90(film, 2), 1400),
    "to the right": (lambda film: np.rot90(film, 3), 1368),
}


@pytest.mark.real
@pytest.mark.parametrize("name", CHANGES)
def test_changed_films_are_found_as_often_as_the_module_says(name, usual):
    """Within 4 films, because another OpenCV may round another way."""
    assert len(usual) == 1434
    change, found = CHANGES[name]
    called = positions(map(change, usual))
    assert f"{found:,}" in film_quality.__doc__
    assert abs(called.count(name) - found) <= 4
    assert len(called) - called.count(name) - called.count("") <= 4 + 4


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
    film = cv2.resize((128 + 5 * film_quality.TEMPLATE).astype(np.uint8), (60, 60), interpolation=cv2.INTER_LINEAR)
    for frame in (0, 255):
        for picture, expected in ((film, ""), (255 - film, "negative")):
            framed = cv2.copyMakeBorder(picture, 30, 10, 5, 25, cv2.BORDER_CONSTANT, value=frame)
            assert film_quality.position(framed) == expected


def test_grey_levels_are_counted():
    pixels = np.repeat(np.array([[0, 10, 10, 200]], np.uint8), 4, 0)
    assert film_quality.grey_levels(pixels) == (55.0, 3)
