"""Judgement of films by pixels alone: what is no chest film is refused, what lies or is inverted is put right."""

from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageOps

from cxrlib.data import film_quality, images
from cxrlib.phantom import phantom


def judged(pixels: np.ndarray, **more) -> film_quality.Judged:
    return film_quality.judge(images.Film(np.ascontiguousarray(pixels), "L", **more))


def changed(film: np.ndarray, lies: film_quality.Position) -> np.ndarray:
    film = np.ascontiguousarray(np.rot90(film, lies.quarters))
    return 255 - film if lies.negative else film


def png(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> list[np.ndarray]:
    """Phantom films of 128 px."""
    folder = phantom.write(tmp_path_factory.mktemp("judge") / "drawn", images=40, size=128, seed=0)
    return [images.read(path) for path in sorted((folder / "images").iterdir())]


def test_drawn_films_are_accepted_as_they_are(drawn):
    for film in drawn:
        for side in (64, 128):
            pixels = images.shrink(film, side)
            found = judged(pixels)
            assert found[1:] == ("", "", (), "")
            assert found.pixels is pixels


@pytest.mark.parametrize("lies", film_quality.POSITIONS[1:], ids=str)
def test_a_film_that_lies_or_is_inverted_comes_back_as_it_was(drawn, lies):
    for film in drawn[:20]:
        found = judged(changed(film, lies))
        assert found.refusal == ""
        np.testing.assert_array_equal(found.pixels, film)
        assert ("inverted" in found.righted) == lies.negative
        assert ("turned back" in found.righted) == bool(lies.quarters)
        assert film_quality.TURNED[lies.quarters] in found.righted


def test_what_was_put_right_is_said_in_words(drawn):
    assert judged(255 - drawn[0]).righted == "a negative, inverted"
    assert judged(np.rot90(drawn[0], 1)).righted == "turned to the left by 90°, turned back"
    assert judged(np.rot90(255 - drawn[0], 2)).righted == "a negative, inverted; turned upside down, turned back"


def test_a_film_that_is_not_square_is_turned_back_to_its_own_shape(drawn):
    film = cv2.resize(drawn[0], (200, 240))
    np.testing.assert_array_equal(judged(np.rot90(film, 3)).pixels, film)


def text(width: int = 900, height: int = 700) -> Image.Image:
    page = Image.new("L", (width, height), 250)
    pen = ImageDraw.Draw(page)
    for y in range(20, height - 30, 26):
        pen.text((30, y), "The heart is of normal size, and the lungs are clear. " * 3, 20, ImageFont.load_default(16))
    return page


def viewer(film: np.ndarray) -> Image.Image:
    """Window of a film viewer: menu, list of studies, a film on black."""
    window = Image.new("L", (1280, 800), 48)
    pen = ImageDraw.Draw(window)
    for at in range(12):
        pen.text((12 + 100 * at, 15), "Window", 220, ImageFont.load_default(15))
    for y in range(70, 780, 28):
        pen.text((12, y), "chest pa 2021 study 12", 220, ImageFont.load_default(14))
    pen.rectangle((260, 60, 1270, 790), 0)
    window.paste(Image.fromarray(film).resize((700, 700)), (410, 70))
    return window


@pytest.mark.parametrize("what", ["page", "viewer", "viewer turned", "viewer inverted"])
def test_a_screenshot_is_refused(drawn, what):
    picture = np.asarray(text() if what == "page" else viewer(drawn[0]))
    picture = {"viewer turned": np.rot90(picture), "viewer inverted": 255 - picture}.get(what, picture)
    assert judged(picture).refusal


RNG = np.random.default_rng(0)
NO_FILMS = {
    "black": (np.zeros((100, 100), np.uint8), "nothing"),
    "white": (np.full((100, 100), 255, np.uint8), "grey 255"),
    "one pixel": (np.array([[7]], np.uint8), "nothing"),
    "tiny": (RNG.integers(0, 256, (20, 24), dtype=np.uint8), "24 x 20 pixels"),
    "a strip": (RNG.integers(0, 256, (100, 400), dtype=np.uint8), "no film is so long"),
    "noise": (RNG.integers(0, 256, (256, 256), dtype=np.uint8), "noise"),
    "soft noise": (cv2.GaussianBlur(RNG.integers(0, 256, (300, 300), dtype=np.uint8), (0, 0), 20), ""),
    "a ramp": (np.tile(np.arange(256, dtype=np.uint8), (256, 1)), ""),
    "a chessboard": (np.kron(np.indices((8, 8)).sum(0) % 2, np.full((32, 32), 255)).astype(np.uint8), ""),
}


@pytest.mark.parametrize("name", NO_FILMS)
def test_what_is_no_film_is_refused_with_the_reason(name):
    picture, reason = NO_FILMS[name]
    found = judged(picture)
    assert found.refusal
    assert reason in found.refusal
    assert found.pixels.shape == picture.shape
    assert found.righted == ""


def test_an_enlarged_tiny_picture_is_refused():
    from sklearn.datasets import load_digits

    for digit in load_digits().images[:50]:
        picture = cv2.resize((digit * 255 / 16).astype(np.uint8), (256, 256), interpolation=cv2.INTER_LINEAR)
        assert judged(picture).refusal


def test_photographs_are_refused():
    from sklearn.datasets import load_sample_images

    for photograph in load_sample_images().images:
        in_colour = images.decode_film(png(Image.fromarray(photograph)), "photograph.png")
        assert "colours carry information" in film_quality.judge(in_colour).refusal
        assert film_quality.judge(in_colour._replace(colour=0.0)).refusal


def test_nearly_black_films_are_noted(drawn):
    found = judged(drawn[0] >> 3)
    assert found.refusal == ""
    assert "nearly black" in found.notes[0]


def test_a_tint_is_no_colour_but_drawn_colours_are(drawn):
    """Colour that the grey explains says nothing: sepia, or the blue base of a film."""
    film = Image.fromarray(drawn[0])
    plain = images.decode_film(png(film.convert("RGB")), "a.png")
    sepia = images.decode_film(png(ImageOps.colorize(film, "#101828", "#f4e8d0")), "a.png")
    assert plain.colour == 0
    assert sepia.colour < film_quality.COLOUR / 2
    jet = cv2.applyColorMap(drawn[0], cv2.COLORMAP_JET)
    assert images.decode_film(png(Image.fromarray(jet)), "a.png").colour > film_quality.COLOUR * 2


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_measuring_colour_changes_no_pixel(mode, kind, drawn):
    if kind == "JPEG" and mode not in ("L", "RGB"):
        pytest.skip("JPEG has no such mode")
    file = BytesIO()
    Image.fromarray(drawn[0]).convert(mode).save(file, kind)
    film = images.decode_film(file.getvalue(), "film")
    np.testing.assert_array_equal(film.pixels, images.decode_film(file.getvalue(), "film", colour=False).pixels)
    assert film.colour < 0.5


@pytest.mark.real
def test_the_two_films_of_one_header_tag_become_one_picture(dicom):
    """Two CR files with the same pixels whose headers name opposite ends as white: one of them is wrong."""
    found = []
    for number in "12":
        path = dicom / f"cr_monochrome{number}_jpeg.dcm"
        found.append(film_quality.judge(images.decode_film(images.load(path), path)))
    assert [one.refusal for one in found] == ["", ""]
    assert sorted(one.righted for one in found) == ["", "a negative, inverted"]
    np.testing.assert_array_equal(*(one.pixels for one in found))


@pytest.mark.real
def test_real_films_are_accepted(nih_1k, nih_more, nih_fullres, odd_films):
    """As the module says: none is refused, and both negatives and the film upside down are put right."""
    folders = [folder / "images" for folder in (nih_1k, nih_more, nih_fullres)]
    found = {}
    for path in [*(path for folder in folders for path in sorted(folder.iterdir())), *odd_films.glob("*.*g")]:
        judgement = film_quality.judge(images.decode_film(images.load(path), path))
        found[path.name] = judgement.righted or ("refused" if judgement.refusal else "")
    assert {name: said for name, said in found.items() if said} == {
        "00017999_000.png": "a negative, inverted",
        "00017625_000.png": "a negative, inverted",
        "00003490_011.png": "turned upside down, turned back",
    }


@pytest.mark.real
def test_real_turned_films_are_turned_back(odd_films):
    for path in (odd_films / "turned").iterdir():
        pixels = images.read(path)
        found = judged(pixels)
        assert found.righted == "turned to the left by 90°, turned back"
        np.testing.assert_array_equal(found.pixels, np.rot90(pixels, 3))


@pytest.mark.real
def test_hardly_any_changed_film_is_read_in_a_wrong_position(nih_1k):
    """0.2 % in the whole set; here every eighth film in all positions."""
    films = [images.read(path) for path in sorted((nih_1k / "images").iterdir())[::8]]
    films = [film for film in films if film_quality.position(film) == ""]
    wrong = refused = 0
    for film in films:
        for lies in film_quality.POSITIONS:
            found = judged(changed(film, lies))
            refused += bool(found.refusal)
            wrong += not found.refusal and not np.array_equal(found.pixels, film)
    assert wrong <= 0.005 * 8 * len(films)
    assert refused <= 0.02 * 8 * len(films)


@pytest.mark.real
def test_half_of_a_film_is_refused(nih_1k):
    films = [images.read(path) for path in sorted((nih_1k / "images").iterdir())[:50]]
    assert all(judged(film[:, : film.shape[1] // 2]).refusal for film in films)
    assert all(judged(film[: film.shape[0] // 2]).refusal for film in films)
