"""Soft labels: the targets, the losses of them, what teachers may have seen, and what is kept of their answers."""

import numpy as np
import pytest
import torch

from cxrlib import UserError, dataset, paths
from cxrlib.data import records
from cxrlib.data.batches import Batches, SoftLabels
from cxrlib.training import checkpoint, job, lineage, losses, teachers
from cxrlib.workbook import run_record, settings

HOW = {"stage": 1, "size": 32, "batch_size": 16, "epochs": 1, "schedule": "scratch"}


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(6, 15, generator=draw) * 3, torch.rand(6, 15, generator=draw)


@pytest.fixture(scope="module")
def films(tiny_phantom, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXR_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        yield dataset.open(str(tiny_phantom), 32, progress=False)


@pytest.fixture
def taught(tiny_phantom):
    """A run to learn from."""
    return job.train(run="base", data=str(tiny_phantom), **HOW).best


def test_cross_entropy_of_soft_labels_is_torchs(batch):
    weight = np.linspace(0.5, 8, 15)
    torchs = torch.nn.functional.binary_cross_entropy_with_logits
    for given, expected in ((None, None), (weight, torch.tensor(weight, dtype=torch.float32))):
        loss = losses.for_soft_labels(losses.make("bce", positive_weight=given))
        torch.testing.assert_close(loss(*batch), torchs(*batch, pos_weight=expected))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_of_soft_labels_is_the_papers_formula(batch, gamma):
    logits, labels = (values.double() for values in batch)
    p = logits.sigmoid()
    expected = ((labels - p).abs() ** gamma * -((1 - labels) * (1 - p).log() + labels * p.log())).mean()
    loss = losses.for_soft_labels(losses.make("focal", gamma=gamma))
    torch.testing.assert_close(loss(*batch).double(), expected, rtol=1e-5, atol=1e-8)


def test_soft_labels_of_0_and_1_give_cross_entropys_very_bits(batch):
    logits, labels = batch[0].requires_grad_(), batch[1].round()
    hard = losses.make("bce")
    values = [loss(logits, labels) for loss in (hard, losses.for_soft_labels(hard))]
    gradients = [torch.autograd.grad(value, logits)[0] for value in values]
    assert torch.equal(*values)
    assert torch.equal(*gradients)
    focal = losses.make("focal")
    torch.testing.assert_close(losses.for_soft_labels(focal)(logits, labels), focal(logits, labels))


def test_where_network_and_label_agree_the_gradient_is_finite():
    logits = torch.zeros(2, 15, requires_grad=True)
    for gamma in (0.5, 1.0, 2.0):
        value = losses.for_soft_labels(losses.make("focal", gamma=gamma))(logits, torch.full((2, 15), 0.5))
        assert torch.autograd.grad(value, logits)[0].isfinite().all()


def test_an_unknown_label_stays_unknown_and_has_no_gradient(batch):
    logits, labels = batch[0].requires_grad_(), batch[1].round()
    labels[2, 3] = torch.nan
    targets = torch.from_numpy(teachers.blend(labels.numpy(), np.full((6, 15), 0.5), 0.5))
    assert targets.isnan().sum() == 1
    value = losses.for_soft_labels(losses.make("bce"))(logits, targets)
    gradient = torch.autograd.grad(value, logits)[0]
    assert gradient[2, 3] == 0
    assert (gradient != 0).sum() == 89


def test_the_target_is_the_share_of_both():
    labels, said = np.array([[0.0, 1.0]]), np.array([[0.2, 0.6]])
    np.testing.assert_allclose(teachers.blend(labels, said, 0.5), [[0.1, 0.8]], rtol=1e-6)
    assert np.array_equal(teachers.blend(labels, said, 0.0), labels)
    np.testing.assert_allclose(teachers.blend(labels, said, 1.0), said, rtol=1e-6)


def test_batches_have_each_films_own_targets_on_every_way_to_the_network(films):
    values = np.random.default_rng(0).random((len(films.parts.train), 15)).astype(np.float32)
    values[3, 4] = np.nan
    train, val = films.batches(16, augment="light", soft=SoftLabels(values))
    for images in (True, False):
        for batch in train.epoch(1, images=images):
            np.testing.assert_array_equal(batch.labels.numpy(), values[batch.rows.numpy()])
    rows, random = np.arange(5), np.zeros((5, 8), np.float32)
    packed = train._unpack(*train._pack(rows, random), torch.device("cpu"))  # the way to a card
    whole = train._whole(rows, random, torch.device("cpu"))
    np.testing.assert_array_equal(packed.labels.numpy(), values[:5])
    torch.testing.assert_close(packed.images, whole.images)
    plain = records.label_matrix(films.parts.val)[: 2 * 16]
    np.testing.assert_array_equal(next(iter(val.epoch(0))).labels.numpy(), plain)
    with pytest.raises(UserError, match="do not fit"):
        Batches(films.store, films.parts.val, batch_size=8, soft=SoftLabels(values))


@pytest.mark.slow
def test_a_teacher_of_the_same_split_teaches_and_its_past_is_kept(taught, tiny_phantom):
    result = job.train(run="second", data=str(tiny_phantom), teacher="base", **HOW)
    meta = checkpoint.read_meta(result.best)
    assert [one["name"] for one in meta["teachers"]] == [taught.stem]
    assert "teachers" in lineage.checkpoint_table(result.best).index
    plain = job.train(run="plain", data=str(tiny_phantom), **HOW)
    none = job.train(run="none", data=str(tiny_phantom), teacher="base", override="teacher_share=0", **HOW)
    hashes = [checkpoint.tensors_sha256(checkpoint.load(one.best).state) for one in (result, plain, none)]
    assert hashes[0] != hashes[1] == hashes[2]
    assert not job.train(run="second", data=str(tiny_phantom), teacher="base", **HOW).trained


@pytest.mark.slow
def test_what_a_teacher_said_is_kept_and_made_again_where_it_is_damaged(taught, tiny_phantom, monkeypatch):
    films = dataset.open(str(tiny_phantom), 32, progress=False)
    first = teachers.soft_labels("base", films, 0.5).values
    hard = records.label_matrix(films.parts.train)
    said = teachers.probabilities(taught, films)
    np.testing.assert_allclose(first, (hard + said) / 2, atol=1e-6)
    with monkeypatch.context() as patch:
        patch.setattr(teachers, "_read", lambda *_: pytest.fail("asked again"))
        assert np.array_equal(teachers.soft_labels("base", films, 0.5).values, first)
    (file,) = paths.outputs().glob("teachers/*.safetensors")
    file.write_bytes(file.read_bytes()[:-4])
    assert np.array_equal(teachers.soft_labels("base", films, 0.5).values, first)


@pytest.mark.slow
def test_teachers_that_saw_what_is_validated_or_tested_are_refused(taught, tiny_phantom):
    films = dataset.open(str(tiny_phantom), 32, progress=False)
    swapped = films.parts.__class__(**{**vars(films.parts), "train": films.parts.val, "val": films.parts.train})
    other = dataset.Dataset(films.folder, films.films, films.store, swapped)
    with pytest.raises(UserError, match=r"teacher stage1.* was trained on .* patients to be validated on, such as"):
        teachers.soft_labels("base", other, 0.5)
    tested = films.parts.__class__(**{**vars(films.parts), "val": films.parts.test, "test": films.parts.val})
    with pytest.raises(UserError, match=r"patients to be tested on: film .* chose its epoch"):
        teachers.soft_labels("base", dataset.Dataset(films.folder, films.films, films.store, tested), 0.5)


@pytest.mark.slow
def test_wrong_teachers_are_refused_in_one_line(taught, tiny_phantom):
    how = {**HOW, "data": str(tiny_phantom)}
    for teacher, words in (("base,base", "named twice"), ("base,", "commas between"), ("nosuch", "neither a run")):
        with pytest.raises(UserError, match=words):
            job.train(run="second", teacher=teacher, **how)
    with pytest.raises(UserError, match="is of the run base itself"):
        job.train(run="base", teacher="base", **how)
    with pytest.raises(UserError, match="is of the run base itself"):
        job.train(run="base", teacher=str(taught), **how)


@pytest.mark.slow
def test_a_teacher_is_known_by_its_file_and_another_one_makes_the_stage_anew(taught):
    assert settings.located({"teacher": "base"}) == {"teacher": str(taught)}
    assert settings.located({"teacher": "base, other"}) == {"teacher": f"{taught},other"}
    assert settings.located({"teacher": ""}) == {"teacher": ""}
    before = run_record._weights({"teacher": str(taught)})
    taught.write_bytes(taught.read_bytes() + b" ")
    assert before
    assert run_record._weights({"teacher": str(taught)}) != before
