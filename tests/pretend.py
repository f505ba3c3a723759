"""A second device that is not there: tensors that hold values on the CPU, claim to lie elsewhere, and refuse to meet
tensors of the CPU, as those of a graphics card do. So a machine without a card finds what would fail on one.

torch knows no device of this kind that computes, so its tensors claim the device "meta", whose own kernels are never
reached: every operation comes by here, is checked, and is done on the CPU.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from cxrlib.training import devices

DEVICE = torch.device("meta")
TRANSFERS = {"aten::_to_copy", "aten::copy_"}
"""The operations by which values get from one device to another."""
INDEXED = {"aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_"}
"""A card's tensors take indices from the CPU (but not the other way round)."""


class Elsewhere(torch.Tensor):
    """A tensor whose values lie in ``inner``, on the CPU, and which says that it is on ``DEVICE``."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Elsewhere":
        like = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, **like)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return compute(operation, args, kwargs or {})

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.cpu().numpy()
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy")

    def __array__(self, *_: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.inner!r})"

    def __deepcopy__(self, memo: dict) -> torch.Tensor:
        copied = Elsewhere(self.inner.clone())
        made = torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
        memo[id(self)] = made
        return made


class Pretend(TorchDispatchMode):
    """Inside it ``to("meta")`` and ``device="meta"`` lead to the pretend device."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return compute(operation, args, kwargs or {})


def compute(operation: Any, args: tuple, kwargs: dict) -> Any:
    """Do an operation on the CPU and let its results lie where a real device would have them.

    Raises RuntimeError where tensors of both devices meet; numbers (tensors without a dimension) may come along.
    """
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    there = [value for value in tensors if isinstance(value, Elsewhere)]
    name = operation.name()
    if there and not allowed(name, args, tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and cpu! ({name})")
    wanted = kwargs.get("device")
    lands_there = bool(there) if wanted is None else torch.device(wanted).type == DEVICE.type
    if name == "aten::copy_":
        lands_there = isinstance(args[0], Elsewhere)
    plain = dict(kwargs)
    if wanted is not None:
        plain |= {"device": torch.device("cpu")}
    if plain.get("pin_memory"):
        plain["pin_memory"] = False
    inner_args, inner_kwargs = tree_map(inside, (args, plain))
    if name == "aten::_to_copy" and wanted is not None and lands_there != bool(there):
        inner_args = (inner_args[0].clone(), *inner_args[1:])  # another device is another memory
    done = operation(*inner_args, **inner_kwargs)
    owners = {id(inside(value)): value for value in tensors}

    def outside(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return owners[id(value)] if id(value) in owners else Elsewhere(value) if lands_there else value

    return tree_map(outside, done)


def allowed(name: str, args: tuple, tensors: list[torch.Tensor]) -> bool:
    """Whether a card would let these meet."""
    here = [value for value in tensors if not isinstance(value, Elsewhere) and value.ndim]
    base = name.partition(".")[0]
    if base in TRANSFERS or not here:
        return True
    return (
        (name in INDEXED or base in INDEXED) and isinstance(args[0], Elsewhere) and all(v is not args[0] for v in here)
    )


def inside(value: Any) -> Any:
    return value.inner if isinstance(value, Elsewhere) else value


@contextmanager
def device() -> Iterator[torch.device]:
    """The pretend device; inside the block it is the one that ``devices.device()`` finds, in new threads too.

    torch's inference mode, which goes past tensors of our own kind, becomes ``no_grad``.
    """
    found, run = devices.device, threading.Thread.run

    def run_there(thread: threading.Thread) -> None:
        with Pretend():
            run(thread)

    chosen = mock.patch.object(devices, "device", lambda wanted=None: found(wanted) if wanted else DEVICE)
    threads = mock.patch.object(threading.Thread, "run", run_there)
    with chosen, threads, mock.patch.object(torch, "inference_mode", torch.no_grad), Pretend():
        yield DEVICE
