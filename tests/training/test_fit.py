import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from cxrlib import UserError, paths, provenance
from cxrlib.data.augmentation import preset
from cxrlib.training import checkpoint, fit, history_tables, lineage, network, stage_folder

THIS = Path(tiny.__file__)
SETTINGS = {"ema": 0.9, "epochs": 3, "groups": ("layer4", "fc")}
"""Recipe with a moving average, so that a resume must restore both sets of weights."""


def settings(**changes):
    return {**SETTINGS, **changes}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    where = tmp_path_factory.mktemp("undisturbed")
    torch.set_num_threads(1)
    return where, tiny.train(where, settings())


@pytest.fixture
def often(monkeypatch):
    """Make every step save its state."""
    monkeypatch.setenv("CXR_SAVE_EVERY", "0")


class Interrupting(tiny.TinyBatches):
    """Batches that call ``at(epoch, batch)`` before each training batch."""

    def __init__(self, at):
        super().__init__(24, shuffle=True)
        self.at = at

    def epoch(self, epoch, start=0, **where):
        for batch, item in enumerate(super().epoch(epoch, start, **where), start):
            self.at(epoch, batch)
            yield item


def kill_at(epoch, batch, number=signal.SIGTERM):
    return Interrupting(lambda e, b: os.kill(os.getpid(), number) if (e, b) == (epoch, batch) else None)


def same(one, other):
    """Whether two stage folders are equal: weights, losses, history without its times, and best.json."""
    names = {path.name for path in one.glob("stage*.safetensors")}
    assert names == {path.name for path in other.glob("stage*.safetensors")}
    for name in names:
        assert provenance.file_sha256(one / name) == provenance.file_sha256(other / name), name
    pd.testing.assert_frame_equal(
        history_tables.read_history(one)[history_tables.HISTORY_COLUMNS],
        history_tables.read_history(other)[history_tables.HISTORY_COLUMNS],
        check_exact=True,
    )
    assert (one / "batches.csv").read_bytes() == (other / "batches.csv").read_bytes()
    best = [json.loads((where / "best.json").read_text()) for where in (one, other)]
    assert best[0] == best[1]


def test_a_stage_leaves_what_the_design_promises(undisturbed):
    where, result = undisturbed
    assert result.trained
    assert result.history["epoch"].tolist() == [1, 2, 3]
    assert [*result.history.columns] == [*history_tables.HISTORY_COLUMNS, *history_tables.EXTRA]
    best = json.loads((where / "best.json").read_text())
    assert checkpoint.best(where) == result.best
    assert result.history["val_auc"].max() == best["val_auc"]
    assert {path.stem for path in where.glob("stage*.json")} == {best["best"], best["last"]}
    assert best["last"] == "stage1_0.001_3"
    assert not (where / "state").exists()
    assert json.loads((where / "progress.json").read_text())["done"]
    assert not list(where.glob(".*.tmp"))


def test_the_same_call_gives_the_same_bits(undisturbed, tmp_path):
    tiny.train(tmp_path, settings())
    same(undisturbed[0], tmp_path)


def test_the_network_is_left_with_the_best_weights(tmp_path):
    model = tiny.net()
    result = tiny.train(tmp_path, {"epochs": 2, "groups": ("fc",)}, model=model)
    assert checkpoint.tensors_sha256(model.state_dict()) == checkpoint.tensors_sha256(
        checkpoint.load(result.best).state
    )


def test_the_best_epoch_is_the_one_of_the_highest_validation_auc_and_is_no_alias(tmp_path):
    aucs = iter([0.6, 0.8, 0.7])
    model = tiny.net()
    result = tiny.train(
        tmp_path, {"epochs": 3, "groups": ("fc",)}, model=model, score=lambda *_: np.full(15, next(aucs))
    )
    assert result.best.stem == "stage1_0.001_2"
    last = checkpoint.load(tmp_path / "stage1_0.001_3.safetensors")
    assert not torch.equal(last.state["fc.weight"], checkpoint.load(result.best).state["fc.weight"])


def test_undefined_aucs_are_left_out_and_an_undefined_mean_is_no_end(tmp_path):
    some = np.array([0.5, np.nan, 1.0] + [np.nan] * 12)
    assert history_tables.history_row(1, 1, 0.1, 0.1, 0.1, some)["val_auc"] == 0.75
    result = tiny.train(tmp_path, {"epochs": 2, "groups": ("fc",)}, score=lambda *_: np.full(15, np.nan))
    assert result.best.stem == "stage1_0.001_2"
    assert result.history["val_auc"].isna().all()


def test_frozen_groups_and_their_batchnorm_stay_bit_equal(tmp_path):
    model = tiny.net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tiny.train(tmp_path, {"epochs": 1, "groups": ("layer3", "layer4", "fc")}, model=model)
    for name, value in model.state_dict().items():
        frozen = network.group_of(name) in ("stem", "layer1", "layer2")
        assert frozen == torch.equal(value, before[name]), name


def test_one_batch_is_learned_by_heart(tmp_path):
    train = tiny.TinyBatches(8)
    how = {"epochs": 15, "decay": "none", "loss": "bce"}
    result = tiny.train(tmp_path, how, train=train, val=train, score=lambda *_: np.full(15, 0.5))
    assert result.history["train_loss"].iloc[0] > 0.5
    assert result.history["train_loss"].iloc[-1] < 0.05


def test_a_finished_stage_is_recognised_and_the_best_weights_are_given(undisturbed):
    where, first = undisturbed
    train, val = tiny.parts()
    model = tiny.net()
    again = tiny.train(where, settings(), model=model, train=train, val=val)
    assert not again.trained
    assert again.best == first.best
    assert train.drawn == val.drawn == []
    assert checkpoint.tensors_sha256(model.state_dict()) == checkpoint.tensors_sha256(checkpoint.load(first.best).state)
    pd.testing.assert_frame_equal(again.history, first.history)
    assert not tiny.train(where, settings(), model=model).trained, "a cell run again, its network trained already"


@pytest.mark.parametrize("change", ["lr", "films", "seed", "batch_size", "start", "parent", "loss"])
def test_whatever_decides_the_result_has_the_stage_trained_again(tmp_path, monkeypatch, change, undisturbed):
    train, val = tiny.parts()
    who = stage_folder.identity(
        tiny.recipe(), train, val, "focal", lineage.of_stage(None, "none", train, val), data="", seed=0
    )
    if change == "films":
        train.films.loc[0, "Mass"] ^= 1
    if change == "batch_size":
        train.batch_size = 4
    parent = undisturbed[1].best if change == "parent" else None
    changed = stage_folder.identity(
        tiny.recipe(lr=2e-3) if change == "lr" else tiny.recipe(),
        train,
        val,
        "bce" if change == "loss" else "focal",
        lineage.of_stage(parent, "V2" if change == "start" else "none", train, val),
        data="",
        seed=1 if change == "seed" else 0,
    )
    assert provenance.digest(who) != provenance.digest(changed)
    assert stage_folder.identity_differences(who, changed)
    assert not stage_folder.identity_differences(who, json.loads(json.dumps(who)))


def test_other_starting_weights_have_it_trained_again(undisturbed):
    where, _ = undisturbed
    best = json.loads((where / "best.json").read_text())
    assert stage_folder.finished_checkpoint(where, best["who"], best["start"])
    assert stage_folder.finished_checkpoint(where, best["who"], "another") is None


def test_a_finished_stage_whose_weights_are_damaged_is_trained_again(tmp_path):
    how = {"epochs": 1, "groups": ("fc",)}
    best = tiny.train(tmp_path, how).best
    content = best.read_bytes()
    best.write_bytes(content[:-8] + b"damaged!")
    assert tiny.train(tmp_path, how).trained
    assert best.read_bytes() == content


def test_a_stage_of_no_epochs_hands_its_parents_weights_on(tmp_path, undisturbed):
    parent = undisturbed[1].best
    model = tiny.net()
    checkpoint.load_into(model, parent)
    result = tiny.train(tmp_path, {"number": 2, "epochs": 0}, model=model, parent=parent)
    loaded = checkpoint.load(result.best)
    assert result.history.empty
    assert loaded.meta["epochs_so_far"] == checkpoint.read_meta(parent)["epochs_so_far"]
    assert checkpoint.tensors_sha256(loaded.state) == checkpoint.tensors_sha256(checkpoint.load(parent).state)
    assert not tiny.train(tmp_path, {"number": 2, "epochs": 0}, model=model, parent=parent).trained


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_stage_goes_on_to_the_same_bits_in_the_same_notebook(undisturbed, tmp_path, number):
    model, before = tiny.net(), signal.getsignal(number)
    start = checkpoint.tensors_sha256(model.state_dict())
    with pytest.raises(fit.Stopped, match=r"stage 1 was stopped by SIG\w+ in epoch 2, batch 2.*again to resume"):
        tiny.train(tmp_path, settings(), model=model, train=kill_at(1, 1, number))
    assert checkpoint.tensors_sha256(model.state_dict()) == start
    assert signal.getsignal(number) is before
    result = tiny.train(tmp_path, settings(), model=model)
    assert result.resumed_from == "epoch 2, batch 2"
    same(undisturbed[0], tmp_path)


def test_stopped_in_the_validation_it_goes_on_with_the_validation(undisturbed, tmp_path):
    train, val = tiny.parts()
    val.epoch = lambda *_, **__: (os.kill(os.getpid(), signal.SIGTERM), iter(tiny.parts()[1].epoch(0)))[1]
    with pytest.raises(fit.Stopped, match="epoch 1, batch 3"):
        tiny.train(tmp_path, settings(), train=train, val=val)
    train, val = tiny.parts()
    assert tiny.train(tmp_path, settings(), train=train, val=val).resumed_from == "epoch 1, batch 3"
    assert train.drawn[:4] == [(0, 0), (0, 1), (0, 2), (1, 0)], "more than the frozen features came before epoch 2"
    same(undisturbed[0], tmp_path)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_two_stages_end_with_the_same_bits(tmp_path):
    """The program is killed many times (see ``tiny.hunt``) and then resumes to the end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, THIS, tmp_path], env=environment, check=True, timeout=900)
    kills = json.loads((tmp_path / "kills.json").read_text())
    assert sum(kill["signal"] == signal.SIGKILL for kill in kills) >= 20
    assert any(kill["states"] for kill in kills)
    for stage in ("stage1", "stage2"):
        same(tmp_path / "undisturbed" / stage, tmp_path / "killed" / stage)
        assert not list((tmp_path / "killed" / stage).glob(".*.tmp"))


def test_a_damaged_newest_state_costs_only_the_way_from_the_one_before(undisturbed, tmp_path, often):
    with pytest.raises(fit.Stopped):
        tiny.train(tmp_path, settings(), train=kill_at(1, 2))
    newest, before = sorted((tmp_path / "state").glob("*.safetensors"), reverse=True)
    newest.write_bytes(newest.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged, trying the one before"):
        result = tiny.train(tmp_path, settings())
    assert result.resumed_from == "epoch 2, batch 2"
    assert before.name
    same(undisturbed[0], tmp_path)


def test_the_state_of_another_recipe_is_not_continued_and_the_difference_named(tmp_path):
    with pytest.raises(fit.Stopped):
        tiny.train(tmp_path, settings(), train=kill_at(1, 1))
    with pytest.warns(UserWarning, match=r"another recipe or other data: recipe.lr 0.001 → 0.002"):
        result = tiny.train(tmp_path, settings(lr=2e-3, epochs=1))
    assert result.resumed_from == ""


def test_training_anew_takes_the_verdict_back_but_leaves_earlier_checkpoints(tmp_path):
    first = tiny.train(tmp_path, {"epochs": 1, "groups": ("fc",)})
    content = first.best.read_bytes()
    with pytest.raises(fit.Stopped):
        tiny.train(tmp_path, {"epochs": 1, "groups": ("fc",), "lr": 2e-3}, train=kill_at(0, 1))
    assert first.best.read_bytes() == content
    with pytest.raises(UserError, match="no finished stage"):
        checkpoint.best(tmp_path)


def test_two_at_once_on_one_folder_are_refused(tmp_path):
    with paths.lock_folder(tmp_path), pytest.raises(UserError, match="in use by process"):
        tiny.train(tmp_path, {"epochs": 1})


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/stage1"):
        tiny.train(tmp_path / "file" / "stage1", {"epochs": 1})


def test_a_loss_that_is_not_finite_stops_naming_stage_epoch_batch_and_images(tmp_path):
    train, _ = tiny.parts()
    row = int(np.random.default_rng(1).permutation(24)[9])  # in the second batch of the second epoch
    spoilt = train.images.clone()
    spoilt[row] = float("nan")

    def spoil(epoch, batch):
        poisoned.images = spoilt if epoch == 1 else train.images

    poisoned = Interrupting(spoil)
    poisoned.augment = preset("light")  # so that features are not cached
    model = tiny.net()
    start = checkpoint.tensors_sha256(model.state_dict())
    with pytest.raises(UserError, match=r"stage 1, epoch 2, batch 2: the loss is nan \(images .*_000.png") as error:
        tiny.train(tmp_path, {"epochs": 2, "groups": ("fc",), "ema": 0.0}, model=model, train=poisoned)
    assert len(str(error.value)) < 400
    assert checkpoint.tensors_sha256(model.state_dict()) == start


def test_accumulated_batches_make_the_step_of_a_large_one(tmp_path):
    """Only the head is trained, so that BatchNorm, which depends on the batch, does not change."""
    how = {"epochs": 2, "groups": ("fc",), "optimizer": "sgd", "lr": 0.1, "precision": "float32"}
    small, large = tiny.TinyBatches(20, batch_size=4), tiny.TinyBatches(20, batch_size=12)
    one = tiny.train(tmp_path / "one", {**how, "accumulate": 3}, train=small)
    other = tiny.train(tmp_path / "other", how, train=large)
    ours, theirs = (checkpoint.load(result.best).state["fc.weight"] for result in (one, other))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_validation_and_checkpoint_use_the_average_and_training_its_own_weights(tmp_path):
    raw = tiny.train(tmp_path / "raw", {"epochs": 2, "groups": ("fc",)})
    averaged = tiny.train(tmp_path / "averaged", {"epochs": 2, "groups": ("fc",), "ema": 0.9})
    assert averaged.history["train_loss"].tolist() == raw.history["train_loss"].tolist()
    assert averaged.history["val_loss"].tolist() != raw.history["val_loss"].tolist()


def test_lower_groups_take_lower_rates():
    from cxrlib.training import optim

    model = network.train_only(tiny.net(), ("layer3", "layer4", "fc"))
    recipe = tiny.recipe(groups=("layer3", "layer4", "fc"), lower_rate=0.5, warmup=0.2, decay="cosine")
    optimizer = optim.make(model, recipe)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [2.5e-4, 5e-4, 1e-3]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == sum(
        p.requires_grad for p in model.parameters()
    )
    rates = [optim.rate(step, 100, recipe) for step in range(101)]
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(0)


def test_states_keep_the_two_newest_and_their_tensors(tmp_path):
    for steps in (3, 4, 4):
        stage_folder.save_state(tmp_path, steps, {"x": torch.full((2,), steps)}, {"n": steps})
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert stage_folder.newest_state(tmp_path, lambda data: "").tensors["x"].tolist() == [4, 4]
    stage_folder.clear_states(tmp_path)
    assert not tmp_path.exists()


def test_states_wait_until_they_are_worth_their_time_unless_asked_for(tmp_path, monkeypatch):
    """A checkpoint takes 2 seconds, so a state should take as long, which is 1 % of 200 seconds."""
    now = [0.0]
    monkeypatch.setattr(stage_folder.time, "monotonic", lambda: now[0])

    def files():
        return stage_folder.StageFolder(tmp_path, None, None, {}, "", "")

    kept = files()
    assert kept.due(within=False), "nothing is known of the disk yet"
    kept.save_cost = 2.0
    for seconds, within, due in ((199, False, False), (200, False, True), (200, True, False), (300, True, True)):
        now[0] = seconds
        assert kept.due(within=within) == due
    monkeypatch.setenv("CXR_SAVE_EVERY", "250")
    now[0] = 0.0
    asked = files()
    asked.save_cost = 2.0
    for seconds, within, due in ((1, False, True), (249, True, False), (250, True, True)):
        now[0] = seconds
        assert asked.due(within=within) == due


def test_a_slow_disk_is_known_by_its_first_checkpoint(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(stage_folder.StageFolder, "due", lambda self, within: seen.append(self.save_cost) or False)
    tiny.train(tmp_path, settings())
    assert seen[0] == 0
    assert seen[-1] > 0
    assert not list(tmp_path.glob("state/*"))


@pytest.mark.parametrize("wrong", ["soon", "-1", "inf", "nan"])
def test_a_wrong_time_between_states_is_refused(tmp_path, monkeypatch, wrong):
    monkeypatch.setenv("CXR_SAVE_EVERY", wrong)
    with pytest.raises(UserError, match=f"CXR_SAVE_EVERY is '{wrong}'; give the seconds"):
        tiny.train(tmp_path, settings())
