import numpy as np
import pytest
import torch

from cxrlib.training import frozen, losses, network


@pytest.fixture
def seen():
    """300 films of 20 features that decide the labels up to noise."""
    draw = torch.Generator().manual_seed(0)
    values = torch.rand(300, 20, generator=draw)
    logits = (values - 0.5) @ torch.randn(20, 15, generator=draw) * 4 - 2
    return frozen.HeadFeatures(values, (torch.rand(300, 15, generator=draw) < torch.sigmoid(logits)).float())


def test_the_head_is_at_the_minimum(seen):
    """At an optimum the unpenalised bias makes mean probability and prevalence equal (the BCE's own condition)."""
    said = frozen.head_probabilities(frozen.fit_head(seen, losses.make("bce")), seen)
    np.testing.assert_allclose(said.mean(0), seen.labels.mean(0), atol=2e-3)


def test_the_same_features_give_the_same_head(seen):
    one, two = (frozen.head_probabilities(frozen.fit_head(seen, losses.make("focal")), seen) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_positive_weights_raise_the_probabilities_of_rare_labels(seen):
    weight = losses.positive_weights(seen.labels.numpy())
    plain = frozen.head_probabilities(frozen.fit_head(seen, losses.make("bce")), seen)
    weighted = frozen.head_probabilities(frozen.fit_head(seen, losses.make("bce", positive_weight=weight)), seen)
    rare = weight > 1.5
    assert rare.any()
    assert (weighted.mean(0) > plain.mean(0))[rare].all()


def test_features_are_what_the_networks_own_head_sees_and_leave_it_as_it_was():
    class Two:
        def epoch(self, epoch, on="cpu"):
            for k in range(2):
                images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(k))
                yield type("Batch", (), {"images": images, "labels": torch.zeros(3, 15)})

    model = network.build("none").train()
    network.train_only(model, ("layer4", "fc"))
    found = frozen.head_features(model, Two())
    assert model.training
    assert model.trainable == ("layer4", "fc")
    model.eval()
    with torch.no_grad():
        whole = torch.cat([model(batch.images) for batch in Two().epoch(0)])
        torch.testing.assert_close(model.fc(found.values), whole)
