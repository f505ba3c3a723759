"""One step of training: the loss and the gradients of a batch, in parts where memory is short, and the update."""

import math
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cxrlib.errors import UserError
from cxrlib.training import hardware, network, optim
from cxrlib.training.recipes import Stage
from cxrlib.training.team import Team


class Suffix(nn.Module):
    """The part of a network that learns, as a module of its own: features of the frozen part to logits (B, 15)."""

    def __init__(self, model: network.Network, compiled: bool) -> None:
        super().__init__()
        self.model = model
        self.run = torch.compile(model.suffix) if compiled else model.suffix

    def forward(self, features: Tensor) -> Tensor:
        return self.run(features)


class Step:
    """Learns from batches: ``learn`` adds up gradients of the summed loss, ``take`` makes a step on their mean.

    ``parts`` is in how many parts a batch goes through the network, 1 unless memory ran out (recipe ``halve``): the
    gradients are the same but for BatchNorm, which sees each part by itself.
    """

    def __init__(
        self,
        model: network.Network,
        loss: Callable[[Tensor, Tensor], Tensor],
        recipe: Stage,
        optimizer: Optimizer,
        team: Team,
    ) -> None:
        if recipe.compile:
            require_compiler(team.device)
        self.model, self.loss, self.recipe, self.optimizer, self.team = model, loss, recipe, optimizer, team
        self.weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.suffix = team.wrap(Suffix(model, recipe.compile))
        self.owed = 0  # films of all processes whose gradients wait for the step
        self.parts = 1

    def learn(self, batch: Any, features: Callable[[Any], Tensor], films: int, *, last: bool) -> Tensor:
        """Add the gradients of a batch to those owed, and give its mean loss, a scalar without autograd.

        ``features(batch)`` is what the frozen part makes of it, ``films`` its films in all processes, ``last`` whether
        a step follows. Raises what the processor does when memory runs out, unless the recipe's ``halve`` helps.
        """
        before = [w.grad.clone() for w in self.weights] if self.recipe.halve and self.owed else None
        while True:
            try:
                value = self._learn(batch, features, last)
                self.owed += int(films)
                return value
            except (RuntimeError, MemoryError) as error:
                if not (self.can_halve(batch) and hardware.no_memory(error)):
                    raise
            self.parts *= 2
            for number, weight in enumerate(self.weights):
                weight.grad = before[number].clone() if before else None
            if self.team.device.type == "cuda":
                torch.cuda.empty_cache()  # outside the handler, whose traceback holds the failed batch

    def can_halve(self, batch: Any) -> bool:
        """Whether parts of half the size are allowed, and large enough for BatchNorm. Not while others wait for us."""
        return self.recipe.halve and self.team.world == 1 and len(batch.rows) >= 4 * self.parts

    def _learn(self, batch: Any, features: Callable[[Any], Tensor], last: bool) -> Tensor:
        size = math.ceil(len(batch.rows) / self.parts)
        cuts = range(0, len(batch.rows), size)
        total = torch.zeros((), device=self.team.device)
        for at in cuts:
            part = batch if self.parts == 1 else batch._make(values[at : at + size] for values in batch)
            with nullcontext() if last and at == cuts[-1] else self.team.unsynced(self.suffix):
                value, _ = self.forward(part, features)
                (value * len(part.rows)).backward()
            total += value.detach() * (len(part.rows) / len(batch.rows))
        return total

    def forward(self, batch: Any, features: Callable[[Any], Tensor], *, wrapped: bool = True) -> tuple[Tensor, Tensor]:
        """The loss of a batch, a scalar, and its logits (B, 15)."""
        with hardware.autocast(self.team.device, self.recipe.precision):
            seen = features(batch)
            logits = self.suffix(seen) if wrapped else self.model.suffix(seen)
        return self.loss(logits, batch.labels.to(self.team.device, non_blocking=True)), logits

    def take(self, lr: float) -> None:
        """One step of the optimizer on the mean gradient over the films owed, at this rate of the topmost group."""
        grads = [weight.grad for weight in self.weights if weight.grad is not None]
        torch._foreach_div_(grads, self.owed / self.team.world)  # wrapping has averaged them over the processes
        if self.recipe.clip:
            torch.nn.utils.clip_grad_norm_(self.weights, self.recipe.clip)
        optim.set_rate(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.owed = 0


def require_compiler(device: torch.device) -> None:
    """Raise UserError where torch.compile would find no C++ compiler to make code for the CPU with."""
    if device.type == "cpu" and not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")):
        raise UserError("compile=yes needs a C++ compiler on a CPU, and there is none; install g++, or set compile=no")
