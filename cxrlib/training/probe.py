"""Heads on features that stand still: what a loss does when nothing but the last layer learns.

With everything below it frozen, the head is a convex problem (a logistic regression per label), so its optimum
can be found to the end and losses compared without asking how well each was optimised.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cxrlib.data.batches import Batches
from cxrlib.training import network
from cxrlib.training.losses import Loss


class Features(NamedTuple):
    """What the head sees of each film, in the films' order, and the labels."""

    values: Tensor  # (N, 2048) float32, 0 or more
    labels: Tensor  # (N, 15) float32


def features(model: network.Network, batches: Batches) -> Features:
    """Pass all films once through everything below the head, in eval mode; the network comes back as it was.

    Meant for batches that are neither shuffled nor augmented.
    """
    trainable, mode = model.trainable, model.training
    network.train_only(model, network.GROUPS[-1:]).eval()
    try:
        batches_there = batches.epoch(0, on=model.device)
        seen = [(model.prefix(batch.images).float().cpu(), batch.labels.cpu()) for batch in batches_there]
    finally:
        network.train_only(model, trainable).train(mode)
    values, answers = zip(*seen, strict=True)
    return Features(torch.cat(values), torch.cat(answers))


def head(seen: Features, loss: Loss, *, decay: float = 1e-3, iterations: int = 100) -> nn.Module:
    """The head that minimises ``loss`` plus ``decay`` times the squared weights, by L-BFGS from zero; no randomness.

    Features are standardised by the training films' mean and deviation, which the returned module carries with it:
    it takes (N, 2048) features and gives (N, 15) logits.
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
    """What a head says of films: (N, 15) float64 from 0 to 1."""
    return torch.sigmoid(trained(unseen.values)).double().numpy()
