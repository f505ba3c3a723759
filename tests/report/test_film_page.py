"""The page of predictions: escaped, complete in itself, honest about what it leaves out, and usable in a browser."""

import re
from html import escape

import numpy as np
import pytest

from cxrlib.evaluation import film_reader, prediction_files
from cxrlib.labels import FINDINGS
from cxrlib.report import film_page
from tests.evaluation import tiny_reader
from tests.report import browser
from tests.report.reader import read

HOSTILE = '/films/"><script>alert(1)</script>&.png'


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return tiny_reader.reader(tmp_path_factory.mktemp("stage1"))


def film(name, seed=0, **more):
    return film_reader.Answer(name, np.random.default_rng(seed).random(15), **more)


def shown(reader, answer, heat=False):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40)).astype(np.uint8)
    ramp = np.linspace(0, 1, 32, dtype=np.float32)[None].repeat(32, 0)
    maps = {name: ramp if i else 1 - ramp for i, name in enumerate(FINDINGS[:3])} if heat else {}
    picture = film_reader.Picture(pixels, maps) if answer.network is not None else None
    return film_page.Shown(prediction_files.record(answer, reader.interpreter()), picture)


def built(path, reader, films, **more):
    read = sum(bool(one.record["findings"]) for one in films)
    counts = {"films": len(films), "read": read, "refused": len(films) - read} | more
    return film_page.build(path / "predictions.html", films, reader, reader.interpreter(), counts)


def test_names_and_reasons_with_markup_are_text(reader, tmp_path):
    films = [
        film(HOSTILE, righted="<i>x</i>", notes=("<u>",)),
        film_reader.Answer(HOSTILE, refusal=f"{HOSTILE} is <b>"),
    ]
    path = built(tmp_path, reader, [shown(reader, one) for one in films])
    page = path.read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert escape('"><script>alert(1)<') in page.replace("&#34;", "&quot;")
    assert not re.search("<i>x|<u>|is <b>", page)
    words = read(path).words  # also checks that all tags are closed in order
    assert "Righted first: <i>x</i>" in words
    assert "Is <b>." in words, "a reason without the name, which stands above it"


def test_it_needs_no_other_file_and_no_network(reader, tmp_path):
    page = read(built(tmp_path, reader, [shown(reader, film("a.png"), heat=True)]))
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert page.unscoped == 0
    assert page.headings[0] == 1
    assert all(picture["alt"] for picture in page.pictures)
    assert len(page.pictures) == 4


def test_what_it_says_of_a_film_is_what_the_files_say(reader, tmp_path):
    answer = film("a.png", view="PA", sex="F", age=62.0)
    words = read(built(tmp_path, reader, [shown(reader, answer)])).words
    rows = reader.interpreter().findings(answer.network)
    for row in rows:
        if row["decision"] == "positive" and row["probability"] >= 0.1:
            assert f"Probability {100 * row['probability']:.0f} %" in words
            assert f"Of such calls {100 * row['ppv']:.0f} % are right" in words
    assert "PA view, female, 62 years by the file’s header" in words
    assert "Research software, not a medical device" in words
    assert "compared with 200 validation films" in words


def test_films_that_are_left_out_are_counted(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(film_page, "MOST", 3)
    films = [shown(reader, film(f"{i}.png", i)) for i in range(5)]
    words = read(built(tmp_path, reader, films, read=1_234)).words
    assert "The first 3 of 1,234 films are shown. The other 1,231 are in predictions.csv" in words
    assert "3.png" not in words


def test_pictures_are_made_only_of_what_is_shown(reader, monkeypatch):
    monkeypatch.setattr(film_page, "MOST", 3)
    asked = []
    monkeypatch.setattr(film_reader.Reader, "picture", lambda self, answer, **_: asked.append(answer.film))
    answers = [film(f"{i}.png") for i in range(50)]
    assert len(list(film_page.pictured(answers, reader, reader.interpreter()))) == 3
    assert asked == ["0.png", "1.png", "2.png"]


def test_in_a_browser_the_slider_and_the_choice_of_the_map_work_and_nothing_is_cut_off(reader, tmp_path):
    long = f"/a/{'very-long-name' * 12}.png"
    answers = [film("a.png"), film(long, 1), film_reader.Answer(long, refusal=f"{long} is torn")]
    path = built(tmp_path, reader, [shown(reader, one, heat=True) for one in answers])
    with browser.page(tmp_path / "profile") as page:
        page.open(path.as_uri())
        for width in (320, 390, 1280):
            assert page.overhang(width) == []
        visible = "[...document.querySelector('.film').querySelectorAll('.map')]"
        visible += ".map(map => map.hidden ? 0 : +getComputedStyle(map).opacity)"
        assert page.value(visible) == [0.5, 0, 0]
        page.value("document.querySelectorAll('.film [type=radio]')[2].click()")
        assert page.value(visible) == [0, 0, 0.5]
        page.value("document.querySelector('.film [type=range]').focus()")
        for name in ("keyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=name, key="Home", code="Home", windowsVirtualKeyCode=36)
        assert page.value(visible) == [0, 0, 0]
        assert (
            page.value("getComputedStyle(document.querySelectorAll('.film')[1].querySelector('.map')).opacity") == "0.5"
        )
        assert page.said == []
        assert [address for address in page.asked if not address.startswith(("data:", "file:"))] == []
