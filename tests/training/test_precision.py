"""float32, bfloat16 and float16: what a device has, and the loss scaling that float16 needs."""

import os
import signal

import pytest
import tiny
import torch

from cxrlib import UserError
from cxrlib.training import checkpoint, devices, fit, network, optim, processes

CUDA, MPS, CPU = (torch.device(kind) for kind in ("cuda", "mps", "cpu"))


@pytest.fixture
def card(monkeypatch):
    """A function that sets the compute capability of the CUDA device."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda at: "Some card")
    return lambda *found: monkeypatch.setattr(torch.cuda, "get_device_capability", lambda at: found)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((9, 0), torch.bfloat16),
        ((8, 0), torch.bfloat16),
        ((7, 5), torch.float16),
        ((7, 0), torch.float16),
        ((6, 0), torch.float16),
        ((6, 1), torch.float32),
        ((5, 2), torch.float32),
    ],
)
def test_auto_is_the_fastest_that_a_card_has(card, capability, dtype):
    card(*capability)
    assert devices.dtype(CUDA) == dtype
    assert devices.dtype(CUDA, "float32") == torch.float32


def test_a_precision_that_the_device_lacks_is_refused_in_training_and_replaced_in_reading(card):
    card(7, 5)
    with pytest.raises(UserError, match="Some card has no bfloat16; give precision=auto or float32 or float16"):
        devices.dtype(CUDA, "bfloat16")
    assert devices.inference_dtype(CUDA, "bfloat16") == torch.float16
    assert devices.inference_dtype(CUDA, "float32") == torch.float32


def test_apples_devices_train_in_float32_unless_asked(monkeypatch):
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: kind == "mps")
    assert devices.dtype(MPS) == torch.float32
    assert devices.dtype(MPS, "float16") == torch.float16
    with pytest.raises(UserError, match="this mps has no bfloat16"):
        devices.dtype(MPS, "bfloat16")


def test_a_recipe_takes_the_four_words_alone():
    for word in ("auto", "float32", "bfloat16", "float16"):
        assert tiny.recipe(precision=word).precision == word
    with pytest.raises(UserError, match="precision is 'half'; it must be one of auto, float32, bfloat16, float16"):
        tiny.recipe(precision="half")


def one_step(scaled, infinite=False, optimizer="adamw"):
    """The head after a step on three films, with or without loss scaling, and the scaler."""
    model = network.train_only(tiny.net(), ("fc",))
    how = tiny.recipe(groups=("fc",), optimizer=optimizer, clip=1.0)
    made = optim.make(model, how)
    scaler = optim.Scaler(made, CPU, on=scaled)
    loss = model(torch.ones(3, 1, 32, 32)).square().mean()
    scaler.scaled(loss).backward()
    if infinite:
        model.fc.bias.grad[0] = float("inf")
    scaler.unscale()
    torch.nn.utils.clip_grad_norm_(model.fc.parameters(), 1.0)
    scaler.step()
    return model.fc.weight.detach().clone(), scaler


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_scaled_step_is_the_plain_one(optimizer):
    """The scale is a power of two, so no bit differs."""
    plain, _ = one_step(False, optimizer=optimizer)
    scaled, scaler = one_step(True, optimizer=optimizer)
    assert torch.equal(scaled, plain)
    assert not torch.equal(plain, tiny.net().fc.weight)
    assert scaler.skipped == 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_overflow_at_the_first_step_is_skipped_and_counted_and_the_scale_falls(optimizer):
    weights, scaler = one_step(True, infinite=True, optimizer=optimizer)
    assert torch.equal(weights, tiny.net().fc.weight)
    assert scaler.skipped == 1
    assert scaler.state()["scale"] == one_step(True)[1].state()["scale"] / 2


def test_a_scalers_state_comes_back():
    _, scaler = one_step(True, infinite=True)
    _, other = one_step(True)
    other.restore(scaler.state())
    assert other.state() == scaler.state()
    assert one_step(False)[1].state() == {}


@pytest.fixture
def scaled(monkeypatch):
    """Train stages with the loss scaling of float16 but with numbers in float32, on any processor."""
    monkeypatch.setattr(devices, "dtype", lambda at, precision="auto": torch.float16)
    monkeypatch.setattr(devices, "autocast", lambda at, to: torch.enable_grad())
    for module in ("FrozenFeatures", "Inference"):
        kind = getattr(fit, module)
        monkeypatch.setattr(fit, module, _in_float32(kind))


def _in_float32(kind):
    return lambda *args, **more: kind(*args, **{**more, "dtype": torch.float32})


def overflowing(monkeypatch, at):
    """Make the gradients of these steps (from 0) overflow."""
    own = fit.Step.take

    def take(self, lr):
        if self.scaler.asked in at:
            self.weights[0].grad.view(-1)[0] = float("inf")
        return own(self, lr)

    monkeypatch.setattr(fit.Step, "take", take)


HOW = {"epochs": 2, "groups": ("layer4", "fc"), "ema": 0.9, "clip": 1.0}


def test_a_stage_shows_how_many_steps_were_skipped(tmp_path, scaled, monkeypatch):
    overflowing(monkeypatch, {0, 1, 4})
    result = tiny.train(tmp_path, HOW)
    assert result.history["skipped"].tolist() == [2, 3]
    assert all(torch.isfinite(value).all() for value in checkpoint.load(result.best).state.values())


def test_a_scaled_stage_that_is_killed_goes_on_to_the_same_bits(tmp_path, scaled, monkeypatch):
    class Killed(tiny.TinyBatches):
        def epoch(self, epoch, start=0, **where):
            for number, batch in enumerate(super().epoch(epoch, start, **where), start):
                if (epoch, number) == (1, 1):
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    overflowing(monkeypatch, {0})
    whole = tiny.train(tmp_path / "whole", HOW)
    with pytest.raises(fit.Stopped):
        tiny.train(tmp_path / "killed", HOW, train=Killed(24, shuffle=True))
    killed = tiny.train(tmp_path / "killed", HOW)
    assert killed.resumed_from
    assert killed.history["skipped"].tolist() == whole.history["skipped"].tolist() == [1, 1]
    one, other = (checkpoint.load(result.best).state for result in (whole, killed))
    assert checkpoint.tensors_sha256(one) == checkpoint.tensors_sha256(other)


@pytest.mark.skipif(not devices.has_float16(CPU), reason="this processor has no float16")
def test_a_stage_trains_in_real_float16_where_the_processor_has_it(tmp_path):
    half = tiny.train(tmp_path / "half", {**HOW, "precision": "float16"})
    whole = tiny.train(tmp_path / "whole", {**HOW, "precision": "float32"})
    assert half.history["train_loss"][1] == pytest.approx(whole.history["train_loss"][1], rel=0.1)
    assert half.history["train_loss"][1] != whole.history["train_loss"][1]


def test_the_moving_average_is_that_of_its_formula():
    model = network.train_only(tiny.net(), ("layer4", "fc")).train()
    average = optim.Average(model, 0.9)
    expected = {name: value.clone() for name, value in average.values.items()}
    for step in (1, 2, 50):
        with torch.no_grad():
            model.fc.weight.add_(step)
            model.layer4[0].bn1.num_batches_tracked.add_(1)
        average.update(step)
        share = 1 - min(0.9, (1 + step) / (10 + step))
        for name, value in optim.learned(model).items():
            moves = value.is_floating_point()
            expected[name] = torch.lerp(expected[name], value, share) if moves else value.clone()
    assert all(torch.equal(average.values[name], value) for name, value in expected.items())
    assert processes.launched_group("cpu").device == CPU
