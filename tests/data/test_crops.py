"""The augmentation of the published recipe, against torchvision's own transforms on the same draws."""

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tv

from cxrlib import UserError
from cxrlib.data import augmentation
from cxrlib.data.augmentation import GREY_MEAN, GREY_STD, PRESETS, Augment

SIZE, OUTPUT = 256, 224
CROPS = PRESETS["crops"]


def draws(n, seed=0):
    return torch.rand(n, augmentation.DRAWS, generator=torch.Generator().manual_seed(seed))


def test_the_preset_is_the_published_one():
    theirs = RandomResizedCrop(OUTPUT)
    assert (CROPS.scale_low, CROPS.scale_high) == theirs.scale
    assert (1 / CROPS.aspect, CROPS.aspect) == pytest.approx(theirs.ratio)
    assert (CROPS.flip, CROPS.rotate, CROPS.brightness, CROPS.contrast) == (0.5, 7, 0, 0)
    assert augmentation.side(SIZE, CROPS) == OUTPUT


def test_crops_are_distributed_as_torchvisions():
    boxes = augmentation.crop_boxes(draws(20_000), SIZE, CROPS).numpy()
    film, how = torch.empty(1, SIZE, SIZE), ((0.08, 1), (3 / 4, 4 / 3))
    theirs = np.array([RandomResizedCrop.get_params(film, *how) for _ in range(20_000)])
    top, left, height, width = theirs.T
    expected = (left, top, width, height, width * height, np.log(width / height))
    ours = (*boxes.T, boxes[:, 2] * boxes[:, 3], np.log(boxes[:, 2] / boxes[:, 3]))
    for name, one, other in zip(("left", "top", "width", "height", "area", "aspect"), ours, expected, strict=True):
        assert ks_2samp(one, other).statistic < 0.02, name  # 0.0192 is the 0.1 % point of equal distributions
    left, top, width, height = boxes.T
    assert (boxes[:, :2] >= 0).all()
    assert (left + width <= SIZE).all()
    assert (top + height <= SIZE).all()


def test_images_equal_torchvisions_on_the_same_draws():
    """A crop of more than 224 pixels is brought to size without antialiasing here; both sides do it the same way."""
    random = draws(40, seed=1)
    pixels = torch.randint(0, 256, (40, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    ours = augmentation.augmented_images(pixels, random, CROPS)
    assert ours.shape == (40, 1, OUTPUT, OUTPUT)
    boxes = augmentation.crop_boxes(random, SIZE, CROPS).int().tolist()
    for image, row, (left, top, width, height), mine in zip(pixels, random, boxes, ours, strict=True):
        film = tv.resized_crop(image[None].float(), top, left, height, width, [OUTPUT, OUTPUT], antialias=False)
        film = film.flip(-1) if row[0] < 0.5 else film
        angle = 7 * (2 * row[1].item() - 1)
        film = tv.rotate(film, angle, InterpolationMode.NEAREST, fill=[0.0])
        expected = (film / 255 - GREY_MEAN) / GREY_STD
        close = torch.isclose(mine, expected, atol=2e-3)
        assert close.float().mean() > 0.999  # the rest lies on the border of two pixels


def test_validation_takes_the_middle_and_nothing_else_changes():
    pixels = torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    middle = augmentation.augmented_images(pixels, draws(3), CROPS.unvaried)
    whole = augmentation.augmented_images(pixels, draws(3), Augment())
    assert torch.equal(middle, whole[..., 16:240, 16:240])
    assert not CROPS.unvaried.varies
    assert CROPS.varies
    assert all(PRESETS[name].unvaried == Augment() for name in ("none", "light", "full"))


@pytest.mark.parametrize("wrong", [{"scale_high": 1.2}, {"shift": 0.1}])
def test_torchvisions_crops_have_no_shift_and_no_border(wrong):
    with pytest.raises(UserError, match="scale_high 1 and shift 0"):
        Augment(torchvision=True, **wrong)
