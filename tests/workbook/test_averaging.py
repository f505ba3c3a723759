"""``cxr ensemble`` on runs of tiny networks: what it leaves, when it does nothing, and what it refuses."""

import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from cxrlib import paths
from cxrlib.evaluation import calibration, ensemble, intervals, predict, protocol, thresholds
from cxrlib.labels import FINDINGS
from cxrlib.report import from_predictions
from cxrlib.training import checkpoint, lineage, network, schedules
from cxrlib.workbook import averaging, cli
from tests.report.reader import read
from tests.workbook import members

MEAN = paths.Run("mean")


@pytest.fixture(scope="module")
def trained(tiny_phantom, tmp_path_factory):
    """An outputs folder with three members."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXR_OUTPUTS", str(tmp_path_factory.mktemp("members")))
        for seed, name in enumerate("abc"):
            members.leave(name, tiny_phantom, seed=seed)
        yield paths.outputs()


@pytest.fixture
def own(trained, own_outputs):
    """A copy of the members for one test."""
    shutil.copytree(trained, own_outputs, dirs_exist_ok=True, ignore=shutil.ignore_patterns("mean"))
    return own_outputs


@pytest.fixture(scope="module")
def averaged(trained):
    """The mean of all three, made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXR_OUTPUTS", str(trained))
        averaging.run(["a", "b", "c"])
    return trained


@pytest.fixture
def made(averaged, own_outputs):
    shutil.copytree(averaged, own_outputs, dirs_exist_ok=True)
    return MEAN


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take most of the time, and not every test looks at them."""
    monkeypatch.setattr(from_predictions, "_closed", lambda *_, **__: None)


def said(name, part="test"):
    return predict.read(paths.Run(name).predictions / f"{part}.csv")


def stamps():
    return {file: file.stat().st_mtime_ns for file in MEAN.root.rglob("*") if not file.name.startswith(".")}


def test_it_leaves_the_mean_and_all_that_a_report_needs(made):
    for part in ("val", "test"):
        expected = np.mean([said(name, part).probabilities for name in "abc"], axis=0)
        np.testing.assert_allclose(said("mean", part).probabilities, expected, atol=1e-9)
    table = pd.read_csv(made.tables / "auc_test.csv").set_index("finding")
    for k, finding in enumerate(FINDINGS):
        truth = said("mean").labels[:, k]
        if 0 < truth.sum() < len(truth):
            expected = roc_auc_score(truth, said("mean").probabilities[:, k])
            assert table.loc[finding, "auc"] == pytest.approx(expected, abs=1e-6)
    page = read(made.report)
    for title in ("The members of the mean", "Calibration", "Thresholds", "Patient groups", "Films, best and worst"):
        assert title in page.words
    for word in ("What is missing", "is not there", "Stage by stage", "Where it looks", "executed notebooks"):
        assert word not in page.words
    assert "the mean of 3 runs" in page.words
    assert "none of its own: mean of the probabilities of a, b and c" in page.words
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert not list(made.root.rglob("*.safetensors"))
    plan = protocol.read(made)
    assert plan.plans[0]["stages"] == ["a", "b", "c"]
    assert "This run: 1 reading" in page.words


def test_decisions_are_chosen_on_the_means_validation_films(made):
    kept = paths.read_json(made.root / averaging.DECISIONS)
    val = said("mean", "val")
    gamma = schedules.recipe("scratch", 1).gamma
    expected = thresholds.fit_decisions(val.labels, val.probabilities, gamma=gamma)
    fitted = calibration.from_dict(kept["calibration"])
    np.testing.assert_allclose(fitted.slopes, expected.calibration.slopes, rtol=1e-6)
    again = thresholds.from_dict(kept["thresholds"]).set_index(["finding", "rule"])["threshold"]
    cuts = expected.chosen.set_index(["finding", "rule"])["threshold"]
    pd.testing.assert_series_equal(again.sort_index(), cuts.sort_index(), atol=1e-8)


def test_each_members_difference_is_paired_by_patient(made):
    table = pd.read_csv(made.tables / "members.csv").set_index("member")
    assert list(table.index) == ["a", "b", "c"]
    how = {"replicates": 1000, "seed": 0, "precision": False}
    boots = {name: intervals.bootstrap(said(name).labels, said(name).probabilities, said(name).patients, **how)
             for name in ("a", "b", "c", "mean")}  # fmt: skip
    for name in "abc":
        expected = intervals.difference(boots["mean"], boots[name])
        found = table.loc[name, ["difference", "low", "high", "p"]].to_numpy(np.float64)
        np.testing.assert_allclose(found, expected, atol=1e-9)
    single = pd.read_csv(made.tables / "member_findings.csv")
    assert single.groupby("member").size().tolist() == [len(FINDINGS)] * 3


def test_the_same_command_does_nothing_and_a_changed_file_is_made_again(made, undrawn, capsys):
    before = stamps()
    averaging.run(["a", "b", "c"])
    assert stamps() == before
    assert "unchanged" in capsys.readouterr().out
    (MEAN.tables / "members.csv").write_text("member\n")
    averaging.run(["a", "b", "c"])
    assert "tables/members.csv is not what it made" in capsys.readouterr().out
    assert len(pd.read_csv(MEAN.tables / "members.csv")) == 3
    MEAN.report.write_text("")
    averaging.run(["a", "b", "c"])
    assert "The members of the mean" in MEAN.report.read_text()


def test_a_changed_member_is_averaged_anew_and_a_damaged_one_refused(made, undrawn, tiny_phantom, capsys):
    shutil.rmtree(paths.Run("c").root)
    members.leave("c", tiny_phantom, seed=9)
    averaging.run(["a", "b", "c"])
    assert "Run mean is averaged again: c changed." in capsys.readouterr().out
    expected = np.mean([said(name).probabilities for name in "abc"], axis=0)
    np.testing.assert_allclose(said("mean").probabilities, expected, atol=1e-9)
    file = paths.Run("b").predictions / "val.csv"
    file.write_text(file.read_text().replace(",0.5", ",0.6"))
    before = stamps()
    assert cli.call(["ensemble", "a", "b", "c"]) == 2
    assert stamps() == before


def test_an_earlier_mean_that_was_changed_is_told_by_the_report_with_its_own_command(made, capsys):
    (MEAN.tables / "members.csv").write_text("member\n")
    assert cli.call(["report", "mean"]) == 0
    assert "Run cxr ensemble a b c --run mean again." in capsys.readouterr().out


WRONG = {
    "one run": (["a"], "name two or more"),
    "doubles": (["a", "b", "a"], "run a is named twice"),
    "itself": (["a", "b", "--run", "a"], "run a is a member"),
    "a trained run": (["a", "b", "--run", "c"], "run c is not a mean"),
    "no run": (["a", "nowhere"], "there is no run 'nowhere'"),
    "another mean": (["a", "b", "--of", "ranks"], "choose probabilities or logits"),
    "a wrong name": (["a", "b", "--run", "compare-a"], "reserved"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_is_one_line_and_writes_nothing(own, case, capsys):
    words, message = WRONG[case]
    before = sorted(own.rglob("*"))
    assert cli.call(["ensemble", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(own.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--run", "mean"],
        ["export", "mean", "--to", "exported"],
        ["predict", "FILM", "--run", "mean"],
        ["ensemble", "a", "mean", "--run", "again"],
        ["test", "--run", "mean"],
    ],
)
def test_what_needs_a_network_names_the_members(made, words, tiny_phantom, capsys):
    film = str(next((tiny_phantom / "images").iterdir()))
    assert cli.call([film if word == "FILM" else word for word in words]) == 2
    err = capsys.readouterr().err
    assert "mean of" in err
    assert "a, b, c" in err
    assert len(err.strip().splitlines()) == 1


def leak(name, part, role):
    """Give the member's checkpoint a lineage that saw the films of a part."""
    home = paths.Run(name)
    opened = averaging._open(ensemble.member(name))
    films = getattr(opened.parts, part)
    batches = type("Part", (), {"films": films, "store": opened.store})()
    nothing = type("Part", (), {"films": films.iloc[:0], "store": opened.store})()
    line = lineage.of_stage(None, "none", *((batches,) if role == "trained" else (nothing, batches)))
    model = network.build("none", seed=ord(name), layers=(1, 1, 1, 1))
    path = checkpoint.save(home.stage(1), model.state_dict(), schedules.recipe("scratch", 1), line, epoch=1, metrics={})
    for file in home.predictions.glob("*.json"):
        note = paths.read_json(file) | {"weights": checkpoint.read_meta(path)["sha256"]}
        paths.write_json(file, note, guarded=True)


@pytest.mark.parametrize(
    ("part", "role", "message"),
    [
        ("test", "trained", "run b or an ancestor saw"),
        ("test", "validated", "run b or an ancestor saw"),
        ("val", "trained", "run b or an ancestor was trained on"),
    ],
)
def test_a_member_that_has_seen_the_films_is_refused_unless_it_is_allowed(own, undrawn, part, role, message, capsys):
    leak("b", part, role)
    assert cli.call(["ensemble", "a", "b"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "--allow-leak" in err
    assert not MEAN.root.exists()
    assert cli.call(["ensemble", "a", "b", "--allow-leak"]) == 0
    first = MEAN.report.read_text().partition("<main>")[0]
    assert ("Contaminated." in first) == (part == "test")
    assert ("calibration and thresholds are chosen on films that it knows" in first) == (part == "val")


def test_validation_films_that_chose_an_epoch_are_no_leak(own, undrawn):
    leak("b", "val", "validated")
    assert cli.call(["ensemble", "a", "b"]) == 0


def test_a_member_whose_checkpoint_is_gone_is_refused_unless_it_is_allowed(own, undrawn, capsys):
    shutil.rmtree(paths.Run("b").stage(1))
    assert cli.call(["ensemble", "a", "b"]) == 2
    assert "the checkpoint that predicted for run b is gone" in capsys.readouterr().err
    assert cli.call(["ensemble", "a", "b", "--allow-leak"]) == 0
    assert "Not known:" in MEAN.report.read_text()
