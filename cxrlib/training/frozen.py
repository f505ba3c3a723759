"""Frozen work, done well and done once: BatchNorm folded into the convolutions, and what repeats remembered."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import Bottleneck

from cxrlib.data.batches import Augment
from cxrlib.training import hardware, network

BUDGET = 2**30
"""Largest size in bytes of the features kept in memory for one part of the data."""


def fold(model: network.Network) -> nn.Module:
    """A copy of the network's frozen prefix whose BatchNorms are folded into the convolutions before them.

    Equal to ``model.prefix`` up to rounding, with a third of its passes over memory saved
    (Jacob et al., Quantization and Training of Neural Networks, CVPR 2018, section 3.2, for the formula).
    """
    names = [name for step in list(network.STEPS)[: model.split] for name in network.STEPS[step]]
    modules = {name: copy.deepcopy(getattr(model, name)).eval().requires_grad_(False) for name in names}
    if "bn1" in modules:
        modules["conv1"] = fuse_conv_bn_eval(modules["conv1"], modules.pop("bn1"))
    for module in modules.values():
        for block in module.modules():
            if isinstance(block, Bottleneck):
                _fold_block(block)
    flatten = [nn.Flatten()] if "avgpool" in modules else []
    return nn.Sequential(*modules.values(), *flatten)


def _fold_block(block: Bottleneck) -> None:
    for number in "123":
        folded = fuse_conv_bn_eval(getattr(block, f"conv{number}"), getattr(block, f"bn{number}"))
        setattr(block, f"conv{number}", folded)
        setattr(block, f"bn{number}", nn.Identity())
    if block.downsample is not None:
        block.downsample = nn.Sequential(fuse_conv_bn_eval(*block.downsample))


class Features:
    """What the frozen prefix makes of the films of one part, batch by batch.

    Where the films look the same in every epoch (no augmentation) and the features of all of them take no more
    than ``budget`` bytes, they are computed once, in the films' order, at the first batch asked for.
    ``pause(done, all)`` is called after each batch of that, and may raise.
    """

    def __init__(
        self,
        model: network.Network,
        part: Any,
        device: torch.device,
        *,
        pause: Callable[[int, int], None] = lambda done, all: None,
        budget: int = BUDGET,
    ) -> None:
        self.part, self.device, self.pause, self.budget = part, device, pause, budget
        self.half = hardware.bf16(device)
        self.prefix = None
        if model.split:
            self.prefix = fold(model).to(device, torch.bfloat16 if self.half else torch.float32)
            self.prefix = self.prefix.to(memory_format=torch.channels_last)
        self.remembers = self.prefix is not None and getattr(part, "augment", None) in (None, Augment())
        self.known: Tensor | None = None  # (N, …) on the CPU

    def of(self, batch: Any) -> Tensor:
        """Features of a batch on the device, what ``model.suffix`` goes on from; the images where nothing is frozen."""
        if self.remembers and self.known is None:
            self.known = self._all()
            self.remembers = self.known is not None
        if self.known is None:
            return self._compute(batch.images)
        return _channels_last(self.known[batch.rows.cpu()].to(self.device, non_blocking=True))

    @torch.no_grad()
    def _compute(self, images: Tensor) -> Tensor:
        images = _channels_last(images.to(self.device, non_blocking=True))  # (B, 1, S, S)
        if self.prefix is None:
            return images
        return self.prefix(images.bfloat16() if self.half else images)

    def _all(self) -> Tensor | None:
        """The features of every film, in order; None where they would take more than the budget."""
        in_order = copy.copy(self.part)
        in_order.shuffle, in_order.cap = False, None
        known = None
        for number, batch in enumerate(in_order.epoch(0), 1):
            values = self._compute(batch.images).cpu()
            if known is None:
                if values[0].nbytes * len(self.part.films) > self.budget:
                    return None
                known = values.new_empty((len(self.part.films), *values.shape[1:]))
            known[batch.rows.cpu()] = values
            self.pause(number, in_order.steps(0))
        return known


def _channels_last(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values
