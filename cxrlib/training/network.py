"""Network: torchvision's ResNet-50 with one grey input channel and 15 logits, in six layer groups."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights
from torchvision.models.resnet import Bottleneck, ResNet

from cxrlib import UserError, paths
from cxrlib.labels import LABELS
from cxrlib.training import schedules

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
    any device. ``precision`` is that of the recipe that trained the weights; predictions use it too.
    """

    def __init__(self, layers: Sequence[int] = RESNET50) -> None:
        super().__init__(Bottleneck, list(layers), num_classes=len(LABELS), zero_init_residual=True)
        self.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.trainable: tuple[str, ...] = GROUPS
        self.precision = "auto"

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

    ``weights``: "none" (random), a torchvision name such as "IMAGENET1K_V2" (downloaded where there is a network),
    or a file of a ResNet-50 state dict (.pth or .safetensors). ``seed`` decides every random weight, and the random
    state of the process does not change. Raises UserError where the weights are not available or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = Network(layers)
    if weights != "none":
        # strict=False: the head's weights are left out, since its classes differ
        model.load_state_dict(_fitting(model, _fetch(weights), weights), strict=False)
    return model


def judge(weights: str) -> None:
    """Check starting weights: raise the UserError of ``build``, without a download or the memory of a network."""
    if weights != "none" and weights not in ResNet50_Weights.__members__:
        with torch.device("meta"):
            model = Network()
        _fitting(model, _fetch(weights), weights)


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


def grey(kernels: Tensor) -> Tensor:
    """Grey kernels (64, 1, 7, 7) from first-layer kernels (64, 3, 7, 7): the sum over the colour channels.

    This equals the three-channel layer on a grey image that is repeated three times, with a third of the work.
    """
    return kernels.sum(1, keepdim=True)


def _fetch(weights: str) -> dict[str, Tensor]:
    names = [entry.name for entry in ResNet50_Weights]  # without DEFAULT, whose meaning can change
    if weights in names:
        return _download(ResNet50_Weights[weights])
    path = paths.resolve(weights) if weights else Path()
    if not path.is_file():
        raise UserError(
            f"weights {weights!r} are neither a file nor a known name; "
            f"give none, {', '.join(names)} or a .pth or .safetensors file"
        )
    return _read(path)


def _download(entry: ResNet50_Weights) -> dict[str, Tensor]:
    try:
        return entry.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, refused, or a damaged file
        raise UserError(
            f"weights {entry.name} could not be downloaded ({error}); "
            f"fetch {entry.url} where there is a network and give weights=/path/to/{Path(entry.url).name}"
        ) from None


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError, BadZipFile, ValueError) as error:
        raise UserError(
            f"weights {path} cannot be read as a state dict: {_why_unreadable(path, error)}; "
            "give a file of model.state_dict() alone, best as .safetensors"
        ) from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"weights {path} hold no state dict of tensors; save model.state_dict() alone")
    return state


def _why_unreadable(path: Path, error: Exception) -> str:
    """Reason without torch's own text, which advises to load an unknown file unsafely."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds Python objects besides tensors, or is no weights file, and such objects are never loaded"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is cut short, damaged or of another kind than its ending says"


def _fitting(model: Network, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights without the head, with grey kernels. Raises UserError where they do not fit or are not finite."""
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    if "conv1.weight" in state and state["conv1.weight"].shape[1:2] == (3,):
        state["conv1.weight"] = grey(state["conv1.weight"])
    expected = {name: value for name, value in model.state_dict().items() if not name.startswith("fc.")}
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = sorted(name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape)
    for fault, names in (("lack", missing), ("have unknown", unexpected), ("have another shape of", shapes)):
        if names:
            raise UserError(
                f"weights {source} do not fit a ResNet-50: they {fault} {len(names)} entries such as {names[0]}"
            )
    bad = [name for name, value in state.items() if not value.isfinite().all()]
    if bad:
        raise UserError(f"weights {source} are not finite in {len(bad)} entries such as {bad[0]}; take other weights")
    return state


def _distance(before: Mapping[str, Tensor], after: Mapping[str, Tensor], names: list[str]) -> float:
    if not names:
        return float("nan")
    old = torch.cat([before[name].flatten().double() for name in names])
    new = torch.cat([after[name].flatten().double() for name in names])
    return float((new - old).norm() / old.norm())
