"""Processes that train together: what each one knows of the others, how they agree, and BatchNorm over all of them.

They are torch.distributed's, set up by accelerate from what ``accelerate launch`` or torchrun left in the environment.
Every process calls the same functions in the same order; with one process they cost nothing.
"""

import copy
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cxrlib import UserError
from cxrlib.training import devices, network

Answer = TypeVar("Answer")
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that a launcher sets for each process."""
PATIENCE = timedelta(hours=2)
"""Longest wait of a process for the others: one may decode all films while the others wait for the store."""


@dataclass(frozen=True)
class ProcessGroup:
    """Processes of a training as one of them sees them: ``world`` in all, ``local`` on this machine, own ``rank``."""

    device: torch.device
    rank: int = 0
    world: int = 1
    local: int = 1
    accelerator: Any = None

    @property
    def first(self) -> bool:
        """Whether this process is the first one, which alone writes files."""
        return self.rank == 0

    @property
    def one_machine(self) -> bool:
        return self.local == self.world

    def share(self, part: Any) -> Any:
        """The share of the batches of ``part`` for this process.

        Raises UserError where a batch is too small: BatchNorm needs two films in each share.
        """
        if self.world == 1:
            return part
        if self.world > 1 and min(part.batch_size, len(part.films)) < 2 * self.world:
            raise UserError(
                f"{self.world} processes share batches of {part.batch_size} of {len(part.films)} films; "
                f"give a batch_size of {2 * self.world} or more, which counts the films of all, or fewer processes"
            )
        share = copy.copy(part)
        share.rank, share.world = self.rank, self.world
        return share

    def wrap(self, step: nn.Module) -> nn.Module:
        """The module with gradients averaged over the processes (DistributedDataParallel)."""
        if self.world == 1:
            return step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # a flag has another name in some versions of torch
            return self.accelerator.prepare_model(step)

    def unsynced(self, step: nn.Module) -> AbstractContextManager:
        """Context in which the gradients of a wrapped module are not averaged yet."""
        return nullcontext() if self.world == 1 else self.accelerator.no_sync(step)

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over the processes, element by element."""
        if self.world == 1:
            return values
        from accelerate.utils import reduce

        return reduce(values.to(self.device), "sum").to(values.device)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Flags that are set in any process, one value per flag."""
        if self.world == 1:
            return flags
        return tuple(self.sum(torch.tensor(flags, dtype=torch.float32)).gt(0).tolist())

    def gather(self, mine: Answer) -> list[Answer]:
        """List of ``mine`` from all processes, by rank. It is pickled, so use it for the project's own data only."""
        if self.world == 1:
            return [mine]
        from accelerate.utils import gather_object

        return gather_object([mine])

    def from_first(self, ask: Callable[[], Answer]) -> Answer:
        """Result of ``ask`` in the first process, sent to all. An error there is raised in every process.

        UserError and KeyboardInterrupt keep their type in all processes. Others become a RuntimeError in the others.
        """
        if self.world == 1:
            return ask()
        from accelerate.utils import broadcast_object_list

        message: list[Any] = [None, None]  # the result and the error
        own_error: BaseException | None = None
        if self.first:
            try:
                message[0] = ask()
            except BaseException as error:
                own_error, plain = error, isinstance(error, UserError | KeyboardInterrupt)
                words = f"the first process failed: {type(error).__name__}: {error}"  # not every error can be pickled
                message[1] = error if plain else RuntimeError(words)
        result, error = broadcast_object_list(message)
        if error is not None:
            raise own_error or error
        return result

    @contextmanager
    def held_by_first(self, make: Callable[[], AbstractContextManager]) -> Iterator[None]:
        """Enter the context of ``make``, such as a lock, in the first process. If that fails, every process raises."""
        with ExitStack() as stack:
            self.from_first(lambda: stack.enter_context(make()) and None)
            yield

    def together(self) -> None:
        """Wait until every process has made this call."""
        if self.world > 1:
            self.accelerator.wait_for_everyone()


def launched_group(wanted: str | torch.device | None = None) -> ProcessGroup:
    """The processes of this process's launcher. Without a launcher, this process alone, on the wanted device."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not all(name in os.environ for name in LAUNCHED):
        return ProcessGroup(devices.device(wanted))
    return _launched(devices.device(wanted).type == "cpu")


@cache
def _launched(cpu: bool) -> ProcessGroup:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    local, cards = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if not cpu and cards and local > cards:
        raise UserError(f"{local} processes were started on a machine with {cards} GPUs; start at most one per GPU")
    # Buffers are equal in all processes: BatchNorm's statistics are those of the whole batch.
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False), InitProcessGroupKwargs(timeout=PATIENCE)]
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=handlers)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    return ProcessGroup(accelerator.device, accelerator.process_index, accelerator.num_processes, local, accelerator)


@contextmanager
def shared_statistics(model: network.Network, process_group: ProcessGroup) -> Iterator[None]:
    """BatchNorm statistics over the whole batch of all processes, for trained BatchNorms, inside the block.

    torch's SyncBatchNorm works on accelerators only, so CPUs get ``SharedBatchNorm``. Afterwards the network has its
    own modules again, with the learned values.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if process_group.world > 1 and type(module) is nn.BatchNorm2d and network.group_of(name) in model.trainable
    }
    try:
        for name, module in norms.items():
            _replace(model, name, _shared(module, process_group.device))
        yield
    finally:
        for name, module in norms.items():
            _replace(model, name, _with_tensors(module, model.get_submodule(name)))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _shared(norm: nn.BatchNorm2d, device: torch.device) -> nn.Module:
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    return _with_tensors(SharedBatchNorm(norm.num_features, norm.eps, norm.momentum), norm)


def _with_tensors(norm: nn.Module, other: nn.Module) -> nn.Module:
    """The BatchNorm ``norm`` with the tensors of another, the same objects, and its mode."""
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(norm, name, getattr(other, name))
    return norm.train(other.training)


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the films of all processes, with differentiable sums (Ioffe & Szegedy 2015, algorithm 1)."""

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W)
        if not self.training:
            return super().forward(images)
        values = images.float()
        count = _Sum.apply(values.new_tensor(values.numel() / values.shape[1]))
        mean = _Sum.apply(values.sum((0, 2, 3))) / count  # (C,)
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count  # (C,)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(images.dtype)


class _Sum(torch.autograd.Function):
    """Sum over the processes. The gradient of a process's term is that of the loss of all processes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient.contiguous())
