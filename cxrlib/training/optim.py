"""What turns gradients into weights: the optimizer by layer group, the rate at each step, the moving average."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from cxrlib.training import hardware, network
from cxrlib.training.recipes import Stage

MOMENTUM = 0.9
MOMENTS = {"sgd": {"momentum_buffer"}, "adam": {"step", "exp_avg", "exp_avg_sq"}}
MOMENTS["adamw"] = MOMENTS["adam"]
"""What each optimizer keeps of a weight: Adam's and AdamW's are the same, and go from one to the other."""


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


def rate(step: int, steps: int, recipe: Stage, halvings: int = 0) -> float:
    """The topmost group's rate at ``step`` (from 0) of ``steps``: a straight rise, then the recipe's decay."""
    rise = recipe.warmup * steps
    if step < rise:
        return recipe.lr * (step + 1) / (rise + 1)
    if recipe.decay == "plateau":
        return recipe.lr * 0.5**halvings
    if recipe.decay == "none":
        return recipe.lr
    share = min((step - rise) / max(steps - rise, 1), 1.0)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * share))


def halvings(aucs: Sequence[float], plateau: int) -> int:
    """How often ``plateau`` epochs in a row brought no better validation AUC; each such row begins the count anew.

    Epochs whose AUC is undefined (NaN) do not count.
    """
    best, since, count = -math.inf, 0, 0
    for auc in (auc for auc in aucs if not math.isnan(auc)):
        better = auc > best
        best, since = (auc, 0) if better else (best, since + 1)
        if since == plateau:
            count, since = count + 1, 0
    return count


def exhausted(aucs: Sequence[float], patience: int) -> bool:
    """Whether the last ``patience`` epochs brought no better validation AUC; never where that is 0."""
    best = max((auc for auc in aucs if not math.isnan(auc)), default=math.nan)
    since = len(aucs) - 1 - list(aucs).index(best) if not math.isnan(best) else 0
    return bool(patience) and since >= patience


def set_rate(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def tensors(optimizer: Optimizer, model: network.Network) -> dict[str, Tensor]:
    """The optimizer's moments as named tensors ``<weight>.<moment>``; rates are no part of its state."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {
        f"{names[id(weight)]}.{moment}": value
        for weight, moments in optimizer.state.items()
        for moment, value in moments.items()
    }


def restore(optimizer: Optimizer, model: network.Network, saved: dict[str, Tensor], kind: str) -> list[str]:
    """Put moments saved by ``tensors`` back where the weight is trained and the moments are this ``kind``'s.

    They come in the memory format of their weights: fused steps pair the two by their place in memory, and would pair
    a channels-last weight with a stranger's moments. Returns the names of the weights that got theirs back.
    """
    names = {id(weight): name for name, weight in model.named_parameters()}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    found: dict[int, dict[str, Tensor]] = {}
    for number, weight in enumerate(weights):
        stem = names[id(weight)] + "."
        moments = {moment: saved[stem + moment] for moment in MOMENTS[kind] if stem + moment in saved}
        fits = all(value.shape in (weight.shape, ()) for value in moments.values())
        if moments.keys() == MOMENTS[kind] and fits:
            found[number] = {moment: _like(weight, value) for moment, value in moments.items()}
    optimizer.load_state_dict({"state": found, "param_groups": optimizer.state_dict()["param_groups"]})
    return [names[id(weights[number])] for number in found]


def _like(weight: Tensor, value: Tensor) -> Tensor:
    if value.shape != weight.shape:
        return value
    return torch.empty_like(weight, memory_format=torch.preserve_format, requires_grad=False).copy_(value)


def learned(model: network.Network) -> dict[str, Tensor]:
    """What training changes: weights and BatchNorm statistics of the trained groups, aliased."""
    return {name: value for name, value in model.state_dict().items() if network.group_of(name) in model.trainable}


@contextmanager
def given_back(model: network.Network) -> Iterator[None]:
    """Give the network its weights back where the block ends in an error or is stopped."""
    given = {name: value.clone() for name, value in learned(model).items()}
    try:
        yield
    except BaseException as error:
        if not hardware.lost(error):  # nothing can be copied on a GPU that failed
            fill(model, given)
        raise


class Average:
    """Exponential moving average of what training changes, BatchNorm statistics included.

    The decay is held low at first, min(decay, (1 + n) / (10 + n)) after n steps, so that the start is forgotten
    (as in TensorFlow's ExponentialMovingAverage). The network's tensors are looked up once: they must stay its own.
    """

    def __init__(self, model: network.Network, decay: float) -> None:
        self.decay = decay
        self.own = learned(model)
        self.values = {name: value.clone() for name, value in self.own.items()}
        floating = [name for name, value in self.own.items() if value.is_floating_point()]
        counting = self.own.keys() - set(floating)
        self.floating = [self.values[name] for name in floating], [self.own[name] for name in floating]
        self.counting = [self.values[name] for name in counting], [self.own[name] for name in counting]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` steps."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(*self.floating, share)
        if self.counting[0]:
            torch._foreach_copy_(*self.counting)

    def fill(self, values: dict[str, Tensor]) -> None:
        """Take the averages of an interrupted training."""
        for name, value in values.items():
            self.values[name].copy_(value)

    @contextmanager
    def lent_to_model(self) -> Iterator[None]:
        """Let the model hold the average inside the block, and its own weights again after it."""
        kept = {name: value.clone() for name, value in self.own.items()}
        try:
            self._give(self.values)
            yield
        finally:
            self._give(kept)

    @torch.no_grad()
    def _give(self, values: dict[str, Tensor]) -> None:
        for name, value in self.own.items():
            value.copy_(values[name])


class Scaler:
    """Loss scaling for float16, whose small gradients would vanish: torch's GradScaler, and a count of what it skips.

    A step whose gradients overflowed is skipped and the scale halved; after 2,000 steps without, it is doubled
    (Micikevicius et al., Mixed Precision Training, ICLR 2018). Not ``on``, it lets everything through.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device, *, on: bool) -> None:
        self.optimizer = optimizer
        self.torch = torch.amp.GradScaler(device.type) if on else None
        self.asked = 0
        self.taken = torch.zeros((), device=device)  # counted on the device, which a look at each step would hold up
        if on:
            optimizer.register_step_pre_hook(self._count)

    def scaled(self, loss: Tensor) -> Tensor:
        return self.torch.scale(loss) if self.torch else loss

    def unscale(self) -> None:
        """Bring the waiting gradients to their own size."""
        if self.torch:
            self.torch.unscale_(self.optimizer)

    def step(self) -> None:
        """The optimizer's step, unless gradients overflowed."""
        if self.torch is None:
            self.optimizer.step()
            return
        self.asked += 1
        self.torch.step(self.optimizer)
        self.torch.update()

    @property
    def skipped(self) -> int:
        """Steps skipped so far, 0 without scaling; asking waits for the device."""
        return self.asked - round(self.taken.item()) if self.torch else 0

    def state(self) -> dict[str, float]:
        """All that an interrupted training needs to go on with; empty without scaling."""
        return {**self.torch.state_dict(), "asked": self.asked, "skipped": self.skipped} if self.torch else {}

    def restore(self, state: dict[str, float]) -> None:
        if self.torch:
            self.torch.load_state_dict({name: state[name] for name in state.keys() - {"asked", "skipped"}})
            self.asked = int(state["asked"])
            self.taken.fill_(self.asked - state["skipped"])

    def _count(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        overflowed = getattr(optimizer, "found_inf", None)  # there where the optimizer itself leaves the weights alone
        self.taken += 1 if overflowed is None else 1 - overflowed.clamp(max=1)


@torch.no_grad()
def fill(model: network.Network, values: dict[str, Tensor]) -> None:
    """Copy values into the model's weights and statistics of the same names."""
    state = model.state_dict()
    for name, value in values.items():
        state[name].copy_(value)
