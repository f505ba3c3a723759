"""Augmentation of training images: presets of how far they vary, and the variation itself, vectorised."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.nn import functional

from cxrlib import UserError

GREY_MEAN, GREY_STD = 0.449, 0.226
"""Mean of ImageNet's three channel means, and of its three standard deviations, for pixels from 0 to 1."""


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


def preset(name: str) -> Augment:
    """Augmentation preset: none, light or full. Raises UserError for another name."""
    if name not in PRESETS:
        raise UserError(f"augmentation {name!r} is unknown; the presets are {', '.join(PRESETS)}")
    return PRESETS[name]


DRAWS = 8
"""Random numbers per film: flip, rotation, position x and y, area, aspect, contrast, brightness."""


def augmented_images(pixels: torch.Tensor, random: torch.Tensor, how: Augment) -> torch.Tensor:
    """Input of a network from pixels (B, S, S) uint8: (B, 1, S, S) float32, augmented and normalised."""
    return augment_images(pixels.unsqueeze(1).float(), random, how)


def augment_images(images: torch.Tensor, random: torch.Tensor, how: Augment) -> torch.Tensor:
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
