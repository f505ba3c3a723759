import numpy as np

from cxrlib.training import lineage


def test_the_whole_dataset_travels_in_two_megabytes():
    rng = np.random.default_rng(0)
    count = 86_524  # the films outside the official test part
    names = [f"{1 + i // 3:08d}_{i % 3:03d}.png" for i in range(count)]
    hashes = rng.integers(0, 2**63, (count, 2)).astype(np.uint64)
    everybody = lineage.Seen({"nih": np.arange(1, 28_009)}, np.array(names, object), hashes)
    packed = everybody.packed_patients(), everybody.packed_pictures()
    assert sum(len(text) for part in packed for text in part.values()) < 2.2e6
    again = lineage.unpack_seen(*packed)
    assert again.names.tolist() == names
    np.testing.assert_array_equal(again.hashes, hashes)
    np.testing.assert_array_equal(again.patients["nih"], everybody.patients["nih"])
    twice = everybody | again
    assert len(twice.names) == count
