"""Inference network: folded, and the same for validation and prediction."""

import numpy as np
import pytest
import tiny
import torch

from cxrlib import metrics
from cxrlib.evaluation import predict
from cxrlib.training import checkpoint, devices, frozen, network


@pytest.fixture(scope="module")
def worn():
    model = network.build("none", seed=2, layers=(2, 1, 1, 1)).train()
    with torch.no_grad():
        for seed in range(3):
            model(torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 + 1)
    return model.eval()


def test_it_answers_as_the_network_does(worn):
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        torch.testing.assert_close(frozen.Inference(worn)(images), worn(images), rtol=1e-4, atol=1e-4)
        network.train_only(worn, ("layer4", "fc"))
        later = frozen.Inference(worn, first=worn.split)
        torch.testing.assert_close(later(frozen.fold(worn)(images)), worn(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_pass_gives_features_and_logits(worn, dtype):
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(9))
    read = frozen.Inference(worn, dtype=dtype)
    with torch.no_grad():
        features = read.features(images)
        assert torch.equal(read.head(features), read(images))
        expected = worn.avgpool(worn._pass(images, list(network.STEPS)[:5])).flatten(1)
    assert features.shape == (4, 2048)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=0.1 if dtype == torch.bfloat16 else 1e-4, atol=0.1)


def test_refreshed_it_follows_the_network():
    model = tiny.net()
    read = frozen.Inference(model)
    images = torch.randn(4, 1, 32, 32)
    with torch.no_grad():
        model.layer4[0].bn2.weight.mul_(3)
        model.fc.bias.add_(1)
        model.eval()
        assert (read(images) - model(images)).abs().max() > 0.1
        read.refresh(model)
        torch.testing.assert_close(read(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [("fc",), ("layer4", "fc"), network.GROUPS], ids=len)
def test_a_stages_validation_is_what_its_checkpoint_predicts(tmp_path, groups):
    """Equal to the last bit, in the precision of this processor."""
    val = tiny.TinyBatches(12, first=24)
    result = tiny.train(tmp_path, {"epochs": 2, "groups": groups}, val=val, score=metrics.auc_per_label)
    model = tiny.net(seed=5)
    checkpoint.load_into(model, result.best)
    found = metrics.auc_per_label(val.labels.numpy().astype(np.uint8), predict.predict(model, val))
    best = result.history.set_index("epoch")["val_auc"].max()
    assert np.nanmean(found[:14]) == pytest.approx(best, abs=1e-12)


@pytest.mark.skipif(not devices.has_bfloat16(torch.device("cpu")), reason="this processor has no native bfloat16")
def test_in_half_precision_hardly_two_films_get_the_same_logit(worn):
    images = torch.randn(64, 1, 32, 32, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        logits = frozen.Inference(worn, dtype=torch.bfloat16)(images)
    assert logits.dtype == torch.float32
    assert len(logits[:, 0].unique()) == len(images)


def test_a_network_is_read_in_the_precision_of_its_recipe(tmp_path):
    result = tiny.train(tmp_path, {"epochs": 1, "groups": ("fc",), "precision": "float32"})
    model = tiny.net(seed=5)
    assert model.precision == "auto"
    checkpoint.load_into(model, result.best)
    assert model.precision == "float32"
    assert predict.dtype_of(model) == torch.float32


def test_what_overflows_in_float16_is_read_again_in_float32(monkeypatch):
    model, films = tiny.net(), tiny.TinyBatches(6)
    expected = predict.predict(model, films, precision="float32")
    monkeypatch.setattr(predict, "dtype_of", lambda *_: torch.float16)
    real = frozen.Inference

    class Overflowing(real):
        def forward(self, images):
            logits = super().forward(images)
            return logits * float("nan") if self.wanted == torch.float16 else logits

        def __init__(self, model, dtype):
            super().__init__(model)
            self.wanted = dtype

    monkeypatch.setattr(frozen, "Inference", Overflowing)
    np.testing.assert_array_equal(predict.predict(model, films), expected)
