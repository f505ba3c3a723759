"""torch.compile: whether it saves time, and compiled code for batches of one size."""

import copy
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cxrlib.errors import UserError
from cxrlib.training import network
from cxrlib.training.recipes import Stage

SECONDS = 60.0
"""Time to compile a ResNet-50's training step: 35 s on the host of an H100, more on slower processors."""
GAIN = 0.24
"""Smallest share of a step's time that compiling saves: 24 % if all layers train, half if the upper two groups train
(H100, 224 px, batch 128, bfloat16, torch 2.11, 2026-11-26)."""
UTILISATION = 0.09
"""Share of the card's peak that an uncompiled step reaches: 3,490 images/s of 24.5 GFLOP on an H100 of 989 TFLOP/s."""
PEAK = {(7, 0): 1024, (7, 5): 1024, (8, 0): 2048, (9, 0): 4096, (10, 0): 8192}
"""Half-precision operations per clock and multiprocessor, by compute capability (dense, tensor cores; NVIDIA's
architecture papers)."""
PEAK_OTHERS, PEAK_BEFORE = 1024, 256
"""The same for unlisted cards from capability 7 on, and for older cards, which have no tensor cores."""


def films_at_once(recipe: Stage, train: Any, model: network.Network, device: torch.device, world: int = 1) -> int:
    """Batch size that a stage's code is compiled for; 0 where compiling is off or would not save time.

    ``train`` are the training batches of the stage, which ``world`` processes share.
    """
    if recipe.compile == "no" or (recipe.compile == "auto" and not _pays(recipe, train, model, device)):
        return 0
    require(device)
    return train.batch_size // world


def _pays(recipe: Stage, train: Any, model: network.Network, device: torch.device) -> bool:
    size = getattr(getattr(train, "store", None), "size", 0)
    films = sum(int(train.sizes(epoch).sum()) for epoch in range(recipe.epochs))
    return bool(size) and pays(device, lambda: training_flops(model, films, size))


def pays(device: torch.device, flops: Callable[[], float]) -> bool:
    """Whether compiling saves more time than it takes, in a training of so many floating-point operations.

    The estimate uses the card's properties, not a measured time, so a repeated stage gets the same answer. On a CPU no
    gain was measured, so the answer is False.
    """
    return device.type == "cuda" and GAIN * flops() / (UTILISATION * peak(device)) > SECONDS


def peak(device: torch.device) -> float:
    """Peak half-precision operations per second of a card, at its highest clock."""
    card = torch.cuda.get_device_properties(device)
    others = PEAK_OTHERS if card.major >= 7 else PEAK_BEFORE
    kilohertz = getattr(card, "clock_rate", 1_500_000)  # torch before 2.7 does not have it
    return card.multi_processor_count * kilohertz * 1e3 * PEAK.get((card.major, card.minor), others)


def training_flops(model: network.Network, films: int, size: int) -> float:
    """Floating-point operations of training on so many films: a forward pass through the whole network, and a backward
    pass of twice the cost through the trained part."""
    meta_model = copy.deepcopy(model).to("meta")
    with FlopCounterMode(display=False) as prefix, torch.no_grad():
        features = meta_model.prefix(torch.empty(1, 1, size, size, device="meta"))
    with FlopCounterMode(display=False) as suffix, torch.no_grad():
        meta_model.eval().suffix(features)
    return films * (prefix.get_total_flops() + 3 * suffix.get_total_flops())


class WholeBatches:
    """Compiled function for batches of ``films`` films. Other batch sizes run uncompiled.

    torch caches the compiled code for later stages and runs, in ``TORCHINDUCTOR_CACHE_DIR``.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], films: int) -> None:
        self.run, self.films, self.compiled = run, films, torch.compile(run, dynamic=False)

    def __call__(self, values: Tensor) -> Tensor:
        return self.compiled(values) if len(values) == self.films else self.run(values)


def require(device: torch.device) -> None:
    """Raise UserError where torch.compile needs a C++ compiler for the CPU and there is none."""
    if device.type == "cpu" and not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")):
        raise UserError("compile=yes needs a C++ compiler on a CPU, and there is none; install g++, or set compile=no")
