"""Finished runs of tiny networks, with records and predictions, for the mean of several runs."""

from cxrlib import paths
from cxrlib.training import network
from cxrlib.workbook import pipeline
from tests.workbook import rooms


def leave(name, folder, *, seed=0):
    """Leave a run of an untrained network on the films of ``folder``: its stage, predictions and record."""
    run = rooms.leave(name, folder, network.build("none", seed=seed, layers=(1, 1, 1, 1)))
    record(run, folder, seed=seed)
    return run


def record(run, folder, **changes):
    """Write the run's record, as the chain does after an evaluation."""
    names = [f"predictions/{part}.csv" for part in ("val", "test")]
    made = {name: paths.result_mark(run.root / name) for name in names}
    settings = {"run": run.name, "data": str(folder)}
    shared = {"size": rooms.SIZE, "batch_size": 8, "schedule": "scratch", "weights": "none", "seed": 0}
    entry = {"state": "done", "outputs": names, "made": made, "seconds": 1.0}
    record = {"run": run.name, "settings": settings, "parameters": {**shared, **changes}}
    record |= {"data": pipeline.data(str(folder), known=True), "notebooks": {"06_evaluation": entry}}
    paths.write_json(run.run_json, record, guarded=True)
