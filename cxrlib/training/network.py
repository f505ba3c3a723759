"""Network: torchvision's ResNet-50 with one grey input channel and 15 logits, in six layer groups."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights
from torchvision.models.resnet import Bottleneck, ResNet

from cxrlib import UserError
from cxrlib.labels import LABELS
from cxrlib.training import schedules, starting_weights

GROUPS = schedules.GROUPS
RESNET50 = (3, 4, 6, 3)
MEMBERS = {"stem": ("conv1", "bn1"), **{group: (group,) for group in GROUPS[1:]}}
"""Modules of each layer group, by torchvision's names."""

STEPS = {
    "stem": ("conv1", "bn1", "relu", "maxpool"),
    **{group: (group,) for group in GROUPS[1:5]},
    "pool": ("avgpool",),
    "fc": ("fc",),
}
"""Steps of the network in order, with their modules. Pooling has no weights, so it can be frozen or not."""


class Network(ResNet):
    """ResNet of bottlenecks from torchvision, with a grey first layer, 15 outputs, and layer groups that can be frozen.

    ``layers`` are the blocks per group, (3, 4, 6, 3) for ResNet-50. The last BatchNorm of each block starts at 0, so
    that a new block passes its input through (Goyal et al., Accurate, Large Minibatch SGD, 2017).
    Weights have torchvision's names. ``train()`` leaves the BatchNorm of frozen groups in eval mode. Images can be on
    any device. ``precision`` is that of the recipe that trained the weights; predictions use it too. ``start`` says in
    words what the weights were before any training.
    """

    def __init__(self, layers: Sequence[int] = RESNET50) -> None:
        super().__init__(Bottleneck, list(layers), num_classes=len(LABELS), zero_init_residual=True)
        self.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.trainable: tuple[str, ...] = GROUPS
        self.precision = "auto"
        self.start = "random weights"

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.conv1.weight.device

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        for group in GROUPS:
            if group not in self.trainable:
                for module in members(self, group):
                    module.eval()
        return self

    @property
    def split(self) -> int:
        """Number of steps in the frozen prefix: those of ``STEPS`` before the first trained one."""
        trained = [step in self.trainable for step in STEPS]
        return trained.index(True) if any(trained) else len(trained)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 15) of images (B, 1, S, S)."""
        return self._pass(images.to(self.device), list(STEPS))

    @torch.no_grad()
    def prefix(self, images: Tensor) -> Tensor:
        """Features of images (B, 1, S, S) after the frozen prefix, without autograd. Input of ``suffix``."""
        return self._pass(images.to(self.device), list(STEPS)[: self.split])

    def suffix(self, features: Tensor) -> Tensor:
        """Logits (B, 15) from the features of ``prefix``; ``suffix(prefix(x))`` is ``self(x)``."""
        return self._pass(features, list(STEPS)[self.split :])

    def _pass(self, x: Tensor, steps: Sequence[str]) -> Tensor:
        for step in steps:
            for name in STEPS[step]:
                x = getattr(self, name)(x)
            if step == "pool":
                x = x.flatten(1)  # (B, 2048)
        return x


def build(weights: str, *, seed: int = 0, layers: Sequence[int] = RESNET50) -> Network:
    """Build the network with its starting weights. The head is always new.

    ``weights``: "none" (random), a torchvision name such as "IMAGENET1K_V1" (downloaded where there is a network),
    or a file of a ResNet-50 state dict (.pth or .safetensors), see ``starting_weights``. ``seed`` decides every random
    weight, and the random state of the process does not change. The network's ``start`` says what was taken over.
    Raises UserError where the weights are not available or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = Network(layers)
    if weights != "none":
        start = starting_weights.read(weights, model.state_dict())
        model.load_state_dict(start.state, strict=False)  # the head's weights are left out, since its classes differ
        model.start = str(start)
    return model


def judge(weights: str) -> None:
    """Check starting weights: raise the UserError of ``build``, without a download or the memory of a network."""
    if weights != "none" and weights not in ResNet50_Weights.__members__:
        with torch.device("meta"):
            expected = Network().state_dict()
        starting_weights.read(weights, expected)


def train_only(model: Network, groups: Sequence[str]) -> Network:
    """Freeze all layer groups except ``groups``: no gradient, and BatchNorm in eval mode, also after ``train()``."""
    unknown = set(groups) - set(GROUPS)
    if unknown:
        raise UserError(f"no layer group is called {', '.join(sorted(unknown))}; they are {', '.join(GROUPS)}")
    model.trainable = tuple(group for group in GROUPS if group in groups)
    for group in GROUPS:
        for module in members(model, group):
            module.requires_grad_(group in model.trainable)
    return model.train(model.training)


def members(model: nn.Module, group: str) -> list[nn.Module]:
    return [getattr(model, name) for name in MEMBERS[group]]


def group_of(name: str) -> str:
    """Layer group of a weight by its torchvision name: ``"bn1.weight"`` is in ``"stem"``."""
    head = name.split(".")[0]
    return next(group for group, modules in MEMBERS.items() if head in modules)


def table(model: Network) -> pd.DataFrame:
    """Layer groups, one row each: convolution and linear layers, parameters, whether they train, BatchNorm's state."""
    rows = []
    for group in GROUPS:
        modules = [module for top in members(model, group) for module in top.modules()]
        norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
        rows.append(
            {
                "group": group,
                "layers": sum(isinstance(module, nn.Conv2d | nn.Linear) for module in modules),
                "parameters": sum(p.numel() for top in members(model, group) for p in top.parameters()),
                "trainable": group in model.trainable,
                "batchnorm": "none" if not norms else "moves" if group in model.trainable else "frozen",
            }
        )
    return pd.DataFrame(rows)


def distance_moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> pd.DataFrame:
    """Relative distance of each layer group between two state dicts.

    Index: group. ``weights``: ‖after − before‖ / ‖before‖ over all weights that gradients change. ``statistics``: the
    same over BatchNorm's running means and variances, NaN for a group without BatchNorm. 0 means bit-equal.
    """
    rows = []
    for group in GROUPS:
        names = [name for name in before if group_of(name) == group and before[name].is_floating_point()]
        statistics = [name for name in names if "running_" in name]
        weights = [name for name in names if "running_" not in name]
        rows.append({"weights": _distance(before, after, weights), "statistics": _distance(before, after, statistics)})
    return pd.DataFrame(rows, index=pd.Index(GROUPS, name="group"))


def _distance(before: Mapping[str, Tensor], after: Mapping[str, Tensor], names: list[str]) -> float:
    if not names:
        return float("nan")
    old = torch.cat([before[name].flatten().double() for name in names])
    new = torch.cat([after[name].flatten().double() for name in names])
    return float((new - old).norm() / old.norm())
