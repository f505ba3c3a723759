"""Files of many films: what is kept between two calls, and that CSV and JSON say the same."""

import csv
import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cxrlib import UserError
from cxrlib.evaluation import film_reader, interpretation, prediction_files
from cxrlib.labels import LABELS
from tests.evaluation import tiny_reader

MADE_BY = {"weights": "w", "anyway": False}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return tiny_reader.reader(tmp_path_factory.mktemp("stage1"))


@pytest.fixture
def films(tmp_path):
    """Six files of one byte; their content does not matter here."""
    paths = [tmp_path / "films" / f"{i}.png" for i in range(6)]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes(b"x")
    return [str(path) for path in paths]


def answer(film, **more):
    network = np.random.default_rng(len(film)).random(15).astype(np.float32).astype(np.float64)
    return film_reader.Answer(film, network, **more)


def opened(folder, films, **changes):
    return prediction_files.State(folder, MADE_BY | changes, films)


def test_what_was_read_before_a_kill_is_read_again_from_the_file_alone(tmp_path, films):
    first = opened(tmp_path, films)
    given = [
        answer(films[0], view="PA", sex="F", age=62.0, distance=1.25, notes=("dark",)),
        film_reader.Answer(films[1], refusal="a photo", righted=""),
        answer(films[3], righted="a negative, inverted"),
    ]
    first.add(given)
    with first.path.open("ab") as file:
        file.write(first.path.read_bytes().splitlines()[1][:-30])  # killed in the middle of a line
    again = opened(tmp_path, films)
    assert again.pending() == [films[i] for i in (2, 4, 5)]
    again.add([answer(films[2])])
    found = list(opened(tmp_path, films).answers())
    assert [kept.film for kept in found] == films[:4]
    for kept, before in zip(found, [*given[:2], answer(films[2]), given[2]], strict=True):
        np.testing.assert_equal(vars(kept), vars(before))


def test_a_changed_film_is_read_again_and_its_last_answer_counts(tmp_path, films):
    opened(tmp_path, films).add(map(answer, films))
    Path(films[2]).write_bytes(b"xy")
    os.utime(films[4], ns=(0, 0))
    again = opened(tmp_path, films)
    assert again.pending() == [films[2], films[4]]
    again.add([replace(answer(films[2]), righted="new")])
    last = opened(tmp_path, films)
    assert last.pending() == [films[4]]
    assert [kept.righted for kept in last.answers()] == ["", "", "new", "", ""]


def test_other_settings_start_anew_and_say_so(tmp_path, films):
    opened(tmp_path, films).add(map(answer, films))
    assert opened(tmp_path, films[::-1]).again == ""
    other = opened(tmp_path, films, weights="v")
    assert "changed" in other.again
    assert other.pending() == films
    assert list(other.answers()) == []


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path, films):
    other = tmp_path / prediction_files.STATE
    other.write_text('{"my": "answers"}\n')
    with pytest.raises(UserError, match="give another --out"):
        opened(tmp_path, films)
    assert other.read_text() == '{"my": "answers"}\n'
    other.write_text('{"format"')  # killed in its first line
    assert opened(tmp_path, films).pending() == films


def test_a_film_that_could_not_be_reached_is_tried_again(tmp_path, films):
    opened(tmp_path, films).add([film_reader.Answer(films[0], refusal="no permission", passing=True)])
    assert opened(tmp_path, films).pending() == films


def test_a_full_disk_is_told_in_one_line_and_what_is_done_stays(tmp_path, films, monkeypatch):
    state = opened(tmp_path, films)
    state.add([answer(films[0])])

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match=r"disk .* is full") as caught:
        state.add([answer(films[1])])
    monkeypatch.undo()
    assert str(caught.value).endswith("give the same command again. Films read so far and kept: 1")
    assert "\n" not in str(caught.value)
    assert opened(tmp_path, films).pending() == films[1:]


def test_csv_and_json_say_the_same(tmp_path, reader):
    """Markup, quotes, and bytes that are no UTF-8 in names; unknown values are empty or null."""
    names = ['<b>"&, film.png', "byte \udcff.png", "plain.png"]
    answers = [answer(names[0], age=62.0, sex="F"), film_reader.Answer(names[1], refusal="torn"), answer(names[2])]
    counts = prediction_files.write(tmp_path, iter(answers), reader, reader.interpreter("f1"))
    assert counts == {"films": 3, "read": 2, "refused": 1}
    tree = json.loads((tmp_path / prediction_files.JSON).read_text(encoding="utf-8"))
    with (tmp_path / prediction_files.CSV).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tree["schema"] == "cxrlib.predictions/1"
    assert tree["counts"] == counts
    assert (tree["rule"], tree["checkpoint"]["sha256"]) == ("f1", reader.sha256)
    assert [film["film"] for film in tree["films"]] == names
    assert [film["refused"] for film in tree["films"]] == [None, "torn", None]
    assert [row["finding"] for row in rows] == [*LABELS, "", *LABELS]
    findings = [finding for film in tree["films"] for finding in film["findings"] or [{}]]
    for row, finding in zip(rows, findings, strict=True):
        for name in interpretation.COLUMNS:
            value = finding.get(name)
            told = float(row[name]) if isinstance(value, float) else row[name]
            assert told == ("" if value is None else pytest.approx(value, rel=1e-8) if told != row[name] else value)
    assert {row["age"] for row in rows[:15]} == {"62"}


def test_memory_does_not_grow_with_the_films(tmp_path, reader):
    """The writer asks for one answer at a time and keeps none."""
    alive = []

    class Counted(film_reader.Answer):
        def __init__(self, film):
            super().__init__(film, np.full(15, 0.5))
            alive.append(1)

        def __del__(self):
            alive.pop()

    def many():
        for i in range(300):
            assert len(alive) <= 2
            yield Counted(f"{i}.png")

    assert prediction_files.write(tmp_path, many(), reader, reader.interpreter())["read"] == 300
