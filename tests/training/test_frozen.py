import pytest
import tiny
import torch

from cxrlib.data.augmentation import preset
from cxrlib.training import checkpoint, devices, frozen, network, processes

ALONE = processes.launched_group("cpu")
SPLITS = [network.GROUPS[first:] for first in range(1, 6)]


@pytest.fixture(scope="module")
def worn():
    """A network with used BatchNorm statistics, so that folding changes every kernel."""
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
    features = frozen.FrozenFeatures(model, part, ALONE, pause=lambda *at: calls.append(at))
    for epoch in range(2):
        for batch in part.epoch(epoch):
            torch.testing.assert_close(features.of(batch), model.prefix(batch.images), rtol=1e-4, atol=1e-4)
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("groups", SPLITS)
@pytest.mark.skipif(not devices.has_bfloat16(ALONE.device), reason="this processor has no native bfloat16")
def test_in_half_precision_the_prefix_is_as_close_as_autocast_brings_the_plain_one(worn, groups):
    model = network.train_only(worn, groups)
    batch = next(tiny.TinyBatches(16).epoch(0))
    exact = model.prefix(batch.images)
    folded = frozen.FrozenFeatures(model, tiny.TinyBatches(16), ALONE, dtype=torch.bfloat16, memory=0).of(batch)
    with devices.autocast(ALONE.device, torch.bfloat16):
        plain = model.prefix(batch.images)
    assert folded.dtype == torch.bfloat16
    assert away(folded, exact) <= max(1.5 * away(plain, exact), 0.01)


def away(values, exact):
    """Distance relative to the norm of the exact values."""
    return ((values.float() - exact).norm() / exact.norm()).item()


def remembering(part, **room):
    model = network.train_only(network.build("none", layers=(1, 1, 1, 1)), ("fc",)).eval()
    return model, frozen.FrozenFeatures(model, part, ALONE, **room)


def test_nothing_is_remembered_of_films_that_vary_or_need_more_than_the_room(tmp_path):
    varied = tiny.TinyBatches(20)
    varied.augment = preset("light")
    size = 20 * 2048 * 4
    little, no_folder = {"memory": size - 1, "disk": size - 1, "folder": tmp_path}, {"memory": size - 1}
    for part, room in ((varied, {}), (tiny.TinyBatches(20), little), (tiny.TinyBatches(20), no_folder)):
        model, features = remembering(part, **room)
        batch = next(part.epoch(0))
        torch.testing.assert_close(features.of(batch), model.prefix(batch.images), rtol=1e-4, atol=1e-4)
        assert not features.known
    assert not list(tmp_path.iterdir())
    model, features = remembering(tiny.TinyBatches(20), memory=size)
    assert features.of(batch) is not None
    assert list(features.known) == [0]


def test_what_memory_does_not_hold_goes_to_a_file_that_leaves_nothing_behind(tmp_path):
    part = tiny.TinyBatches(20, shuffle=True)
    model, features = remembering(part, memory=0, folder=tmp_path)
    for batch in part.epoch(1):
        torch.testing.assert_close(features.of(batch), model.prefix(batch.images), rtol=1e-4, atol=1e-4)
    assert list(features.known) == [0]
    assert not list(tmp_path.iterdir())


def test_without_twice_the_room_on_the_disk_nothing_is_kept_there(tmp_path, monkeypatch):
    full = type("Usage", (), {"free": 2 * 20 * 2048 * 4 - 1})
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda folder: full)
    part = tiny.TinyBatches(20)
    _, features = remembering(part, memory=0, folder=tmp_path)
    features.of(next(part.epoch(0)))
    assert not features.known


def test_beside_an_accelerator_no_file_is_made(tmp_path):
    model = network.train_only(tiny.net(), ("fc",))
    for kind, room in (("meta", 0), ("cpu", frozen.DISK)):
        assert (
            frozen.FrozenFeatures(
                model, tiny.TinyBatches(4), processes.ProcessGroup(torch.device(kind)), folder=tmp_path
            ).disk
            == room
        )


def test_fixed_views_are_remembered_each_and_found_again():
    class Viewed(tiny.TinyBatches):
        """Batches with two variants of each film."""

        def epoch(self, epoch, start=0, **where):
            for batch in super().epoch(epoch, start, **where):
                yield batch._replace(images=batch.images + self.variant(epoch)) if where.get("images", True) else batch

    part = Viewed(20, shuffle=True, variants=2)
    part.augment = preset("light")
    model, features = remembering(part)
    for epoch in range(4):
        for batch in part.epoch(epoch):
            of = features.of(batch, epoch)
            torch.testing.assert_close(of, model.prefix(batch.images), rtol=1e-4, atol=1e-4)
    assert list(features.known) == [0, 1]


def test_with_nothing_frozen_the_images_go_through_as_they_are(worn):
    model = network.train_only(worn, network.GROUPS)
    batch = next(tiny.TinyBatches(8).epoch(0))
    assert torch.equal(frozen.FrozenFeatures(model, tiny.TinyBatches(8), ALONE).of(batch), batch.images)


def test_a_stage_on_remembered_features_ends_as_one_that_computes_them_each_time(tmp_path, monkeypatch):
    how = {"epochs": 2, "groups": ("fc",), "optimizer": "sgd"}
    one = tiny.train(tmp_path / "one", how)
    monkeypatch.setattr(frozen.FrozenFeatures, "__init__", forgetful(frozen.FrozenFeatures.__init__))
    other = tiny.train(tmp_path / "other", how)
    ours, theirs = (checkpoint.load(result.best).state["fc.weight"] for result in (one, other))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def forgetful(init):
    def without_memory(self, *args, **kwargs):
        init(self, *args, **{**kwargs, "folder": None}, memory=0)

    return without_memory


def test_the_frozen_part_is_passed_once_however_many_epochs(tmp_path, monkeypatch):
    passed = []
    compute = frozen.FrozenFeatures._compute
    monkeypatch.setattr(
        frozen.FrozenFeatures, "_compute", lambda self, images: (passed.append(len(images)), compute(self, images))[1]
    )
    tiny.train(tmp_path, {"epochs": 4, "groups": ("fc",)})
    assert sum(passed) == 24 + 12


class Shelf(tiny.TinyBatches):
    """Batches with a store, as far as features depend on it."""

    size = tiny.SIZE

    @property
    def store(self):
        return self

    def pixels_of(self, films):
        return str(hash(self.images.numpy().tobytes()))


def shared(part, seed=0, groups=("fc",), **how):
    """Features of a part by the same frozen layers under a head of another seed, and the batches that were computed."""
    model = network.train_only(tiny.net(), groups)
    torch.nn.init.normal_(model.fc.weight, generator=torch.Generator().manual_seed(seed))
    calls = []
    features = frozen.FrozenFeatures(model.eval(), part, ALONE, pause=lambda *at: calls.append(at), **how)
    values = torch.cat([features.of(batch) for batch in part.epoch(0)])
    return values, len(calls)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_are_computed_once_for_all_seeds(tmp_path, monkeypatch, dtype):
    monkeypatch.setenv(frozen.SHARED, str(tmp_path / "features"))
    first, computed = shared(Shelf(20), dtype=dtype)
    assert computed == 3
    second, computed = shared(Shelf(20), seed=1, dtype=dtype)
    assert computed == 0
    assert torch.equal(first, second)
    monkeypatch.delenv(frozen.SHARED)
    alone, computed = shared(Shelf(20), seed=1, dtype=dtype)
    assert computed == 3
    assert torch.equal(first, alone)


def test_features_of_other_films_layers_types_or_batches_are_computed_anew(tmp_path, monkeypatch):
    monkeypatch.setenv(frozen.SHARED, str(tmp_path / "features"))
    shared(Shelf(20))
    others = [
        shared(Shelf(20, first=7)),
        shared(Shelf(20), groups=("layer4", "fc")),
        shared(Shelf(20), dtype=torch.float64),
        shared(Shelf(20, batch_size=5)),
    ]
    assert all(computed for _, computed in others)
    varied = Shelf(20)
    varied.augment, varied.variants = preset("light"), 1
    assert [shared(varied)[1] for _ in range(2)] == [3, 3], "varied films depend on the seed"


@pytest.mark.parametrize("damage", ["changed", "cut", "without its JSON", "of another kind"])
def test_damaged_shared_features_are_computed_again(tmp_path, monkeypatch, damage):
    monkeypatch.setenv(frozen.SHARED, str(tmp_path))
    first, _ = shared(Shelf(20))
    (file,) = tmp_path.glob("*.safetensors")
    if damage == "without its JSON":
        file.with_suffix(".json").unlink()
    elif damage == "of another kind":
        checkpoint.write_tensors(file.with_suffix(""), {"x": torch.zeros(2)}, {})
    else:
        content = file.read_bytes()
        file.write_bytes(content[:-100] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 4]))
    again, computed = shared(Shelf(20))
    assert computed == 3
    assert torch.equal(first, again)
    assert shared(Shelf(20))[1] == 0


def test_a_disk_that_is_full_does_not_stop_a_training(tmp_path, monkeypatch):
    (tmp_path / "features").write_text("a file where the folder should be")
    monkeypatch.setenv(frozen.SHARED, str(tmp_path / "features"))
    assert shared(Shelf(20))[1] == 3


def test_where_a_card_fuses_convolutions_the_folded_network_is_the_same(worn, monkeypatch):
    """cuDNN's two operations stand for what they compute; their arguments must come as torch wants them."""

    def fused(values, weight, bias, *how):
        return torch.nn.functional.conv2d(values, weight, bias, *how).relu()

    def fused_with_shortcut(values, weight, shortcut, alpha, bias, *how):
        return (torch.nn.functional.conv2d(values, weight, bias, *how) + alpha * shortcut).relu()

    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    network.train_only(worn, ("fc",))
    plain = frozen.fold(worn)(images)
    monkeypatch.setattr(frozen, "_has_fused_convolution", lambda values: True)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", fused)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", fused_with_shortcut)
    torch.testing.assert_close(frozen.fold(worn)(images), plain)


def test_a_card_without_the_kernel_is_read_the_plain_way(monkeypatch):
    class Card:
        capability = (9, 0)

    def lacks(*_):
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: Card.capability)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", lacks)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", lacks)
    frozen._fuses.cache_clear()
    assert not frozen._fuses(torch.device("cpu"), torch.bfloat16)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", lambda *_: None)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", lambda *_: None)
    for dtype, capability, fuses in (
        (torch.bfloat16, (9, 0), True),
        (torch.float32, (9, 0), False),
        (torch.float16, (7, 5), False),
    ):
        frozen._fuses.cache_clear()
        Card.capability = capability
        assert frozen._fuses(torch.device("cpu"), dtype) == fuses
    frozen._fuses.cache_clear()
