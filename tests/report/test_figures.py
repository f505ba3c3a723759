import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxrlib.report import page
from tests.report import made_up

SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'


@pytest.fixture
def stem(tmp_path):
    return tmp_path / "figures" / "pr_test"


def test_a_heavy_svg_gives_way_to_the_png(stem, monkeypatch):
    made_up.picture(stem.with_suffix(".png"))
    stem.with_suffix(".svg").write_text(SVG)
    assert "svg+xml" in page.FigureAlbum().read(stem)["address"]
    monkeypatch.setattr(page, "HEAVY", 3)
    assert "image/png" in page.FigureAlbum().read(stem)["address"]


def test_an_absent_figure_is_none(stem):
    assert page.FigureAlbum().read(stem) is None
    assert page.FigureAlbum().strip(stem) is None


@pytest.mark.parametrize("content", [b"", b"<svg", b"not a figure", b"<html/>"])
def test_a_damaged_figure_is_told_or_gives_way_to_its_other_form(stem, content):
    made_up.picture(stem.with_suffix(".png"))
    stem.with_suffix(".svg").write_bytes(content)
    assert "image/png" in page.FigureAlbum().read(stem)["address"]
    whole = stem.with_suffix(".png").read_bytes()
    stem.with_suffix(".png").write_bytes(whole[: len(whole) // 2])
    shown = page.FigureAlbum().read(stem)
    assert shown["address"] == ""
    assert shown["why"] == "figures/pr_test.svg is damaged and cannot be shown."
    assert page.FigureAlbum().strip(stem)["rows"] == []


def test_a_full_page_takes_no_more_figures_and_names_them(stem):
    made_up.picture(stem.with_suffix(".png"))
    album = page.FigureAlbum(room=10)
    assert "figures/pr_test.png" in album.read(stem)["why"]
    assert album.room == 10


@pytest.mark.parametrize(("rows", "films"), [(1, 6), (2, 3), (3, 2)])
def test_a_figure_of_films_is_cut_into_its_films(tmp_path, rows, films):
    made_up.strip(tmp_path / "strip.png", rows, films)
    found = page.cut_panels(Image.open(tmp_path / "strip.png"))
    assert [len(row) for row in found] == [films] * rows
    assert all(piece.size == (44, 44) for row in found for piece in row)


def test_a_cut_figure_loses_no_ink(tmp_path):
    made_up.strip(tmp_path / "strip.png", 2, 4)
    whole = Image.open(tmp_path / "strip.png")
    pieces = [np.asarray(piece) for row in page.cut_panels(whole) for piece in row]
    assert sum((piece < 250).sum() for piece in pieces) == (np.asarray(whole) < 250).sum()


def test_films_are_named_where_the_numbers_beside_them_do(tmp_path):
    stem = tmp_path / "films_best"
    made_up.strip(stem.with_suffix(".png"), 1, 3)
    assert page.FigureAlbum().strip(stem)["names"] == []
    pd.DataFrame({"image": ["a.png", "b.png", "c.png"]}).to_csv(stem.with_suffix(".csv"), index=False)
    shown = page.FigureAlbum().strip(stem)
    assert shown["names"] == ["a.png", "b.png", "c.png"]
    piece = base64.b64decode(shown["rows"][0][0].split(",")[1])
    assert Image.open(io.BytesIO(piece)).size == (44, 44)


def test_figures_with_a_section_of_their_own_are_not_shown_twice(tmp_path):
    for name in ("roc_test", "prevalence", "own_figure", "films_best"):
        made_up.picture(tmp_path / f"{name}.png")
    assert [figure["stem"] for figure in page.FigureAlbum().others(tmp_path)] == ["prevalence", "own_figure"]
