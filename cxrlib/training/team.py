"""One process or several that train together: who has which films, what they tell each other, whose word counts.

Several processes are torch.distributed's, set up by accelerate from what ``accelerate launch`` or torchrun left in
the environment. Every process calls the same functions in the same order; with one process they cost nothing.
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

from cxrlib.errors import UserError
from cxrlib.training import hardware, network

Answer = TypeVar("Answer")
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher leaves in the environment of each process."""
PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: one may decode every film while the rest wait for the store."""


@dataclass(frozen=True)
class Team:
    """The processes of a training as one of them sees them: its ``rank`` of ``world``, and its device."""

    device: torch.device
    rank: int = 0
    world: int = 1
    local: int = 1
    accelerator: Any = None

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def one_machine(self) -> bool:
        return self.local == self.world

    def share(self, part: Any) -> Any:
        """The batches of ``part`` that are this process's.

        Raises UserError where a batch is too small to be shared out: BatchNorm needs two films in each share.
        """
        if self.world == 1:
            return part
        if self.world > 1 and min(part.batch_size, len(part.films)) < 2 * self.world:
            raise UserError(
                f"{self.world} processes share batches of {part.batch_size} of {len(part.films)} films; "
                f"give a batch_size of {2 * self.world} or more, which counts the films of all, or fewer processes"
            )
        mine = copy.copy(part)
        mine.rank, mine.world = self.rank, self.world
        return mine

    def wrap(self, step: nn.Module) -> nn.Module:
        """The module whose gradients are averaged over the processes (DistributedDataParallel)."""
        if self.world == 1:
            return step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # releases of torch differ in a flag's name
            return self.accelerator.prepare_model(step)

    def unsynced(self, step: nn.Module) -> AbstractContextManager:
        """Inside the block gradients of a wrapped module stay with their process, to be averaged later."""
        return nullcontext() if self.world == 1 else self.accelerator.no_sync(step)

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over the processes, element by element."""
        if self.world == 1:
            return values
        from accelerate.utils import reduce

        return reduce(values.to(self.device), "sum").to(values.device)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether it is set in any process."""
        if self.world == 1:
            return flags
        return tuple(self.sum(torch.tensor(flags, dtype=torch.float32)).gt(0).tolist())

    def gather(self, mine: Answer) -> list[Answer]:
        """Everybody's ``mine``, in the order of their ranks. It is pickled: only what we made ourselves."""
        if self.world == 1:
            return [mine]
        from accelerate.utils import gather_object

        return gather_object([mine])

    def from_first(self, ask: Callable[[], Answer]) -> Answer:
        """What ``ask`` answers in the first process; whatever goes wrong there ends every process, none waits for it.

        A UserError and an interrupt are raised everywhere as they are, anything else in the others as a RuntimeError.
        """
        if self.world == 1:
            return ask()
        from accelerate.utils import broadcast_object_list

        told: list[Any] = [None, None]
        failed: BaseException | None = None
        if self.first:
            try:
                told[0] = ask()
            except BaseException as error:
                failed, plain = error, isinstance(error, UserError | KeyboardInterrupt)
                words = f"the first process failed: {type(error).__name__}: {error}"  # not every error can be pickled
                told[1] = error if plain else RuntimeError(words)
        answer, error = broadcast_object_list(told)
        if error is not None:
            raise failed or error
        return answer

    @contextmanager
    def held_by_first(self, make: Callable[[], AbstractContextManager]) -> Iterator[None]:
        """Hold what ``make`` gives in the first process inside the block; where it cannot be had, none goes on."""
        with ExitStack() as held:
            self.from_first(lambda: held.enter_context(make()) and None)
            yield

    def together(self) -> None:
        """Wait until every process has come here."""
        if self.world > 1:
            self.accelerator.wait_for_everyone()


def of(wanted: str | torch.device | None = None) -> Team:
    """The team that a launcher made this process a member of; without one, a team of one on the wanted device."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not all(name in os.environ for name in LAUNCHED):
        return Team(hardware.device(wanted))
    return _launched(hardware.device(wanted).type == "cpu")


@cache
def _launched(cpu: bool) -> Team:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    local, cards = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if not cpu and cards and local > cards:
        raise UserError(f"{local} processes were started on a machine with {cards} GPUs; start at most one per GPU")
    # Buffers are equal already: every process sees the statistics of the whole batch.
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False), InitProcessGroupKwargs(timeout=PATIENCE)]
    made = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=handlers)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", made.num_processes))
    return Team(made.device, made.process_index, made.num_processes, local, made)


@contextmanager
def shared_statistics(model: network.Network, team: Team) -> Iterator[None]:
    """Let the BatchNorms that are trained see the whole batch of all processes inside the block, as one would.

    torch's SyncBatchNorm does so on accelerators alone, so CPUs get ``SharedBatchNorm``. Afterwards the network has its
    own modules again, with what they learnt.
    """
    own = {
        name: module
        for name, module in model.named_modules()
        if team.world > 1 and type(module) is nn.BatchNorm2d and network.group_of(name) in model.trainable
    }
    try:
        for name, module in own.items():
            _put(model, name, _cpu_shared(module) if team.device.type == "cpu" else _gpu_shared(module))
        yield
    finally:
        for name, module in own.items():
            _put(model, name, _take_over(module, model.get_submodule(name)))


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _gpu_shared(norm: nn.BatchNorm2d) -> nn.SyncBatchNorm:
    return nn.SyncBatchNorm.convert_sync_batchnorm(norm)


def _cpu_shared(norm: nn.BatchNorm2d) -> "SharedBatchNorm":
    shared = SharedBatchNorm(norm.num_features, norm.eps, norm.momentum)
    return _take_over(shared, norm)


def _take_over(norm: nn.Module, other: nn.Module) -> nn.Module:
    """Let a BatchNorm have the very tensors of another, and its mode."""
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(norm, name, getattr(other, name))
    return norm.train(other.training)


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the films of all processes, in plain differentiable sums (Ioffe & Szegedy 2015, algorithm 1)."""

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W)
        if not self.training:
            return super().forward(images)
        values = images.float()
        count = _Sum.apply(values.new_tensor(values.numel() / values.shape[1]))
        mean = _Sum.apply(values.sum((0, 2, 3))) / count  # (C,)
        away = values - mean[:, None, None]
        spread = _Sum.apply(away.square().sum((0, 2, 3))) / count  # (C,)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(spread * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(spread + self.eps)
        return (away * scale[:, None, None] + self.bias[:, None, None]).to(images.dtype)


class _Sum(torch.autograd.Function):
    """Sum over the processes; each one's share has the gradient of everybody's loss."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient.contiguous())
