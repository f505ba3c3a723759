"""Batches: random numbers are a function of (seed, epoch, position), each film comes once, augmentation is exact."""

import itertools
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from cxrlib import UserError, labels
from cxrlib.data import augmentation, batches
from cxrlib.data.store import Store

HERNIA = labels.column("Hernia")


def store_of(pixels: np.ndarray) -> Store:
    names = [f"{i:08d}_000.png" for i in range(len(pixels))]
    return Store(None, pixels.shape[1], names, pixels, "", {})


def films_of(count: int, seed: int = 0) -> pd.DataFrame:
    marks = (np.random.default_rng(seed).random((count, 15)) < 0.2).astype(np.uint8)
    return pd.DataFrame(marks, columns=list(labels.LABELS)).assign(image=[f"{i:08d}_000.png" for i in range(count)])


def numbered(count: int, side: int = 12) -> Store:
    """Store of noise: no two films are alike."""
    return store_of(np.random.default_rng(1).integers(0, 256, (count, side, side), dtype=np.uint8))


def make(count: int = 37, **options) -> batches.Batches:
    options = {"batch_size": 8, "seed": 3} | options
    return batches.Batches(numbered(count), films_of(count), **options)


def rows(made, epoch=0, start=0) -> list[int]:
    return [row for batch in made.epoch(epoch, start) for row in batch.rows.tolist()]


def test_plain_batches_are_the_films_in_order_normalised():
    made = make()
    together = list(made.epoch(0))
    assert len(together) == len(made) == 5
    assert rows(made) == list(range(37))
    images = torch.cat([batch.images for batch in together])
    assert images.shape == (37, 1, 12, 12)
    assert images.dtype == torch.float32
    expected = (made.store.pixels / 255 - augmentation.GREY_MEAN) / augmentation.GREY_STD
    np.testing.assert_allclose(images[:, 0], expected, atol=1e-5)
    marks = torch.cat([batch.labels for batch in together])
    np.testing.assert_array_equal(marks, made.films[list(labels.LABELS)])


def test_films_in_another_order_than_the_store():
    films = films_of(20).iloc[::-1].reset_index(drop=True)
    made = batches.Batches(numbered(20), films, batch_size=20)
    batch = next(iter(made.epoch(0)))
    expected = (made.store.pixels[::-1] / 255 - augmentation.GREY_MEAN) / augmentation.GREY_STD
    np.testing.assert_allclose(batch.images[:, 0], expected, atol=1e-5)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4), st.booleans(), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_film_once_an_epoch_over_all_processes(count, size, world, shuffle, epoch):
    shares = [make(count, batch_size=size, shuffle=shuffle, rank=rank, world=world) for rank in range(world)]
    seen = [rows(share, epoch) for share in shares]
    assert sorted(row for share in seen for row in share) == list(range(count))
    lengths = [[len(batch.rows) for batch in share.epoch(epoch)] for share in shares]
    if size >= 2 * world and count >= 2 * world:
        assert len({len(share) for share in lengths}) == 1  # no process waits for another
        assert len(lengths[0]) == len(shares[0])
        assert min(map(min, lengths)) >= (2 if shuffle else 1)
    if size >= world:
        assert [sum(films) for films in itertools.zip_longest(*lengths, fillvalue=0)] == shares[0].sizes(epoch).tolist()
    assert shares[0].sizes(epoch).max() < size + 2 * world


def test_epochs_and_seeds_differ_and_come_again():
    made, again, other = make(shuffle=True), make(shuffle=True), make(shuffle=True, seed=4)
    assert rows(made, 1) == rows(again, 1)
    assert rows(made, 0) != rows(made, 1)
    assert rows(made, 0) != rows(other, 0)


def test_an_epoch_goes_on_in_its_middle_with_the_same_batches():
    how = augmentation.preset("full")
    whole = list(make(shuffle=True, augment=how).epoch(2))
    rest = list(make(shuffle=True, augment=how).epoch(2, start=3))
    assert len(rest) == len(whole) - 3
    for a, b in zip(whole[3:], rest, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.rows, b.rows)


def test_a_film_is_varied_alike_however_the_epoch_is_shared():
    how = augmentation.preset("full")
    alone = {
        row: image
        for batch in make(shuffle=True, augment=how, batch_size=12).epoch(1)
        for row, image in zip(batch.rows.tolist(), batch.images, strict=True)
    }
    for rank in range(3):
        for batch in make(shuffle=True, augment=how, batch_size=12, rank=rank, world=3).epoch(1):
            for row, image in zip(batch.rows.tolist(), batch.images, strict=True):
                torch.testing.assert_close(image, alone[row], atol=1e-5, rtol=1e-5)


def test_a_film_has_as_many_views_as_asked_for_and_each_comes_again_in_its_turn():
    made = make(shuffle=True, augment=augmentation.preset("full"), variants=2)
    seen = [
        {
            row: image
            for batch in made.epoch(epoch)
            for row, image in zip(batch.rows.tolist(), batch.images, strict=True)
        }
        for epoch in range(3)
    ]
    assert [made.variant(epoch) for epoch in range(3)] == [0, 1, 0]
    for row, image in seen[0].items():
        torch.testing.assert_close(image, seen[2][row], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(image, seen[1][row], atol=1e-2)
    assert make(augment=augmentation.preset("full")).variant(1) is None
    assert make(variants=2).variant(1) == 0  # without augmentation there is one variant


def test_batches_are_varied_anew_each_epoch():
    made = make(shuffle=False, augment=augmentation.preset("full"))
    first, second = next(iter(made.epoch(0))), next(iter(made.epoch(1)))
    assert not torch.equal(first.images, second.images)


RAMP = torch.arange(16.0).repeat(16, 1)[None, None] * 10  # rises to the right


def varied(random=None, **how) -> torch.Tensor:
    """The augmented ramp, in grey levels of 0 to 255."""
    table = torch.full((1, augmentation.DRAWS), 0.5) if random is None else random
    images = augmentation.augment_images(RAMP.clone(), table, augmentation.Augment(**how))
    return (images * augmentation.GREY_STD + augmentation.GREY_MEAN) * 255


def draw(**at: float) -> torch.Tensor:
    names = ("flip", "turn", "right", "down", "area", "shape", "contrast", "brightness")
    return torch.tensor([[at.get(name, 0.5) for name in names]])


def test_nothing_asked_nothing_changed():
    torch.testing.assert_close(varied(draw(flip=0.1, turn=0.9, contrast=0.9)), RAMP, atol=1e-3, rtol=0)


@pytest.mark.parametrize("how", [{"flip": 1.0}, {"flip": 1.0, "rotate": 9.0}])
def test_a_mirror_image_with_and_without_interpolation(how):
    torch.testing.assert_close(varied(**how), RAMP.flip(3), atol=1e-3, rtol=0)


def test_a_quarter_turn():
    torch.testing.assert_close(varied(draw(turn=1.0), rotate=90.0), RAMP.transpose(2, 3).flip(2), atol=1e-3, rtol=0)


def test_a_shift_by_a_quarter_of_the_side_brings_black_in():
    shifted = varied(draw(right=1.0), shift=0.25)
    torch.testing.assert_close(shifted[..., :12], RAMP[..., 4:], atol=1e-3, rtol=0)
    assert shifted[..., 12:].abs().max() < 1e-3


def test_a_crop_stays_inside_the_film():
    for place in (0.0, 1.0):
        seen = varied(draw(right=place, area=0.0), scale_low=0.25)
        low, high = (0, 75) if place == 0 else (75, 150)
        assert low - 1e-3 <= seen.min() <= seen.max() <= high + 1e-3


def test_aspect_widens_one_way():
    seen = varied(draw(shape=1.0, area=0.0), aspect=1.5, scale_low=0.5)
    width = (0.5 * 1.5) ** 0.5
    assert seen[0, 0, 8].max() - seen[0, 0, 8].min() == pytest.approx(150 * width, rel=0.1)


def test_brightness_and_contrast():
    torch.testing.assert_close(varied(draw(brightness=1.0), brightness=0.1), RAMP + 25.5, atol=1e-2, rtol=0)
    mean = augmentation.GREY_MEAN * 255
    torch.testing.assert_close(varied(draw(contrast=1.0), contrast=0.5), (RAMP - mean) * 1.5 + mean, atol=1e-2, rtol=0)


def test_the_fast_grid_is_affine_grid():
    affine = torch.randn(5, 2, 3)
    torch.testing.assert_close(
        augmentation._grid(affine, 9), functional.affine_grid(affine, [5, 1, 9, 9], align_corners=False)
    )


@pytest.mark.parametrize(
    "wrong", [{"flip": 2}, {"rotate": -1}, {"scale_low": 1.2}, {"aspect": 0.5}, {"contrast": float("nan")}]
)
def test_senseless_augmentation_is_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        augmentation.Augment(**wrong)
    with pytest.raises(UserError, match="none, light, full"):
        augmentation.preset("heavy")


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"rank": 2, "world": 2}, {"cap": -1}, {"variants": -1}])
def test_senseless_batches_are_refused(wrong):
    with pytest.raises(UserError):
        make(**wrong)


def greedy(marks: np.ndarray, cap: int) -> list[int]:
    """The cap applied film by film: all Hernia films, then each film that does not exceed the cap of a class."""
    hernia = [i for i in range(len(marks)) if marks[i, HERNIA]]
    counts, kept = marks[hernia].sum(0, dtype=int), list(hernia)
    for i in range(len(marks)):
        if not marks[i, HERNIA] and (counts[marks[i] == 1] < cap).all():
            counts += marks[i]
            kept.append(i)
    return sorted(kept)


@given(st.integers(1, 80), st.integers(1, 20), st.integers(0, 50), st.floats(0.02, 0.4))
@settings(max_examples=100, deadline=None)
def test_the_cap_is_the_greedy_draw(count, cap, seed, density):
    marks = (np.random.default_rng(seed).random((count, 15)) < density).astype(np.uint8)
    assert batches.cap_per_label(marks, cap).tolist() == greedy(marks, cap)


def test_capped_epochs_hold_every_hernia_and_no_class_above_the_cap():
    made = make(400, shuffle=True, cap=30, batch_size=16)
    epochs = [rows(made, epoch) for epoch in range(3)]
    hernia = set(np.flatnonzero(made.films["Hernia"]))
    for epoch, chosen in enumerate(epochs):
        assert len(set(chosen)) == len(chosen)
        assert hernia <= set(chosen)
        assert len(list(made.epoch(epoch))) == made.steps(epoch)
    assert set(epochs[0]) != set(epochs[1])  # each epoch draws other films


def test_the_first_film_of_a_class_is_not_dropped():
    marks = np.eye(15, dtype=np.uint8)
    assert len(batches.cap_per_label(marks, 1)) == 15


def test_draws_do_not_depend_on_the_versions_of_numpy():
    table = batches.random_table(2, 3, seed=7, epoch=1)
    assert table.dtype == np.float32
    assert batches.epoch_order(6, seed=7, epoch=1).tolist() == PERMUTATION
    np.testing.assert_allclose(table[0], UNIFORM, atol=1e-6)


PERMUTATION = [3, 1, 2, 5, 4, 0]
UNIFORM = [0.39566845, 0.46601737, 0.27126765]


def test_draws_are_uniform():
    table = batches.random_table(20_000, 4, seed=0, epoch=0)
    assert (table >= 0).all()
    assert (table < 1).all()
    np.testing.assert_allclose(table.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(table.T), np.eye(4), atol=0.03)


def test_a_thread_left_early_ends():
    before = threading.active_count()
    epoch = make(200, batch_size=2).epoch(0)
    next(epoch)
    assert threading.active_count() == before + 1
    epoch.close()
    assert threading.active_count() == before


def test_an_error_in_the_thread_is_raised_here():
    made = make()
    made.store = None
    with pytest.raises(AttributeError):
        list(made.epoch(0))


@pytest.mark.parametrize("preset", ["none", "full"])
def test_a_batch_packed_into_one_buffer_comes_out_as_it_went_in(preset):
    """The buffer for the GPU, unpacked on the CPU."""
    made = make(augment=augmentation.preset(preset))
    order = made.order(0)[:7]
    table = made._table(0, made.order(0))[:7]
    whole = made._whole(order, table, torch.device("cpu"))
    unpacked = made._unpack(*made._pack(order, table), torch.device("cpu"))
    for name in ("images", "labels", "rows"):
        assert torch.equal(getattr(unpacked, name), getattr(whole, name)), name
    assert unpacked.labels.dtype == torch.float32


def test_without_images_no_film_is_read_and_labels_and_rows_are_the_same():
    made = make(shuffle=True)
    with_images = list(made.epoch(1))
    made.store = None
    without = list(made.epoch(1, images=False))
    assert all(batch.images is None for batch in without)
    for one, other in zip(with_images, without, strict=True):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.cuda
def test_a_card_gets_what_the_cpu_gets():
    how = augmentation.preset("full")
    here = list(make(augment=how, shuffle=True).epoch(0))
    there = list(make(augment=how, shuffle=True).epoch(0, on="cuda"))  # all are kept: none may overwrite another
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(other.images.cpu(), one.images, atol=1e-3, rtol=1e-3)
        assert torch.equal(other.labels.cpu(), one.labels)
        assert torch.equal(other.rows, one.rows)
