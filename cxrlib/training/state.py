"""The resume state of a stage: everything an interrupted training needs to go on exactly where it was.

Each saved state is a pair ``state/<steps>.safetensors`` and ``.json``; the two newest are kept, so that a state
damaged by a power cut costs the minutes since the one before.
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
    """Tensors by name, plain data, how many steps of the optimizer they are after, and their file."""

    tensors: dict[str, Tensor]
    data: dict[str, Any]
    steps: int
    path: Path


def save(folder: Path, steps: int, values: dict[str, Tensor], data: dict[str, Any]) -> Path:
    """Write a state; all but the ``KEPT`` newest go, once it is safe on the disk.

    Also at a step saved before, for example when the validation after it is done: the new one replaces it.
    """
    order = max((_order(path)[0] for path in _states(folder)), default=0) + 1
    path = tensors.write(folder / f"{order:06d}-{steps}", values, data)
    for old in _states(folder)[KEPT:]:
        tensors.remove(old)
    return path


def newest(folder: Path, wanted: Callable[[dict[str, Any]], str]) -> State | None:
    """The newest whole state whose data ``wanted`` finds no fault with, None where there is none.

    ``wanted`` gives "" or what is wrong. A state that is damaged or unwanted is warned of and passed over.
    """
    for path in _states(folder):
        try:
            values, data = tensors.read(path)
        except UserError as error:
            warnings.warn(f"resume state {path.name} is damaged, going back to the one before ({error})", stacklevel=2)
            continue
        fault = wanted(data)
        if not fault:
            return State(values, data, _order(path)[1], path)
        warnings.warn(f"the interrupted training in {folder.parent} is not continued: {fault}", stacklevel=2)
    return None


def read(path: Path) -> State:
    """A state known to be whole. Raises UserError where it no longer is."""
    return State(*tensors.read(path), _order(path)[1], path)


def clear(folder: Path) -> None:
    """Remove every state, and what a killed process left half-written."""
    for path in _states(folder):
        tensors.remove(path)
    sweep(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def sweep(folder: Path) -> None:
    """Remove temporary files of a process that was killed while writing; only the folder's holder may."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Random generators of this training's own, for networks that draw; the process's are as before afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The random generators a network may draw from, as tensors."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def set_random_state(values: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(values["cpu"])
    if device.type == "cuda" and "cuda" in values:
        torch.cuda.set_rng_state(values["cuda"], device)


def prefixed(**parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """One dict of tensors out of several: ``model/fc.bias``, ``optimizer/0.step`` …"""
    return {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}


def part(values: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """One of the dicts that ``prefixed`` joined; empty where it is absent."""
    return {key.removeprefix(f"{name}/"): value for key, value in values.items() if key.startswith(f"{name}/")}


def _states(folder: Path) -> list[Path]:
    """The states in a folder, newest first; one whose JSON was never written is none."""
    pairs = [path.with_suffix(".safetensors") for path in folder.glob("*-*.json")]
    return sorted(pairs, key=_order, reverse=True)


def _order(path: Path) -> tuple[int, int]:
    order, steps = path.stem.split("-")
    return int(order), int(steps)
