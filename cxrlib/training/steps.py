"""Training step: loss and gradients of a batch (in parts if memory is short), and the optimizer's update."""

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
    """Out of memory on a batch. ``fits`` is the number of films that fit, 0 if unknown or if two do not fit."""

    def __init__(self, fits: int) -> None:
        super().__init__("out of memory")
        self.fits = fits


class Suffix(nn.Module):
    """Trained part of a network as a module: features of the frozen part to logits (B, 15)."""

    def __init__(self, model: network.Network, compiled: int) -> None:
        super().__init__()
        self.model = model
        self.run = compiler.WholeBatches(model.suffix, compiled) if compiled else model.suffix

    def forward(self, features: Tensor) -> Tensor:
        return self.run(features)


class Step:
    """Training step: ``learn`` adds up gradients of the mean loss over the step's films, ``take`` updates the weights.

    ``dtype`` is for autocast; for float16 the loss is scaled. ``compiled`` is the compiled batch size, 0 for none.
    ``parts`` is the number of parts of a batch, 1 unless memory ran out (recipe ``halve``). The gradients are the
    same, except that BatchNorm computes its statistics on each part alone.
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
        self.owing = False  # whether there are gradients for the next ``take``
        self.parts = 1

    def learn(self, batch: Any, features: Callable[[Any], Tensor], of: int, *, last: bool) -> Tensor:
        """Add the gradients of a batch. Returns its mean loss, a scalar without autograd.

        ``features(batch)`` gives the output of the frozen part. ``of`` is the number of films of the whole step, over
        all batches and processes. ``last`` says whether ``take`` follows. Raises NoRoomError where memory runs out and
        the recipe's ``halve`` does not help.
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
            if not self.can_halve(batch):  # outside the except block, whose traceback keeps the batch in memory
                raise NoRoomError(self.fitting(batch, features))
            self.parts *= 2
            for number, weight in enumerate(self.weights):
                weight.grad = before[number].clone() if before else None
            self._free()

    def can_halve(self, batch: Any) -> bool:
        """Whether parts of half the size are allowed, with one process only, and large enough for BatchNorm."""
        return self.recipe.halve and self.team.world == 1 and len(batch.rows) >= 4 * self.parts

    def fitting(self, batch: Any, features: Callable[[Any], Tensor]) -> int:
        """Number of the batch's films that fit into memory, found by halving; 0 if unknown.

        Afterwards the gradients and BatchNorm's statistics are wrong.
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
                share = len(part.rows) * self.team.world / of  # the wrapper takes the mean over the processes
                self.scaler.scaled(value * share).backward()
            total += value.detach() * (len(part.rows) / len(batch.rows))
        return total

    def forward(self, batch: Any, features: Callable[[Any], Tensor]) -> tuple[Tensor, Tensor]:
        """Loss of a batch, a scalar, and its logits (B, 15)."""
        with hardware.autocast(self.team.device, self.dtype):
            logits = self.suffix(features(batch))
        return self.loss(logits, batch.labels), logits

    def take(self, lr: float) -> None:
        """Update the weights with the added gradients, at rate ``lr`` of the topmost group."""
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
