"""The solutions run as they are written, on few small films and a small network, and show what their words claim."""

import matplotlib.pyplot as plt
import pytest

from cxrlib import paths
from cxrlib.training import checkpoint, job, network
from tests.cells import execute
from tests.test_notebooks import SOLUTIONS

RUN = "small"
SMALL = {"size": 32, "batch_size": 16, "schedule": "scratch", "epochs": 1}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, tiny_phantom):
    """A run of five stages, trained once: the solutions start from its checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("solutions")
        patch.setenv("CXR_OUTPUTS", str(folder))
        build = network.build
        patch.setattr(network, "build", lambda weights, seed=0: build(weights, seed=seed, layers=(1, 1, 1, 1)))
        patch.setattr(plt, "show", lambda: None)
        for stage in range(1, 6):
            job.train(run=RUN, stage=stage, data=str(tiny_phantom), **SMALL)
        yield folder


@pytest.fixture
def solved(outputs, tiny_phantom, monkeypatch):
    """Run the solution of a stage and give the names that it leaves."""
    monkeypatch.setenv("CXR_OUTPUTS", str(outputs))
    return lambda stage: execute(SOLUTIONS[stage - 1], run=RUN, data=str(tiny_phantom), **SMALL)


@pytest.mark.slow
def test_stage_1_one_film_a_patient_and_two_ways_to_resample(solved):
    left = solved(1)
    assert not left["sets"]["one film of each patient"]["patient"].duplicated().any()
    assert len(left["scores"]) == 4
    assert left["table"]["mean AUC"].nunique() == 1


@pytest.mark.slow
def test_stage_2_a_higher_rate_moves_layers_further_and_lower_rates_move_lower_layers_less(solved):
    left = solved(2)
    way, trained = left["distance"], list(left["recipe"].groups)
    assert (way["ten times"][trained] > way["usual rate"][trained]).all()
    graded = (way["lower_rate=0.3"] / way["usual rate"])[trained]
    assert graded.is_monotonic_increasing
    assert {paths.Run(f"{RUN}-{name}").stage(2).is_dir() for name in ("fast", "graded")} == {True}


@pytest.mark.slow
def test_stage_3_statistics_move_with_the_films_alone(solved):
    rows = solved(3)["rows"]
    moved = {name: row["statistics moved by"] for name, row in rows.items()}
    assert 0 == moved["0 batches"] < moved["1 batches"] < moved["4 batches"]
    assert moved["12 batches of negatives"] > moved["12 batches"]


@pytest.mark.slow
def test_stage_4_gamma_0_is_cross_entropy_and_weights_raise_sensitivity(solved):
    left = solved(4)
    assert left["contenders"]["focal, γ = 0"].gamma == 0
    assert set(left["bounds"][1].tolist()) == {1.0}
    at = {name: left["summary"].at_half(left["known"], reading) for name, reading in left["readings"].items()}
    found = [at[f"limit {bound}"]["sensitivity at 0.5"] for bound in (1, 3, 10)]
    assert found == sorted(found)


@pytest.mark.slow
def test_stage_5_the_ends_of_the_way_are_the_checkpoints_and_a_stage_is_skipped(solved):
    left = solved(5)
    assert sorted(left["readings"]) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert checkpoint.read_meta(left["skipped"])["parent"]["name"] == left["parent"].stem
    assert left["parent"].stem.startswith("stage3")
