"""A checkpoint of a tiny network with all that travels with it, for the tests of predictions of film files."""

from contextlib import contextmanager

import numpy as np
import pytest

from cxrlib import paths
from cxrlib.evaluation import film_reader, reference, thresholds
from cxrlib.training import checkpoint, lineage, network, schedules

SIZE = 32
_build = network.build


@contextmanager
def small_networks():
    """Networks of one block per group inside, so that a film takes a few milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "build", lambda weights, seed=0: _build(weights, seed=seed, layers=(1, 1, 1, 1)))
        yield


def save(folder, *, calibrated=True, tta="none", seed=0):
    """Path of a checkpoint in the folder of a stage, which is finished with it."""
    line = lineage.of_stage(None, "none")
    state = _build("none", seed=seed, layers=(1, 1, 1, 1)).state_dict()
    path = checkpoint.save(folder, state, schedules.recipe("scratch", 1), line, epoch=1, metrics={})
    paths.write_json(folder / "best.json", {"best": path.stem})
    if calibrated:
        known, said = validation()
        made = thresholds.fit_decisions(known, said, size=SIZE, tta=tta)
        thresholds.attach_decisions(path, made)
        reference.attach(path, reference.make(known, said, made))
    return path


def validation():
    """200 films with 15 labels, and probabilities of a network, which rise with them."""
    rng = np.random.default_rng(0)
    known = (rng.random((200, 15)) < 0.3).astype(np.uint8)
    return known, np.clip(0.3 + 0.1 * known + 0.4 * rng.random(known.shape), 0, 1)


def reader(folder, **how):
    with small_networks():
        return film_reader.Reader.open(save(folder, **how))
