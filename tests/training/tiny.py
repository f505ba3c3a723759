"""Tiny network and films, so that the training of a stage takes a second.

As a program, ``python tests/training/tiny.py FOLDER``, it trains two stages there and kills the training many times.
"""

import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cxrlib import labels
from cxrlib.data.augmentation import Augment
from cxrlib.data.batches import Batch
from cxrlib.training import fit, losses, network, schedules

SIZE = 32


class TinyBatches:
    """Batches with the interface of ``data.batches.Batches``: random films whose brightness shows their labels."""

    def __init__(self, count, *, first=0, batch_size=8, shuffle=False, variants=0):
        self.batch_size, self.shuffle, self.variants = batch_size, shuffle, variants
        self.rank, self.world, self.augment = 0, 1, Augment()
        random = np.random.default_rng(first)
        answers = (random.random((count, 15)) < 0.4).astype(np.uint8)
        answers[:, -1] = ~answers[:, :-1].any(1)
        self.films = pd.DataFrame(
            {
                "image": [f"{first + i:08d}_000.png" for i in range(count)],
                "path": "",
                "patient": np.arange(first, first + count) // 2,
                "follow_up": 0,
                "age": 50.0,
                "sex": "F",
                "view": "PA",
                **dict(zip(labels.LABELS, answers.T, strict=True)),
            }
        )
        self.labels = torch.from_numpy(answers).float()
        noise = torch.from_numpy(random.normal(size=(count, 1, SIZE, SIZE)).astype(np.float32))
        self.images = noise + self.labels[:, :1, None, None] * 2
        self.drawn = []

    def __len__(self):
        return self.steps(0)

    def steps(self, epoch):
        return len(self.sizes(epoch))

    def sizes(self, epoch):
        starts = np.arange(0, len(self.films), self.batch_size)
        return np.minimum(self.batch_size, len(self.films) - starts)

    def known(self, epoch):
        return self.sizes(epoch) * 15

    def known_of(self, rows):
        return len(rows) * 15

    def variant(self, epoch):
        if self.augment == Augment():
            return 0
        return epoch % self.variants if self.variants else None

    def epoch(self, epoch, start=0, *, on="cpu", images=True):
        order = (
            np.random.default_rng(epoch).permutation(len(self.films)) if self.shuffle else np.arange(len(self.films))
        )
        for i in range(start * self.batch_size, len(order), self.batch_size):
            rows = torch.from_numpy(np.array_split(order[i : i + self.batch_size], self.world)[self.rank])
            self.drawn.append((epoch, i // self.batch_size))
            yield Batch(self.images[rows].to(on).clone() if images else None, self.labels[rows].to(on), rows)


def parts():
    return TinyBatches(24, shuffle=True), TinyBatches(12, first=24)


def net(seed=0):
    return network.build("none", seed=seed, layers=(1, 1, 1, 1))


def score(answers, probabilities):
    """AUC by counting pairs: slow, but simple to check."""
    found = []
    for answer, probability in zip(answers.T, probabilities.T, strict=True):
        positive, negative = probability[answer == 1], probability[answer == 0]
        wins = (positive[:, None] > negative).mean() if len(positive) and len(negative) else np.nan
        found.append(wins)
    return np.array(found)


def recipe(**changes):
    values = {"lr": 1e-3, "epochs": 2, "augment": "none", **changes}
    values |= {"groups": tuple(values["groups"])} if "groups" in values else {}
    return schedules.recipe("scratch", values.pop("number", 1), **values)


def train(where, changes=None, model=None, train=None, val=None, **more):
    usual, usual_val = parts()
    how = recipe(**(changes or {}))
    loss = losses.make(how.loss, gamma=how.gamma)
    more = {"score": score, "progress": False, "device": "cpu", **more}
    return fit.fit(model or net(), train or usual, val or usual_val, loss, how, folder=where, **more)


def two_stages(root):
    """Train a stage of all groups, then one of the upper groups with a moving average; a state after every step."""
    os.environ["CXR_SAVE_EVERY"] = "0"
    model = net()
    first = train(root / "stage1", {"epochs": 1}, model=model)
    how = {"number": 2, "epochs": 2, "groups": ("layer4", "fc"), "ema": 0.9}
    train(root / "stage2", how, model=model, parent=first.best)


def forked(work):
    """Run ``work`` in a child process. Returns its id. Forking is safe because this process has not computed yet."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def done(child):
    """Wait for a child process, which must succeed."""
    assert os.waitpid(child, 0)[1] == 0


def hunt(root, kills=20, seed=0):
    """Train two stages undisturbed, and again with SIGKILLs at random times, listed in ``kills.json``.

    Each kill comes after a random share of the undisturbed training time, so that some trainings get further.
    """
    began = time.monotonic()
    done(forked(lambda: two_stages(root / "undisturbed")))
    took = time.monotonic() - began
    random = np.random.default_rng(seed)
    told = []
    while sum(kill["signal"] for kill in told) < kills * signal.SIGKILL:
        child = forked(lambda: two_stages(root / "killed"))
        time.sleep(random.uniform(0.02, 0.6) * took)
        os.kill(child, signal.SIGKILL)
        ended = os.WTERMSIG(os.waitpid(child, 0)[1])
        told.append({"signal": ended, "states": len(list(root.glob("killed/stage*/state/*.json")))})
        if not ended:  # the training ended first: start again
            shutil.rmtree(root / "killed")
    done(forked(lambda: two_stages(root / "killed")))
    (root / "kills.json").write_text(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    hunt(Path(sys.argv[1]))
