"""Linear heads on fixed features, to compare losses when only the last layer learns.

With all other layers frozen, the head is a convex problem (a logistic regression per label). So its exact optimum can
be found, and the comparison of two losses does not depend on how well each was optimised.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cxrlib.data.batches import Batches
from cxrlib.training import network
from cxrlib.training.losses import Loss


class Features(NamedTuple):
    """Features of each film below the head, in the films' order, and the labels."""

    values: Tensor  # (N, 2048) float32, 0 or more
    labels: Tensor  # (N, 15) float32


def features(model: network.Network, batches: Batches) -> Features:
    """Features of all films below the head, in eval mode. The network's own mode is restored.

    The batches should be neither shuffled nor augmented.
    """
    trainable, mode = model.trainable, model.training
    network.train_only(model, network.GROUPS[-1:]).eval()
    try:
        epoch = batches.epoch(0, on=model.device)
        pairs = [(model.prefix(batch.images).float().cpu(), batch.labels.cpu()) for batch in epoch]
    finally:
        network.train_only(model, trainable).train(mode)
    values, labels = zip(*pairs, strict=True)
    return Features(torch.cat(values), torch.cat(labels))


def head(seen: Features, loss: Loss, *, decay: float = 1e-3, iterations: int = 100) -> nn.Module:
    """Head that minimises ``loss`` plus ``decay`` times the squared weights, by L-BFGS from zero, without randomness.

    Features are standardised by mean and standard deviation of the training films, which are part of the returned
    module: it takes (N, 2048) features and gives (N, 15) logits.
    """
    scale = nn.BatchNorm1d(seen.values.shape[1], affine=False).eval()
    scale.running_mean, scale.running_var = seen.values.mean(0), seen.values.var(0)
    linear = nn.Linear(seen.values.shape[1], seen.labels.shape[1])
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    values = scale(seen.values)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = loss(linear(values), seen.labels) + decay * linear.weight.square().sum() / linear.out_features
        value.backward()
        return value

    optimizer.step(objective)
    return nn.Sequential(scale, linear)


@torch.no_grad()
def probabilities(trained: nn.Module, unseen: Features) -> np.ndarray:
    """Probabilities of a head for films: (N, 15) float64 from 0 to 1."""
    return torch.sigmoid(trained(unseen.values)).double().numpy()
