"""NVIDIA cards: whether this build of torch can use them, and what to do if it cannot."""

import re
import warnings
from functools import cache
from pathlib import Path

import torch

from cxrlib.errors import UserError

NODES = ("/dev/nvidiactl", "/dev/dxg")
"""Device files of the NVIDIA driver on Linux, and on Linux under Windows."""
ON_CPU = "set CXR_DEVICE=cpu to go on without it"
BUILDS = "see https://pytorch.org/get-started for the builds of torch"


def usable(at: torch.device) -> torch.device:
    """The device itself, if it exists, opens, and this torch has code for it. Raises UserError otherwise."""
    _check_opens(str(at))
    return at


@cache
def _check_opens(name: str) -> None:
    at = torch.device(name)
    if not torch.cuda.is_available():
        refuse_idle_card()
        raise UserError(f"device {name} is not available: no NVIDIA card is found; {ON_CPU}")
    number = at.index or 0
    if number >= torch.cuda.device_count():
        raise UserError(f"there is no {name}: this machine shows {torch.cuda.device_count()} cards, from cuda:0 on")
    card, capability = torch.cuda.get_device_name(at), torch.cuda.get_device_capability(at)
    if not has_code(capability, torch.cuda.get_arch_list()):
        raise UserError(
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) has no code for {card}, compute capability "
            f"{capability[0]}.{capability[1]}; install torch and torchvision built for an older CUDA, for example "
            f"uv pip install torch torchvision --torch-backend=cu126 ({BUILDS}), or {ON_CPU}"
        )
    try:
        torch.zeros(1, device=at).item()
    except RuntimeError as error:  # used by another process in exclusive mode, full, or failed
        reason = str(error).splitlines()[0]
        raise UserError(f"{card} ({name}) cannot be used ({reason}); see nvidia-smi, or {ON_CPU}") from None


def refuse_idle_card() -> None:
    """Raise UserError where the machine has a card and its driver, but this torch cannot open the card.

    A torch built for the CPU alone gives a warning only, because the user may want it.
    """
    if not any(Path(node).exists() for node in NODES):
        return
    if torch.version.cuda is None:
        warnings.warn(f"an NVIDIA card is here, but torch {torch.__version__} is built for the CPU alone", stacklevel=3)
        return
    raise UserError(f"the NVIDIA card cannot be used: {reason(_complaint())}, or {ON_CPU}")


def reason(complaint: str) -> str:
    """The reason why torch cannot open a card, from torch's own message: what is wrong and what to do."""
    match = re.search(r"too old \(found version (\d+)\)", complaint)
    if match:
        version = f"{int(match[1]) // 1000}.{int(match[1]) % 1000 // 10}"
        return (
            f"its driver is for CUDA {version} at most, and torch {torch.__version__} is built for CUDA "
            f"{torch.version.cuda}; install a newer driver, or torch and torchvision for CUDA {version} ({BUILDS})"
        )
    return f"{complaint or 'torch gives no reason'}; see whether nvidia-smi lists it"


def has_code(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether a build for these architectures ("sm_75", "compute_90") runs on a card of this capability.

    Binary code runs on the same major version and an equal or higher minor version. Intermediate code is compiled when
    it is loaded, for any equal or higher version (CUDA C++ Programming Guide, application compatibility). An empty
    list means unknown, and gives True.
    """
    names = re.findall(r"(sm|compute)_(\d+)", " ".join(built_for))
    versions = [(kind, divmod(int(number), 10)) for kind, number in names]
    fits = [version <= capability and (kind == "compute" or version[0] == capability[0]) for kind, version in versions]
    return not versions or any(fits)


def _complaint() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return ""
