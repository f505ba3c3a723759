"""Reading with a network: BatchNorm folded into the convolutions, in the precision of the device.

Validation in ``fit`` and every later prediction go this one way, so that the same weights give the same numbers.
It is not compiled: reading 112,120 films of 224 px takes a card less time than compiling.
"""

import torch
from torch import Tensor, nn

from cxrlib.training import frozen, hardware, network


class Inference(nn.Module):
    """The network from a step of ``network.STEPS`` on, by default the whole of it, as it is read with.

    A copy: ``refresh`` takes the network's weights over again after they have moved. ``dtype`` is that of the
    convolutions; the head computes in float32, so that no two films get equal logits for want of digits.
    """

    def __init__(self, model: network.Network, *, first: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first, self.dtype = first, dtype
        self.body, self.head = self._folded(model)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 15) float32 of images (B, 1, S, S), or of the frozen prefix's features where it begins later."""
        images = images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
        return self.head(self.body(images.to(self.dtype)).float())

    @torch.no_grad()
    def refresh(self, model: network.Network) -> None:
        """Take over the weights that the network has now."""
        for own, new in zip((self.body, self.head), self._folded(model), strict=True):
            for mine, value in zip(own.parameters(), new.parameters(), strict=True):
                mine.copy_(value)

    def _folded(self, model: network.Network) -> tuple[nn.Module, nn.Module]:
        last = len(network.STEPS)
        body = frozen.fold(model, self.first, last - 1).to(model.device, self.dtype)
        return body.to(memory_format=torch.channels_last), frozen.fold(model, last - 1, last)


def dtype_of(model: network.Network, precision: str = "") -> torch.dtype:
    """The precision that the network is read in on its device; "" means that of the recipe whose weights it holds."""
    return hardware.dtype_to_read(model.device, precision or model.precision)
