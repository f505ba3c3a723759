"""Weight averaging of a stage's last epochs: torch's own average, taken where it helps on validation, resumable."""

import json
import math
import os

import numpy as np
import pytest
import tiny
import torch
from test_fit import kill_at, often, same  # noqa: F401

from cxrlib import UserError
from cxrlib.training import checkpoint, fit, network, schedules, stage_folder

SOUP = {"epochs": 4, "groups": ("layer4", "fc"), "soup": 3, "ema": 0.9}


def aucs_of(*values):
    """A score that gives these means, validation by validation."""
    given = iter(values)
    return lambda *_: np.full(15, next(given))


def best_json(folder):
    return json.loads((folder / "best.json").read_text())


def epochs_weights(folder, monkeypatch, **changes):
    """Train, and keep the weights of every epoch that got a checkpoint."""
    kept = {}
    save = checkpoint.save

    def keep(where, state, *args, epoch, **more):
        path = save(where, state, *args, epoch=epoch, **more)
        kept.setdefault(path.stem, {name: value.clone() for name, value in state.items()})
        return path

    monkeypatch.setattr(stage_folder.checkpoint, "save", keep)
    return tiny.train(folder, {**SOUP, **changes}, score=aucs_of(0.6, 0.7, 0.65, 0.6, 0.8)), kept


def test_the_mean_is_torchs_and_the_best_where_it_is_better(tmp_path, monkeypatch):
    result, kept = epochs_weights(tmp_path, monkeypatch)
    assert result.best.stem == "stage1_0.001_4_soup"
    average = torch.optim.swa_utils.AveragedModel(tiny.net(), use_buffers=True)
    for epoch in (2, 3, 4):
        model = tiny.net()
        model.load_state_dict(kept[f"stage1_0.001_{epoch}"])
        average.update_parameters(model)
    theirs, ours = average.module.state_dict(), checkpoint.load(result.best).state
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if value.is_floating_point():
            torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-7)
    first = tiny.net().state_dict()
    for name, value in ours.items():
        if network.group_of(name) not in SOUP["groups"]:
            assert torch.equal(value, first[name]), f"{name} is frozen and has moved"
    found = best_json(tmp_path)
    assert found["val_auc"] == pytest.approx(0.8)
    assert (found["soup"]["epochs"], found["soup"]["taken"]) == ([2, 3, 4], True)
    assert "the mean weights of epochs 2 to 4 are better, 0.8000, and taken" in found["why"]
    assert checkpoint.read_meta(result.best)["soup"] == [2, 3, 4]
    assert {path.stem for path in tmp_path.glob("stage*.safetensors")} == {found["best"], found["last"]}


@pytest.mark.parametrize("value", [0.7, 0.69, math.nan])
def test_a_mean_that_is_no_better_is_not_taken(tmp_path, value):
    plain = tiny.train(tmp_path / "plain", {**SOUP, "soup": 0}, score=aucs_of(0.6, 0.7, 0.65, 0.6))
    result = tiny.train(tmp_path / "soup", SOUP, score=aucs_of(0.6, 0.7, 0.65, 0.6, value))
    assert result.best.stem == plain.best.stem == "stage1_0.001_2"
    ours, theirs = (checkpoint.load(found.best).state for found in (result, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    found = best_json(tmp_path / "soup")
    assert not found["soup"]["taken"]
    assert found["soup"]["val_auc"] == (None if math.isnan(value) else pytest.approx(value))
    assert "are not better" in found["why"]
    assert "soup" not in best_json(tmp_path / "plain")


def test_the_loss_decides_where_it_chooses(tmp_path):
    result = tiny.train(tmp_path, {**SOUP, "chosen_by": "loss", "lr": 3e-2}, score=aucs_of(*[0.5] * 5))
    found, losses = best_json(tmp_path)["soup"], result.history["val_loss"]
    assert found["taken"] == (found["val_loss"] < losses.min())


def test_the_validation_number_is_the_means_own(tmp_path, monkeypatch):
    """What best.json says of the mean is what its checkpoint gives."""
    monkeypatch.setattr(stage_folder.Soup, "is_better", lambda *_: True)
    result = tiny.train(tmp_path, {**SOUP, "lr": 3e-3, "precision": "float32"})
    found = best_json(tmp_path)["soup"]
    model = tiny.net()
    checkpoint.load_into(model, result.best)
    val = tiny.parts()[1]
    with torch.no_grad():
        said = model.eval()(val.images).sigmoid().numpy()
    assert np.nanmean(tiny.score(val.labels.numpy(), said)[:14]) == pytest.approx(found["val_auc"], abs=1e-9)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(("at", "patience"), [((1, 1), 0), ((3, 2), 0), ((2, 0), 3)])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, at, patience):
    how = {**SOUP, "patience": patience}
    tiny.train(tmp_path / "whole", how)
    with pytest.raises(fit.Stopped):
        tiny.train(tmp_path / "cut", how, train=kill_at(*at))
    assert tiny.train(tmp_path / "cut", how).resumed_from
    same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.usefixtures("often")
def test_a_signal_while_the_mean_is_tried_loses_nothing(tmp_path, monkeypatch):
    tiny.train(tmp_path / "whole", SOUP)
    mean = checkpoint.mean_weights
    monkeypatch.setattr(checkpoint, "mean_weights", lambda files: (os.kill(os.getpid(), 15), mean(files))[1])
    with pytest.raises(fit.Stopped):
        tiny.train(tmp_path / "cut", SOUP)
    monkeypatch.setattr(checkpoint, "mean_weights", mean)
    assert tiny.train(tmp_path / "cut", SOUP).resumed_from
    same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.usefixtures("often")
def test_a_state_without_an_epoch_of_its_mean_begins_anew(tmp_path):
    with pytest.raises(fit.Stopped):
        tiny.train(tmp_path, SOUP, train=kill_at(3, 1))
    gone = next(tmp_path.glob("stage1_*_2.safetensors"))
    gone.unlink()
    with pytest.warns(UserWarning, match=f"its checkpoint {gone.stem} is missing"):
        result = tiny.train(tmp_path, SOUP)
    assert not result.resumed_from
    assert len(result.history) == 4


@pytest.mark.usefixtures("often")
def test_no_more_epochs_are_kept_than_a_mean_needs(tmp_path):
    most = []

    def look(*_):
        most.append(len([*tmp_path.glob("stage*.safetensors")]))
        return np.full(15, 0.9 - 0.01 * len(most))

    tiny.train(tmp_path, {**SOUP, "epochs": 7, "soup": 2, "patience": 6}, score=look)
    assert max(most) <= 2 + 2, "the best, those of the mean, and of the state before"


def test_one_epoch_has_no_mean(tmp_path):
    assert "soup" not in best_json(tiny.train(tmp_path, {**SOUP, "epochs": 1}).best.parent)


def test_a_soup_is_a_number_of_epochs():
    assert schedules.recipe("published", 1, override="soup=4").soup == 4
    with pytest.raises(UserError, match="soup is -1; it must be 0 to 1,000"):
        schedules.recipe("published", 1, override="soup=-1")
