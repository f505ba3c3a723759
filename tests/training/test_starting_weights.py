"""Starting weights from files as other programs write them, and what is refused."""

import hashlib

import pytest
import torch
from torchvision.models import ResNet50_Weights, resnet50

from cxrlib import UserError
from cxrlib.training import network, starting_weights

LAYERS = (1, 1, 1, 1)


@pytest.fixture(scope="module")
def given():
    """A small ResNet's state dict with three colours and 1000 classes, as torchvision names it."""
    state = network.build("none", seed=3, layers=LAYERS).state_dict()
    colour = torch.randn(64, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return {**state, "conv1.weight": colour, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}


def wrapped(given, prefix="", key="", **beside):
    state = {prefix + name: value for name, value in given.items()}
    return {key: state, **beside} if key else {**state, **beside}


FORMS = {
    "DataParallel": {"prefix": "module."},
    "Lightning": {"prefix": "model.", "key": "state_dict", "epoch": 3, "hyper_parameters": {"lr": 0.1}},
    "self-supervised": {"prefix": "backbone.", "key": "state_dict", "optimizer": {"state": {}}},
    "DINO": {"prefix": "module.encoder.", "key": "model", "args": {"arch": "resnet50"}},
    "torch.compile": {"prefix": "_orig_mod."},
    "PyTorch's tutorial": {"key": "model_state_dict", "epoch": 3},
    "SwAV": {
        "prefix": "module.",
        "module.prototypes.weight": torch.zeros(3),
        "module.projection_head.0.bias": torch.zeros(2),
    },
    "FLOP counter": {"total_ops": torch.zeros(1), "layer1.0.conv1.total_params": torch.zeros(1)},
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_file_gives_every_layer(given, tmp_path, form):
    torch.save(wrapped(given, **FORMS[form]), tmp_path / "w.pth")
    model = network.build(str(tmp_path / "w.pth"), layers=LAYERS)
    for name, value in model.state_dict().items():
        if not name.startswith("fc."):
            expected = given[name].sum(1, keepdim=True) if name == "conv1.weight" else given[name]
            assert torch.equal(value, expected), name
    assert "0 missing" in model.start
    assert FORMS[form].get("prefix", "") in model.start


def test_torchvisions_older_file_without_counters_loads_and_says_so(tmp_path):
    """torchvision's resnet50-19c8e357.pth and resnet50-0676ba61.pth are of 2018, before BatchNorm counted batches."""
    state = {name: value for name, value in resnet50().state_dict().items() if "num_batches_tracked" not in name}
    torch.save(state, tmp_path / "old.pth")
    model = network.build(str(tmp_path / "old.pth"))
    assert "53 counters of BatchNorm" in model.start
    assert torch.equal(model.layer4[2].bn3.running_var, state["layer4.2.bn3.running_var"])


def test_what_is_left_out_is_named(given, tmp_path):
    torch.save(wrapped(given, **FORMS["SwAV"]), tmp_path / "w.pth")
    start = network.build(str(tmp_path / "w.pth"), layers=LAYERS).start
    assert "4 other entries left out" in start
    assert "module.fc.weight" in start


def refused(state, tmp_path):
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError) as error:
        network.build(str(tmp_path / "w.pth"), layers=LAYERS)
    return str(error.value)


def test_a_larger_network_is_not_taken_for_a_smaller_one(given, tmp_path):
    """A ResNet-101 has all of a ResNet-50's layers, and more."""
    assert "have unknown 1 entries such as layer3.6.bn1.bias" in refused(
        {**given, "layer3.6.bn1.bias": torch.zeros(1)}, tmp_path
    )


def test_two_networks_in_a_file_are_refused_by_name(given, tmp_path):
    both = wrapped(given, "module.encoder_q.") | wrapped(given, "module.encoder_k.")
    assert "hold 2 networks, 'module.encoder_q.' and 'module.encoder_k.'" in refused(both, tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"bn1.bias": torch.zeros(64, dtype=torch.int8)}, "whole numbers in 1 entries such as bn1.bias"),
        ({"bn1.bias": torch.full((64,), torch.nan)}, "not finite in 1 entries such as bn1.bias"),
        ({"bn1.bias": torch.zeros(64).half()}, ""),
    ],
)
def test_quantised_and_damaged_weights_are_refused_and_half_precision_is_not(given, tmp_path, spoil, message):
    if message:
        assert message in refused({**given, **spoil}, tmp_path)
    else:
        torch.save({**given, **spoil}, tmp_path / "w.pth")
        assert network.build(str(tmp_path / "w.pth"), layers=LAYERS).bn1.bias.dtype == torch.float32


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"epoch": 3}, {"model": {"lr": 0.1}}, [1, 2]])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="no state dict of tensors"):
        network.build(str(tmp_path / "w.pth"))


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>Please log in</html>"])
def test_a_damaged_download_is_fetched_again(tmp_path, monkeypatch, content):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    entry = ResNet50_Weights.IMAGENET1K_V2
    cached = starting_weights.cached_file(entry)
    cached.parent.mkdir()
    cached.write_bytes(content)
    asked = []

    def fetched(self, **how):
        asked.append(cached.exists())
        raise OSError("no network")

    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", fetched)
    with pytest.raises(UserError, match=r"no network.*damaged copy in .* was deleted.*give weights=/path/to/resnet50-"):
        network.build(entry.name)
    assert asked == [False]


def test_a_sound_download_is_kept(tmp_path):
    content = b"weights"
    path = tmp_path / f"resnet50-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.write_bytes(content)
    assert starting_weights._drop_if_damaged(path) == ""
    assert path.read_bytes() == content
