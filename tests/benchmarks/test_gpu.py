"""That the card's benches run: on the CPU, tiny, and without a look at their figures."""

import pytest
import torch

from tests.benchmarks import bench_gpu

CPU = torch.device("cpu")


def test_without_a_card_none_is_run():
    assert bool(bench_gpu.BENCHES) == torch.cuda.is_available()


@pytest.mark.slow
def test_steps_and_the_bare_network_are_timed(monkeypatch):
    monkeypatch.setattr(bench_gpu, "PRECISIONS", ("float32",))
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    names = [row.name for row in bench_gpu.step(32, 4, 1, CPU)]
    assert len(names) == len(set(names)) == 5 + 2 + 1
    assert len(bench_gpu.bare(32, 4, 1, CPU)) == 2


@pytest.mark.slow
def test_training_and_reading_are_timed(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    rows = bench_gpu.training(60, 32, 16, CPU, numbers=(1, 2)) + bench_gpu.reading(60, 32, 16, CPU)
    assert [row.name for row in rows] == [
        "gpu: fit, modern stage 1",
        "gpu: fit, modern stage 2, compiled",
        "gpu: predict",
        "gpu: predict, tencrop",
    ]
    assert all(row.value > 0 for row in rows)
