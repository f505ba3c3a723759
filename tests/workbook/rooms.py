"""A run for the reading room: an untrained network, its predictions and its decisions, made in a second."""

import torch

from cxrlib import dataset, paths
from cxrlib.data import batches, records
from cxrlib.evaluation import predict, thresholds
from cxrlib.training import checkpoint, lineage, schedules

SIZE = 32


def leave(name, folder, model):
    """Leave a run in the outputs folder, as a stage and its evaluation do, on the films of ``folder``."""
    run, opened = paths.Run(name), dataset.open(str(folder), SIZE, progress=False)
    with torch.no_grad():
        model.fc.weight *= 20  # or all films would get the same probabilities
    train, _ = opened.batches(8)
    recipe, line = schedules.recipe("scratch", 1), lineage.of_stage(None, "none", train)
    made = checkpoint.save(run.stage(1), model.state_dict(), recipe, line, epoch=1, metrics={})
    paths.write_json(run.stage(1) / "best.json", {"best": made.stem})
    model.precision = "float32"
    for part in ("val", "test"):
        films = batches.Batches(opened.store, getattr(opened.parts, part), batch_size=32)
        file = run.predictions / f"{part}.csv"
        said = predict.predict_once(model, films, file, weights=checkpoint.read_meta(made)["sha256"])
    truth = records.label_matrix(opened.parts.test)
    thresholds.attach_decisions(made, thresholds.fit_decisions(truth, said))
    return run
