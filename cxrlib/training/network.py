"""The network: torchvision's ResNet-50 that reads one grey channel and gives 15 logits, in six layer groups."""

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

from cxrlib import paths
from cxrlib.errors import UserError
from cxrlib.labels import LABELS
from cxrlib.training import recipes

GROUPS = recipes.GROUPS
RESNET50 = (3, 4, 6, 3)
MEMBERS = {"stem": ("conv1", "bn1"), **{group: (group,) for group in GROUPS[1:]}}
"""The modules that make up each layer group, by torchvision's names."""

STEPS = {
    "stem": ("conv1", "bn1", "relu", "maxpool"),
    **{group: (group,) for group in GROUPS[1:5]},
    "pool": ("avgpool",),
    "fc": ("fc",),
}
"""The way of an image through the network; pooling learns nothing and belongs to whichever side of it is frozen."""


class Network(ResNet):
    """torchvision's ResNet of bottlenecks with a grey first layer and 15 outputs, some groups of it frozen.

    ``layers`` are the blocks per group, (3, 4, 6, 3) for ResNet-50. The last BatchNorm of each block starts at 0
    (Goyal et al., Accurate, Large Minibatch SGD, 2017), so that a fresh block passes its input through.
    The names of the weights are torchvision's. ``train()`` leaves the BatchNorm of frozen groups in eval.
    Images may lie on any device: they are moved to the weights'. ``precision`` is that of the recipe whose weights the
    network holds, and so the one it is read in.
    """

    def __init__(self, layers: Sequence[int] = RESNET50) -> None:
        super().__init__(Bottleneck, list(layers), num_classes=len(LABELS), zero_init_residual=True)
        self.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.trainable: tuple[str, ...] = GROUPS
        self.precision = "auto"

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
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
        """How many steps of ``STEPS`` come before the first one that learns: the frozen prefix."""
        learning = [step in self.trainable for step in STEPS]
        first = learning.index(True) if any(learning) else len(learning)
        return first

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 15) of images (B, 1, S, S)."""
        return self._pass(images.to(self.device), list(STEPS))

    @torch.no_grad()
    def prefix(self, images: Tensor) -> Tensor:
        """Pass images (B, 1, S, S) through the frozen prefix, without autograd; what ``suffix`` continues from."""
        return self._pass(images.to(self.device), list(STEPS)[: self.split])

    def suffix(self, features: Tensor) -> Tensor:
        """Continue from ``prefix`` to logits (B, 15); ``suffix(prefix(x))`` is ``self(x)``."""
        return self._pass(features, list(STEPS)[self.split :])

    def _pass(self, x: Tensor, steps: Sequence[str]) -> Tensor:
        for step in steps:
            for name in STEPS[step]:
                x = getattr(self, name)(x)
            if step == "pool":
                x = x.flatten(1)  # (B, 2048)
        return x


def build(weights: str, *, seed: int = 0, layers: Sequence[int] = RESNET50) -> Network:
    """Make the network with the given starting weights; the head is always fresh.

    ``weights``: "none" (random), a torchvision name such as "IMAGENET1K_V2" (fetched where there is a network),
    or a file of a ResNet-50 state dict (.pth or .safetensors). ``seed`` decides every random weight; the
    process's own random state stays as it was. Raises UserError where the weights cannot be had or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = Network(layers)
    if weights != "none":
        _take_over(model, _fetch(weights), weights)
    return model


def judge(weights: str) -> None:
    """Raise the UserError that ``build`` would, as far as it can be known without a download or a network's memory.

    Also for weights that are not finite.
    """
    if weights != "none" and weights not in ResNet50_Weights.__members__:
        with torch.device("meta"):
            model = Network()
        _fitting(model, _fetch(weights), weights)


def train_only(model: Network, groups: Sequence[str]) -> Network:
    """Freeze every layer group but the given ones: no gradient, BatchNorm in eval, also after ``model.train()``."""
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
    """The layer group of a weight by its torchvision name: ``"bn1.weight"`` is in ``"stem"``."""
    head = name.split(".")[0]
    return next(group for group, modules in MEMBERS.items() if head in modules)


def table(model: Network) -> pd.DataFrame:
    """One row per layer group: convolution and linear layers, parameters, whether it trains and its BatchNorm moves."""
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


def travelled(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> pd.DataFrame:
    """How far each layer group went from one state dict to another, as a share of where it was.

    Index group; ``weights``: ‖after − before‖ / ‖before‖ over all that is learnt by gradients; ``statistics``: the
    same over BatchNorm's running means and variances, NaN for a group without. 0 means bit-equal.
    """
    rows = []
    for group in GROUPS:
        names = [name for name in before if group_of(name) == group and before[name].is_floating_point()]
        moving = [name for name in names if "running_" in name]
        learnt = [name for name in names if "running_" not in name]
        rows.append({"weights": _distance(before, after, learnt), "statistics": _distance(before, after, moving)})
    return pd.DataFrame(rows, index=pd.Index(GROUPS, name="group"))


def grey(kernels: Tensor) -> Tensor:
    """Sum the colour channels of first-layer kernels (64, 3, 7, 7) into one (64, 1, 7, 7).

    On a grey film given three times the three-channel layer computes exactly this, at a third of the work.
    """
    return kernels.sum(1, keepdim=True)


def _fetch(weights: str) -> dict[str, Tensor]:
    names = [entry.name for entry in ResNet50_Weights]  # without DEFAULT, which means another one some day
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
    """In our own words: torch's advise to load a stranger's file without care."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds Python objects beside tensors, or is no file of weights, and such objects are never loaded"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is cut short, damaged or of another kind than its ending says"


def _take_over(model: Network, state: dict[str, Tensor], source: str) -> None:
    """Load a ResNet's weights but for its head, whose classes are others; colour kernels become grey."""
    model.load_state_dict(_fitting(model, state, source), strict=False)


def _fitting(model: Network, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights as ``_take_over`` loads them. Raises UserError where they do not fit, or are not finite."""
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    if "conv1.weight" in state and state["conv1.weight"].shape[1:2] == (3,):
        state["conv1.weight"] = grey(state["conv1.weight"])
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("fc.")}
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    for what, names in (("lack", missing), ("have unknown", unexpected), ("have another shape of", shapes)):
        if names:
            raise UserError(f"weights {source} are no ResNet-50's: they {what} {len(names)} entries such as {names[0]}")
    broken = [name for name, value in state.items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"weights {source} are not finite in {len(broken)} entries such as {broken[0]}; take others")
    return state


def _distance(before: Mapping[str, Tensor], after: Mapping[str, Tensor], names: list[str]) -> float:
    if not names:
        return float("nan")
    was = torch.cat([before[name].flatten().double() for name in names])
    now = torch.cat([after[name].flatten().double() for name in names])
    return float((now - was).norm() / was.norm())
