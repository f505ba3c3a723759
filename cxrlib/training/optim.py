"""Optimizer by layer group, learning rate of each step, moving average of the weights, loss scaling."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from cxrlib.training import devices, network
from cxrlib.training.schedules import Stage

MOMENTUM = 0.9
MOMENTS = {"sgd": {"momentum_buffer"}, "adam": {"step", "exp_avg", "exp_avg_sq"}}
MOMENTS["adamw"] = MOMENTS["adam"]
"""Moments that each optimizer keeps of a weight. Adam's and AdamW's are the same, so they can be exchanged."""


def make(model: network.Network, recipe: Stage) -> Optimizer:
    """Optimizer of a recipe, over the trained groups. Each group downwards has its rate multiplied by ``lower_rate``.

    Weight decay acts on convolution and linear kernels, not on biases and BatchNorm (He et al., Bag of Tricks, 2019).
    """
    groups = []
    for distance, group in enumerate(reversed(model.trainable)):
        weights = [p for module in network.members(model, group) for p in module.parameters()]
        for decays in (True, False):
            params = [p for p in weights if (p.ndim > 1) == decays]
            decay = recipe.weight_decay if decays else 0.0
            scale = recipe.lower_rate**distance
            groups.append({"params": params, "lr": recipe.lr * scale, "scale": scale, "weight_decay": decay})
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=MOMENTUM, nesterov=True)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    device = next(model.parameters()).device
    return kind(groups, lr=recipe.lr, fused=device.type in ("cpu", "cuda"))


def rate(step: int, steps: int, recipe: Stage, halvings: int = 0) -> float:
    """Rate of the topmost group at ``step`` (from 0) of ``steps``: a linear rise, then the recipe's decay."""
    rise = recipe.warmup * steps
    if step < rise:
        return recipe.lr * (step + 1) / (rise + 1)
    if recipe.decay == "plateau":
        return recipe.lr * 0.5**halvings
    if recipe.decay == "none":
        return recipe.lr
    share = min((step - rise) / max(steps - rise, 1), 1.0)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * share))


BETTER = {"auc": 0.0, "loss": 1e-4}
"""Share by which a validation number must be better to end a plateau. That of the loss is torch's default."""


def scores(history: Sequence[Mapping[str, float]], chosen_by: str) -> list[float]:
    """Validation numbers by which epochs are compared, higher is better: the mean AUC, or minus the loss."""
    return [row["val_auc"] if chosen_by == "auc" else -row["val_loss"] for row in history]


def halvings(scores: Sequence[float], plateau: int, margin: float = 0.0) -> int:
    """Number of plateaus so far: ``plateau`` epochs in a row that are not better than the best by the share ``margin``.

    The count of epochs restarts after each plateau. Epochs with an undefined score (NaN) are left out. With minus the
    losses and a margin of 1e-4 this is torch's ReduceLROnPlateau of patience ``plateau`` - 1.
    """
    best, since, count = -math.inf, 0, 0
    for score in (score for score in scores if not math.isnan(score)):
        better = math.isinf(best) or score > best + margin * abs(best)
        best, since = (score, 0) if better else (best, since + 1)
        if since == plateau:
            count, since = count + 1, 0
    return count


def exhausted(scores: Sequence[float], patience: int) -> bool:
    """Early stopping: whether the last ``patience`` epochs brought no better score. 0 means never."""
    best = max((score for score in scores if not math.isnan(score)), default=math.nan)
    since = len(scores) - 1 - list(scores).index(best) if not math.isnan(best) else 0
    return bool(patience) and since >= patience


def set_rate(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def tensors(optimizer: Optimizer, model: network.Network) -> dict[str, Tensor]:
    """Moments of the optimizer as named tensors ``<weight>.<moment>``. Rates are not included."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {
        f"{names[id(weight)]}.{moment}": value
        for weight, moments in optimizer.state.items()
        for moment, value in moments.items()
    }


def restore(optimizer: Optimizer, model: network.Network, saved: dict[str, Tensor], kind: str) -> list[str]:
    """Restore moments saved by ``tensors``, for trained weights whose moments belong to this ``kind`` of optimizer.

    Moments get the memory format of their weights, because fused steps pair the elements of both by memory position.
    Returns the names of the weights with restored moments.
    """
    names = {id(weight): name for name, weight in model.named_parameters()}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for number, weight in enumerate(weights):
        stem = names[id(weight)] + "."
        moments = {moment: saved[stem + moment] for moment in MOMENTS[kind] if stem + moment in saved}
        fits = all(value.shape in (weight.shape, ()) for value in moments.values())
        if moments.keys() == MOMENTS[kind] and fits:
            state[number] = {moment: _like(weight, value) for moment, value in moments.items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return [names[id(weights[number])] for number in state]


def _like(weight: Tensor, value: Tensor) -> Tensor:
    if value.shape != weight.shape:
        return value
    return torch.empty_like(weight, memory_format=torch.preserve_format, requires_grad=False).copy_(value)


def learned(model: network.Network) -> dict[str, Tensor]:
    """Trained tensors: weights and BatchNorm statistics of the trained groups. They alias the model's."""
    return {name: value for name, value in model.state_dict().items() if network.group_of(name) in model.trainable}


@contextmanager
def given_back(model: network.Network) -> Iterator[None]:
    """Restore the network's weights if the block ends with an error or is interrupted."""
    before = {name: value.clone() for name, value in learned(model).items()}
    try:
        yield
    except BaseException as error:
        if not devices.is_gpu_failure(error):  # a failed GPU cannot copy
            fill(model, before)
        raise


class Average:
    """Exponential moving average of the trained tensors, BatchNorm statistics included.

    After n steps the decay is min(decay, (1 + n) / (10 + n)), so that the first weights soon lose their influence (as
    in TensorFlow's ExponentialMovingAverage). The network's tensors are looked up once and must not be replaced.
    """

    def __init__(self, model: network.Network, decay: float) -> None:
        self.decay = decay
        self.own = learned(model)
        self.values = {name: value.clone() for name, value in self.own.items()}
        floating = [name for name, value in self.own.items() if value.is_floating_point()]
        counters = self.own.keys() - set(floating)
        self.floating = [self.values[name] for name in floating], [self.own[name] for name in floating]
        self.counting = [self.values[name] for name in counters], [self.own[name] for name in counters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after ``step`` steps."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(*self.floating, share)
        if self.counting[0]:
            torch._foreach_copy_(*self.counting)

    def fill(self, values: dict[str, Tensor]) -> None:
        """Restore the averages of an interrupted training."""
        for name, value in values.items():
            self.values[name].copy_(value)

    def lent_to_model(self) -> AbstractContextManager:
        """Put the average into the model inside the block, and its own weights back after it."""
        return _lent(self.own, self.values)


def lent(model: network.Network, values: dict[str, Tensor]) -> AbstractContextManager:
    """Put values into the network's trained tensors inside the block, and its own weights back after it."""
    return _lent(learned(model), values)


@contextmanager
def _lent(own: dict[str, Tensor], values: dict[str, Tensor]) -> Iterator[None]:
    weights = {name: value.clone() for name, value in own.items()}
    try:
        _copy(own, values)
        yield
    finally:
        _copy(own, weights)


@torch.no_grad()
def _copy(to: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in to.items():
        value.copy_(values[name])


class Scaler:
    """Loss scaling for float16, where small gradients become 0: torch's GradScaler, with a count of skipped steps.

    A step with overflowed gradients is skipped and the scale is halved. After 2,000 steps without overflow the scale is
    doubled (Micikevicius et al., Mixed Precision Training, ICLR 2018). With ``on`` False nothing is scaled or skipped.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device, *, on: bool) -> None:
        self.optimizer = optimizer
        self.torch = torch.amp.GradScaler(device.type) if on else None
        self.asked = 0
        self.taken = torch.zeros((), device=device)  # on the device, so that no step waits
        if on:
            optimizer.register_step_pre_hook(self._count)

    def scaled(self, loss: Tensor) -> Tensor:
        return self.torch.scale(loss) if self.torch else loss

    def unscale(self) -> None:
        """Divide the gradients by the scale."""
        if self.torch:
            self.torch.unscale_(self.optimizer)

    def step(self) -> None:
        """Step of the optimizer, unless gradients overflowed."""
        if self.torch is None:
            self.optimizer.step()
            return
        self.asked += 1
        self.torch.step(self.optimizer)
        self.torch.update()

    @property
    def skipped(self) -> int:
        """Skipped steps so far, 0 without scaling. Waits for the device."""
        return self.asked - round(self.taken.item()) if self.torch else 0

    def state(self) -> dict[str, float]:
        """State for resuming a training; empty without scaling."""
        return {**self.torch.state_dict(), "asked": self.asked, "skipped": self.skipped} if self.torch else {}

    def restore(self, state: dict[str, float]) -> None:
        if self.torch:
            self.torch.load_state_dict({name: state[name] for name in state.keys() - {"asked", "skipped"}})
            self.asked = int(state["asked"])
            self.taken.fill_(self.asked - state["skipped"])

    def _count(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        overflowed = getattr(optimizer, "found_inf", None)  # set where the optimizer itself skips
        self.taken += 1 if overflowed is None else 1 - overflowed.clamp(max=1)


@torch.no_grad()
def fill(model: network.Network, values: dict[str, Tensor]) -> None:
    """Copy values into the model's tensors of the same names."""
    state = model.state_dict()
    for name, value in values.items():
        state[name].copy_(value)
