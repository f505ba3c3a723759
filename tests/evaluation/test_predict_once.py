"""Cached predictions are reused, and made again if anything that they depend on has changed."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from cxrlib import UserError, paths
from cxrlib.data import records, store
from cxrlib.data.batches import Batches
from cxrlib.evaluation import predict


class Counting(nn.Module):
    """A network whose output is the mean grey of each quarter; counts its films."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 15)
        self.read = 0

    def forward(self, images):
        self.read += len(images)
        return self.head(nn.functional.adaptive_avg_pool2d(images, 2).flatten(1))


@pytest.fixture
def made(tiny_phantom, tmp_path):
    """A network, batches of 20 phantom films, and the path of their predictions."""
    torch.manual_seed(0)
    films = records.read(tiny_phantom).head(20)
    pixels = store.build(films, 16, progress=False)
    return Counting(), Batches(pixels, films, batch_size=8), tmp_path / "predictions" / "stage1_test.csv"


def test_the_second_call_reads_no_film_and_gives_the_same_numbers(made):
    model, batches, csv = made
    first = predict.predict_once(model, batches, csv, weights="a")
    assert model.read == 20
    np.testing.assert_allclose(first, predict.predict(model, batches), rtol=1e-8)
    model.read = 0
    np.testing.assert_array_equal(predict.predict_once(model, batches, csv, weights="a"), first)
    assert model.read == 0


@pytest.mark.parametrize(
    "changed",
    [
        lambda csv: {"weights": "b"},
        lambda csv: {"tta": "flip"},
        lambda csv: csv.unlink(),
        lambda csv: predict.cache_note(csv).unlink(),
        lambda csv: predict.cache_note(csv).write_text("{"),
        lambda csv: csv.write_text(csv.read_text()[:-200]),
        lambda csv: predict.cache_note(csv).write_text(
            json.dumps({**paths.read_json(predict.cache_note(csv)), "code": ""})
        ),
    ],
)
def test_what_was_made_otherwise_or_damaged_is_read_again(made, changed):
    model, batches, csv = made
    predict.predict_once(model, batches, csv, weights="a")
    how = changed(csv)
    model.read = 0
    predict.predict_once(model, batches, csv, **({"weights": "a"} | (how if isinstance(how, dict) else {})))
    assert model.read in (20, 40)
    model.read = 0
    predict.predict_once(model, batches, csv, **({"weights": "a"} | (how if isinstance(how, dict) else {})))
    assert model.read == 0


def test_changed_labels_and_other_films_are_read_again(made):
    model, batches, csv = made
    predict.predict_once(model, batches, csv, weights="a")
    relabelled = batches.films.assign(Mass=1 - batches.films["Mass"])
    for films in (relabelled, batches.films.tail(7).reset_index(drop=True)):
        model.read = 0
        other = Batches(batches.store, films, batch_size=8)
        assert len(predict.predict_once(model, other, csv, weights="a")) == len(films)
        assert model.read == len(films)
    assert len(pd.read_csv(csv)) == 7


def swap_names(text: str) -> str:
    first, second, third, rest = text.split("\n", 3)
    return "\n".join([first, third.split(",")[0] + second[12:], second.split(",")[0] + third[12:], rest])


@pytest.mark.parametrize("change", [lambda text: text.replace("0.", "0.0", 1), swap_names], ids=["digit", "names"])
def test_a_changed_file_is_refused_by_readers_and_predicted_again_with_a_word(made, change, capsys):
    model, batches, csv = made
    first = predict.predict_once(model, batches, csv, weights="a")
    text = csv.read_text()
    csv.write_text(change(text))
    assert csv.read_text() != text
    with pytest.raises(UserError, match=r"stage1_test\.csv is not what the run predicted.*06_evaluation again"):
        predict.read(csv)
    capsys.readouterr()
    np.testing.assert_array_equal(predict.predict_once(model, batches, csv, weights="a"), first)
    assert "predicted again: " in capsys.readouterr().out
    assert csv.read_text() == text
    assert predict.read(csv).images == batches.films["image"].tolist()
