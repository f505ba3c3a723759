"""Training with unknown labels: the loss, its gradient, positive weights, batches, and a stage's own numbers."""

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from cxrlib import labels, metrics
from cxrlib.data import batches
from cxrlib.data.store import Store
from cxrlib.training import fit, frozen, losses, optim, processes


@pytest.fixture
def holed():
    """Logits and labels (9, 15) with unknown labels: one in four, all of the last film, all of one finding."""
    draw = torch.Generator().manual_seed(0)
    logits, answers = torch.randn(9, 15, generator=draw) * 2, (torch.rand(9, 15, generator=draw) < 0.3).float()
    answers[torch.rand(9, 15, generator=draw) < 0.25] = torch.nan
    answers[-1], answers[:, 4] = torch.nan, torch.nan
    return logits.requires_grad_(), answers


def by_hand(logits, answers, gamma, weight):
    """Mean focal loss over the known labels, one label after the other."""
    terms = []
    for i, k in np.argwhere(~np.isnan(answers.numpy())):
        p = torch.sigmoid(logits[i, k])
        said = p if answers[i, k] == 1 else 1 - p
        terms.append(-((1 - said) ** gamma) * said.log() * (weight[k] if answers[i, k] == 1 else 1))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("name", losses.NAMES)
def test_loss_and_gradient_are_those_of_the_known_labels(name, holed):
    logits, answers = holed
    weight = np.linspace(0.5, 3, 15)
    value = losses.make(name, positive_weight=weight)(logits, answers)
    expected = by_hand(logits, answers, 2.0 if name == "focal" else 0.0, torch.from_numpy(weight).float())
    torch.testing.assert_close(value, expected)
    ours, theirs = (torch.autograd.grad(one, logits)[0] for one in (value, expected))
    torch.testing.assert_close(ours, theirs)
    assert (ours[answers.isnan()] == 0).all()


@pytest.mark.parametrize("name", losses.NAMES)
def test_without_any_known_label_loss_and_gradient_are_zero(name, holed):
    logits, answers = holed
    value = losses.make(name)(logits, torch.full_like(answers, torch.nan))
    assert value == 0
    assert (torch.autograd.grad(value, logits)[0] == 0).all()


def test_where_all_are_known_the_loss_is_the_plain_mean_to_the_bit(holed):
    logits, answers = holed[0], torch.nan_to_num(holed[1])
    plain = -torch.nn.functional.logsigmoid(logits * (2 * answers - 1)).mean()
    value = losses.make("bce")(logits, answers)
    assert value == plain
    ours, theirs = (torch.autograd.grad(one, logits)[0] for one in (value, plain))
    assert torch.equal(ours, theirs)


def test_positive_weights_count_known_labels():
    answers = np.zeros((12, 15), np.float32)
    answers[:3, 0], answers[6:, 0] = 1, np.nan  # 3 positive, 3 negative
    answers[:, 1] = np.nan
    weights = losses.positive_weights(answers)
    assert weights[:3].tolist() == [1, 1, 10]


def frame(answers):
    return pd.DataFrame(answers, columns=list(labels.LABELS)).assign(image=[f"{i}.png" for i in range(len(answers))])


def test_batches_give_unknown_labels_as_nan_and_count_the_known_ones():
    answers = (np.random.default_rng(0).random((37, 15)) < 0.4).astype(np.float32)
    answers[np.random.default_rng(1).random((37, 15)) < 0.3] = np.nan
    names = [f"{i}.png" for i in range(37)]
    store = Store(None, 8, names, np.random.default_rng(2).integers(0, 256, (37, 8, 8), dtype=np.uint8), "", {})
    made = batches.Batches(store, frame(answers), batch_size=8, seed=1, shuffle=True)
    for images in (True, False):
        read = list(made.epoch(1, images=images))
        for batch in read:
            np.testing.assert_array_equal(batch.labels, answers[batch.rows])
        assert made.known(1).tolist() == [int((~batch.labels.isnan()).sum()) for batch in read]
        assert [made.known_of(batch.rows) for batch in read] == made.known(1).tolist()
    random = made._table(1, np.arange(37))  # what a card unpacks
    buffer, rows = made._pack(np.arange(37), random)
    np.testing.assert_array_equal(made._unpack(buffer, rows, torch.device("cpu")).labels, answers)


def test_a_cap_counts_films_that_are_known_to_have_the_label():
    marks = np.zeros((10, 15), np.float32)
    marks[:, 3], marks[5:, 2] = np.nan, 1
    assert batches.cap_per_label(marks, 2).tolist() == [0, 1, 2, 3, 4, 5, 6]


class Holed(tiny.TinyBatches):
    """Films of which some labels are unknown: more in the first half, so that batches differ in known labels."""

    def __init__(self, count, **options):
        super().__init__(count, **options)
        hidden = torch.rand(count, 15, generator=torch.Generator().manual_seed(5)) < 0.3
        hidden[: count // 2, 3:] = True
        self.labels[hidden] = torch.nan
        self.films[list(labels.LABELS)] = self.labels.numpy()

    def known(self, epoch):
        order = np.random.default_rng(epoch).permutation(len(self.films)) if self.shuffle else range(len(self.films))
        parts = np.split(np.array(order), range(self.batch_size, len(self.films), self.batch_size))
        return np.array([self.known_of(part) for part in parts])

    def known_of(self, rows):
        return int((~self.labels[rows].isnan()).sum())


@pytest.mark.parametrize("parts", [1, 2])
def test_accumulated_gradients_are_those_of_all_known_labels_at_once(parts):
    films, model, loss = Holed(16, batch_size=6), tiny.net().eval(), losses.make("bce")
    recipe = tiny.recipe(split_on_oom=True)
    step = fit.Step(
        model, loss, recipe, optim.make(model, recipe), processes.ProcessGroup("cpu"), known_of=films.known_of
    )
    step.parts, of = parts, int(films.known(0).sum())
    values = [step.learn(batch, lambda one: one.images, of, last=True) for batch in films.epoch(0)]
    expected = loss(model(films.images), films.labels)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    for weight, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-7)
    mean = np.average([float(value) for value in values], weights=films.known(0))
    assert mean == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_stage_reports_the_loss_and_the_auc_of_the_known_validation_labels(tmp_path):
    model, val = tiny.net(), Holed(20, first=30)
    done = tiny.train(
        tmp_path, {"epochs": 1}, model=model, train=Holed(24, shuffle=True), val=val, score=metrics.auc_per_label
    )
    logits = frozen.Inference(model)(val.images)
    row = done.history.iloc[-1]
    assert row["val_loss"] == pytest.approx(float(losses.make("focal")(logits, val.labels)), rel=1e-3)
    answers, scores = val.labels.numpy(), logits.detach().numpy()
    by_finding = [metrics.roc_auc(a[~np.isnan(a)], s[~np.isnan(a)]) for a, s in zip(answers.T, scores.T, strict=True)]
    assert row["val_auc"] == pytest.approx(np.nanmean(by_finding[:14]), abs=0.02)
    assert np.isfinite(row["train_loss"])


def test_a_head_is_fitted_to_the_known_labels():
    draw = torch.Generator().manual_seed(0)
    values, answers = torch.rand(60, 8, generator=draw), (torch.rand(60, 15, generator=draw) < 0.4).float()
    hidden = answers.clone()
    hidden[:, 1:] = torch.nan  # with one finding alone known, a loss of one finding alone
    loss = losses.make("bce")
    head = frozen.fit_head(frozen.HeadFeatures(values, hidden), loss, decay=1e-2)
    weights = head[1].weight.detach()
    assert (weights[1:] == 0).all()
    assert weights[0].abs().max() > 0.01
    scores = head(values)[:, 0]
    gap = (torch.sigmoid(scores) - answers[:, 0]).mean()  # the intercept is free, so the mean residual is 0
    assert abs(float(gap.detach())) < 1e-3
