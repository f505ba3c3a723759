"""Localisation on a network that has learnt its sign by construction, and on one that has learnt nothing."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from cxrlib.errors import UserError
from cxrlib.evaluation import localise

SIZE = 64


class Reader(nn.Module):
    """Answers for 15 labels with one 3 × 3 filter each: label 0 sees bright squares, label 1 dark ones."""

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
    """40 noisy films, each with a bright square (Atelectasis) and a dark one (Cardiomegaly) at places of their own."""
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
    wanted = localise.targets(films, boxes)
    columns = [0 if finding == "Atelectasis" else 1 for finding in wanted["finding"]]
    heat = localise.maps(
        model, images[wanted["row"].tolist()], columns, method=method, at="layer4" * (method != "occlusion")
    )
    return wanted, heat, localise.scores(heat, localise.masks(wanted, boxes, SIZE))


@pytest.mark.parametrize("method", localise.METHODS)
def test_a_network_that_knows_the_sign_points_at_it(squares, method):
    wanted, heat, scored = judged(Reader(learnt=True), squares, method)
    table = localise.table(wanted, scored, replicates=100).set_index("finding")
    assert list(table.index) == ["Atelectasis", "Cardiomegaly", localise.ALL]
    least = {"gradcam": 0.9, "occlusion": 0.6}[method]  # an occluding square seldom lies on a box exactly
    assert (table["hit"] > least).all(), "each finding's own map, since the two squares lie apart"
    assert (table["lift_low"] > 15).all()
    assert table.loc[localise.ALL, "chance"] == pytest.approx(100 / 64**2, rel=0.3)
    assert (table["iou"] > 0.2).all()
    assert heat.min() == 0
    assert heat.max() == 1


def test_forgetting_what_was_learnt_costs_the_hits(squares):
    learnt = Reader(learnt=True)
    before = [parameter.clone() for parameter in learnt.parameters()]
    hits = [judged(localise.forgetful(learnt, seed), squares, "gradcam")[2] for seed in range(8)]
    assert pd.concat(hits)["hit"].mean() < 0.25, "what is left is that squares catch the eye of any filter"
    assert all(torch.equal(a, b) for a, b in zip(before, learnt.parameters(), strict=True))
    twice = [localise.forgetful(learnt, 3).fc.weight for _ in range(2)]
    assert torch.equal(*twice)
    assert not torch.equal(twice[0], localise.forgetful(learnt, 4).fc.weight)


def test_modes_and_gradients_are_left_alone(squares):
    model = Reader(learnt=True).train()
    model.fc.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    films, images, _ = squares
    localise.maps(model, images[:3], [0, 1, 0], at="layer4")
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
    scored = localise.scores(heat, boxes)
    assert scored["hit"].tolist() == [1, 0, 0.25], "an empty map scores as blind pointing"
    assert scored["chance"].tolist() == [0.25] * 3
    assert scored["iou"].tolist() == [0.5, 0, 0.25]
    assert scored["iobb"].tolist() == [1, 0, 0.25]


def test_boxes_are_joined_scaled_and_never_vanish():
    films = pd.DataFrame({"image": ["a.png"], "patient": [1]})
    rows = [["a.png", "Mass", 0, 0, 512, 512], ["a.png", "Mass", 1000, 1000, 3, 3], ["b.png", "Mass", 1, 1, 2, 2]]
    boxes = pd.DataFrame(rows, columns=["image", "finding", "x", "y", "w", "h"])
    wanted = localise.targets(films, boxes)
    assert len(wanted) == 1
    assert wanted.attrs["elsewhere"] == 1
    mask = localise.masks(wanted, boxes, 8)[0]
    assert mask.sum() == 16 + 1
    assert mask[7, 7]
    with pytest.raises(UserError, match=r"b\.png"):
        localise.targets(films, boxes, strict=True)


def test_no_boxes_give_an_empty_table():
    films = pd.DataFrame({"image": ["a.png"], "patient": [1]})
    wanted = localise.targets(films, pd.DataFrame(columns=["image", "finding", "x", "y", "w", "h"]))
    scored = localise.scores(np.empty((0, 8, 8)), np.empty((0, 8, 8), bool))
    assert localise.table(wanted, scored).empty


def test_bad_input_is_named(squares):
    _, images, _ = squares
    with pytest.raises(UserError, match="gradcam or occlusion"):
        localise.maps(Reader(True), images[:1], [0], method="saliency")
    with pytest.raises(UserError, match="one label per film"):
        localise.maps(Reader(True), images[:2], [0])


@pytest.mark.parametrize(("size", "name"), [(224, "layer4"), (128, "layer3"), (64, "layer2"), (32, "layer1")])
def test_layer_keeps_seven_cells(size, name):
    assert localise.layer(size) == name
