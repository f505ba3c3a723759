"""One step of training: the loss and the gradients of a batch, in parts where memory is short, and the update."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cxrlib.training import compiler, hardware, network, optim
from cxrlib.training.recipes import Stage
from cxrlib.training.team import Team


class NoRoomError(MemoryError):
    """Memory ran out on a batch; ``fits`` films at once have room, 0 where even two have none."""

    def __init__(self, fits: int) -> None:
        super().__init__("out of memory")
        self.fits = fits


class Suffix(nn.Module):
    """The part of a network that learns, as a module of its own: features of the frozen part to logits (B, 15)."""

    def __init__(self, model: network.Network, compiled: int) -> None:
        super().__init__()
        self.model = model
        self.run = compiler.WholeBatches(model.suffix, compiled) if compiled else model.suffix

    def forward(self, features: Tensor) -> Tensor:
        return self.run(features)


class Step:
    """Learns from batches: ``learn`` adds up gradients of the mean loss over a step's films, ``take`` makes the step.

    ``dtype`` is autocast's; float16 has its loss scaled. ``compiled`` is the size of the batches that compiled code is
    made for, 0 for none. ``parts`` is in how many parts a batch goes through the network, 1 unless memory ran out
    (recipe ``halve``): the gradients are the same but for BatchNorm, which sees each part by itself.
    """

    def __init__(
        self,
        model: network.Network,
        loss: Callable[[Tensor, Tensor], Tensor],
        recipe: Stage,
        optimizer: Optimizer,
        team: Team,
        *,
        dtype: torch.dtype = torch.float32,
        compiled: int = 0,
    ) -> None:
        self.model, self.loss, self.recipe, self.optimizer, self.team = model, loss, recipe, optimizer, team
        self.dtype = dtype
        self.weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.suffix = team.wrap(Suffix(model, compiled))
        self.scaler = optim.Scaler(optimizer, team.device, on=dtype == torch.float16)
        self.owing = False  # whether gradients wait for the step
        self.parts = 1

    def learn(self, batch: Any, features: Callable[[Any], Tensor], of: int, *, last: bool) -> Tensor:
        """Add the gradients of a batch to those that wait, and give its mean loss, a scalar without autograd.

        ``features(batch)`` is what the frozen part makes of it, ``of`` the films of the whole step, all its batches and
        processes together, ``last`` whether the step follows. Where memory runs out and the recipe's ``halve`` does
        not help, raises NoRoomError.
        """
        before = [w.grad.clone() for w in self.weights] if self.recipe.halve and self.owing else None
        while True:
            try:
                value = self._learn(batch, features, of, last)
                self.owing = True
                return value
            except (RuntimeError, MemoryError) as error:
                if not hardware.no_memory(error):
                    raise
            if not self.can_halve(batch):  # outside the handler, whose traceback holds the failed batch
                raise NoRoomError(self.fitting(batch, features))
            self.parts *= 2
            for number, weight in enumerate(self.weights):
                weight.grad = before[number].clone() if before else None
            self._free()

    def can_halve(self, batch: Any) -> bool:
        """Whether parts of half the size are allowed, and large enough for BatchNorm. Not while others wait for us."""
        return self.recipe.halve and self.team.world == 1 and len(batch.rows) >= 4 * self.parts

    def fitting(self, batch: Any, features: Callable[[Any], Tensor]) -> int:
        """How many of the batch's films there is room for at once, found by halving; 0 where that cannot be found out.

        Gradients and BatchNorm's statistics are not what they were afterwards.
        """
        size = len(batch.rows) // 2 if self.team.world == 1 else 0
        while size >= 2:
            self.optimizer.zero_grad()
            self._free()
            try:
                self.forward(_cut(batch, 0, size), features)[0].backward()
                return size
            except (RuntimeError, MemoryError) as error:
                if not hardware.no_memory(error):
                    raise
            size //= 2
        return 0

    def _learn(self, batch: Any, features: Callable[[Any], Tensor], of: int, last: bool) -> Tensor:
        size = math.ceil(len(batch.rows) / self.parts)
        cuts = range(0, len(batch.rows), size)
        total = torch.zeros((), device=self.team.device)
        for at in cuts:
            part = batch if self.parts == 1 else _cut(batch, at, at + size)
            with nullcontext() if last and at == cuts[-1] else self.team.unsynced(self.suffix):
                value, _ = self.forward(part, features)
                share = len(part.rows) * self.team.world / of  # wrapping takes the mean over the processes
                self.scaler.scaled(value * share).backward()
            total += value.detach() * (len(part.rows) / len(batch.rows))
        return total

    def forward(self, batch: Any, features: Callable[[Any], Tensor]) -> tuple[Tensor, Tensor]:
        """The loss of a batch in training, a scalar, and its logits (B, 15)."""
        with hardware.autocast(self.team.device, self.dtype):
            logits = self.suffix(features(batch))
        return self.loss(logits, batch.labels), logits

    def take(self, lr: float) -> None:
        """One step of the optimizer on the gradients that wait, at this rate of the topmost group."""
        self.scaler.unscale()
        if self.recipe.clip:
            torch.nn.utils.clip_grad_norm_(self.weights, self.recipe.clip)
        optim.set_rate(self.optimizer, lr)
        self.scaler.step()
        self.optimizer.zero_grad()
        self.owing = False

    def _free(self) -> None:
        if self.team.device.type == "cuda":
            torch.cuda.empty_cache()


def _cut(batch: Any, begin: int, end: int) -> Any:
    return batch._make(values if values is None else values[begin:end] for values in batch)
