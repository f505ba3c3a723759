import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from saved import films, part, save

from cxrlib import UserError, paths
from cxrlib.training import checkpoint, lineage


@pytest.fixture(scope="module")
def model():
    return tiny.net()


def test_patients_of_all_ancestors_are_remembered_and_their_films_refused(tmp_path, model):
    first = save(tmp_path / "stage1", model, 1, 2)
    second = save(tmp_path / "stage2", model, 2, 3, number=2, parent=first)
    third = save(tmp_path / "stage3", model, 7, number=3, parent=second)
    first.unlink()  # an ancestor's file may be deleted
    meta = checkpoint.read_meta(third)
    assert {role: who.patients["nih"].tolist() for role, who in lineage.seen_by(third).items() if who.count} == {
        "trained": [1, 2, 3, 7]
    }
    assert [line["name"] for line in lineage.ancestors(third)] == [first.stem, second.stem, third.stem]
    assert meta["parent"]["sha256"] == checkpoint.read_meta(second)["sha256"]
    assert lineage.refuse_leak([third], films(4, 5), None)["patients"].tolist() == [0]
    with pytest.raises(UserError, match=r"saw 2 of the 3 patients to be tested.*00000001_000.png is of patient nih:1"):
        lineage.refuse_leak([third], films(1, 1, 7, 8), None)
    assert lineage.refuse_leak([third], films(1, 8), None, allow=True)["patients"].tolist() == [1]


@given(st.lists(st.integers(0, 2**62), max_size=50))
def test_packed_numbers_come_back_sorted_and_once(numbers):
    assert lineage.unpack_numbers(lineage.pack_numbers(np.array(numbers, np.int64))).tolist() == sorted(set(numbers))


def test_thirty_thousand_patients_take_little_room():
    assert len(lineage.pack_numbers(np.random.default_rng(0).permutation(30805)[:25000])) < 40_000


def test_only_the_first_stage_may_start_without_a_checkpoint():
    run = paths.Run("empty")
    assert lineage.parent_of_stage(run, 1) is None
    with pytest.raises(UserError, match="stage1 holds no finished stage"):
        lineage.parent_of_stage(run, 2)
    with pytest.raises(UserError, match=r"no checkpoint 'stage3_0\.001_6'"):
        lineage.parent_of_stage(run, 1, "stage3_0.001_6")
    with pytest.raises(UserError, match="no finished stage"):
        lineage.stage_checkpoints(run)


def test_random_and_imagenet_weights_have_seen_no_patient():
    for weights in ("none", "IMAGENET1K_V2"):
        words, past = lineage.origin_of_weights(weights)
        assert words != lineage.UNKNOWN
        assert past == {}


def test_a_file_without_a_list_is_of_unknown_origin(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"somebody's")
    assert lineage.origin_of_weights(str(tmp_path / "w.pth")) == (lineage.UNKNOWN, {})


def test_the_list_beside_foreign_weights_goes_into_the_lineage(tmp_path):
    (tmp_path / "w.pth.films.txt").write_text("00000013_005.png\n00000013_006.png\n77\nour-hospital:4\n\n")
    line = lineage.of_stage(None, str(tmp_path / "w.pth"), part(5, 6), part(7))
    assert "3 patients" in line.origin
    trained = {dataset: numbers.tolist() for dataset, numbers in line.past["trained"].patients.items()}
    assert trained == {"nih": [5, 6, 13], "unnamed": [77], "our-hospital": [4]}
    assert line.past["validated"].patients["nih"].tolist() == [7]


def test_a_damaged_list_names_its_line(tmp_path):
    (tmp_path / "w.pth.films.txt").write_text("13\nHernia\n")
    with pytest.raises(UserError, match="line 2: 'Hernia'"):
        lineage.origin_of_weights(str(tmp_path / "w.pth"))
