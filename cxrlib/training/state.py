"""Resume states of a stage: all that an interrupted training needs to continue exactly.

Each state is a pair of files in ``state/``, .safetensors and .json. The two newest are kept, so that if a power cut
damages one, the training resumes from the other.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cxrlib.errors import UserError
from cxrlib.training import tensors

KEPT = 2


@dataclass(frozen=True)
class State:
    """State: tensors by name, plain data, number of optimizer steps before it, and path of the tensors' file."""

    tensors: dict[str, Tensor]
    data: dict[str, Any]
    steps: int
    path: Path


def save(folder: Path, steps: int, values: dict[str, Tensor], data: dict[str, Any]) -> Path:
    """Write a state. After that, delete all but the ``KEPT`` newest.

    Two states can have the same ``steps``, for example before and after a validation. The later one counts as newer.
    """
    order = max((_order(path)[0] for path in _states(folder)), default=0) + 1
    path = tensors.write(folder / f"{order:06d}-{steps}", values, data)
    for old in _states(folder)[KEPT:]:
        tensors.remove(old)
    return path


def newest(folder: Path, wanted: Callable[[dict[str, Any]], str]) -> State | None:
    """The newest undamaged state that ``wanted`` accepts, None where there is none.

    ``wanted`` takes the state's data and returns "", or the reason to reject it. Each rejected or damaged state gives
    a warning.
    """
    for path in _states(folder):
        try:
            values, data = tensors.read(path)
        except UserError as error:
            warnings.warn(f"resume state {path.name} is damaged, trying the one before ({error})", stacklevel=2)
            continue
        fault = wanted(data)
        if not fault:
            return State(values, data, _order(path)[1], path)
        warnings.warn(f"the interrupted training in {folder.parent} is not continued: {fault}", stacklevel=2)
    return None


def read(path: Path) -> State:
    """Read a state. Raises UserError where it is damaged."""
    return State(*tensors.read(path), _order(path)[1], path)


def clear(folder: Path) -> None:
    """Remove all states, and temporary files of a killed process."""
    for path in _states(folder):
        tensors.remove(path)
    sweep(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def sweep(folder: Path) -> None:
    """Remove temporary files of a killed process. Only the process with the folder's lock may call it."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Random generators for the training inside the block. After it, the process's own generators are restored."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Random state of the generators that a network can use, as tensors."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(values: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(values["cpu"])
    if device.type == "cuda" and "cuda" in values:
        torch.cuda.set_rng_state(values["cuda"], device)


def prefixed(**parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Joined dict of several dicts of tensors: ``model/fc.bias``, ``optimizer/0.step`` …"""
    return {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}


def part(values: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """One dict from those that ``prefixed`` joined; empty where it is absent."""
    return {key.removeprefix(f"{name}/"): value for key, value in values.items() if key.startswith(f"{name}/")}


def _states(folder: Path) -> list[Path]:
    """States in a folder, newest first. A file without its JSON does not count."""
    pairs = [path.with_suffix(".safetensors") for path in folder.glob("*-*.json")]
    return sorted(pairs, key=_order, reverse=True)


def _order(path: Path) -> tuple[int, int]:
    order, steps = path.stem.split("-")
    return int(order), int(steps)
