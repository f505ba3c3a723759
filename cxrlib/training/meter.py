"""The mean loss of an epoch, looked at without making an accelerator wait at every batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from cxrlib.errors import UserError

LOOK_EVERY = 16
"""Batches between two looks on an accelerator, since a look waits for it; on a CPU each batch is looked at."""


@dataclass
class Meter:
    """Sums losses weighted by films. ``where`` and ``images`` (names by row) are for the message of a bad loss.

    ``loss`` and ``films`` are the sums so far, ``seconds`` the time they took, ``last`` the newest loss looked at.
    """

    where: str
    images: Sequence[str]
    loss: float = 0.0
    films: int = 0
    seconds: float = 0.0
    last: float = float("nan")
    unseen: list[tuple[int, torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def add(self, batch: int, loss: torch.Tensor, rows: torch.Tensor) -> None:
        """Take in the loss of batch number ``batch`` (from 0) over the films at ``rows``."""
        self.unseen.append((batch, loss.detach(), rows))
        if loss.device.type == "cpu" or len(self.unseen) >= LOOK_EVERY:
            self.look()

    def look(self) -> None:
        """Fetch the losses waiting. Raises UserError naming batch and images of the first that is not finite."""
        if not self.unseen:
            return
        values = torch.stack([loss for _, loss, _ in self.unseen]).tolist()
        for value, (batch, _, rows) in zip(values, self.unseen, strict=True):
            if not math.isfinite(value):
                raise UserError(self._complaint(value, batch, rows))
            self.loss += value * len(rows)
            self.films += len(rows)
        self.last = values[-1]
        self.unseen.clear()

    def mean(self) -> float:
        """Mean loss per film, NaN before the first."""
        self.look()
        return self.loss / self.films if self.films else float("nan")

    def sums(self) -> dict[str, float]:
        """The sums as plain numbers, to be saved and given to ``Meter`` again."""
        self.look()
        return {"loss": self.loss, "films": self.films, "seconds": self.seconds}

    def _complaint(self, value: float, batch: int, rows: torch.Tensor) -> str:
        names = [self.images[int(row)] for row in rows]
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        return (
            f"{self.where}, batch {batch + 1}: the loss is {value} (images {shown}); "
            "lower lr, set clip=1, or look at these films for damage"
        )
