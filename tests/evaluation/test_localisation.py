"""Localisation on a network with filters made for its sign, and on networks with random weights."""

import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from cxrlib import UserError
from cxrlib.data import records, store
from cxrlib.data.batches import Batches
from cxrlib.evaluation import intervals, localisation
from cxrlib.training import network

SIZE = 64


class Reader(nn.Module):
    """A network of one 3 × 3 filter for each of 15 labels: label 0 responds to bright squares, label 1 to dark ones."""

    def __init__(self, learnt: bool = True):
        super().__init__()
        self.layer4 = nn.Sequential(nn.Conv2d(1, 15, 5, stride=4, padding=2), nn.ReLU())
        self.fc = nn.Linear(15, 15)
        if learnt:
            with torch.no_grad():
                self.layer4[0].weight.zero_()
                self.layer4[0].weight[0], self.layer4[0].weight[1] = 1.0, -1.0
                self.layer4[0].bias.fill_(-15.0)
                self.fc.weight.copy_(torch.eye(15))

    def forward(self, images):
        return self.fc(self.layer4(images).mean((2, 3)))


@pytest.fixture(scope="module")
def squares():
    """40 noisy films, each with a bright square (Atelectasis) and a dark one (Cardiomegaly) at random places."""
    rng = np.random.default_rng(0)
    images = rng.normal(0, 0.3, (40, 1, SIZE, SIZE)).astype(np.float32)
    boxes = []
    for i, film in enumerate(images[:, 0]):
        for finding, grey, half in (("Atelectasis", 2.0, 0), ("Cardiomegaly", -2.0, 1)):
            x, y = rng.integers(0, 52), int(rng.integers(0, 20)) + 32 * half
            film[y : y + 10, x : x + 10] += grey
            boxes.append((f"{i}.png", finding, x * 16.0, y * 16.0, 160.0, 160.0))
    films = pd.DataFrame({"image": [f"{i}.png" for i in range(40)], "patient": np.arange(40) // 2})
    return films, torch.from_numpy(images), pd.DataFrame(boxes, columns=["image", "finding", "x", "y", "w", "h"])


def judged(model, squares, method):
    films, images, boxes = squares
    wanted = localisation.targets(films, boxes)
    columns = [0 if finding == "Atelectasis" else 1 for finding in wanted["finding"]]
    heat = localisation.maps(
        model, images[wanted["row"].tolist()], columns, method=method, at="layer4" * (method != "occlusion")
    )
    return wanted, heat, localisation.scores(heat, localisation.masks(wanted, boxes, SIZE))


@pytest.mark.parametrize("method", localisation.METHODS)
def test_a_network_that_knows_the_sign_points_at_it(squares, method):
    wanted, heat, scored = judged(Reader(learnt=True), squares, method)
    table = localisation.table(wanted, scored, replicates=100).set_index("finding")
    assert list(table.index) == ["Atelectasis", "Cardiomegaly", localisation.ALL]
    least = {"gradcam": 0.9, "hirescam": 0.9, "occlusion": 0.6}[
        method
    ]  # an occluding square seldom lies on a box exactly
    assert (table["hit"] > least).all(), "each finding's own map, since the two squares lie apart"
    assert (table["lift_low"] > 15).all()
    assert table.loc[localisation.ALL, "chance"] == pytest.approx(100 / 64**2, rel=0.3)
    assert (table["iou"] > 0.2).all()
    assert heat.min() == 0
    assert heat.max() == 1


def test_forgetting_what_was_learnt_costs_the_hits(squares):
    learnt = Reader(learnt=True)
    before = [parameter.clone() for parameter in learnt.parameters()]
    hits = [judged(localisation.with_random_weights(learnt, seed), squares, "gradcam")[2] for seed in range(8)]
    assert pd.concat(hits)["hit"].mean() < 0.25, "what is left is that squares catch the eye of any filter"
    assert all(torch.equal(a, b) for a, b in zip(before, learnt.parameters(), strict=True))
    twice = [localisation.with_random_weights(learnt, 3).fc.weight for _ in range(2)]
    assert torch.equal(*twice)
    assert not torch.equal(twice[0], localisation.with_random_weights(learnt, 4).fc.weight)


def test_modes_and_gradients_are_left_alone(squares):
    model = Reader(learnt=True).train()
    model.fc.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    films, images, _ = squares
    localisation.maps(model, images[:3], [0, 1, 0], at="layer4")
    assert (model.training, model.fc.training, model.layer4.training) == (True, False, True)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not images.requires_grad
    assert len(films) == 40


def test_scores_by_hand():
    heat = np.zeros((3, 4, 4), np.float32)
    heat[0, 1, 1], heat[0, 1, 2] = 1.0, 0.6
    heat[1, 0, 0] = 1.0
    boxes = np.zeros((3, 4, 4), bool)
    boxes[:, 1:3, 1:3] = True
    scored = localisation.scores(heat, boxes)
    assert scored["hit"].tolist() == [1, 0, 0.25], "an empty map scores like a random point"
    assert scored["chance"].tolist() == [0.25] * 3
    assert scored["iou"].tolist() == [0.5, 0, 0.25]
    assert scored["iobb"].tolist() == [1, 0, 0.25]


def test_boxes_are_joined_scaled_and_never_vanish():
    films = pd.DataFrame({"image": ["a.png"], "patient": [1]})
    rows = [["a.png", "Mass", 0, 0, 512, 512], ["a.png", "Mass", 1000, 1000, 3, 3], ["b.png", "Mass", 1, 1, 2, 2]]
    boxes = pd.DataFrame(rows, columns=["image", "finding", "x", "y", "w", "h"])
    wanted = localisation.targets(films, boxes)
    assert len(wanted) == 1
    assert wanted.attrs["elsewhere"] == 1
    mask = localisation.masks(wanted, boxes, 8)[0]
    assert mask.sum() == 16 + 1
    assert mask[7, 7]
    with pytest.raises(UserError, match=r"b\.png"):
        localisation.targets(films, boxes, strict=True)


def test_no_boxes_give_an_empty_table():
    films = pd.DataFrame({"image": ["a.png"], "patient": [1]})
    wanted = localisation.targets(films, pd.DataFrame(columns=["image", "finding", "x", "y", "w", "h"]))
    scored = localisation.scores(np.empty((0, 8, 8)), np.empty((0, 8, 8), bool))
    table = localisation.table(wanted, scored)
    assert table.empty
    assert {"hit_low", "lift_high", "iou_75", "iobb_10_low"} <= set(table)


def test_bad_input_is_named(squares):
    _, images, _ = squares
    with pytest.raises(UserError, match="gradcam, hirescam, occlusion"):
        localisation.maps(Reader(True), images[:1], [0], method="saliency")
    with pytest.raises(UserError, match="one label per film"):
        localisation.maps(Reader(True), images[:2], [0])


@pytest.mark.parametrize(
    ("size", "name"), [(224, "layer4"), (128, "layer4"), (96, "layer3"), (64, "layer3"), (32, "layer2"), (16, "layer1")]
)
def test_a_layers_map_keeps_four_cells(size, name):
    assert localisation.layer(size) == name


PLACE = 32  # pixels: the smallest films on which a layer still has a map


@pytest.fixture(scope="module")
def taught(tiny_phantom, tmp_path_factory):
    """The project's own network after 160 steps on phantom films, half of which have a patch of fine texture somewhere.

    Nothing but the patch tells the halves apart, and no place on the film is likelier than another.
    """
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    films = records.read(tiny_phantom)
    pixels = store.build(films, PLACE, folder=tmp_path_factory.mktemp("stores") / "taught", progress=False)
    batch = next(iter(Batches(pixels, films, batch_size=len(films)).epoch(0)))
    model, random = network.build("none", seed=0, layers=(1, 1, 1, 1)).train(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=160)
    for _ in range(160):
        images, there, _ = patched(batch.images, random, 16)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            model(images)[:, 4], torch.from_numpy(there).float()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    images, there, masks = patched(batch.images, random, 240)
    yield model, images[there], masks[there]
    torch.set_num_threads(threads)


def patched(films, random, n):
    """``n`` films drawn again, whether each has the patch, and where: (n, 1, S, S), (n,) bool, (n, S, S) bool."""
    images, there = films[random.integers(0, len(films), n)].clone(), random.random(n) < 0.5
    masks, board = np.zeros((n, PLACE, PLACE), bool), np.indices((PLACE, PLACE)).sum(0) % 2 * 2.0 - 1
    for i in np.flatnonzero(there):
        top, left = random.integers(0, PLACE - 8, 2)
        masks[i, top : top + 8, left : left + 8] = True
        images[i, 0] += torch.from_numpy(np.where(masks[i], 3 * board, 0)).float()
    return images, there, masks


@pytest.mark.parametrize("method", localisation.METHODS)
def test_a_taught_network_points_far_better_than_chance_and_a_forgetful_one_does_not(taught, method):
    model, images, masks = taught
    columns = [4] * len(images)
    learnt = localisation.scores(localisation.maps(model, images, columns, method=method), masks)
    chance = learnt["chance"].mean()
    assert chance == pytest.approx(64 / PLACE**2)
    least = {"gradcam": 4, "hirescam": 2, "occlusion": 4}[method]  # a texture is evidence in many small places
    assert learnt["hit"].mean() > least * chance
    assert learnt["iobb"].mean() > least * chance
    few, theirs = images[:30], masks[:30]
    anew = [
        localisation.scores(
            localisation.maps(localisation.with_random_weights(model, seed), few, columns[:30], method=method), theirs
        )
        for seed in range(8)
    ]
    # Single random networks may like the texture or the places by chance, so the middle one of eight counts.
    assert np.median([one["hit"].mean() for one in anew]) < learnt["hit"].mean() / 2


def test_at_the_last_layer_hirescam_is_gradcam(taught):
    model, images, _ = taught
    one, other = (
        localisation.maps(model, images[:6], [4] * 6, method=method, at="layer4") for method in ("gradcam", "hirescam")
    )
    np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.fixture
def boxed(tiny_phantom):
    """Stored films, the films, and those of them that have a box."""
    films = records.read(tiny_phantom)
    boxes = records.read_boxes(tiny_phantom)
    return store.build(films, PLACE, progress=False), films, localisation.targets(films, boxes), boxes


def test_judging_batch_by_batch_is_judging_at_once(taught, boxed):
    pixels, films, wanted, boxes = boxed
    model = taught[0]
    assert len(wanted) > 5
    at_once = localisation.show(model, pixels, films, wanted)
    whole = localisation.scores(at_once, localisation.masks(wanted, boxes, PLACE))
    parts = localisation.judge(model, pixels, films, wanted, boxes, batch_size=3)
    pd.testing.assert_frame_equal(parts, whole, atol=1e-5)
    assert at_once.shape == (len(wanted), PLACE, PLACE)


def test_no_map_outlives_its_batch(taught, boxed, monkeypatch):
    """Only one batch is in memory at a time, for any number of boxes."""
    pixels, films, wanted, boxes = boxed
    seen, plain = [], localisation.scores

    class Tracked(np.ndarray):
        """An array that can be weakly referred to."""

    def watched(heat, masks):
        heat = heat.view(Tracked)
        living = sum(other() is not None for other, _ in seen)
        seen.append((weakref.ref(heat), (len(heat), living)))
        return plain(heat, masks)

    monkeypatch.setattr(localisation, "scores", watched)
    many = pd.concat([wanted] * 10, ignore_index=True)
    localisation.judge(taught[0], pixels, films, many, boxes, batch_size=4)
    sizes, living = zip(*(counts for _, counts in seen), strict=True)
    assert max(sizes) == 4
    assert max(living) <= 1
    assert sum(sizes) == len(many)


def test_a_sample_is_shared_evenly_among_the_findings(boxed):
    wanted = boxed[2]
    few = localisation.sample(wanted, 2 * wanted["finding"].nunique())
    counts = few["finding"].value_counts()
    assert counts.max() <= 3
    assert set(counts.index) == set(wanted["finding"])
    pd.testing.assert_frame_equal(localisation.sample(wanted, len(wanted) + 5), wanted)
    assert few.merge(wanted).shape == few.shape


def targets_of(patients, hits, chance=0.1):
    wanted = pd.DataFrame({"finding": "Mass", "patient": patients})
    return wanted, pd.DataFrame({"hit": hits, "chance": chance, "iou": 0.2, "iobb": 0.3}, index=wanted.index)


def test_not_one_hit_is_no_certainty_and_few_patients_are_no_interval():
    table = localisation.table(*targets_of(np.arange(20), 0.0), replicates=50).set_index("finding")
    assert table.loc["Mass", ["hit", "hit_low", "lift", "lift_low"]].tolist() == [0, 0, 0, 0]
    assert table.loc["Mass", "hit_high"] == pytest.approx(intervals.proportion(0, 20).high)
    assert table.loc["Mass", "lift_high"] == pytest.approx(10 * table.loc["Mass", "hit_high"])
    few = localisation.table(*targets_of(np.arange(20) // 3, 1.0), replicates=50).set_index("finding")
    assert few.loc["Mass", "hit"] == 1
    assert few.loc["Mass", ["hit_low", "lift_high", "iou_low"]].isna().all(), "seven patients"


@pytest.mark.parametrize("size", [224, 320, 384, 512])
def test_boxes_of_1024_pixels_lie_where_direct_scaling_puts_them(size):
    rng = np.random.default_rng(size)
    corner, sides = rng.uniform(0, 700, (20, 2)), rng.uniform(20, 320, (20, 2))
    names = [f"{i}.png" for i in range(20)]
    wide = pd.DataFrame({"image": names, "finding": "Mass", "x": corner[:, 0], "y": corner[:, 1]})
    boxes = wide.assign(w=sides[:, 0], h=sides[:, 1])
    wanted = localisation.targets(pd.DataFrame({"image": names, "patient": range(20)}), boxes)
    for mask, box in zip(localisation.masks(wanted, boxes, size), boxes.itertuples(), strict=True):
        across, down = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        exact = np.array([box.x, box.x + box.w, box.y, box.y + box.h]) * size / 1024
        found = np.array([across[0], across[-1] + 1, down[0], down[-1] + 1])
        assert (np.abs(found - exact) < 1).all()
