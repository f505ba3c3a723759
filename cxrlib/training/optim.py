"""What turns gradients into weights: the optimizer by layer group, the rate at each step, the moving average."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from cxrlib.training import network
from cxrlib.training.stages import Stage

MOMENTUM = 0.9


def make(model: network.Network, recipe: Stage) -> Optimizer:
    """The recipe's optimizer over the trained groups, rates falling by ``lower_rate`` per group downwards.

    Convolution and linear kernels decay, biases and BatchNorm's weights do not (He et al., Bag of Tricks, 2019).
    """
    groups = []
    for distance, group in enumerate(reversed(model.trainable)):
        weights = [p for module in network.members(model, group) for p in module.parameters()]
        for decays in (True, False):
            chosen = [p for p in weights if (p.ndim > 1) == decays]
            decay = recipe.weight_decay if decays else 0.0
            scale = recipe.lower_rate**distance
            groups.append({"params": chosen, "lr": recipe.lr * scale, "scale": scale, "weight_decay": decay})
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=MOMENTUM, nesterov=True)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    device = next(model.parameters()).device
    return kind(groups, lr=recipe.lr, fused=device.type in ("cpu", "cuda"))


def rate(step: int, steps: int, recipe: Stage) -> float:
    """The topmost group's rate at ``step`` (from 0) of ``steps``: a straight rise, then the recipe's decay."""
    rise = recipe.warmup * steps
    if step < rise:
        return recipe.lr * (step + 1) / (rise + 1)
    if recipe.decay == "none":
        return recipe.lr
    share = min((step - rise) / max(steps - rise, 1), 1.0)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * share))


def set_rate(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's moments as named tensors ``<parameter's number>.<moment>``; rates are no part of its state."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{moment}": value for i, moments in state.items() for moment, value in moments.items()}


def restore(optimizer: Optimizer, saved: dict[str, Tensor]) -> None:
    """Put moments saved by ``tensors`` back, in the memory format of their weights: fused steps pair the two by
    their place in memory, and would pair a channels-last weight with a stranger's moments."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.items():
        number, moment = key.split(".")
        weight = weights[int(number)]
        if value.shape == weight.shape:
            value = torch.empty_like(weight, memory_format=torch.preserve_format, requires_grad=False).copy_(value)
        state.setdefault(int(number), {})[moment] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def learned(model: network.Network) -> dict[str, Tensor]:
    """What training changes: weights and BatchNorm statistics of the trained groups, aliased."""
    return {name: value for name, value in model.state_dict().items() if network.group_of(name) in model.trainable}


@contextmanager
def given_back(model: network.Network) -> Iterator[None]:
    """Give the network its weights back where the block ends in an error or is stopped."""
    given = {name: value.clone() for name, value in learned(model).items()}
    try:
        yield
    except BaseException:
        fill(model, given)
        raise


class Average:
    """Exponential moving average of what training changes, BatchNorm statistics included.

    The decay is held low at first, min(decay, (1 + n) / (10 + n)) after n steps, so that the start is forgotten
    (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: network.Network, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.clone() for name, value in learned(model).items()}

    @torch.no_grad()
    def update(self, model: network.Network, step: int) -> None:
        """Take in the weights after ``step`` steps."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, value in learned(model).items():
            if value.is_floating_point():
                self.values[name].lerp_(value, share)
            else:
                self.values[name].copy_(value)

    def fill(self, values: dict[str, Tensor]) -> None:
        """Take the averages of an interrupted training."""
        for name, value in values.items():
            self.values[name].copy_(value)

    @contextmanager
    def lent_to(self, model: network.Network) -> Iterator[None]:
        """Let the model hold the average inside the block, and its own weights again after it."""
        own = {name: value.clone() for name, value in learned(model).items()}
        try:
            fill(model, self.values)
            yield
        finally:
            fill(model, own)


@torch.no_grad()
def fill(model: network.Network, values: dict[str, Tensor]) -> None:
    """Copy values into the model's weights and statistics of the same names."""
    state = model.state_dict()
    for name, value in values.items():
        state[name].copy_(value)
