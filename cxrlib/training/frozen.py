"""Frozen part of the network: BatchNorm folded into the convolutions, and its features cached."""

import copy
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import Bottleneck

from cxrlib.data import cuda
from cxrlib.training import compiler, network
from cxrlib.training.team import Team

MEMORY = 2**30
"""Largest size in bytes of the features cached in memory, for one part of the data."""
CARD_SHARE = 0.1
"""Largest share of a card's free memory for cached features."""
DISK = 2**36
"""Largest size in bytes of the features cached in a file, if the disk has twice that free. Only for a CPU: an
accelerator computes features faster than a disk reads them."""


def fold(model: network.Network, first: int = 0, last: int | None = None) -> nn.Sequential:
    """Copy of the steps ``first`` to ``last`` of ``network.STEPS``, with each BatchNorm folded into its convolution.

    By default it is the frozen prefix. The output is that of the network in eval mode up to rounding, with a third
    fewer passes over memory (formula: Jacob et al., Quantization and Training of Neural Networks, CVPR 2018, 3.2).
    """
    last = model.split if last is None else last
    names = [name for step in list(network.STEPS)[first:last] for name in network.STEPS[step]]
    modules = {name: copy.deepcopy(getattr(model, name)).eval().requires_grad_(False) for name in names}
    if "bn1" in modules:
        modules["conv1"] = fuse_conv_bn_eval(modules["conv1"], modules.pop("bn1"))
    for module in modules.values():
        for block in module.modules():
            if isinstance(block, Bottleneck):
                _fold_block(block)
    parts = [part for name, module in modules.items() for part in _with_flatten(name, module)]
    return nn.Sequential(*parts)


def _with_flatten(name: str, module: nn.Module) -> list[nn.Module]:
    return [module, nn.Flatten()] if name == "avgpool" else [module]


def _fold_block(block: Bottleneck) -> None:
    for number in "123":
        folded = fuse_conv_bn_eval(getattr(block, f"conv{number}"), getattr(block, f"bn{number}"))
        setattr(block, f"conv{number}", folded)
        setattr(block, f"bn{number}", nn.Identity())
    if block.downsample is not None:
        block.downsample = nn.Sequential(fuse_conv_bn_eval(*block.downsample))


class Features:
    """Features of the frozen prefix for the films of one part, batch by batch.

    Features are cached if each film has a fixed number of variants (one without augmentation, see ``data.batches``)
    and all features fit into ``memory`` or ``disk`` bytes. They are then computed at the first batch, once per variant,
    in the films' order. The cache is on the card if it fits into ``CARD_SHARE`` of the free memory there, else in
    memory, else in a temporary file in ``folder``. ``pause(done, all)`` is called after each batch of this work and may
    raise. ``dtype`` is the type of computation and cache. ``compiled`` is the compiled batch size, 0 for none.
    """

    def __init__(
        self,
        model: network.Network,
        part: Any,
        team: Team,
        *,
        dtype: torch.dtype = torch.float32,
        compiled: int = 0,
        pause: Callable[[int, int], None] = lambda done, all: None,
        folder: Path | None = None,
        memory: int = MEMORY,
        disk: int = DISK,
    ) -> None:
        self.part, self.team, self.dtype, self.pause, self.folder = part, team, dtype, pause, folder
        self.memory, self.disk = memory, disk if team.device.type == "cpu" else 0
        self.prefix = None
        if model.split:
            self.prefix = fold(model).to(team.device, dtype).to(memory_format=torch.channels_last)
            self.prefix = compiler.WholeBatches(self.prefix, compiled) if compiled else self.prefix
        self.remembers = self.prefix is not None
        self.known: dict[int, Tensor] = {}  # (N, …) on the CPU or a card, by variant

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """The epoch's batches on the device, without images where all features are cached."""
        if start < self.part.steps(epoch):  # no batch is left at the end of an epoch, so no cache is computed
            yield from self.part.epoch(epoch, start, on=self.team.device, images=not self.knows(epoch))

    def knows(self, epoch: int) -> bool:
        """Whether the features of this epoch's variant are cached. Computes the cache first, if there is room."""
        variant = self.part.view(epoch)
        if self.remembers and variant is not None and variant not in self.known:
            self._fill_cache(variant)
        return variant in self.known

    def of(self, batch: Any, epoch: int = 0) -> Tensor:
        """Features of a batch on the device, the input of ``model.suffix``; its images where nothing is frozen."""
        if not self.knows(epoch):
            return self._compute(batch.images)
        cache = self.known[self.part.view(epoch)]
        return _channels_last(cuda.moved(cache[cuda.moved(batch.rows, cache.device)], self.team.device))

    @torch.no_grad()
    def _compute(self, images: Tensor) -> Tensor:
        images = _channels_last(images)  # (B, 1, S, S)
        return images if self.prefix is None else self.prefix(images.to(self.dtype))

    def _fill_cache(self, variant: int) -> None:
        """Compute and cache the features of every film in one variant. Without room for them, nothing is cached.

        Several processes share the work. Then each one holds all features, or all map the same file.
        """
        in_order = copy.copy(self.part)
        in_order.shuffle, in_order.cap = False, 0
        cache, shared = None, False
        rows, values = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
        own_share: list[tuple[Tensor, Tensor]] = []
        for number, batch in enumerate(in_order.epoch(variant, on=self.team.device), 1):
            rows, values = batch.rows, self._compute(batch.images)
            if cache is None:
                cache, shared = self._allocate(variant, values)
                if cache is None:
                    self.remembers = False
                    return
            cache[cuda.moved(rows, cache.device)] = values.to(cache.device)
            if not shared and self.team.world > 1:
                own_share.append((rows, values.cpu()))
            self.pause(number, in_order.steps(variant))
        for share in self.team.gather(own_share):
            for rows, values in share:
                cache[rows] = values.to(cache.device)
        self.known[variant] = cache

    def _allocate(self, variant: int, values: Tensor) -> tuple[Tensor | None, bool]:
        """Memory for the features of all films, (N, …), and whether it is a file that all processes share."""
        shape = (len(self.part.films), *values.shape[1:])
        need = math.prod(shape) * values.element_size()
        variants = self.part.views or 1
        if need * variants <= self.memory:
            where = values.device if _fits_on_card(need * variants, values.device) else "cpu"
            return torch.empty(shape, dtype=values.dtype, device=where), False
        if self.folder is None or not self.team.one_machine or need * variants > self.disk:
            return None, False
        if 2 * need * (variants - variant) > shutil.disk_usage(self.folder).free:
            return None, False
        path = self.folder / f".features-{id(self.part) if self.team.world == 1 else 'shared'}-{variant}.tmp"
        self.team.from_first(lambda: _reserve(path, need))
        features = torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=values.dtype).view(shape)
        self.team.together()
        if self.team.first and os.name == "posix":  # a mapped file stays readable without its name
            path.unlink()
        return features, True


def _fits_on_card(need: int, device: torch.device) -> bool:
    """Whether so many bytes fit on a card beside a training."""
    return device.type == "cuda" and need <= CARD_SHARE * torch.cuda.mem_get_info(device)[0]


def _reserve(path: Path, size: int) -> None:
    """Create a file of so many bytes, with its space on the disk reserved."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _channels_last(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values
