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

    ``output``: side of the network's images as a share of the film's side. Training takes crops of that size, and
    validation the middle of the film. ``torchvision``: the film is cropped and then turned, to the pixel as
    torchvision's RandomResizedCrop and RandomRotation do; else it is sampled once, and a turned crop has no black
    corners.
    """

    flip: float = 0.0
    rotate: float = 0.0
    shift: float = 0.0
    scale_low: float = 1.0
    scale_high: float = 1.0
    aspect: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    output: float = 1.0
    torchvision: bool = False

    def __post_init__(self) -> None:
        limits = {
            "rotate": (0, 180),
            "scale_low": (0.01, 4),
            "scale_high": (0.01, 4),
            "aspect": (1, 4),
            "output": (0.1, 1),
        }
        for field in fields(self):
            low, high = limits.get(field.name, (0, 1))
            value = getattr(self, field.name)
            if not low <= value <= high:
                raise UserError(f"augmentation {field.name} is {value}; give a number from {low} to {high}")
        if self.scale_low > self.scale_high:
            raise UserError(f"augmentation scale_low {self.scale_low} is above scale_high {self.scale_high}")
        if self.torchvision and (self.scale_high != 1 or self.shift):
            raise UserError("augmentation torchvision crops from films as they are: give scale_high 1 and shift 0")

    @property
    def varies(self) -> bool:
        """Whether the images of a film differ from epoch to epoch."""
        return bool(self.geometric or self.flip or self.brightness or self.contrast)

    @property
    def unvaried(self) -> "Augment":
        """The same images without variation, as validation takes them."""
        return Augment(output=self.output)

    @property
    def geometric(self) -> bool:
        """Whether the augmentation needs interpolation. A mirror image does not."""
        return bool(self.rotate or self.shift) or (self.scale_low, self.scale_high, self.aspect) != (1, 1, 1)


PRESETS = {
    "none": Augment(),
    "light": Augment(flip=0.5, rotate=3, shift=0.03, scale_low=0.9),
    "full": Augment(flip=0.5, rotate=7, shift=0.05, scale_low=0.7, aspect=1.15, brightness=0.08, contrast=0.15),
    "crops": Augment(flip=0.5, rotate=7, scale_low=0.08, aspect=4 / 3, output=7 / 8, torchvision=True),
}
"""``crops`` is that of the best published plain ResNet-50 on the official split (Ma et al., Benchmarking and Boosting
Transformers for Medical Image Classification, 2022, and its code): crops of 224 pixels from films of 256."""


def preset(name: str) -> Augment:
    """Augmentation preset: none, light, full or crops. Raises UserError for another name."""
    if name not in PRESETS:
        raise UserError(f"augmentation {name!r} is unknown; the presets are {', '.join(PRESETS)}")
    return PRESETS[name]


DRAWS = 8
"""Random numbers per film: flip, rotation, position x and y, area, aspect, contrast, brightness."""


def augmented_images(pixels: torch.Tensor, random: torch.Tensor, how: Augment) -> torch.Tensor:
    """Input of a network from pixels (B, S, S) uint8: (B, 1, T, T) float32, augmented and normalised, T of ``side``."""
    return augment_images(pixels.unsqueeze(1).float(), random, how)


def augment_images(images: torch.Tensor, random: torch.Tensor, how: Augment) -> torch.Tensor:
    """Augment and normalise images (B, 1, S, S) float32 of 0 to 255. ``random`` is (B, DRAWS) float32 of 0 to 1.

    Returns (B, 1, T, T), where T is ``side(S, how)``.
    """
    output = side(images.shape[-1], how)
    if how.torchvision:
        images = _turned(_resized_crops(images, random, how, output), random, how)
    elif how.geometric:
        grid = _grid(_affine(random, how), output)
        images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    elif how.flip:
        mirrored = (random[:, 0] < how.flip).view(-1, 1, 1, 1)
        images = torch.where(mirrored, images.flip(3), images)
    if images.shape[-1] != output:
        edge = round((images.shape[-1] - output) / 2)
        images = images[..., edge : edge + output, edge : edge + output].clone()
    gain = 1 + how.contrast * _symmetric(random[:, 6])  # (B,)
    bias = how.brightness * _symmetric(random[:, 7]) + GREY_MEAN * (1 - gain)
    gain, bias = gain / (255 * GREY_STD), (bias - GREY_MEAN) / GREY_STD
    return images.mul_(gain.view(-1, 1, 1, 1)).add_(bias.view(-1, 1, 1, 1))


def side(film: int, how: Augment) -> int:
    """Side in pixels of the network's images, from that of the films."""
    return max(1, round(film * how.output))


def crop_boxes(random: torch.Tensor, size: int, how: Augment) -> torch.Tensor:
    """Crops of RandomResizedCrop in films of ``size`` pixels, (B, 4) float32 but whole: left, top, width, height.

    torchvision draws area and log aspect uniformly, and again where the crop is wider or higher than the film, so
    both are uniform over the pairs that fit. Here this distribution is drawn directly: first the aspect from its
    marginal density, e^-|x| - ``scale_low`` for log aspect x, by Newton steps on its integral; then the area.
    """
    _, _, right, down, area, shape = random[:, :6].unbind(1)
    share, low = (2 * shape - 1).abs(), how.scale_low
    widest = float(np.log(how.aspect))
    total = 1 - np.exp(-widest) - low * widest
    log = share * widest
    for _ in range(6):
        log = log - (1 - torch.exp(-log) - low * log - share * total) / (torch.exp(-log) - low)
    log = log.clamp(0, widest)
    area = (low + (torch.exp(-log) - low) * area) * size**2
    ratio = torch.exp(torch.where(shape < 0.5, -log, log))
    width = torch.sqrt(area * ratio).round().clamp(1, size)
    height = torch.sqrt(area / ratio).round().clamp(1, size)
    left = (right * (size - width + 1)).floor().minimum(size - width)
    top = (down * (size - height + 1)).floor().minimum(size - height)
    return torch.stack([left, top, width, height], 1)


def _resized_crops(images: torch.Tensor, random: torch.Tensor, how: Augment, output: int) -> torch.Tensor:
    """Crops (B, 1, T, T), mirrored for some, bilinear. A pixel outside of the crop is never read, as in torchvision."""
    size = images.shape[-1]
    left, top, width, height = crop_boxes(random, size, how).unbind(1)
    centres = (torch.arange(output, device=images.device) + 0.5) / output  # (T,)
    across = torch.where((random[:, 0] < how.flip)[:, None], 1 - centres, centres)  # (B, T)
    x = (left[:, None] + across * width[:, None] - 0.5).clamp(left[:, None], (left + width - 1)[:, None])
    y = (top[:, None] + centres * height[:, None] - 0.5).clamp(top[:, None], (top + height - 1)[:, None])
    x, y = (2 * (part + 0.5) / size - 1 for part in (x, y))
    grid = torch.stack([x[:, None, :].expand(-1, output, -1), y[:, :, None].expand(-1, -1, output)], 3)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _turned(images: torch.Tensor, random: torch.Tensor, how: Augment) -> torch.Tensor:
    """Images (B, 1, T, T) turned about their centre, to the nearest pixel, black outside."""
    angle = torch.deg2rad(how.rotate * _symmetric(random[:, 1]))
    cos, sin, none = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    grid = _grid(torch.stack([cos, -sin, none, sin, cos, none], 1).view(-1, 2, 3), images.shape[-1])
    return functional.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


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
