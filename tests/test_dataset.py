"""A data folder opened in one call is what its steps give one after the other."""

import shutil

import pandas as pd
import pytest

from cxrlib import UserError, dataset
from cxrlib.data import augmentation, records, splits, store
from cxrlib.phantom import phantom

SIZE = 16


def test_it_is_what_its_steps_give(tiny_phantom):
    films = records.read(tiny_phantom)
    parts = splits.make(films, tiny_phantom)
    opened = dataset.open(str(tiny_phantom), SIZE, seed=3)
    pd.testing.assert_frame_equal(opened.films, films)
    for name in ("train", "val", "test"):
        pd.testing.assert_frame_equal(getattr(opened.parts, name), getattr(parts, name))
    assert opened.folder == tiny_phantom
    assert opened.fingerprint == records.fingerprint(films)
    assert opened.store.pixels_of(films) == store.build(films, SIZE).pixels_of(films)
    assert opened.summary().loc["films"].tolist() == [len(parts.train), len(parts.val), len(parts.test)]


def test_its_batches_are_shuffled_for_training_and_in_order_for_validation(tiny_phantom):
    opened = dataset.open(str(tiny_phantom), SIZE, seed=3)
    train, val = opened.batches(8, augment="light", cap=20, variants=2)
    assert (train.batch_size, val.batch_size, train.seed) == (8, 16, 3)
    assert (train.augment, train.cap, train.variants) == (augmentation.preset("light"), 20, 2)
    assert train.films is opened.parts.train
    assert val.films is opened.parts.val
    assert val.order(0).tolist() == list(range(len(opened.parts.val)))
    assert sorted(train.order(0)) != train.order(0).tolist()
    assert val.augment == augmentation.preset("none")


def test_a_seed_draws_the_order_of_training_and_not_the_split(tiny_phantom, tmp_path):
    """Without official lists all three parts are drawn, and runs of several seeds must be able to be compared."""
    folder = tmp_path / "films"
    shutil.copytree(tiny_phantom, folder)
    for official in folder.glob("*list*.txt"):
        official.unlink()
    one, other = (dataset.open(str(folder), SIZE, seed=seed, progress=False) for seed in (0, 5))
    assert "drawn by patient" in one.parts.source
    for name in ("train", "val", "test"):
        pd.testing.assert_frame_equal(getattr(one.parts, name), getattr(other.parts, name))
    orders = [opened.batches(8)[0].order(0).tolist() for opened in (one, other)]
    assert orders[0] != orders[1]
    assert splits.make(one.films, folder, seed=splits.SEED).source == one.parts.source


def test_it_says_what_it_found_and_what_was_left_out(tiny_phantom, tmp_path):
    folder = tmp_path / "films"
    shutil.copytree(tiny_phantom, folder)
    first, second = sorted((folder / "images").glob("*.png"))[:2]
    first.unlink()
    second.write_bytes(b"no film")
    with pytest.raises(UserError, match="1 of the 96 films"):
        dataset.open(str(folder), SIZE)
    said = str(dataset.open(str(folder), SIZE, allow_missing=True, progress=False))
    assert said.startswith("94 films of 16 px, 2 left out\nsplit: official lists of films")
    assert said.endswith("patients shared by training and validation: 0; by training and test: 0")


def test_no_folder_means_the_phantom_set(monkeypatch, tiny_phantom):
    monkeypatch.setattr(phantom, "default", lambda: tiny_phantom)
    assert dataset.locate("") == tiny_phantom
    assert dataset.locate(str(tiny_phantom)) == tiny_phantom
