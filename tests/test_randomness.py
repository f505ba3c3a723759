"""Random numbers against values written down once, and against what is uniform."""

import numpy as np
import pytest

from cxrlib import randomness


def test_the_stream_is_frozen():
    """Philox4x64-10 of Salmon et al., SC 2011, as NumPy has it."""
    known = [15934997034538813590, 5974038831710081363, 6215707385546428567]
    assert randomness.raw(3, 7, stream=1, purpose=2).tolist() == known


def test_a_longer_draw_begins_with_a_shorter_one_and_streams_differ():
    np.testing.assert_array_equal(randomness.raw(50, 3)[:10], randomness.raw(10, 3))
    draws = [tuple(randomness.raw(4, *key)) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0))]
    assert len(set(draws)) == 5


def test_permutations_and_numbers_below():
    order = randomness.permutation(1000, 5)
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    numbers = randomness.below(randomness.raw(70_000, 1), 7)
    assert set(numbers) == set(range(7))
    assert np.bincount(numbers) / 10_000 == pytest.approx(np.ones(7), abs=0.04)
    assert randomness.below(np.array([2**64 - 1], np.uint64), 2**31)[0] == 2**31 - 1
