"""Losses of an epoch, batch by batch, read without a wait for the accelerator at every batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cxrlib.data import cuda
from cxrlib.errors import UserError
from cxrlib.training.team import Team

LOOK_EVERY = 16
"""Batches between two transfers of losses from an accelerator. Each time, the losses of the transfer before are read:
they have already arrived, so nothing waits. On a CPU every loss is read at once."""


@dataclass
class Meter:
    """Meter of the loss: the mean loss and the number of films of each batch, in this process alone.

    ``where`` and ``part`` (the batches) are for error messages · ``losses``, ``films``: one value per batch ·
    ``seconds``: training time · ``unseen``, ``coming``: losses that are not read yet.
    """

    where: str
    part: Any
    losses: list[float] = field(default_factory=list)
    films: list[int] = field(default_factory=list)
    seconds: float = 0.0
    unseen: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    coming: list[tuple[cuda.Coming, list[Tensor]]] = field(default_factory=list)

    def add(self, loss: Tensor, rows: Tensor) -> None:
        """Add the mean loss of the next batch, over the films at ``rows``."""
        self.unseen.append((loss.detach(), rows))
        if loss.device.type == "cpu":
            self.look()
        elif len(self.unseen) >= LOOK_EVERY:
            self._send()
            self._receive(leave=1)

    def look(self) -> None:
        """Read all losses. Raises UserError that names batch and images of the first one that is not finite."""
        self._send()
        self._receive()

    def _send(self) -> None:
        if self.unseen:
            losses, rows = zip(*self.unseen, strict=True)
            self.coming.append((cuda.Coming(torch.stack(losses)), list(rows)))
            self.unseen.clear()

    def _receive(self, leave: int = 0) -> None:
        while len(self.coming) > leave:
            losses, rows = self.coming.pop(0)
            for value, films in zip(losses.values().tolist(), rows, strict=True):
                if not math.isfinite(value):
                    raise UserError(self._complaint(value, films))
                self.losses.append(value)
                self.films.append(len(films))

    def last(self) -> float:
        """The newest loss that was read, NaN before the first."""
        return self.losses[-1] if self.losses else float("nan")

    def of_all(self, team: Team) -> tuple[list[float], list[int]]:
        """Losses and films of each batch over all processes. All must have the same number of batches."""
        self.look()
        if team.world == 1:
            return list(self.losses), list(self.films)
        films = torch.tensor(self.films, dtype=torch.float64)
        sums, counts = team.sum(torch.stack([torch.tensor(self.losses, dtype=torch.float64) * films, films]))
        return (sums / counts).tolist(), counts.int().tolist()

    def _complaint(self, value: float, rows: Tensor) -> str:
        names = self.part.films["image"].iloc[rows.numpy()].tolist()
        images = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        return (
            f"{self.where}, batch {len(self.losses) + 1}: the loss is {value} (images {images}); "
            "lower lr, set clip=1, or check these images for damage"
        )


def mean(losses: Sequence[float], films: Sequence[int]) -> float:
    """Mean loss per film, NaN without films. The sum is exact, so an interruption does not change it."""
    total = math.fsum(loss * n for loss, n in zip(losses, films, strict=True))
    return total / sum(films) if sum(films) else float("nan")
