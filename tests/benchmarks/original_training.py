"""The original's way of training, written out plainly, to be measured against.

torchvision's ResNet-50 on three channels, float32, in the usual memory format, Adam made anew for each stage, focal
loss. Frozen layers have no gradient and are otherwise like all others: in training mode, their BatchNorm moving,
computed again for every film in every epoch. Validation after each epoch, and the whole model pickled.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models import resnet50

from cxrlib.data.batches import Batches
from tests.benchmarks import original

GAMMA = 2
STAGES = (
    (("layer2", "layer3", "layer4", "fc"), 1e-5, 2),
    (("layer3", "layer4", "fc"), 3e-4, 1),
    (("layer4", "fc"), 1e-3, 3),
    (("fc",), 1e-3, 2),
    (("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"), 1e-6, 3),
)
"""Trained modules, rate and epochs of each stage, as the original's table gives them."""

Loader = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives an epoch's batches: images (B, 3, S, S) and labels (B, 15), float32."""


def build() -> nn.Module:
    model = resnet50(weights=None)
    model.fc = nn.Linear(model.fc.in_features, 15)
    return model


def begin(model: nn.Module, trained: Sequence[str], lr: float) -> torch.optim.Adam:
    """Freeze all but the ``trained`` modules and give the stage's optimizer."""
    for name, module in model.named_children():
        module.requires_grad_(name in trained)
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean focal loss over all film-label pairs, from binary cross-entropy as it is usually written down."""
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return ((1 - torch.exp(-entropy)) ** GAMMA * entropy).mean()


def step(model: nn.Module, optimizer: torch.optim.Adam, images: Tensor, labels: Tensor) -> float:
    optimizer.zero_grad()
    loss = focal(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def stage(
    model: nn.Module, trained: Sequence[str], lr: float, epochs: int, train: Loader, val: Loader, folder: Path
) -> list[float]:
    """Train a stage, pickle the model after each epoch, and give the validation losses."""
    optimizer = begin(model, trained, lr)
    losses = []
    for epoch in range(epochs):
        model.train()
        for images, labels in train():
            step(model, optimizer, images, labels)
        model.eval()
        with torch.no_grad():
            found = [focal(model(images), labels).item() for images, labels in val()]
        losses.append(sum(found) / len(found))
        torch.save(model, folder / f"{lr:g}_{epoch}.pth")
    return losses


def from_files(films: pd.DataFrame, size: int, batch_size: int, *, shuffle: bool) -> Loader:
    """The original's own loading: each film decoded in colour at its full size, no workers."""
    return lambda: DataLoader(original.Films(films, size), batch_size=batch_size, shuffle=shuffle)


def from_store(made: Batches) -> Loader:
    """Ready batches of our store, its grey given three times."""

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels, _ in made.epoch(0):
            yield images.expand(-1, 3, -1, -1).contiguous(), labels

    return epoch
