"""The null studies in short: no sentence of the first screen is wrong more often than one in twenty allows."""

import numpy as np
import pytest
from scipy.stats import binom

from tests.benchmarks import bench_null

STUDIES = 40
MOST = int(binom.ppf(0.999, STUDIES, 0.05))
"""Wrong studies that a sentence which is wrong in 5 % exceeds once in a thousand: 7 of 40."""


@pytest.mark.slow
@pytest.mark.parametrize("name", bench_null.SENTENCES)
def test_a_sentence_is_seldom_wrong_where_there_is_nothing(name):
    wrong = sum(bench_null.SENTENCES[name](seed) for seed in range(STUDIES))
    assert wrong <= MOST, f"{name}: wrong in {wrong} of {STUDIES} studies"


def test_the_sentences_are_said_where_there_is_something():
    """Studies that could not fail would show nothing: unequal readers and groups are told apart."""
    films, good, poor = bench_null.study(0, readers=2)
    poor = np.where(
        np.random.default_rng(0).random(poor.shape) < 0.5, poor, np.random.default_rng(1).random(poor.shape)
    )
    assert bench_null.intervals.difference(*bench_null._boots(films, [poor, good])).p <= 0.05
    mixed = good.copy()
    mixed[:, 0] = np.random.default_rng(2).random(len(good))
    assert "AUC lower than the mean of the other findings: Atelectasis" in bench_null._reading(films, mixed)
    blind = np.where((films["sex"] == "F").to_numpy()[:, None], np.random.default_rng(3).random(good.shape), good)
    table = bench_null.subgroups.gaps(bench_null.subgroups.measure(films, blind, replicates=2))
    assert "is lower in women than in men" in bench_null.sections.gaps(table)["sentence"]
