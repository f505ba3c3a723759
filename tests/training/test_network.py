from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet50_Weights, resnet50

from cxrlib import UserError
from cxrlib.training import network


@pytest.fixture
def imagenet():
    """A colour ResNet-50 with 1000 classes: what a downloaded state dict looks like, but random.

    Its first kernels are multiples of 1/4096, whose sums float32 holds exactly, so that equality can be asked for.
    """
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = resnet50(weights=None).eval()
    model.conv1.weight.data = (model.conv1.weight.data * 4096).round() / 4096
    return model


@pytest.fixture
def images():
    return torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def small():
    return network.build("none", layers=(1, 1, 1, 1))


def test_grey_network_equals_the_colour_network_on_grey_films(imagenet, tmp_path, images):
    save_file(imagenet.state_dict(), tmp_path / "imagenet.safetensors")
    model = network.build(str(tmp_path / "imagenet.safetensors")).double().eval()
    colour = imagenet.double()
    colour.fc, model.fc = torch.nn.Identity(), torch.nn.Identity()
    with torch.no_grad():
        ours, colour = model(images.double()), colour(images.double().repeat(1, 3, 1, 1))
    torch.testing.assert_close(ours, colour, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_file_gives_every_weight_but_the_heads(tmp_path, ending):
    given = network.build("none", seed=1).state_dict()
    path = tmp_path / f"weights.{ending}"
    torch.save(given, path) if ending == "pth" else save_file(given, path)
    taken = network.build(str(path), seed=2).state_dict()
    same = {name for name in given if torch.equal(given[name], taken[name])}
    assert given.keys() - same == {"fc.weight", "fc.bias"}
    assert taken["fc.weight"].shape == (15, 2048)


def test_the_seed_decides_and_the_process_keeps_its_random_state():
    before = torch.get_rng_state()
    one, two, other = (network.build("none", seed=seed, layers=(1, 1, 1, 1)).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("layer3.0.conv1.weight"), "lack 1 entries such as layer3.0.conv1.weight"),
        (
            lambda state: state.update({"layer3.6.conv1.weight": torch.zeros(1)}),
            "unknown 1 entries such as layer3.6.conv1",
        ),
        (lambda state: state.update({"bn1.bias": torch.zeros(7)}), "another shape of 1 entries such as bn1.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, spoil, message):
    state = small().state_dict()
    spoil(state)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=message):
        network.build(str(tmp_path / "odd.pth"), layers=(1, 1, 1, 1))


def test_a_pickled_model_and_a_damaged_file_are_refused(tmp_path):
    torch.save(small(), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:1000])
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 100)
    for name in ("whole.pth", "cut.pth", "cut.safetensors"):
        with pytest.raises(UserError, match="state dict"):
            network.build(str(tmp_path / name))


def test_what_will_not_do_is_told_before_a_network_is_built(tmp_path):
    good = network.build("none").state_dict()
    save_file(good, tmp_path / "good.safetensors")
    for fine in ("none", "IMAGENET1K_V2", str(tmp_path / "good.safetensors")):
        network.judge(fine)
    broken = {**good, "bn1.bias": torch.full((64,), torch.nan)}
    save_file(broken, tmp_path / "nan.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors")
    wrong = {"nan.safetensors": "not finite in 1 entries such as bn1.bias", "odd.safetensors": "do not fit a ResNet-50"}
    for name, message in {**wrong, "absent.pth": "neither a file nor a known name"}.items():
        with pytest.raises(UserError, match=message):
            network.judge(str(tmp_path / name))


def test_a_strangers_file_is_refused_in_our_words(tmp_path):
    """torch's own message explains how to let the file run its code."""
    torch.save(small(), tmp_path / "whole.pth")
    (tmp_path / "foreign.pth").write_text("<html>not found</html>")
    for name in ("whole.pth", "foreign.pth"):
        with pytest.raises(UserError, match="such objects are never loaded") as refused:
            network.judge(str(tmp_path / name))
        assert not any(word in str(refused.value) for word in ("weights_only", "allowlist", "trust", "unpickl"))


def test_unknown_and_unreachable_weights_say_what_to_give(monkeypatch):
    with pytest.raises(UserError, match=r"none, IMAGENET1K_V1, IMAGENET1K_V2 or a \.pth"):
        network.build("imagenet")

    def refused(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", refused)
    with pytest.raises(UserError, match=r"no network.*https://.*give weights=/path/to/resnet50-.*\.pth"):
        network.build("IMAGENET1K_V2")


@pytest.mark.parametrize("groups", [network.GROUPS[first:] for first in range(6)])
def test_frozen_groups_stay_bit_equal_and_the_others_learn(groups, images):
    model = network.train_only(small(), groups)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    model.train()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step(
        lambda: model(images).square().mean().backward()
    )
    for name, value in model.state_dict().items():
        if network.group_of(name) not in groups:
            assert torch.equal(value, before[name]), name
    for name, weight in model.named_parameters():
        assert (weight.grad is not None) == (network.group_of(name) in groups), name
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert any("running_mean" in name for name in moved) == (groups != ("fc",))


@pytest.mark.parametrize("groups", [network.GROUPS[first:] for first in range(6)])
def test_prefix_and_suffix_are_the_network(groups, images):
    model = network.train_only(small(), groups).eval()
    features = model.prefix(images)
    assert not features.requires_grad
    torch.testing.assert_close(model.suffix(features), model(images))


def test_the_head_alone_starts_from_pooled_features(images):
    assert network.train_only(small(), ("fc",)).prefix(images).shape == (4, 2048)


def test_table_counts_every_parameter_once():
    model = network.train_only(network.build("none"), ("layer4", "fc"))
    table = network.table(model).set_index("group")
    assert table["parameters"].sum() == sum(p.numel() for p in model.parameters())
    assert table["layers"].sum() == 54  # 50 counted layers and four shortcuts
    assert table.index[table["trainable"]].tolist() == ["layer4", "fc"]
    assert table["batchnorm"].tolist() == ["frozen"] * 4 + ["moves", "none"]


def test_an_unknown_group_is_refused():
    with pytest.raises(UserError, match="layer9"):
        network.train_only(small(), ("layer9",))


def test_distance_travelled_is_nothing_where_nothing_changed_and_relative_where_it_did():
    model = network.build("none")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.layer3[0].conv1.weight.mul_(2)
        model.fc.weight.mul_(3)
        model.fc.bias.mul_(3)
        model.bn1.running_var.mul_(2)
    far = network.distance_moved(before, model.state_dict())
    assert far.loc["fc", "weights"] == pytest.approx(2)
    assert np.isnan(far.loc["fc", "statistics"])
    assert far.loc["layer3", "weights"] > 0
    assert far.loc["stem", "weights"] == 0
    assert far.loc["stem", "statistics"] > 0
    assert (far.loc[["layer1", "layer2", "layer4"]] == 0).all(axis=None)
