"""Losses for 15 labels, of which several can be present together. They take logits.

Both are means over the known elements of the (batch, 15) matrix, so the value depends neither on the batch size nor on
how many labels are unknown.
"""

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from cxrlib import UserError, metrics
from cxrlib.labels import LABELS

NAMES = ("focal", "bce")


@dataclass(frozen=True)
class Loss:
    """Loss function that can be compared: ``loss(logits, labels)``, both (B, 15), gives a scalar. Unknown is NaN.

    ``positive_weight``: 15 factors for the terms where a label is 1, None for no factors. ``soft``: whether labels
    between 0 and 1 are taken, too.
    """

    name: str
    gamma: float
    positive_weight: tuple[float, ...] | None = None
    soft: bool = field(default=False, repr=False)

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over known labels of -(1 - p)^gamma log p, where p is the predicted probability of the label's value.

        Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 4; gamma 0 is binary cross-entropy.
        log p and log(1 - p) come from the logit, so nothing overflows or becomes NaN. An unknown label gives its logit
        no gradient; without any known label the loss and all gradients are 0.
        """
        labels = labels.to(logits.device)
        known = labels == labels  # NaN is not equal to itself
        masks = labels.device.type != "cpu" or not known.all()  # a card would wait for the answer, so it always masks
        labels = torch.where(known, labels, 0.0) if masks else labels
        loss = self._of_soft(logits.float(), labels) if self.soft else self._of_hard(logits.float(), labels)
        if not masks:
            return loss.mean()
        share = known.numel() / known.sum().clamp(min=1)  # exactly 1 where all are known, so the mean is unchanged
        return torch.where(known, loss, 0.0).mean() * share

    def _of_hard(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss (B, 15) of labels that are 0 or 1."""
        agreement = logits * (2 * labels - 1)  # (B, 15): the logit of the label's value
        loss = -logsigmoid(agreement)
        if self.gamma:
            loss = loss * torch.exp(self.gamma * logsigmoid(-agreement))
        if self.positive_weight is not None:
            loss = loss * torch.where(labels > 0.5, _on(loss.device, self.positive_weight), 1.0)
        return loss

    def _of_soft(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss (B, 15) of labels t from 0 to 1: |t - p|^gamma times the cross-entropy of t and p.

        Li et al., Generalized Focal Loss, NeurIPS 2020, equation 5; for 0 and 1 it is the focal loss.
        """
        positives = labels * logsigmoid(logits)
        if self.positive_weight is not None:
            positives = positives * _on(logits.device, self.positive_weight)
        loss = -(positives + (1 - labels) * logsigmoid(-logits))
        if self.gamma:
            distance = (labels - logits.sigmoid()).abs().clamp(min=1e-6)  # at 0 a gamma below 1 has no gradient
            loss = loss * distance**self.gamma
        return loss


def for_soft_labels(loss: Any) -> Any:
    """The loss for labels between 0 and 1; a function of the user's own as it is."""
    return replace(loss, soft=True) if isinstance(loss, Loss) else loss


def make(name: str, *, gamma: float = 2.0, positive_weight: np.ndarray | None = None) -> Loss:
    """The loss of this name. Only ``focal`` uses ``gamma``.

    Raises UserError for an unknown name, a negative gamma, or weights that are not 15 positive numbers.
    """
    if name not in NAMES:
        raise UserError(f"loss {name!r} is unknown; use one of {', '.join(NAMES)}")
    if not gamma >= 0:
        raise UserError(f"gamma is {gamma!r}; it must be 0 or more")
    return Loss(name, float(gamma) if name == "focal" else 0.0, _checked(positive_weight))


def positive_weights(labels: np.ndarray, bound: float = 10.0) -> np.ndarray | None:
    """Positive weights: known negatives per positive of each label in the training part, from 1 / bound to ``bound``.

    ``labels`` (N, 15) of 0, 1 and NaN. Returns (15,) float64, or None (no weights) for bound 0. A label without
    positives gets ``bound``, one that is known of no film gets 1. Without the bound, Hernia's 500 negatives per
    positive would dominate the loss. Raises UserError for a bound between 0 and 1, which would reverse the weights.
    """
    if bound == 0:
        return None
    if not bound >= 1:
        raise UserError(f"positive_weight is {bound!r}; it must be 0 (no weights) or the largest weight, 1 or more")
    positives, known = metrics.positives(labels).astype(np.float64), metrics.is_known(labels).sum(0)
    ratio = np.where(known > 0, (known - positives) / np.maximum(positives, 1e-9), 1.0)
    return np.clip(ratio, 1 / bound, bound)


@cache
def _on(device: torch.device, values: tuple[float, ...]) -> torch.Tensor:
    """The values as a cached tensor on the device: a copy to a card at every step would make the step wait."""
    return torch.tensor(values).to(device)


def _checked(weights: np.ndarray | None) -> tuple[float, ...] | None:
    if weights is None:
        return None
    array = np.asarray(weights, np.float64)
    if array.shape != (len(LABELS),) or not (np.isfinite(array) & (array > 0)).all():
        raise UserError(f"positive_weight must be {len(LABELS)} numbers above 0, one per label; got {weights!r}")
    return tuple(array.tolist())
