"""On a real card: what the pretend device of ``test_device`` cannot show. Skipped where there is none."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from cxrlib import labels, metrics, paths
from cxrlib.data import records, store
from cxrlib.data.augmentation import preset
from cxrlib.data.batches import Batches
from cxrlib.evaluation import localisation, predict
from cxrlib.training import checkpoint, fit, losses, network, schedules
from cxrlib.workbook import pipeline

pytestmark = pytest.mark.cuda
SIZE = 64
CARD = torch.device("cuda")


@pytest.fixture
def films(tiny_phantom, tmp_path):
    films = records.read(tiny_phantom)
    return store.build(films, SIZE, folder=tmp_path / "store", progress=False), films


def train(films, folder, *, device=CARD, watch=None, **changes):
    """Two epochs of 64 phantom films in ``modern``'s way, from random weights."""
    pixels, rows = films
    recipe = schedules.recipe("modern", 3, **{"epochs": 2, "augment": "light", **changes})
    loss = losses.make("bce", positive_weight=np.full(15, 2.0))
    varied = preset(recipe.augment)
    part = Batches(pixels, rows[:61].reset_index(drop=True), batch_size=16, shuffle=True, augment=varied)
    val = Batches(pixels, rows[64:].reset_index(drop=True), batch_size=32)
    model = network.build("none", seed=1)
    more = {"device": device, "score": metrics.auc_per_label, "watch": watch}
    return fit.fit(model, part, val, loss, recipe, folder=folder, progress=False, **more), model


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("groups", [("fc",), ("layer4", "fc"), network.GROUPS], ids=len)
def test_a_stage_trains_in_half_precision_as_in_float32(films, tmp_path, precision, groups):
    how = {"groups": groups, "warmup": 0.0, "decay": "none", "lr": 1e-4}
    half, _ = train(films, tmp_path / "half", precision=precision, **how)
    whole, _ = train(films, tmp_path / "whole", precision="float32", **how)
    assert half.history["train_loss"].tolist() == pytest.approx(whole.history["train_loss"].tolist(), rel=0.1)
    assert half.history["skipped"].iloc[-1] <= 4


def test_compiled_it_learns_the_same(films, tmp_path):
    how = {"precision": "float32", "optimizer": "sgd", "warmup": 0.0, "decay": "none"}
    plain, _ = train(films, tmp_path / "plain", compile="no", **how)
    compiled, _ = train(films, tmp_path / "compiled", compile="yes", **how)
    np.testing.assert_allclose(compiled.history["train_loss"], plain.history["train_loss"], rtol=1e-2)


@pytest.mark.parametrize(("precision", "compiled"), [("auto", "no"), ("float16", "no"), ("auto", "yes")])
def test_stopped_it_goes_on_to_the_same_bits(films, tmp_path, monkeypatch, precision, compiled):
    monkeypatch.setenv("CXR_SAVE_EVERY", "0")
    how = {"precision": precision, "compile": compiled}
    whole, _ = train(films, tmp_path / "whole", **how)
    real, count = fit._Training.save_when_due, []

    def stop(self, *, within):
        count.append(within)
        if len(count) == 6:
            self.save()
            raise KeyboardInterrupt
        real(self, within=within)

    monkeypatch.setattr(fit._Training, "save_when_due", stop)
    with pytest.raises(KeyboardInterrupt):
        train(films, tmp_path / "stopped", **how)
    monkeypatch.setattr(fit._Training, "save_when_due", real)
    again, _ = train(films, tmp_path / "stopped", **how)
    assert again.resumed_from
    one, other = (checkpoint.load(result.best).state for result in (whole, again))
    assert checkpoint.tensors_sha256(one) == checkpoint.tensors_sha256(other)


def test_no_step_waits_for_the_card(films, tmp_path, monkeypatch):
    """torch warns of each copy and each look that makes the processor wait for the card; no epoch of steps has one."""
    steps, told = fit._Training.train_epoch, []

    def watched(self):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                steps(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        told.extend(f"{one.filename}:{one.lineno}" for one in seen if "synchroniz" in str(one.message))

    monkeypatch.setattr(fit._Training, "train_epoch", watched)
    train(films, tmp_path)
    assert not told


@pytest.mark.parametrize("tta", ["none", "flip", "tencrop"])
def test_predictions_are_the_cpus(films, tmp_path, tta):
    pixels, rows = films
    model = network.build("none", seed=1)
    batches = Batches(pixels, rows, batch_size=32)
    here = predict.predict(model, batches, tta=tta, precision="float32")
    there = predict.predict(model.to(CARD), batches, tta=tta, precision="float32")
    np.testing.assert_allclose(there, here, atol=2e-3)
    for precision in ("bfloat16", "float16"):
        np.testing.assert_allclose(predict.predict(model, batches, tta=tta, precision=precision), here, atol=2e-2)


@pytest.mark.parametrize("method", localisation.METHODS)
def test_maps_are_made_on_the_card(films, method):
    pixels, rows = films
    wanted = pd.DataFrame({"row": [0, 1], "image": rows["image"][:2], "patient": rows["patient"][:2]})
    wanted["finding"] = labels.FINDINGS[0]
    model = network.build("none", seed=1).to(CARD)
    maps = localisation.show(model, pixels, rows, wanted, method=method)
    assert maps.shape == (2, SIZE, SIZE)
    assert np.isfinite(maps).all()


@pytest.mark.slow
@pytest.mark.notebooks
def test_a_chain_of_two_stages_runs_to_its_report(tiny_phantom):
    how = {"size": 32, "batch_size": 16, "epochs": 1, "schedule": "scratch", "weights": "none"}
    report = pipeline.run("card", {"data": str(tiny_phantom), **how}, stages=[1, 2])
    assert report.is_file()
    assert paths.read_json(paths.Run("card").run_json)["device"] == torch.cuda.get_device_name(0)
