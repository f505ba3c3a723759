"""That nothing lies on the wrong device: notebooks and all that takes a network, on a device that is not the CPU's.

Machines without a graphics card have a pretend one (``tests.pretend``); what needs a real card is in ``test_cuda``.
"""

import importlib
import inspect
import pkgutil
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import cxrlib
from cxrlib import labels, metrics
from cxrlib.data import records, store
from cxrlib.data.batches import Batches
from cxrlib.evaluation import gate, localisation, predict
from cxrlib.training import checkpoint, fit, frozen, losses, network, schedules
from cxrlib.workbook import settings
from tests import pretend
from tests.cells import execute

SIZE = 32
TIMES = ["seconds", "images_per_s"]
SMALL = {"size": SIZE, "batch_size": 16, "epochs": 1, "schedule": "scratch", "occluded": 2}
TAKERS = {
    "cxrlib.evaluation.gate": {"features", "features_of_pixels", "fit", "fit_once", "trial"},
    "cxrlib.evaluation.localisation": {"maps", "judge", "show", "with_random_weights"},
    "cxrlib.evaluation.predict": {"predict", "dtype_of", "predict_once"},
    "cxrlib.training.checkpoint": {"load_into"},
    "cxrlib.training.frozen": {
        "compiled_batch_size",
        "training_flops",
        "fold",
        "dtype_of",
        "head_features",
        "head_probabilities",
    },
    "cxrlib.training.fit": {"fit"},
    "cxrlib.training.stage_folder": {"require_room"},
    "cxrlib.training.network": {"train_only", "members", "table"},
    "cxrlib.training.optim": {"make", "tensors", "restore", "learned", "lent", "given_back", "fill"},
    "cxrlib.training.processes": {"shared_statistics"},
}
"""The public functions that take a network. Each is called here, by a notebook or by ``fit``, on the pretend device."""


def modules():
    for found in pkgutil.walk_packages(cxrlib.__path__, "cxrlib."):
        yield importlib.import_module(found.name)


def test_every_function_that_takes_a_network_is_known_here():
    """A new one is to be run below, in a notebook or in a training."""
    found = {}
    for module in modules():
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                kinds = [parameter.annotation for parameter in inspect.signature(function).parameters.values()]
                if any(inspect.isclass(kind) and issubclass(kind, nn.Module) for kind in kinds):
                    found.setdefault(module.__name__, set()).add(name)
    assert found == TAKERS


@pytest.fixture
def elsewhere():
    """The pretend device, as the one that is found."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
        with pretend.device() as device:
            yield device


def test_the_pretend_device_refuses_what_a_card_refuses(elsewhere):
    here, there = torch.arange(3.0), torch.arange(3.0).to(elsewhere)
    for meet in (lambda: here + there, lambda: there.add_(here), lambda: torch.cat([here, there])):
        with pytest.raises(RuntimeError, match="same device"):
            meet()
    with pytest.raises(RuntimeError, match="same device"):
        here[there.long()]
    with pytest.raises(RuntimeError, match="same device"):
        nn.Linear(3, 1).to(elsewhere)(here)
    for leave in (lambda: there.numpy(), lambda: np.asarray(there)):
        with pytest.raises(TypeError, match="convert"):
            leave()


def test_the_pretend_device_computes_as_the_cpu_does(elsewhere):
    here = torch.arange(3.0)
    there = here.to(elsewhere)
    assert there.device == elsewhere
    assert (there * 2 + 1).tolist() == [1, 3, 5]
    assert there[torch.tensor([2, 0])].tolist() == [2, 0]
    assert (there * torch.tensor(2.0)).sum().item() == 6
    there.add_(1)
    assert here.tolist() == [0, 1, 2]
    weight = nn.Parameter(there)
    (weight**2).sum().backward()
    assert weight.grad.device == elsewhere
    assert weight.grad.tolist() == [2, 4, 6]


@pytest.fixture
def small_networks(monkeypatch):
    build = network.build
    monkeypatch.setattr(network, "build", lambda weights, seed=0: build(weights, seed=seed, layers=(1, 1, 1, 1)))


@pytest.mark.slow
def test_the_notebooks_run_on_another_device(tiny_phantom, elsewhere, small_networks, monkeypatch):
    """All of them as one run, in their order: none may put a batch where the network is not."""
    monkeypatch.setattr(plt, "show", lambda: None)
    used = []
    build = network.build
    monkeypatch.setattr(network, "build", lambda *args, **more: used.append(build(*args, **more)) or used[-1])
    for book in settings.chain():
        execute(book, data=str(tiny_phantom), run="elsewhere", tta="flip", **SMALL)
    assert {model.device.type for model in used} == {elsewhere.type}


@pytest.fixture
def films(tiny_phantom, tmp_path):
    films = records.read(tiny_phantom)
    return store.build(films, SIZE, folder=tmp_path / "store", progress=False), films


def both(films, work):
    """What ``work(network, batches)`` gives on the CPU and on the pretend device, for networks of the same weights."""
    pixels, rows = films
    model = network.build("none", layers=(1, 1, 1, 1))
    model.precision = "float32"
    here = work(model, Batches(pixels, rows.head(24), batch_size=8))
    return here, work(model.to(pretend.DEVICE), Batches(pixels, rows.head(24), batch_size=8))


@pytest.mark.parametrize("tta", ["none", "flip", "tencrop"])
def test_predictions_are_the_same_elsewhere(films, elsewhere, tta):
    here, there = both(films, lambda model, batches: predict.predict(model, batches, tta=tta))
    np.testing.assert_allclose(there, here, rtol=1e-5)


def test_kept_predictions_are_the_same_elsewhere(films, elsewhere, tmp_path):
    names = iter("ab")
    here, there = both(
        films, lambda model, batches: predict.predict_once(model, batches, tmp_path / f"{next(names)}.csv", weights="w")
    )
    np.testing.assert_allclose(there, here, rtol=1e-5)


def test_gates_are_the_same_elsewhere(films, elsewhere, tmp_path):
    (tmp_path / "stage1_0.001_1.safetensors").write_bytes(b"weights")
    here, there = both(films, lambda model, batches: gate.fit(model, batches, batches))
    assert there.threshold == pytest.approx(here.threshold, rel=1e-3)
    here, there = both(films, gate.features)
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5)
    here, there = both(
        films, lambda model, batches: gate.fit_once(tmp_path / "stage1_0.001_1.safetensors", model, batches, batches)
    )
    assert there.threshold == pytest.approx(here.threshold, rel=1e-3)
    here, there = both(films, lambda model, batches: gate.trial(gate.fit(model, batches, batches), model, batches))
    pd.testing.assert_frame_equal(there, here, rtol=0.05)


@pytest.mark.parametrize("method", localisation.METHODS)
def test_maps_are_the_same_elsewhere(films, elsewhere, method):
    pixels, rows = films
    wanted = pd.DataFrame({"row": [0, 1], "image": rows["image"][:2], "patient": rows["patient"][:2]})
    wanted["finding"] = labels.FINDINGS[0]
    here, there = both(films, lambda model, _: localisation.show(model, pixels, rows, wanted, method=method))
    np.testing.assert_allclose(there, here, atol=1e-4)
    assert (
        localisation.with_random_weights(network.build("none", layers=(1, 1, 1, 1)).to(elsewhere)).device == elsewhere
    )


def test_features_are_the_same_elsewhere(films, elsewhere):
    here, there = both(films, frozen.head_features)
    torch.testing.assert_close(there.values, here.values)
    assert torch.equal(there.labels, here.labels)


@pytest.mark.parametrize("groups", [("fc",), ("layer4", "fc"), network.GROUPS], ids=len)
def test_a_stage_is_the_same_elsewhere(films, elsewhere, tmp_path, groups):
    """Remembered, recomputed and no frozen features; average, positive weights, two batches a step, validation."""
    pixels, rows = films
    how = {"precision": "float32", "ema": 0.9, "accumulate": 2, "soup": 2, "groups": groups, "augment": "none"}
    recipe = schedules.recipe("modern", 1, epochs=2, **how)
    loss = losses.make("focal", positive_weight=np.full(15, 2.0))
    found = []
    for device in (torch.device("cpu"), elsewhere):
        train = Batches(pixels, rows[:64].reset_index(drop=True), batch_size=8, shuffle=True)
        val = Batches(pixels, rows[64:].reset_index(drop=True), batch_size=16)
        model = network.build("none", layers=(1, 1, 1, 1))
        result = fit.fit(
            model,
            train,
            val,
            loss,
            recipe,
            folder=tmp_path / device.type,
            score=metrics.auc_per_label,
            device=device,
            progress=False,
        )
        found.append((result, checkpoint.load(result.best).state))
    (one, weights), (other, theirs) = found
    pd.testing.assert_frame_equal(one.history.drop(columns=TIMES), other.history.drop(columns=TIMES), rtol=1e-3)
    torch.testing.assert_close(theirs["fc.weight"], weights["fc.weight"], rtol=1e-3, atol=1e-5)
