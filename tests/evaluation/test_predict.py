"""Predictions of a network, and the checks of a file of predictions."""

from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from cxrlib import UserError, labels
from cxrlib.evaluation import predict

Batch = namedtuple("Batch", "images labels rows")


class Films:
    """Seven random 16-px films in batches of three, out of order: small, since only order and modes are tested."""

    def __init__(self, n=7):
        torch.manual_seed(0)
        self.films = frame(n)
        self.images = torch.randn(n, 1, 16, 16)

    def __len__(self):
        return -(-len(self.films) // 3)

    def epoch(self, number, *, on="cpu"):
        for rows in torch.arange(len(self.films)).flip(0).split(3):
            yield Batch(self.images[rows], None, rows)


class Network(nn.Module):
    """A network whose output depends on the place, so that crops and mirror images matter; counts its inputs."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.head = nn.Linear(4, 15)
        self.sizes = []

    def forward(self, images):
        assert not torch.is_grad_enabled()
        self.sizes.append(tuple(images.shape))
        return self.head(nn.functional.adaptive_avg_pool2d(self.norm(images), 2).flatten(1))


def frame(n=7):
    rng = np.random.default_rng(0)
    known = rng.integers(0, 2, (n, 14), dtype=np.uint8)
    known = np.column_stack([known, ~known.any(1)]).astype(np.uint8)
    names = pd.DataFrame({"image": [f"{i:08d}_000.png" for i in range(n)], "patient": np.arange(n) // 2})
    return pd.concat([names, pd.DataFrame(known, columns=list(labels.LABELS))], axis=1)


def test_probabilities_come_in_film_order_and_modes_come_back():
    batches, network = Films(), Network().train()
    network.norm.eval()  # a frozen layer: eval mode inside a network in train mode
    before = network.norm.running_mean.clone()
    found = predict.predict(network, batches)
    assert (network.training, network.norm.training, network.head.training) == (True, False, True)
    assert torch.equal(before, network.norm.running_mean)
    with torch.no_grad():
        expected = torch.sigmoid(network.eval()(batches.images)).double().numpy()
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_flip_is_the_mean_of_the_film_and_its_mirror_image():
    batches, network = Films(), Network()
    mirrored = Films()
    mirrored.images = batches.images.flip(-1)
    both = (predict.predict(network, batches) + predict.predict(network, mirrored)) / 2
    np.testing.assert_allclose(predict.predict(network, batches, tta="flip"), both, atol=1e-6)


def test_ten_crop_reads_ten_views_of_seven_eighths():
    batches, network = Films(3), Network()
    found = predict.predict(network, batches, tta="tencrop")
    assert network.sizes == [(3, 1, 14, 14)] * 10
    mirrored = Films(3)
    mirrored.images = batches.images.flip(-1)
    np.testing.assert_allclose(found, predict.predict(network, mirrored, tta="tencrop"), atol=1e-6)


class Small(Network):
    """A network with memory for ``room`` films at once; ``words`` is the message of a failed allocation."""

    def __init__(self, room, error):
        super().__init__()
        self.room, self.error = room, error

    def forward(self, images):
        if len(images) > self.room:
            self.sizes.append("full")
            raise self.error
        return super().forward(images)


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("tta", ["none", "flip", "tencrop"])
@pytest.mark.parametrize("error", NO_MEMORY, ids=["cuda", "cpu", "python"])
def test_a_batch_too_large_for_memory_is_read_in_halves_on_any_device(error, tta):
    torch.manual_seed(1)
    plain, small = Network(), Small(1, error)
    small.load_state_dict(plain.state_dict())
    expected = predict.predict(plain, Films(), tta=tta)
    np.testing.assert_allclose(predict.predict(small, Films(), tta=tta), expected, atol=1e-6)
    assert small.sizes.count("full") == 1, "a size that was too much is not tried in every batch"


def test_no_memory_for_one_film_is_said_and_other_errors_are_not_hidden():
    with pytest.raises(UserError, match="no memory for one film of 16 px"):
        predict.predict(Small(0, NO_MEMORY[1]), Films())
    with pytest.raises(RuntimeError, match="shape mismatch"):
        predict.predict(Small(1, RuntimeError("shape mismatch")), Films())


def test_unknown_augmentation_and_nan_answers_are_refused():
    with pytest.raises(UserError, match="none, flip or tencrop"):
        predict.predict(Network(), Films(), tta="mirror")
    network = Network()
    network.head.bias.data[3] = torch.nan
    with pytest.raises(UserError, match=r"00000000_000\.png"):
        predict.predict(network, Films())


@pytest.fixture
def csv(tmp_path):
    films = frame()
    return predict.write(tmp_path / "test.csv", films, np.random.default_rng(1).random((len(films), 15)))


def test_written_predictions_come_back(csv):
    films = frame()
    found = predict.read(csv, films.iloc[::-1])
    np.testing.assert_array_equal(found.labels, films[list(labels.LABELS)].to_numpy()[::-1])
    np.testing.assert_allclose(found.probabilities, np.random.default_rng(1).random((len(films), 15))[::-1], rtol=1e-6)
    assert found.images == films["image"].tolist()[::-1]
    assert found.patients.tolist() == films["patient"].tolist()[::-1]
    assert predict.read(csv).images == films["image"].tolist()


def _swap(read):
    columns = list(read)
    columns[2], columns[3] = columns[3], columns[2]
    return read[columns]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_swap, "in this order"),
        (lambda read: read.drop(columns="prob_Hernia"), "prob_Hernia"),
        (lambda read: read.assign(prob_Mass=[np.nan] + [0.5] * 6), "row 2, prob_Mass"),
        (lambda read: read.assign(prob_Mass=[0.5, 1.2] + [0.5] * 5), "row 3, prob_Mass: 1.2"),
        (lambda read: read.assign(prob_Mass=["much"] * 7), "prob_Mass: much"),
        (lambda read: read.assign(prob_Hernia=[0.5] * 6 + [-0.1]), "row 8, prob_Hernia: -0.1"),
        (lambda read: read.assign(prob_Hernia=[np.inf] + [0.5] * 6), "row 2, prob_Hernia: inf"),
        (lambda read: read.assign(label_Mass=1 - read["label_Mass"]), "labels or patient of 00000000_000.png"),
        (lambda read: read.assign(patient=read["patient"] + 1), "are not those of the films .7."),
        (lambda read: read.assign(label_Edema=[0.5] * 7), "label_Edema"),
        (lambda read: read.assign(patient=["x"] * 7), "patient"),
        (lambda read: pd.concat([read, read.iloc[:1]]), "00000000_000.png occurs twice"),
        (lambda read: read.iloc[:0], "lacks 00000000_000.png"),
        (lambda read: read.iloc[1:], "lacks 00000000_000.png"),
        (lambda read: pd.concat([read, read.iloc[:1].assign(image="x.png")]), "foreign films, x.png"),
    ],
)
def test_damaged_predictions_are_named(csv, damage, says):
    damage(pd.read_csv(csv)).to_csv(csv, index=False)
    with pytest.raises(UserError, match=says) as caught:
        predict.read(csv, frame())
    assert str(csv) in str(caught.value)


def test_no_file_and_no_csv_are_named(tmp_path):
    with pytest.raises(UserError, match="no predictions at"):
        predict.read(tmp_path / "absent.csv")
    (tmp_path / "film.png").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match=r"film\.png"):
        predict.read(tmp_path / "film.png")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match=r"empty\.csv"):
        predict.read(tmp_path / "empty.csv")


def test_an_unknown_label_is_not_written_as_an_absent_one(tmp_path):
    films = frame().astype({"Mass": float})
    films.loc[3, "Mass"] = np.nan
    csv = predict.write(tmp_path / "test.csv", films, np.full((7, 15), 0.5))
    assert np.isnan(predict.read(csv, films).labels[3, 4])
    with pytest.raises(UserError, match=r"00000003_000\.png: Mass is 0\.5"):
        predict.write(tmp_path / "half.csv", films.fillna({"Mass": 0.5}), np.full((7, 15), 0.5))
    assert not (tmp_path / "half.csv").exists()
