"""Inference network: BatchNorm folded into the convolutions, in the precision of the device.

Validation in ``fit`` and all later predictions use it, so that the same weights give the same numbers.
It is not compiled: on a card, predicting 112,120 films of 224 px takes less time than compiling.
"""

import torch
from torch import Tensor, nn

from cxrlib.training import frozen, hardware, network


class Inference(nn.Module):
    """Copy of a network for predictions, from step ``first`` of ``network.STEPS`` on; by default the whole network.

    Call ``refresh`` after the network's weights have changed. ``dtype`` is the type of the convolutions. The head
    computes in float32, so that rounding does not give two films equal logits.
    """

    def __init__(self, model: network.Network, *, first: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first, self.dtype = first, dtype
        self.body, self.head = self._folded(model)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 15) float32 of images (B, 1, S, S), or of features where ``first`` is above 0."""
        images = images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
        return self.head(self.body(images.to(self.dtype)).float())

    @torch.no_grad()
    def refresh(self, model: network.Network) -> None:
        """Copy the network's present weights."""
        for old, new in zip((self.body, self.head), self._folded(model), strict=True):
            for weight, value in zip(old.parameters(), new.parameters(), strict=True):
                weight.copy_(value)

    def _folded(self, model: network.Network) -> tuple[nn.Module, nn.Module]:
        last = len(network.STEPS)
        body = frozen.fold(model, self.first, last - 1).to(model.device, self.dtype)
        return body.to(memory_format=torch.channels_last), frozen.fold(model, last - 1, last)


def dtype_of(model: network.Network, precision: str = "") -> torch.dtype:
    """The dtype of a network's predictions on its device. ``precision`` "" means that of its weights' recipe."""
    return hardware.dtype_to_read(model.device, precision or model.precision)
