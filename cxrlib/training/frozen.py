"""Frozen work, done well and done once: BatchNorm folded into the convolutions, and what repeats remembered."""

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
"""Largest size in bytes of the features kept in memory for one part of the data."""
CARD_SHARE = 0.1
"""Largest share of a card's free memory that remembered features take."""
DISK = 2**36
"""Largest size in bytes of those kept in a file instead, as far as the disk has twice that free; on a CPU alone, since
an accelerator computes them faster than a disk gives them back."""


def fold(model: network.Network, first: int = 0, last: int | None = None) -> nn.Sequential:
    """A copy of the steps ``first`` to ``last`` of ``network.STEPS`` with BatchNorms folded into the convolutions.

    By default the frozen prefix. Equal to the network in eval mode up to rounding, with a third of its passes over
    memory saved (Jacob et al., Quantization and Training of Neural Networks, CVPR 2018, section 3.2, for the formula).
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
    """What the frozen prefix makes of the films of one part, batch by batch.

    Where a film has a fixed number of views (one without augmentation, see ``data.batches``) and the features of all
    of them fit into ``memory`` or ``disk`` bytes, they are computed once per view, in the films' order, at the first
    batch asked for: on a card where they fit into ``CARD_SHARE`` of what is free there, else in memory. A file for
    them lies in ``folder``, nameless where the system allows that, and goes with the training. ``pause(done, all)`` is
    called after each batch of the computing, and may raise. ``dtype`` is what they are computed and kept in;
    ``compiled`` the size of the batches that compiled code is made for, 0 for none.
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
        self.known: dict[int, Tensor] = {}  # (N, …) on the CPU or a card, by view

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """The epoch's batches on the device; without images where the features of all films are remembered."""
        if start < self.part.steps(epoch):  # at an epoch's end nothing is remembered that may not be needed
            yield from self.part.epoch(epoch, start, on=self.team.device, images=not self.knows(epoch))

    def knows(self, epoch: int) -> bool:
        """Whether the features of all films as this epoch shows them are remembered; they are now, if they can be."""
        view = self.part.view(epoch)
        if self.remembers and view is not None and view not in self.known:
            self._remember(view)
        return view in self.known

    def of(self, batch: Any, epoch: int = 0) -> Tensor:
        """Features of a batch on the device, what ``model.suffix`` goes on from; the images where nothing is frozen."""
        if not self.knows(epoch):
            return self._compute(batch.images)
        known = self.known[self.part.view(epoch)]
        return _channels_last(cuda.moved(known[cuda.moved(batch.rows, known.device)], self.team.device))

    @torch.no_grad()
    def _compute(self, images: Tensor) -> Tensor:
        images = _channels_last(images)  # (B, 1, S, S)
        return images if self.prefix is None else self.prefix(images.to(self.dtype))

    def _remember(self, view: int) -> None:
        """Compute the features of every film in one of its views; nothing is kept where there is no room for them.

        Several processes share the films out. Each then holds all features, or maps the one file.
        """
        in_order = copy.copy(self.part)
        in_order.shuffle, in_order.cap = False, 0
        known, shared = None, False
        rows, values = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
        mine: list[tuple[Tensor, Tensor]] = []
        for number, batch in enumerate(in_order.epoch(view, on=self.team.device), 1):
            rows, values = batch.rows, self._compute(batch.images)
            if known is None:
                known, shared = self._room(view, values)
                if known is None:
                    self.remembers = False
                    return
            known[cuda.moved(rows, known.device)] = values.to(known.device)
            if not shared and self.team.world > 1:
                mine.append((rows, values.cpu()))
            self.pause(number, in_order.steps(view))
        for others in self.team.gather(mine):
            for rows, values in others:
                known[rows] = values.to(known.device)
        self.known[view] = known

    def _room(self, view: int, values: Tensor) -> tuple[Tensor | None, bool]:
        """A place for the features of all films, (N, …), and whether it is a file that all processes share."""
        shape = (len(self.part.films), *values.shape[1:])
        need = math.prod(shape) * values.element_size()
        views = self.part.views or 1
        if need * views <= self.memory:
            where = values.device if _fits_beside(need * views, values.device) else "cpu"
            return torch.empty(shape, dtype=values.dtype, device=where), False
        if self.folder is None or not self.team.one_machine or need * views > self.disk:
            return None, False
        if 2 * need * (views - view) > shutil.disk_usage(self.folder).free:
            return None, False
        path = self.folder / f".features-{id(self.part) if self.team.world == 1 else 'shared'}-{view}.tmp"
        self.team.from_first(lambda: _claim(path, need))
        place = torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=values.dtype).view(shape)
        self.team.together()
        if self.team.first and os.name == "posix":  # whoever has it mapped keeps it
            path.unlink()
        return place, True


def _fits_beside(need: int, device: torch.device) -> bool:
    """Whether a card has room for so many bytes beside a training."""
    return device.type == "cuda" and need <= CARD_SHARE * torch.cuda.mem_get_info(device)[0]


def _claim(path: Path, size: int) -> None:
    """Make a file of so many bytes whose space on the disk is its own."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _channels_last(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values
