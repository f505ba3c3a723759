"""Whole batches from a store: gathered, augmented and normalised in one vectorised step each.

Every random draw is a pure function of (seed, epoch, position in the epoch): a counter-based generator gives a whole
epoch's table of random numbers at its start, so any batch can be made again, a run can go on in mid-epoch, and
several processes that share an epoch see every film once. A thread gathers the next batches while the network works.

A batch comes out on the device of the network that reads it: whoever has the network asks for its ``epoch`` there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from cxrlib.data import ahead, cuda, draws, records
from cxrlib.data.store import Store
from cxrlib.errors import UserError

GREY_MEAN, GREY_STD = 0.449, 0.226
"""Mean of ImageNet's three channel means and of its three deviations, for pixels from 0 to 1."""


class Batch(NamedTuple):
    """A batch on its device; ``rows``, always on the CPU, are positions in the films that the batches were made for."""

    images: torch.Tensor | None  # (B, 1, S, S) float32, normalised; None where only labels were asked for
    labels: torch.Tensor  # (B, 15) float32, 0 or 1
    rows: torch.Tensor  # (B,) int64


@dataclass(frozen=True)
class Augment:
    """How far films are varied in training; the defaults leave them as they are.

    ``flip``: chance of a mirror image. ``rotate``: at most so many degrees either way. ``shift``: at most this share
    of the side either way. ``scale_low`` to ``scale_high``: share of the area that is seen, placed at random inside
    the film as by RandomResizedCrop; above 1 the film shrinks within a black border. ``aspect``: width to height of
    that part at most so far from 1. ``brightness``: at most so much is added, of a range of 1. ``contrast``: at most
    this share more or less, about the mean grey.
    """

    flip: float = 0.0
    rotate: float = 0.0
    shift: float = 0.0
    scale_low: float = 1.0
    scale_high: float = 1.0
    aspect: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0

    def __post_init__(self) -> None:
        limits = {"flip": (0, 1), "rotate": (0, 180), "shift": (0, 1), "scale_low": (0.01, 4), "scale_high": (0.01, 4),
                  "aspect": (1, 4), "brightness": (0, 1), "contrast": (0, 1)}  # fmt: skip
        for field in fields(self):
            low, high = limits[field.name]
            value = getattr(self, field.name)
            if not low <= value <= high:
                raise UserError(f"augmentation {field.name} is {value}; give a number from {low} to {high}")
        if self.scale_low > self.scale_high:
            raise UserError(f"augmentation scale_low {self.scale_low} is above scale_high {self.scale_high}")

    @property
    def geometric(self) -> bool:
        """Whether pixels move in a way that needs them interpolated, as a mirror image does not."""
        return bool(self.rotate or self.shift) or (self.scale_low, self.scale_high, self.aspect) != (1, 1, 1)


PRESETS = {
    "none": Augment(),
    "light": Augment(flip=0.5, rotate=3, shift=0.03, scale_low=0.9),
    "full": Augment(flip=0.5, rotate=7, shift=0.05, scale_low=0.7, aspect=1.15, brightness=0.08, contrast=0.15),
}


def augment(name: str) -> Augment:
    """The preset of this name: none, light or full. Raises UserError for another."""
    if name not in PRESETS:
        raise UserError(f"augmentation {name!r} is unknown; the presets are {', '.join(PRESETS)}")
    return PRESETS[name]


class Batches:
    """Batches of films, epoch by epoch, from a store.

    Without ``shuffle`` films come in their order and nothing is left out. With it each epoch draws its order, and
    with ``cap`` its films too: at most so many per class, every Hernia kept. ``batch_size`` counts the films of all
    processes together: process ``rank`` of ``world`` gets its share of every batch, so that the same films make a step
    however many processes there are. Each share of a shuffled epoch holds two films or more (where the films allow
    it), since BatchNorm cannot train on one: a smaller rest joins the batch before.

    ``views`` 0 varies a film anew in every epoch; k gives each film k fixed variants, epoch e showing number e mod k,
    so that what frozen layers make of them can be remembered.
    """

    def __init__(
        self,
        store: Store,
        films: pd.DataFrame,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        augment: Augment | None = None,
        cap: int = 0,
        views: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world or cap < 0 or views < 0:
            raise UserError(
                f"batch_size {batch_size}, cap {cap}, views {views}, rank {rank} of {world}: give a size of 1 or more"
            )
        if films.empty:
            raise UserError("there are no films to make batches of")
        self.store, self.films, self.batch_size, self.seed = store, films, batch_size, seed
        self.shuffle, self.augment, self.cap, self.views = shuffle, augment or Augment(), cap, views
        self.rank, self.world = rank, world
        self._rows = store.rows(films)
        self._labels = records.label_matrix(films)

    def __len__(self) -> int:
        """Number of batches of epoch 0. With ``cap`` later epochs may have a few more or less: see ``steps``."""
        return self.steps(0)

    def steps(self, epoch: int) -> int:
        """Number of batches of this epoch, the same for every rank."""
        return len(self.sizes(epoch))

    def sizes(self, epoch: int) -> np.ndarray:
        """Films in each batch of this epoch, (steps,) int64, all processes together."""
        return np.diff(self._cuts(len(self.order(epoch))))

    def view(self, epoch: int) -> int | None:
        """Which of its fixed variants an epoch shows of a film, None where each epoch draws anew."""
        if self.augment == Augment():
            return 0
        return epoch % self.views if self.views else None

    def order(self, epoch: int) -> np.ndarray:
        """Rows of the films of this epoch in their order, (n,) int64, before they are shared out among processes."""
        if not self.shuffle:
            return np.arange(len(self._rows))
        order = draws.permutation(len(self._rows), self.seed, epoch)
        if self.cap:
            order = order[draws.capped(self._labels[order], self.cap)]
        return order

    def epoch(
        self, epoch: int, start: int = 0, *, on: str | torch.device = "cpu", images: bool = True
    ) -> Iterator[Batch]:
        """The batches of this epoch from batch number ``start`` on; always the same for a seed, epoch and number.

        ``on`` is the device of the network that reads them. Without ``images`` no film is read: labels and rows alone.
        """
        order, on = self.order(epoch), torch.device(on)
        table = self._table(epoch, order)
        cuts = self._cuts(len(order))
        parts = (self._share(cuts[i], cuts[i + 1]) for i in range(start, len(cuts) - 1))
        jobs = ((order[part], table[part]) for part in parts if len(part))
        if not images:
            yield from (self._labels_alone(rows, on) for rows, _ in jobs)
        elif on.type == "cuda":  # gathered ahead into pinned memory, moved and varied on the card beside the network
            packed = ahead.ahead(lambda job: self._pack(*job), jobs)
            yield from cuda.prefetched(packed, lambda job: self._unpack(*job, on), on)
        else:
            yield from ahead.ahead(lambda job: self._whole(*job, on), jobs)

    def _table(self, epoch: int, order: np.ndarray) -> np.ndarray:
        """Random numbers for every position of an epoch's order, (n, DRAWS) float32."""
        if self.views:  # they belong to the film, wherever it comes
            return draws.uniform(len(self._rows), DRAWS, self.seed, epoch % self.views)[order]
        return draws.uniform(len(order), DRAWS, self.seed, epoch)

    def _cuts(self, films: int) -> np.ndarray:
        """Where the batches of all processes together begin and end in an epoch's order.

        A last batch joins the one before where it has too few films for each process to get one, or in training two,
        which BatchNorm needs.
        """
        cuts = np.append(np.arange(0, films, self.batch_size), films)
        if len(cuts) > 2 and cuts[-1] - cuts[-2] < self.world * (2 if self.shuffle else 1):
            cuts = np.delete(cuts, -2)
        return cuts

    def _share(self, begin: int, end: int) -> np.ndarray:
        """Positions of this process in a batch of all: a run of them, the shares differing by one at most."""
        return np.array_split(np.arange(begin, end), self.world)[self.rank]

    def _labels_alone(self, rows: np.ndarray, on: torch.device) -> Batch:
        labels = torch.from_numpy(self._labels[rows])
        return Batch(None, cuda.moved(labels, on).float(), torch.from_numpy(rows))

    def _whole(self, rows: np.ndarray, random: np.ndarray, on: torch.device) -> Batch:
        pixels = torch.empty(len(rows), self.store.size, self.store.size, dtype=torch.uint8)
        self.store.gather(self._rows[rows], pixels.numpy())
        labels = torch.from_numpy(self._labels[rows])
        images = _images(pixels, torch.from_numpy(random), self.augment)  # here: not every device has all it takes
        return Batch(images.to(on), labels.to(on).float(), torch.from_numpy(rows))

    def _pack(self, rows: np.ndarray, random: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Random numbers, pixels and labels of a batch in one pinned buffer, so that one copy moves them all."""
        draws_, films, marks = random.nbytes, len(rows) * self.store.size**2, len(rows) * self._labels.shape[1]
        buffer = torch.empty(draws_ + films + marks, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        flat = buffer.numpy()
        flat[:draws_] = random.reshape(-1).view(np.uint8)
        pixels = flat[draws_ : draws_ + films].reshape(len(rows), self.store.size, self.store.size)
        self.store.gather(self._rows[rows], pixels)
        flat[draws_ + films :] = self._labels[rows].reshape(-1)
        return buffer, torch.from_numpy(rows)

    def _unpack(self, buffer: torch.Tensor, rows: torch.Tensor, on: torch.device) -> Batch:
        size = self.store.size
        draws_, films = 4 * DRAWS * len(rows), len(rows) * size**2
        buffer = buffer.to(on, non_blocking=True)
        random = buffer[:draws_].view(torch.float32).view(len(rows), DRAWS)
        pixels = buffer[draws_ : draws_ + films].view(len(rows), size, size)
        labels = buffer[draws_ + films :].view(len(rows), -1)
        return Batch(_images(pixels, random, self.augment), labels.float(), rows)


DRAWS = 8
"""Random numbers per film: flip, rotation, shift x and y, area, aspect, place x and y share six; intensity two."""


def _images(pixels: torch.Tensor, random: torch.Tensor, how: Augment) -> torch.Tensor:
    """Grey values (B, S, S) uint8 as a network reads them: (B, 1, S, S) float32, varied and normalised."""
    return vary(pixels.unsqueeze(1).float(), random, how)


def vary(images: torch.Tensor, random: torch.Tensor, how: Augment) -> torch.Tensor:
    """Augment and normalise (B, 1, S, S) float32 of 0 to 255 by ``random`` (B, DRAWS) float32 of 0 to 1."""
    if how.geometric:
        grid = _grid(_affine(random, how), images.shape[-1])
        images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    elif how.flip:
        mirrored = (random[:, 0] < how.flip).view(-1, 1, 1, 1)
        images = torch.where(mirrored, images.flip(3), images)
    gain = 1 + how.contrast * _either_way(random[:, 6])  # (B,)
    bias = how.brightness * _either_way(random[:, 7]) + GREY_MEAN * (1 - gain)
    gain, bias = gain / (255 * GREY_STD), (bias - GREY_MEAN) / GREY_STD
    return images.mul_(gain.view(-1, 1, 1, 1)).add_(bias.view(-1, 1, 1, 1))


def _affine(random: torch.Tensor, how: Augment) -> torch.Tensor:
    """(B, 2, 3) float32 from output to input coordinates, which run from -1 to 1 across the film."""
    flip, turn, right, down, area, shape = random[:, :6].unbind(1)
    mirror = torch.where(flip < how.flip, -1.0, 1.0)
    angle = torch.deg2rad(how.rotate * _either_way(turn))
    area = how.scale_low + (how.scale_high - how.scale_low) * area
    ratio = torch.exp(float(np.log(how.aspect)) * _either_way(shape))
    width, height = torch.sqrt(area * ratio), torch.sqrt(area / ratio)
    # A part smaller than the film lies anywhere inside it; the shift may carry it over the edge.
    x = _either_way(right) * ((1 - width).clamp(min=0) + 2 * how.shift)
    y = _either_way(down) * ((1 - height).clamp(min=0) + 2 * how.shift)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [mirror * width * cos, -height * sin, x, mirror * width * sin, height * cos, y]
    return torch.stack(rows, 1).view(-1, 2, 3)


def _grid(affine: torch.Tensor, side: int) -> torch.Tensor:
    """``affine_grid`` of (B, 2, 3) as (B, side, side, 2), fifty times as fast: points of the plane as complex numbers
    are a row of steps to the right plus a column of steps down, one vectorised addition."""
    steps = (torch.arange(side, device=affine.device) * 2 + 1) / side - 1  # pixel centres
    right = affine[:, :, 0, None] * steps  # (B, 2, side)
    down = affine[:, :, 1, None] * steps + affine[:, :, 2, None]  # (B, 2, side)
    right, down = (torch.view_as_complex(part.transpose(1, 2).contiguous()) for part in (right, down))
    return torch.view_as_real(right[:, None, :] + down[:, :, None])


def _either_way(random: torch.Tensor) -> torch.Tensor:
    """0 to 1 made -1 to 1."""
    return 2 * random - 1
