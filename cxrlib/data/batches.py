"""Batches from a store: films are read, augmented and normalised as whole batches, with vectorised operations.

Random numbers are a pure function of (seed, epoch, position in the epoch). All numbers of an epoch are drawn at its
start. So each batch can be reproduced, a run can resume in mid-epoch, and processes that share an epoch use each film
once. A thread reads the next batches while the network works. ``Batches.epoch`` puts batches on the network's device.
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
"""Mean of ImageNet's three channel means, and of its three standard deviations, for pixels from 0 to 1."""


class Batch(NamedTuple):
    """A batch on its device. ``rows`` are positions in the ``films`` of ``Batches``, always on the CPU."""

    images: torch.Tensor | None  # (B, 1, S, S) float32, normalised; None without images
    labels: torch.Tensor  # (B, 15) float32, 0 or 1
    rows: torch.Tensor  # (B,) int64


@dataclass(frozen=True)
class Augment:
    """Augmentation of films in training. The defaults change nothing.

    ``flip``: probability of a mirror image. ``rotate``: largest angle in degrees, both ways. ``shift``: largest shift
    as a share of the side, both ways. ``scale_low`` to ``scale_high``: share of the area in the crop, which lies at a
    random place in the film as in RandomResizedCrop; above 1 the film shrinks and has a black border. ``aspect``:
    largest ratio of the crop's width and height. ``brightness``: largest value added or subtracted, of a range of 1.
    ``contrast``: largest relative change, about the mean grey.
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
        limits = {"rotate": (0, 180), "scale_low": (0.01, 4), "scale_high": (0.01, 4), "aspect": (1, 4)}
        for field in fields(self):
            low, high = limits.get(field.name, (0, 1))
            value = getattr(self, field.name)
            if not low <= value <= high:
                raise UserError(f"augmentation {field.name} is {value}; give a number from {low} to {high}")
        if self.scale_low > self.scale_high:
            raise UserError(f"augmentation scale_low {self.scale_low} is above scale_high {self.scale_high}")

    @property
    def geometric(self) -> bool:
        """Whether the augmentation needs interpolation. A mirror image does not."""
        return bool(self.rotate or self.shift) or (self.scale_low, self.scale_high, self.aspect) != (1, 1, 1)


PRESETS = {
    "none": Augment(),
    "light": Augment(flip=0.5, rotate=3, shift=0.03, scale_low=0.9),
    "full": Augment(flip=0.5, rotate=7, shift=0.05, scale_low=0.7, aspect=1.15, brightness=0.08, contrast=0.15),
}


def augment(name: str) -> Augment:
    """Augmentation preset: none, light or full. Raises UserError for another name."""
    if name not in PRESETS:
        raise UserError(f"augmentation {name!r} is unknown; the presets are {', '.join(PRESETS)}")
    return PRESETS[name]


class Batches:
    """Batches of films from a store, epoch by epoch.

    Without ``shuffle`` the films keep their order. With it each epoch has a random order, and ``cap`` > 0 selects a
    random subset: at most ``cap`` films per class, and all Hernia films. ``batch_size`` counts the films of all
    processes. Process ``rank`` of ``world`` gets its share of each batch, so a step uses the same films for any number
    of processes. With ``shuffle`` each share has at least two films, if there are enough, because BatchNorm cannot
    train on one. A smaller last batch joins the batch before.

    With ``views`` 0 each epoch augments a film differently. With k > 0 each film has k fixed variants, and epoch e uses
    variant e mod k, so that the features of frozen layers can be cached.
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
        """Number of batches in epoch 0. With ``cap`` other epochs may have a few more or less: see ``steps``."""
        return self.steps(0)

    def steps(self, epoch: int) -> int:
        """Number of batches in this epoch, the same for each rank."""
        return len(self.sizes(epoch))

    def sizes(self, epoch: int) -> np.ndarray:
        """Number of films in each batch of this epoch, all processes together, (steps,) int64."""
        return np.diff(self._cuts(len(self.order(epoch))))

    def view(self, epoch: int) -> int | None:
        """Number of the variant that an epoch uses. None if each epoch augments differently."""
        if self.augment == Augment():
            return 0
        return epoch % self.views if self.views else None

    def order(self, epoch: int) -> np.ndarray:
        """Rows of this epoch's films in their order, all processes together, (n,) int64."""
        if not self.shuffle:
            return np.arange(len(self._rows))
        order = draws.permutation(len(self._rows), self.seed, epoch)
        if self.cap:
            order = order[draws.capped(self._labels[order], self.cap)]
        return order

    def epoch(
        self, epoch: int, start: int = 0, *, on: str | torch.device = "cpu", images: bool = True
    ) -> Iterator[Batch]:
        """Batches of this epoch from number ``start`` on. The same seed, epoch and number give the same batch.

        ``on`` is the network's device. Without ``images`` no film is read; the batches have labels and rows only.
        """
        order, on = self.order(epoch), torch.device(on)
        table = self._table(epoch, order)
        cuts = self._cuts(len(order))
        parts = (self._share(cuts[i], cuts[i + 1]) for i in range(start, len(cuts) - 1))
        jobs = ((order[part], table[part]) for part in parts if len(part))
        if not images:
            yield from (self._labels_only(rows, on) for rows, _ in jobs)
        elif on.type == "cuda":  # read into pinned memory in advance; copied and augmented on the GPU in parallel
            packed = ahead.ahead(lambda job: self._pack(*job), jobs)
            yield from cuda.prefetched(packed, lambda job: self._unpack(*job, on), on)
        else:
            yield from ahead.ahead(lambda job: self._whole(*job, on), jobs)

    def _table(self, epoch: int, order: np.ndarray) -> np.ndarray:
        """Random numbers for each position of an epoch's order, (n, DRAWS) float32."""
        if self.views:  # the numbers depend on the film and not on its position
            return draws.uniform(len(self._rows), DRAWS, self.seed, epoch % self.views)[order]
        return draws.uniform(len(order), DRAWS, self.seed, epoch)

    def _cuts(self, films: int) -> np.ndarray:
        """Bounds of the batches in an epoch's order, all processes together, (steps + 1,) int64.

        The last batch joins the batch before if it has too few films: less than one per process, or two with shuffle.
        """
        cuts = np.append(np.arange(0, films, self.batch_size), films)
        if len(cuts) > 2 and cuts[-1] - cuts[-2] < self.world * (2 if self.shuffle else 1):
            cuts = np.delete(cuts, -2)
        return cuts

    def _share(self, begin: int, end: int) -> np.ndarray:
        """Positions of this process in a batch of all processes. The shares differ by at most one film."""
        return np.array_split(np.arange(begin, end), self.world)[self.rank]

    def _labels_only(self, rows: np.ndarray, on: torch.device) -> Batch:
        labels = torch.from_numpy(self._labels[rows])
        return Batch(None, cuda.moved(labels, on).float(), torch.from_numpy(rows))

    def _whole(self, rows: np.ndarray, random: np.ndarray, on: torch.device) -> Batch:
        pixels = torch.empty(len(rows), self.store.size, self.store.size, dtype=torch.uint8)
        self.store.gather(self._rows[rows], pixels.numpy())
        labels = torch.from_numpy(self._labels[rows])
        images = _images(pixels, torch.from_numpy(random), self.augment)  # on the CPU: some devices lack operations
        return Batch(images.to(on), labels.to(on).float(), torch.from_numpy(rows))

    def _pack(self, rows: np.ndarray, random: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Random numbers, pixels and labels of a batch in one pinned buffer, for a single copy to the GPU."""
        size, draws_end = self.store.size, random.nbytes
        films_end = draws_end + len(rows) * size**2
        end = films_end + len(rows) * self._labels.shape[1]
        buffer = torch.empty(end, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        flat = buffer.numpy()
        flat[:draws_end] = random.reshape(-1).view(np.uint8)
        self.store.gather(self._rows[rows], flat[draws_end:films_end].reshape(len(rows), size, size))
        flat[films_end:] = self._labels[rows].reshape(-1)
        return buffer, torch.from_numpy(rows)

    def _unpack(self, buffer: torch.Tensor, rows: torch.Tensor, on: torch.device) -> Batch:
        size = self.store.size
        draws_end = 4 * DRAWS * len(rows)
        films_end = draws_end + len(rows) * size**2
        buffer = buffer.to(on, non_blocking=True)
        random = buffer[:draws_end].view(torch.float32).view(len(rows), DRAWS)
        pixels = buffer[draws_end:films_end].view(len(rows), size, size)
        labels = buffer[films_end:].view(len(rows), -1)
        return Batch(_images(pixels, random, self.augment), labels.float(), rows)


DRAWS = 8
"""Random numbers per film: flip, rotation, position x and y, area, aspect, contrast, brightness."""


def _images(pixels: torch.Tensor, random: torch.Tensor, how: Augment) -> torch.Tensor:
    """Input of a network from pixels (B, S, S) uint8: (B, 1, S, S) float32, augmented and normalised."""
    return vary(pixels.unsqueeze(1).float(), random, how)


def vary(images: torch.Tensor, random: torch.Tensor, how: Augment) -> torch.Tensor:
    """Augment and normalise images (B, 1, S, S) float32 of 0 to 255. ``random`` is (B, DRAWS) float32 of 0 to 1."""
    if how.geometric:
        grid = _grid(_affine(random, how), images.shape[-1])
        images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    elif how.flip:
        mirrored = (random[:, 0] < how.flip).view(-1, 1, 1, 1)
        images = torch.where(mirrored, images.flip(3), images)
    gain = 1 + how.contrast * _symmetric(random[:, 6])  # (B,)
    bias = how.brightness * _symmetric(random[:, 7]) + GREY_MEAN * (1 - gain)
    gain, bias = gain / (255 * GREY_STD), (bias - GREY_MEAN) / GREY_STD
    return images.mul_(gain.view(-1, 1, 1, 1)).add_(bias.view(-1, 1, 1, 1))


def _affine(random: torch.Tensor, how: Augment) -> torch.Tensor:
    """Affine maps from output to input coordinates, (B, 2, 3) float32. Coordinates run from -1 to 1 over the film."""
    flip, turn, right, down, area, shape = random[:, :6].unbind(1)
    mirror = torch.where(flip < how.flip, -1.0, 1.0)
    angle = torch.deg2rad(how.rotate * _symmetric(turn))
    area = how.scale_low + (how.scale_high - how.scale_low) * area
    ratio = torch.exp(float(np.log(how.aspect)) * _symmetric(shape))
    width, height = torch.sqrt(area * ratio), torch.sqrt(area / ratio)
    # A crop smaller than the film lies anywhere inside it. The shift may move it over the edge.
    x = _symmetric(right) * ((1 - width).clamp(min=0) + 2 * how.shift)
    y = _symmetric(down) * ((1 - height).clamp(min=0) + 2 * how.shift)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [mirror * width * cos, -height * sin, x, mirror * width * sin, height * cos, y]
    return torch.stack(rows, 1).view(-1, 2, 3)


def _grid(affine: torch.Tensor, side: int) -> torch.Tensor:
    """Grid of (B, 2, 3) as ``affine_grid`` makes it, (B, side, side, 2), fifty times as fast.

    Points are complex numbers: a row of steps to the right plus a column of steps down, in one vectorised addition.
    """
    steps = (torch.arange(side, device=affine.device) * 2 + 1) / side - 1  # pixel centres
    right = affine[:, :, 0, None] * steps  # (B, 2, side)
    down = affine[:, :, 1, None] * steps + affine[:, :, 2, None]  # (B, 2, side)
    right, down = (torch.view_as_complex(part.transpose(1, 2).contiguous()) for part in (right, down))
    return torch.view_as_real(right[:, None, :] + down[:, :, None])


def _symmetric(random: torch.Tensor) -> torch.Tensor:
    """Random numbers of 0 to 1, scaled to -1 to 1."""
    return 2 * random - 1
