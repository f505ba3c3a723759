"""Identity of a stage: its films, their pixels, its settings; and what a second training of a stage does."""

import os
import shutil
from types import SimpleNamespace

import cv2
import pytest
import tiny

from cxrlib import paths
from cxrlib.data import batches, images, records, splits, store
from cxrlib.training import lineage, losses, stage_folder

SIZE = 16


@pytest.fixture
def films(tiny_phantom, tmp_path):
    """A data folder for one test."""
    return shutil.copytree(tiny_phantom, tmp_path / "films")


class Stage:
    """A stage on the present films, for its identity."""

    def __init__(self, folder, **changes):
        self.folder, self.table, self.changes = folder, records.read(folder), changes

    def identity(self, pixels=None):
        parts = splits.make(self.table, self.folder)
        pixels = pixels or store.build(self.table, SIZE, progress=False)
        train, val = (batches.Batches(pixels, part, batch_size=8) for part in (parts.train, parts.val))
        line = lineage.Lineage("none", 0, (), "nothing", (), {}, ())
        given = {"recipe": tiny.recipe(), "loss": losses.make("bce"), "data": "d", "seed": 0, "score": tiny.score}
        given |= self.changes
        return stage_folder.identity(given.pop("recipe"), train, val, given.pop("loss"), line, **given)


def replaced(folder, image):
    file = str(folder / "images" / image)
    cv2.imwrite(file, 255 - cv2.imread(file, 0))


def test_pixels_decide_what_a_stage_is_and_only_those_it_reads(films):
    stage = Stage(films)
    before, parts = stage.identity(), splits.make(stage.table, films)
    replaced(films, parts.test["image"].iloc[0])
    assert stage.identity() == before
    for part in (parts.train, parts.val):
        replaced(films, part["image"].iloc[0])
        after = stage.identity()
        assert after != before
        replaced(films, part["image"].iloc[0])
        assert stage.identity() == before


def test_touched_and_moved_films_and_what_else_a_store_holds_make_no_other_stage(films, tmp_path):
    before = Stage(films).identity()
    for file in (films / "images").glob("*.png"):
        os.utime(file)
    assert Stage(films).identity() == before
    moved = Stage(shutil.move(films, tmp_path / "moved"))
    assert moved.identity() == before
    for first in (moved.table.tail(70), moved.table.sample(frac=1, random_state=0)):
        where = tmp_path / str(len(first))
        store.build(first, SIZE, folder=where, progress=False)
        assert moved.identity(store.build(moved.table, SIZE, folder=where, progress=False)) == before


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"data": "e"}, {"loss": losses.make("focal")}, {"score": len}, {"carried": "x"}]
    + [{"recipe": tiny.recipe(**{name: value})} for name, value in (("lr", 0.1), ("epochs", 3), ("augment", "light"))],
    ids=str,
)
def test_every_setting_of_a_stage_decides_what_it_is(tiny_phantom, changes):
    assert Stage(tiny_phantom, **changes).identity() != Stage(tiny_phantom).identity()


def test_films_decoded_by_other_code_are_decoded_anew(films, monkeypatch):
    table = records.read(films)
    store.build(table, SIZE, progress=False)
    monkeypatch.setattr(store, "decoder_version", lambda: "another")
    decode, seen = images.decode, []
    monkeypatch.setattr(images, "decode", lambda *given: seen.append(1) or decode(*given))
    store.build(table, SIZE, progress=False)
    assert len(seen) == len(table)
    store.build(table, SIZE, progress=False)
    assert len(seen) == len(table)


def test_a_stage_asked_for_again_is_trained_from_the_start_once(tmp_path):
    assert tiny.train(tmp_path, {"epochs": 1}).trained
    assert not tiny.train(tmp_path, {"epochs": 1}).trained
    paths.write_text(tmp_path / paths.AGAIN, "")
    assert tiny.train(tmp_path, {"epochs": 1}).trained
    assert not tiny.train(tmp_path, {"epochs": 1}).trained


def test_looking_for_the_newest_state_changes_nothing(tmp_path):
    paths.write_json(tmp_path / "best.json", {"best": "x"})
    paths.write_text(tmp_path / ".half.tmp", "")
    stage = stage_folder.StageFolder(tmp_path, None, SimpleNamespace(), {}, "", "")
    assert stage.newest() is None
    assert sorted(file.name for file in tmp_path.iterdir()) == [".half.tmp", "best.json"]
    stage.begin()
    assert not any(tmp_path.iterdir())


def test_a_finished_stage_that_is_trained_again_says_why(tmp_path, monkeypatch):
    how = {"epochs": 1, "groups": ("fc",)}
    tiny.train(tmp_path, how)
    with pytest.warns(UserWarning, match=r"is trained again: recipe\.lr 0\.001 → 0\.002$"):
        tiny.train(tmp_path, {**how, "lr": 0.002})
    monkeypatch.setattr(stage_folder, "code_version", lambda *_: "another")
    with pytest.warns(UserWarning, match="is trained again: the workbook's code for training has changed since$"):
        tiny.train(tmp_path, {**how, "lr": 0.002})
