import numpy as np
import pytest
import torch

from cxrlib import UserError
from cxrlib.training import losses


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(6, 15, generator=draw) * 3, (torch.rand(6, 15, generator=draw) < 0.3).float()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_is_the_papers_formula(batch, gamma):
    logits, labels = batch
    p = torch.sigmoid(logits.double())
    said = torch.where(labels == 1, p, 1 - p)  # the predicted probability of the label's value
    expected = (-((1 - said) ** gamma) * said.log()).mean()
    torch.testing.assert_close(
        losses.make("focal", gamma=gamma)(logits, labels).double(), expected, rtol=1e-5, atol=1e-8
    )


def test_bce_is_torchs_with_and_without_positive_weights(batch):
    weight = np.linspace(0.5, 8, 15)
    torchs = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(losses.make("bce")(*batch), torchs(*batch))
    expected = torchs(*batch, pos_weight=torch.tensor(weight, dtype=torch.float32))
    torch.testing.assert_close(losses.make("bce", positive_weight=weight)(*batch), expected)


@pytest.mark.parametrize("name", losses.NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_give_finite_losses_and_gradients(name, dtype):
    logits = torch.tensor([[-1e4, 1e4, 0.0] * 5] * 2, dtype=dtype, requires_grad=True)
    labels = torch.tensor([[0.0] * 15, [1.0] * 15])
    for gamma in (0.5, 2.0):
        value = losses.make(name, gamma=gamma)(logits, labels)
        (gradient,) = torch.autograd.grad(value, logits)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


def test_the_value_does_not_depend_on_the_batch_size(batch):
    loss = losses.make("focal")
    one_by_one = torch.stack([loss(logits[None], labels[None]) for logits, labels in zip(*batch, strict=True)])
    torch.testing.assert_close(loss(*batch), one_by_one.mean())


def test_positive_weights_are_negatives_per_positive_within_bounds():
    labels = np.zeros((100, 15), np.uint8)
    labels[:20, 0], labels[:1, 1], labels[:95, 2] = 1, 1, 1
    weight = losses.positive_weights(labels, bound=10)
    assert weight[:4].tolist() == [4.0, 10.0, 0.1, 10.0]


def test_equal_losses_are_equal_and_told_apart_in_words():
    assert losses.make("bce") == losses.make("bce", gamma=3)
    assert repr(losses.make("focal", gamma=1)) != repr(losses.make("focal"))


@pytest.mark.parametrize(
    "given", [{"name": "mse"}, {"name": "focal", "gamma": -1}, {"name": "bce", "positive_weight": np.zeros(15)}]
)
def test_bad_settings_are_refused(given):
    with pytest.raises(UserError):
        losses.make(**given)
