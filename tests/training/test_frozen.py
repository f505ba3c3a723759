import pytest
import tiny
import torch

from cxrlib.data.batches import augment
from cxrlib.training import checkpoint, frozen, network

CPU = torch.device("cpu")
SPLITS = [network.GROUPS[first:] for first in range(1, 6)]


@pytest.fixture(scope="module")
def worn():
    """A network whose BatchNorms have seen films, so that folding them in changes every kernel."""
    model = network.build("none", seed=2, layers=(2, 1, 1, 1)).train()
    draw = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "bn" in name or "downsample.1" in name:
            weight.data = torch.rand(weight.shape, generator=draw) + 0.5
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 1, 32, 32, generator=draw) * 2 + 1)
    return model


@pytest.mark.parametrize("groups", SPLITS)
def test_the_folded_prefix_equals_the_plain_one(worn, groups):
    model = network.train_only(worn, groups)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    folded = frozen.fold(model)
    torch.testing.assert_close(folded(images), model.prefix(images), rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("groups", [("fc",), ("layer4", "fc")])
def test_remembered_features_are_those_of_each_batch(worn, groups):
    model = network.train_only(worn, groups)
    part = tiny.TinyBatches(20, shuffle=True)
    calls = []
    features = frozen.Features(model, part, CPU, pause=lambda *at: calls.append(at))
    for epoch in range(2):
        for batch in part.epoch(epoch):
            torch.testing.assert_close(features.of(batch), model.prefix(batch.images), rtol=1e-4, atol=1e-4)
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_nothing_is_remembered_of_films_that_vary_or_need_more_than_the_budget(worn):
    model = network.train_only(worn, ("fc",))
    varied = tiny.TinyBatches(20)
    varied.augment = augment("light")
    for part, budget in ((varied, frozen.BUDGET), (tiny.TinyBatches(20), 20 * 2048 * 4 - 1)):
        features = frozen.Features(model, part, CPU, budget=budget)
        batch = next(part.epoch(0))
        torch.testing.assert_close(features.of(batch), model.prefix(batch.images), rtol=1e-4, atol=1e-4)
        assert features.known is None
    assert frozen.Features(model, tiny.TinyBatches(20), CPU, budget=20 * 2048 * 4).of(batch) is not None


def test_with_nothing_frozen_the_images_go_through_as_they_are(worn):
    model = network.train_only(worn, network.GROUPS)
    batch = next(tiny.TinyBatches(8).epoch(0))
    assert torch.equal(frozen.Features(model, tiny.TinyBatches(8), CPU).of(batch), batch.images)


def test_a_stage_on_remembered_features_ends_as_one_that_computes_them_each_time(tmp_path, monkeypatch):
    how = {"epochs": 2, "groups": ("fc",), "optimizer": "sgd"}
    one = tiny.train(tmp_path / "one", how)
    monkeypatch.setattr(frozen.Features, "__init__", forgetful(frozen.Features.__init__))
    other = tiny.train(tmp_path / "other", how)
    ours, theirs = (checkpoint.load(result.best).state["fc.weight"] for result in (one, other))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def forgetful(init):
    def without_memory(self, *args, **kwargs):
        init(self, *args, **kwargs, budget=0)

    return without_memory


def test_the_frozen_part_is_passed_once_however_many_epochs(tmp_path, monkeypatch):
    passed = []
    compute = frozen.Features._compute
    monkeypatch.setattr(
        frozen.Features, "_compute", lambda self, images: (passed.append(len(images)), compute(self, images))[1]
    )
    tiny.train(tmp_path, {"epochs": 4, "groups": ("fc",)})
    assert sum(passed) == 24 + 12
