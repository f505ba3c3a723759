"""Starting weights: torchvision's by name, or a ResNet-50's state dict from a file, brought to this network's names.

Files come from many programs. A dictionary around the state dict (Lightning's ``state_dict``, ``model_state_dict``,
``model``) is opened, and a prefix of all names (``module.``, ``backbone.``, ``encoder.``, …) is taken off. Entries
outside the ResNet's own layers, such as a head or the counters of a FLOP tool, are left out. An entry that belongs to
the layers and does not fit is refused, because a network that is partly random would train without a word.
"""

import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import ResNet50_Weights

from cxrlib import UserError, paths

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which programs keep a state dict: Lightning and MoCo; PyTorch's own tutorial; DINO and many others."""

LAYERS = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
"""Beginnings of the names of a ResNet's layers without its head, as torchvision names them."""

COUNTERS = ("total_ops", "total_params")
"""Entries that the FLOP counter ``thop`` leaves in every layer."""

STEPS = "num_batches_tracked"
"""BatchNorm's count of batches. Files of 2018 and before lack it, and nothing here reads it."""

UNREADABLE = (
    OSError,
    RuntimeError,
    SafetensorError,
    pickle.UnpicklingError,
    EOFError,
    BadZipFile,
    ValueError,
    KeyError,
    AttributeError,
    IndexError,
)
"""What torch and safetensors raise for a file that is cut, damaged or of another kind."""


@dataclass(frozen=True)
class StartingWeights:
    """Starting weights for a network, and how they were found. ``print`` says it in a sentence.

    ``state``: weights without the head, with grey kernels, float32 · ``source``: name or file · ``prefix``: what was
    taken off the names · ``absent``: BatchNorm's counters that the file lacks, which start at 0 · ``left_out``: entries
    of the file that are not of the layers, such as its head.
    """

    state: dict[str, Tensor]
    source: str
    prefix: str = ""
    absent: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.source}: {len(self.state) - len(self.absent)} entries of the layers taken over, 0 missing"]
        if self.prefix:
            parts.append(f"without the prefix {self.prefix!r}")
        if self.absent:
            parts.append(f"{len(self.absent)} counters of BatchNorm, which the file lacks, start at 0")
        if self.left_out:
            names = ", ".join(self.left_out[:3]) + (" …" if len(self.left_out) > 3 else "")
            parts.append(f"{len(self.left_out)} other entries left out ({names})")
        return "; ".join([*parts, "the head is new"])


def read(weights: str, expected: Mapping[str, Tensor]) -> StartingWeights:
    """Starting weights for a network whose state dict is ``expected`` (shapes alone are used).

    ``weights``: a torchvision name such as "IMAGENET1K_V1" (downloaded where there is a network), or a .pth or
    .safetensors file. Loading a file never runs code from it.
    Raises UserError where the weights are not available, are no state dict, do not fit, or are not finite.
    """
    names = [entry.name for entry in ResNet50_Weights]  # without DEFAULT, whose meaning can change
    if weights in names:
        return fitted(_download(ResNet50_Weights[weights]), expected, weights)
    path = paths.resolve(weights) if weights else Path()
    if not path.is_file():
        raise UserError(
            f"weights {weights!r} are neither a file nor a known name; "
            f"give none, {', '.join(names)} or a .pth or .safetensors file"
        )
    return fitted(_read(path), expected, weights)


def fitted(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> StartingWeights:
    """The layers' weights from a state dict under any prefix, with grey kernels.

    Raises UserError where an entry of the layers is missing, unknown, of another shape or not finite, and where
    several networks are in the file.
    """
    prefix = _prefix(state, source)
    named = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    layers = {name: value for name, value in named.items() if name.startswith(LAYERS) and not name.endswith(COUNTERS)}
    wanted = {name: value for name, value in expected.items() if not name.startswith("fc.")}
    if "conv1.weight" in layers and layers["conv1.weight"].shape[1:2] == (3,):
        layers["conv1.weight"] = grey(layers["conv1.weight"])
    absent = tuple(name for name in wanted if name.endswith(STEPS) and name not in layers)
    layers |= {name: torch.zeros((), dtype=torch.int64) for name in absent}
    _refuse(layers, wanted, source)
    used = {prefix + name for name in layers}
    left_out = tuple(name for name in state if name not in used)
    values = {name: layers[name] if name.endswith(STEPS) else layers[name].float() for name in wanted}
    return StartingWeights(values, source, prefix, absent, left_out)


def grey(kernels: Tensor) -> Tensor:
    """Grey kernels (64, 1, 7, 7) from first-layer kernels (64, 3, 7, 7): the sum over the colour channels.

    This equals the three-channel layer on a grey image that is repeated three times, with a third of the work.
    """
    return kernels.sum(1, keepdim=True)


def _prefix(state: Mapping[str, Tensor], source: str) -> str:
    """What stands before ``conv1.weight`` of a ResNet in all its names; "" where the names are torchvision's."""
    prefixes = [name.removesuffix("conv1.weight") for name in state if re.search(r"(^|\.)conv1\.weight$", name)]
    tops = [prefix for prefix in prefixes if f"{prefix}layer4.0.conv1.weight" in state]
    if len(tops) > 1:
        raise UserError(
            f"weights {source} hold {len(tops)} networks, {' and '.join(repr(top) for top in tops)}; "
            "save the state dict of one of them alone"
        )
    return tops[0] if tops else ""


def _refuse(layers: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    missing, unexpected = sorted(wanted.keys() - layers.keys()), sorted(layers.keys() - wanted.keys())
    shapes = sorted(name for name in wanted.keys() & layers.keys() if wanted[name].shape != layers[name].shape)
    for fault, names in (("lack", missing), ("have unknown", unexpected), ("have another shape of", shapes)):
        if names:
            raise UserError(
                f"weights {source} do not fit a ResNet-50: they {fault} {len(names)} entries such as {names[0]}"
            )
    whole = [name for name, value in layers.items() if not name.endswith(STEPS) and not value.is_floating_point()]
    if whole:
        raise UserError(
            f"weights {source} are whole numbers in {len(whole)} entries such as {whole[0]}; take weights that are "
            "not quantised"
        )
    bad = [name for name, value in layers.items() if not value.isfinite().all()]
    if bad:
        raise UserError(f"weights {source} are not finite in {len(bad)} entries such as {bad[0]}; take other weights")


def _download(entry: ResNet50_Weights) -> dict[str, Tensor]:
    """A state dict from torchvision's cache, or downloaded. A damaged file in the cache is fetched again."""
    damaged = _drop_if_damaged(cached_file(entry))
    try:
        return entry.get_state_dict(progress=False, check_hash=True)
    except UNREADABLE as error:  # no network, refused, or a damaged file
        raise UserError(
            f"weights {entry.name} could not be downloaded ({error}){damaged}; "
            f"fetch {entry.url} where there is a network and give weights=/path/to/{Path(entry.url).name}"
        ) from None


def cached_file(entry: ResNet50_Weights) -> Path:
    """Where torch keeps the download of these weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name


def _drop_if_damaged(path: Path) -> str:
    """Delete a cached download whose SHA-256 does not begin as its name ends; "" or a remark that it was deleted.

    torch checks this hash when it downloads, not when it reads the file again.
    """
    begin = path.stem.rpartition("-")[2]
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest().startswith(begin):
                return ""
        path.unlink()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); delete it, so that it is downloaded again"
        ) from None
    return f"; the damaged copy in {path.parent} was deleted"


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except UNREADABLE as error:
        raise UserError(
            f"weights {path} cannot be read as a state dict: {_why_unreadable(path, error)}; "
            "give a file of model.state_dict() alone, best as .safetensors"
        ) from None
    return _unwrapped(content, path)


def _unwrapped(content: object, path: Path) -> Mapping[str, Tensor]:
    """The state dict inside a file's content. Raises UserError where there is none."""
    for _ in WRAPPERS:
        key = next((key for key in WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
        content = content[key] if key else content
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"weights {path} hold no state dict of tensors; save model.state_dict() alone")
    return content


def _why_unreadable(path: Path, error: Exception) -> str:
    """Reason without torch's own text, which advises to load an unknown file unsafely."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds Python objects besides tensors, or is no weights file, and such objects are never loaded"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is cut short, damaged or of another kind than its ending says"
