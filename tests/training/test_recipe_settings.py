"""Recipe settings and their effect: optimizer moments, early stopping, plateaus, memory, precision, variants."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from cxrlib import UserError
from cxrlib.data.augmentation import preset
from cxrlib.training import (
    checkpoint,
    devices,
    fit,
    frozen,
    history_tables,
    job,
    losses,
    network,
    optim,
    schedules,
    stage_folder,
)

STEADY = {"warmup": 0.0, "decay": "none", "optimizer": "adamw", "precision": "float32"}


def in_order(count=24):
    return tiny.TinyBatches(count)


def weights(path):
    return checkpoint.load(path).state


def last(where):
    return where / (json.loads((where / "best.json").read_text())["last"] + checkpoint.SUFFIX)


def went_on(where, first, **changes):
    """A second stage of one epoch from the last checkpoint of ``first``."""
    model, parent = tiny.net(), last(first)
    checkpoint.load_into(model, parent)
    tiny.train(where, {**STEADY, "epochs": 1, **changes}, model=model, train=in_order(), parent=parent)
    return weights(last(where))


def test_two_stages_of_one_epoch_are_one_of_two_when_the_optimizer_is_carried_on(tmp_path):
    tiny.train(tmp_path / "whole", {**STEADY, "epochs": 2}, train=in_order())
    tiny.train(tmp_path / "first", {**STEADY, "epochs": 1}, train=in_order())
    whole = weights(last(tmp_path / "whole"))
    carried = went_on(tmp_path / "carried", tmp_path / "first")
    anew = went_on(tmp_path / "anew", tmp_path / "first", keep_moments=False)
    assert all(torch.equal(carried[name], whole[name]) for name in whole)
    assert not torch.equal(anew["fc.weight"], whole["fc.weight"])


def test_moments_go_to_weights_trained_in_both_and_to_optimizers_of_their_kind(tmp_path):
    model = network.train_only(tiny.net(), ("layer4", "fc"))
    before = optim.make(model, tiny.recipe(groups=("layer4", "fc"), optimizer="adam"))
    model(torch.randn(4, 1, 32, 32)).sum().backward()
    before.step()
    moments = optim.tensors(before, model)
    wider = network.train_only(tiny.net(), ("layer3", "layer4", "fc"))
    got = optim.restore(optim.make(wider, tiny.recipe(optimizer="adamw")), wider, moments, "adamw")
    assert {network.group_of(name) for name in got} == {"layer4", "fc"}
    assert optim.restore(optim.make(wider, tiny.recipe(optimizer="sgd")), wider, moments, "sgd") == []


def test_a_stage_stays_finished_when_its_parents_moments_are_deleted(tmp_path):
    tiny.train(tmp_path / "one", {**STEADY, "epochs": 1}, train=in_order())
    went_on(tmp_path / "two", tmp_path / "one")
    (tmp_path / "one" / stage_folder.MOMENTS).unlink()
    model = tiny.net()
    checkpoint.load_into(model, last(tmp_path / "one"))
    again = tiny.train(
        tmp_path / "two", {**STEADY, "epochs": 1}, model=model, train=in_order(), parent=last(tmp_path / "one")
    )
    assert not again.trained


def test_moments_of_another_stage_in_the_same_folder_are_not_taken(tmp_path):
    first = tiny.train(tmp_path, {**STEADY, "epochs": 1}, train=in_order())
    assert stage_folder.moments_hash(first.best)
    tiny.train(tmp_path, {**STEADY, "epochs": 1, "lr": 2e-3}, train=in_order())
    assert stage_folder.moments_hash(first.best) == ""


@pytest.mark.parametrize(("patience", "ran"), [(0, 6), (2, 4), (3, 5)])
def test_patience_ends_a_stage_that_gets_no_better(tmp_path, patience, ran):
    aucs = iter([0.6, 0.8, 0.7, 0.8, 0.75, 0.7])
    how = {"epochs": 6, "groups": ("fc",), "patience": patience}

    def score(*_):
        return np.full(15, next(aucs))

    result = tiny.train(tmp_path, how, score=score)
    assert len(result.history) == ran
    assert result.best.stem == "stage1_0.001_2"
    assert last(tmp_path).stem == f"stage1_0.001_{ran}"
    assert not tiny.train(tmp_path, how, score=score).trained


def test_a_plateau_halves_the_rate(tmp_path):
    aucs = iter([0.6, 0.8, 0.7, 0.7, 0.7, 0.9])
    how = {"epochs": 6, "groups": ("fc",), "decay": "plateau", "plateau": 2, "warmup": 0.0}
    result = tiny.train(tmp_path, how, score=lambda *_: np.full(15, next(aucs)))
    assert result.history["lr"].tolist() == [1e-3, 1e-3, 1e-3, 1e-3, 5e-4, 5e-4]


@pytest.mark.parametrize("seed", range(5))
def test_plateaus_of_the_loss_are_torchs(seed):
    """ReduceLROnPlateau with patience 5 and its default threshold, on losses that fall, stand still and rise."""
    random = np.random.default_rng(seed)
    losses = 0.2 * 0.97 ** np.cumsum(random.random(60) < 0.2) * (1 + 5e-5 * random.standard_normal(60))
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=5)
    for epoch, loss in enumerate(losses, 1):
        scheduler.step(loss)
        scores = optim.scores([{"val_loss": value} for value in losses[:epoch]], "loss")
        assert 0.5 ** optim.halvings(scores, 6, optim.BETTER["loss"]) == optimizer.param_groups[0]["lr"]


def test_the_optimizer_of_the_published_recipe_is_torchs_adam():
    recipe = schedules.recipe("published", 1)
    ours, theirs = tiny.net(), tiny.net()
    theirs.load_state_dict(ours.state_dict())
    steps = optim.make(ours, recipe), torch.optim.Adam(theirs.parameters(), lr=2e-4)
    random = torch.Generator().manual_seed(0)
    for _ in range(3):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=random)
            other.grad = one.grad.clone()
        for optimizer in steps:
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_recipe_can_choose_its_epoch_by_the_loss(tmp_path):
    aucs = iter([0.9, 0.8, 0.7, 0.6])
    how = {"epochs": 4, "groups": ("fc",), "lr": 1e-2, "chosen_by": "loss"}
    result = tiny.train(tmp_path, how, score=lambda *_: np.full(15, next(aucs)))
    lowest = int(result.history["val_loss"].argmin())
    assert lowest > 0
    assert result.best.stem == f"stage1_0.01_{lowest + 1}"
    assert "lowest validation loss" in (tmp_path / "best.json").read_text()


def test_the_rate_follows_the_batch_size(tmp_path):
    result = tiny.train(
        tmp_path, {"epochs": 1, "groups": ("fc",), "lr": 1e-3, "lr_batch": 2, "warmup": 0.0, "decay": "none"}
    )
    assert result.history["lr"].tolist() == [2e-3]  # batches of 8


def test_undefined_aucs_are_no_plateau_and_wear_out_no_patience():
    nan = float("nan")
    assert optim.halvings([0.5, nan, nan, nan], 2) == 0
    assert optim.halvings([0.5, nan, 0.4, 0.4, 0.4, 0.4], 2) == 2
    assert not optim.exhausted([nan, nan, nan], 1)
    assert optim.exhausted([0.5, 0.4], 1)
    assert not optim.exhausted([0.5, 0.4], 0)


def narrow(monkeypatch, films, error):
    """Make the head raise ``error`` for batches of more than ``films``."""
    own = network.Network.suffix

    def suffix(self, features):
        if len(features) > films and self.training:
            raise error
        return own(self, features)

    monkeypatch.setattr(network.Network, "suffix", suffix)


MEMORY = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]


@pytest.mark.parametrize("error", MEMORY)
def test_halved_batches_make_the_same_steps(tmp_path, monkeypatch, error):
    how = {**STEADY, "optimizer": "sgd", "lr": 0.1, "epochs": 2, "groups": ("fc",), "accumulate": 2}
    whole = tiny.train(tmp_path / "whole", how)
    narrow(monkeypatch, 3, error)
    halved = tiny.train(tmp_path / "halved", {**how, "split_on_oom": True})
    torch.testing.assert_close(
        weights(last(tmp_path / "halved"))["fc.weight"], weights(last(tmp_path / "whole"))["fc.weight"]
    )
    np.testing.assert_allclose(halved.history["train_loss"], whole.history["train_loss"], rtol=1e-5)


def test_without_halving_memory_that_runs_out_is_told_with_what_to_try(tmp_path, monkeypatch):
    narrow(monkeypatch, 3, MEMORY[0])
    with pytest.raises(
        UserError, match=r"batch size 8; 2 films fit: try batch_size 2 .*accumulate=4.*split_on_oom=yes"
    ):
        tiny.train(tmp_path, {"epochs": 1, "groups": ("fc",)})


def test_two_films_are_not_halved_for_the_sake_of_batchnorm(tmp_path, monkeypatch):
    narrow(monkeypatch, 1, MEMORY[0])
    with pytest.raises(UserError, match="ran out of memory"):
        tiny.train(tmp_path, {"epochs": 1, "groups": ("fc",), "split_on_oom": True})


@pytest.mark.skipif(not devices.has_bfloat16(torch.device("cpu")), reason="this processor has no native bfloat16")
def test_precision_is_the_recipes(tmp_path):
    exact = tiny.train(tmp_path / "exact", {"epochs": 1, "precision": "float32"})
    rounded = tiny.train(tmp_path / "rounded", {"epochs": 1})
    assert exact.history["train_loss"][0] != rounded.history["train_loss"][0]
    assert exact.history["train_loss"][0] == pytest.approx(rounded.history["train_loss"][0], rel=0.05)


def test_films_too_small_for_half_precision_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "has_bfloat16", lambda at: True)
    train = tiny.TinyBatches(24)
    train.store = SimpleNamespace(size=16, pixels_of=lambda films: "noise")
    with pytest.raises(UserError, match="films of 16 pixels are too small for bfloat16; give size 32"):
        tiny.train(tmp_path, {"epochs": 1}, train=train)
    for size, dtype in ((16, torch.float32), (17, torch.bfloat16), (None, torch.bfloat16)):
        devices.require_size_for_bfloat16(SimpleNamespace(store=SimpleNamespace(size=size)), dtype)


def test_without_a_compiler_compile_says_so(monkeypatch):
    monkeypatch.setattr(frozen.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        frozen.require_cpp_compiler(torch.device("cpu"))
    frozen.require_cpp_compiler(torch.device("cuda"))


@pytest.mark.slow
def test_compiled_it_learns_the_same(tmp_path):
    try:
        frozen.require_cpp_compiler(torch.device("cpu"))
    except UserError as error:
        pytest.skip(str(error))
    how = {**STEADY, "optimizer": "sgd", "epochs": 1, "groups": ("layer4", "fc")}
    plain = tiny.train(tmp_path / "plain", how)
    compiled = tiny.train(tmp_path / "compiled", {**how, "compile": "yes"})
    ours, theirs = weights(compiled.best), weights(plain.best)
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours["fc.weight"], theirs["fc.weight"], rtol=1e-3, atol=1e-4)


def test_fixed_views_come_again_after_as_many_epochs(tmp_path):
    train = tiny.TinyBatches(24, variants=2)
    train.augment = preset("light")
    assert [train.variant(epoch) for epoch in range(4)] == [0, 1, 0, 1]
    result = tiny.train(tmp_path, {"epochs": 4, "groups": ("fc",), "variants": 2}, train=train)
    assert len(result.history) == 4
    assert len({epoch for epoch, _ in train.drawn}) == 4, "an epoch took its films from somewhere else"


def test_every_batchs_loss_is_kept_and_the_epochs_are_their_means(tmp_path):
    result = tiny.train(tmp_path, {"epochs": 2})
    kept = history_tables.read_batches(tmp_path)
    assert kept.equals(result.batches)
    assert kept.groupby(["epoch", "part"])["films"].sum().tolist() == [24, 12] * 2
    for (epoch, part), own in kept.groupby(["epoch", "part"]):
        mean = np.average(own["loss"], weights=own["films"])
        assert mean == pytest.approx(result.history.loc[epoch - 1, f"{part}_loss"], rel=1e-12)


def test_who_watches_and_fails_is_warned_of_once_and_ends_nothing(tmp_path):
    asked = []

    def watch(progress):
        asked.append(progress.text())
        raise ValueError("no screen")

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = tiny.train(tmp_path, {"epochs": 2, "groups": ("fc",)}, watch=watch)
    assert result.trained
    assert len(asked) == 1
    assert sum("no screen" in str(warning.message) for warning in told) == 1


def test_who_watches_sees_the_epochs_and_the_end(tmp_path):
    seen = []
    how = {"epochs": 2, "groups": ("fc",)}
    tiny.train(tmp_path, how, watch=lambda at: seen.append((len(at.history), len(at.curve), at.done)))
    assert [count for count, _, _ in seen] == sorted(count for count, _, _ in seen)
    assert seen[-1] == (2, 6, True)


def test_the_job_weights_positives_by_the_training_part_alone(tiny_phantom, monkeypatch):
    seen = {}

    def look(model, train, val, loss, recipe, **more):
        seen.update(loss=loss, train=train)
        raise UserError("seen")

    monkeypatch.setattr(fit, "fit", look)
    with pytest.raises(UserError, match="seen"):
        job.train(stage=1, run="weights", data=str(tiny_phantom), size=32, override="positive_weight=5 variants=3")
    balance = losses.positive_weights(seen["train"].films[list(tiny.labels.LABELS)].to_numpy(), 5)
    assert seen["loss"].positive_weight == tuple(balance)
    assert max(seen["loss"].positive_weight) == 5
    assert seen["train"].variants == 3


def test_a_damaged_file_of_moments_is_told(tmp_path):
    first = tiny.train(tmp_path / "one", {**STEADY, "epochs": 1}, train=in_order())
    file = first.best.with_name(stage_folder.MOMENTS)
    content = file.read_bytes()
    file.write_bytes(content[:-8])
    with pytest.raises(UserError, match=stage_folder.MOMENTS):
        stage_folder.read_moments(first.best)
    assert checkpoint.read_description(file)["optimizer"] == "adamw"
