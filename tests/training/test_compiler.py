"""Compiling: when it saves time, and what is compiled."""

from types import SimpleNamespace

import pytest
import tiny
import torch

from cxrlib.training import fit, frozen, network, optim, processes

CUDA = torch.device("cuda")
CARDS = {"H100": (9, 0, 132, 1_980_000), "A100": (8, 0, 108, 1_410_000), "T4": (7, 5, 40, 1_590_000)}
PEAKS = {"H100": 989e12, "A100": 312e12, "T4": 65e12}
"""Dense half-precision operations per second by NVIDIA's data sheets."""


def is_card(monkeypatch, name):
    major, minor, multiprocessors, clock = CARDS[name]
    found = SimpleNamespace(major=major, minor=minor, multi_processor_count=multiprocessors, clock_rate=clock)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda at: found)


@pytest.mark.parametrize("name", CARDS)
def test_a_cards_peak_is_its_makers(monkeypatch, name):
    is_card(monkeypatch, name)
    assert frozen.peak_flops(CUDA) == pytest.approx(PEAKS[name], rel=0.1)


def test_a_resnet50s_operations_are_the_published_ones():
    """Operations per film at 224 px: 4.09 billion multiply-adds (torchvision's table), less two thirds of those of the
    first layer. Training all layers takes three times as many, training the head slightly more than one time."""
    model = network.build("none")
    forward = 2 * (4.09e9 - 2 / 3 * 112**2 * 64 * 3 * 49)
    assert frozen.training_flops(model, 10, 224) == pytest.approx(30 * forward, rel=0.01)
    head = frozen.training_flops(network.train_only(model, ("fc",)), 10, 224)
    assert head == pytest.approx(10 * forward, rel=0.01)
    assert model.device.type == "cpu"


def test_compiling_pays_for_long_stages_on_slow_cards_and_never_on_a_cpu(monkeypatch):
    stage = 24.3e9 * 77_872 * 5  # all layers, five epochs of the whole dataset
    is_card(monkeypatch, "T4")
    assert frozen.compiling_pays(CUDA, lambda: stage)
    assert not frozen.compiling_pays(CUDA, lambda: stage / 100)
    is_card(monkeypatch, "H100")
    assert not frozen.compiling_pays(CUDA, lambda: stage)
    assert frozen.compiling_pays(CUDA, lambda: 4 * stage)
    assert not frozen.compiling_pays(torch.device("cpu"), lambda: 1e30)


def test_only_whole_batches_are_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda run, **how: lambda values: "compiled")
    run = frozen.WholeBatches(lambda values: "plain", 8)
    assert [run(torch.zeros(n)) for n in (8, 3, 8)] == ["compiled", "plain", "compiled"]


def test_code_becomes_a_graph_on_one_card_where_no_gradient_waits_for_further_batches(monkeypatch):
    modes = []
    monkeypatch.setattr(torch, "compile", lambda run, mode=None, **how: modes.append(mode) or run)
    groups = [processes.ProcessGroup(torch.device(kind)) for kind in ("cuda", "cpu")]
    assert [frozen.graphs_fit(group) for group in groups] == [True, False]
    assert not frozen.graphs_fit(SimpleNamespace(device=CUDA, world=2))
    monkeypatch.setattr(frozen, "graphs_fit", lambda group: True)
    model, how = tiny.net(), {"known_of": len, "compiled": 8}
    for accumulate in (1, 2):
        recipe = tiny.recipe(accumulate=accumulate, precision="float32")
        step = fit.Step(model, None, recipe, optim.make(model, recipe), groups[1], **how)
        assert step.graphs == (accumulate == 1)
    assert modes == ["reduce-overhead", None]


def test_compile_takes_auto_yes_and_no():
    assert tiny.recipe(compile="yes").compile == "yes"
    assert tiny.recipe().compile == "auto"


def test_a_recipe_says_yes_no_or_leaves_it_to_what_pays(monkeypatch):
    train = tiny.TinyBatches(24)
    train.store = SimpleNamespace(size=32)
    monkeypatch.setattr(frozen, "require_cpp_compiler", lambda device: None)
    for word, paying, films in (("no", True, 0), ("yes", False, 8), ("auto", True, 8), ("auto", False, 0)):
        monkeypatch.setattr(frozen, "compiling_pays", lambda device, flops, paying=paying: paying)
        recipe = tiny.recipe(compile=word)
        assert frozen.compiled_batch_size(recipe, train, tiny.net(), torch.device("cpu")) == films
    assert frozen.compiled_batch_size(tiny.recipe(compile="yes"), train, tiny.net(), torch.device("cpu"), world=2) == 4
