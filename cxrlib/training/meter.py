"""The losses of an epoch, batch by batch, looked at without making an accelerator wait at every batch."""

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
"""Batches between two looks on an accelerator. A look is at the losses before the last so many, which have come over
meanwhile: nothing is waited for. On a CPU each batch is looked at."""


@dataclass
class Meter:
    """Keeps each batch's mean loss and its films. ``where`` and ``part``, whose films they are, name a bad loss.

    ``losses`` and ``films`` are by batch, of this process's films alone · ``seconds`` the time they took.
    """

    where: str
    part: Any
    losses: list[float] = field(default_factory=list)
    films: list[int] = field(default_factory=list)
    seconds: float = 0.0
    unseen: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    coming: list[tuple[cuda.Coming, list[Tensor]]] = field(default_factory=list)

    def add(self, loss: Tensor, rows: Tensor) -> None:
        """Take in the mean loss of the next batch, over the films at ``rows``."""
        self.unseen.append((loss.detach(), rows))
        if loss.device.type == "cpu":
            self.look()
        elif len(self.unseen) >= LOOK_EVERY:
            self._send()
            self._receive(but=1)

    def look(self) -> None:
        """Fetch all losses. Raises UserError naming batch and images of the first that is not finite."""
        self._send()
        self._receive()

    def _send(self) -> None:
        if self.unseen:
            losses, rows = zip(*self.unseen, strict=True)
            self.coming.append((cuda.Coming(torch.stack(losses)), list(rows)))
            self.unseen.clear()

    def _receive(self, but: int = 0) -> None:
        while len(self.coming) > but:
            losses, rows = self.coming.pop(0)
            for value, films in zip(losses.values().tolist(), rows, strict=True):
                if not math.isfinite(value):
                    raise UserError(self._complaint(value, films))
                self.losses.append(value)
                self.films.append(len(films))

    def last(self) -> float:
        """The newest loss looked at, NaN before the first."""
        return self.losses[-1] if self.losses else float("nan")

    def of_all(self, team: Team) -> tuple[list[float], list[int]]:
        """Losses and films of each batch over all processes; each must have seen as many batches."""
        self.look()
        if team.world == 1:
            return list(self.losses), list(self.films)
        films = torch.tensor(self.films, dtype=torch.float64)
        parts = torch.stack([torch.tensor(self.losses, dtype=torch.float64) * films, films])
        summed, counts = team.sum(parts)
        return (summed / counts).tolist(), counts.int().tolist()

    def _complaint(self, value: float, rows: Tensor) -> str:
        names = self.part.films["image"].iloc[rows.numpy()].tolist()
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        return (
            f"{self.where}, batch {len(self.losses) + 1}: the loss is {value} (images {shown}); "
            "lower lr, set clip=1, or look at these films for damage"
        )


def mean(losses: Sequence[float], films: Sequence[int]) -> float:
    """Mean loss per film, NaN without one; the sum is exact, so that it does not depend on where a run was cut."""
    total = math.fsum(loss * n for loss, n in zip(losses, films, strict=True))
    return total / sum(films) if sum(films) else float("nan")
