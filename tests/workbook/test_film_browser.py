import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxrlib import labels
from cxrlib.workbook import live


@pytest.fixture
def films(tmp_path):
    """Twenty small films: even ones PA, every third a woman's, the first five with Mass, film 19 damaged."""
    rows = []
    for i in range(20):
        path = tmp_path / f"{i:08}_000.png"
        Image.fromarray(np.full((32, 32), 10 * i, np.uint8)).save(path)
        found = labels.encode("Mass|Effusion" if i < 5 else "No Finding")
        film = {"image": path.name, "path": str(path), "patient": i // 2, "age": 40.0 if i else float("nan")}
        film |= {"sex": "F" if i % 3 == 0 else "M", "view": "AP" if i % 2 else "PA"}
        rows.append(film | dict(zip(labels.LABELS, found, strict=True)))
    path.write_bytes(b"no film")
    return pd.DataFrame(rows)


@pytest.mark.parametrize("finding", ["any", "Mass", "No Finding", "Hernia"])
@pytest.mark.parametrize("view", ["any", "PA", "AP"])
@pytest.mark.parametrize("sex", ["any", "F", "M"])
def test_only_films_of_the_kind_are_chosen_and_all_of_them(films, finding, view, sex):
    chosen = live.choose_films(films, finding, view, sex)
    for i, film in films.iterrows():
        fits = (
            (finding == "any" or film[finding] == 1) and view in ("any", film["view"]) and sex in ("any", film["sex"])
        )
        assert fits == (i in chosen.index)


@pytest.mark.parametrize(("n", "rows"), [(0, 1), (1, 1), (4, 1), (5, 2), (20, 5)])
def test_the_sheet_has_a_place_for_every_film(films, n, rows):
    sheet = Image.open(io.BytesIO(live.draw_page(films.head(n), 20)))
    assert sheet.width == live.ACROSS * (live.SIDE + 6)
    assert sheet.height == rows * (live.SIDE + live.CAPTION + 6)


def test_films_stand_on_the_sheet_in_order(films):
    sheet = np.asarray(Image.open(io.BytesIO(live.draw_page(films, 3))))
    middle = live.SIDE // 2
    assert [sheet[middle, middle + i * (live.SIDE + 6)] for i in range(3)] == [0, 10, 20]


def test_a_damaged_film_leaves_the_others_to_be_seen(films):
    assert live.draw_page(films.tail(1))


def test_a_caption_leaves_out_what_is_unknown(films):
    assert live.caption(films.iloc[0]) == ("Effusion, Mass", "patient 0 · F · PA")
    assert live.caption(films.iloc[7])[1] == "patient 3 · 40 y · M · AP"


def test_a_choice_redraws_and_next_turns_the_page(films):
    browser = live.browser(films, n=4)
    first = browser.sheet.value
    assert browser.count.value == "20 films of 10 patients · page 1 of 5"
    browser.next.click()
    assert browser.sheet.value != first
    assert "page 2 of 5" in browser.count.value
    browser.finding.value = "Mass"
    assert browser.count.value == "5 films of 3 patients · page 1 of 2"
    browser.next.click()
    browser.next.click()
    assert "page 1 of 2" in browser.count.value
    browser.sex.value, browser.view.value = "F", "AP"
    assert browser.count.value.startswith("1 film of 1 patient ")


def test_only_findings_that_are_there_can_be_chosen(films):
    assert [value for _, value in live.browser(films).finding.options] == ["any", "Effusion", "Mass", "No Finding"]


def test_without_a_kernel_the_first_grid_is_a_picture(films):
    browser = live.browser(films)
    data, _ = browser._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == browser.sheet.value
    assert data["text/plain"].startswith("20 films")
    assert "application/vnd.jupyter.widget-view+json" in data


def test_no_films_is_no_fault(films):
    assert "0 films" in live.browser(films.head(0)).count.value
