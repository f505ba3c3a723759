"""Where the network looks: heat maps for one finding of one film, held against the radiologists' boxes.

A map is made for the finding in question, never one for all, from the film normalised as in training. Boxes differ in
size: a heart's covers an eighth of the film and a nodule's a hundredth, so every rate stands beside the rate that a
blind pointer would reach, and a table without it would rank findings by the size of their boxes.
"""

import copy
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from cxrlib import labels
from cxrlib.data import records
from cxrlib.errors import UserError
from cxrlib.evaluation import intervals

METHODS = ("gradcam", "occlusion")
OVERLAPS = (0.1, 0.25, 0.5)
REGION = 0.5
"""The region that a map points out: where it is at least this share of its maximum."""

CELLS = 7
"""A layer's map should be at least so many cells wide, as layer4's is on films of 224 pixels."""

ALL = "all findings"


def layer(size: int) -> str:
    """The deepest layer group of a ResNet whose map of a film of this size is still ``CELLS`` wide."""
    strides = {"layer4": 32, "layer3": 16, "layer2": 8}
    return next((name for name, stride in strides.items() if size >= CELLS * stride), "layer1")


def maps(
    model: nn.Module,
    images: torch.Tensor,
    columns: Sequence[int],
    *,
    method: str = "gradcam",
    at: str = "",
    batch_size: int = 16,
) -> np.ndarray:
    """A heat map per film for one label each: images (N, 1, S, S) normalised, columns (N,) → (N, S, S), 0..1.

    "gradcam" (Selvaraju et al. 2017): the channels of layer ``at`` ("": as ``layer`` chooses) weighted by their mean
    gradient, negative evidence cut. "occlusion" (Zeiler & Fergus 2014): how far the logit falls when a square of an
    eighth of the side is greyed out; it needs no gradient, and 64 readings of each film. A map is 1 at its maximum, and
    0 throughout where nothing speaks for the label. The network is read in eval mode and given back as it was.
    """
    if method not in METHODS:
        raise UserError(f"method {method!r} is unknown; choose {' or '.join(METHODS)}")
    if len(images) != len(columns):
        raise UserError(f"{len(images)} films and {len(columns)} labels; give one label per film")
    if len(images) == 0:
        return np.empty((0, *images.shape[-2:]), np.float32)
    device, wanted = next(model.parameters()).device, torch.as_tensor(np.asarray(columns, np.int64))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        read = _gradcam(model, at or layer(images.shape[-1])) if method == "gradcam" else _occlusion(model)
        parts = zip(images.split(batch_size), wanted.split(batch_size), strict=True)
        found = [_scaled(read(part.to(device), these.to(device))).cpu() for part, these in parts]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.cat(found).numpy()


def forgetful(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy of the network with every weight drawn anew: the control of a localisation (Adebayo et al. 2018).

    Its maps show what catches the eye of any network, such as whatever is brightest; only what a trained network
    hits beyond that has been learnt. Maps that stay the same show the film, not the network.
    """
    control = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in control.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return control


def targets(films: pd.DataFrame, boxes: pd.DataFrame, *, strict: bool = False) -> pd.DataFrame:
    """What is to be found: a row per film and finding that have a box; columns row (in films), image, patient, finding.

    Boxes of other films are left out and counted in ``.attrs["elsewhere"]``; with ``strict`` they raise a UserError
    that names the first.
    """
    at = pd.Series(np.arange(len(films)), index=films["image"])
    here = boxes["image"].isin(at.index)
    if strict and not here.all():
        name = boxes.loc[~here, "image"].iloc[0]
        raise UserError(
            f"{(~here).sum()} boxes are of films that are not there, the first {name}; give their films too"
        )
    found = boxes.loc[here, ["image", "finding"]].drop_duplicates(ignore_index=True)
    found.insert(0, "row", at.loc[found["image"]].to_numpy())
    found.insert(2, "patient", films["patient"].to_numpy()[found["row"]])
    found.attrs["elsewhere"] = int((~here).sum())
    return found


def masks(wanted: pd.DataFrame, boxes: pd.DataFrame, size: int) -> np.ndarray:
    """The boxes of each target as (T, size, size) bool, several boxes of one finding together.

    A box covers every pixel that it touches, so that none vanishes on small films.
    """
    found = np.zeros((len(wanted), size, size), bool)
    place = {pair: t for t, pair in enumerate(zip(wanted["image"], wanted["finding"], strict=True))}
    for box in records.scale_boxes(boxes, size, size).itertuples():
        if (box.image, box.finding) in place:
            left, top, right, bottom = box.x, box.y, box.x + box.w, box.y + box.h
            inside = found[place[box.image, box.finding]]
            inside[int(np.floor(top)) : int(np.ceil(bottom)), int(np.floor(left)) : int(np.ceil(right))] = True
    return found


def scores(heat: np.ndarray, boxes: np.ndarray) -> pd.DataFrame:
    """How each map meets its boxes: heat (T, S, S), boxes (T, S, S) bool as from ``masks``.

    Columns hit: whether the maximum lies in a box (pointing game, Zhang et al. 2016; of several equal maxima the share
    that does, so an empty map scores as blind pointing does); chance: the boxes' share of the film, which is what
    blind pointing hits; iou: common area over joint area of the map's region and the boxes; iobb: common area over
    the region's.
    """
    rows = []
    for map_, box in zip(heat, boxes, strict=True):
        top = map_.max()
        region = map_ >= REGION * top
        common = np.count_nonzero(region & box)
        joint = np.count_nonzero(region | box)
        rows.append((box[map_ == top].mean(), box.mean(), common / joint, common / np.count_nonzero(region)))
    return pd.DataFrame(rows, columns=["hit", "chance", "iou", "iobb"])


def table(wanted: pd.DataFrame, scored: pd.DataFrame, *, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Per finding and for all: rates with 95 % intervals by patient; wanted and scored row by row alike.

    Columns finding, boxes (films with one), patients, then each with _low and _high: hit, chance, lift (hits per hit
    of blind pointing: 1 is no better than chance), iou (mean), iou_10, iou_25, iou_50 (share with at least so much),
    iobb and likewise. Findings without a box are not listed.
    """
    values = scored.assign(**{
        f"{name}_{round(100 * least)}": scored[name] >= least for name in ("iou", "iobb") for least in OVERLAPS
    })  # fmt: skip
    rows = []
    present = [finding for finding in labels.FINDINGS if (wanted["finding"] == finding).any()]
    for finding in [*present, ALL] if present else []:
        these = np.ones(len(wanted), bool) if finding == ALL else (wanted["finding"] == finding).to_numpy()
        patients, part = wanted["patient"].to_numpy()[these], values[these].to_numpy(np.float64)
        ones = np.ones_like(part)
        with_lift = np.column_stack([part, part[:, 0]]), np.column_stack([ones, part[:, 1]])  # hit over chance
        found = intervals.ratio(*with_lift, patients, replicates=replicates, seed=seed)
        row = {"finding": finding, "boxes": int(these.sum()), "patients": len(np.unique(patients))}
        for name, value, low, high in zip([*values, "lift"], *found, strict=True):
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def _gradcam(model: nn.Module, at: str):
    attribution = _captum()
    cam = attribution.LayerGradCam(model, model.get_submodule(at))

    def read(images: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        images = images.detach().requires_grad_()  # a frozen network has no gradient of its own to follow
        with torch.enable_grad():
            heat = cam.attribute(images, target=columns, relu_attributions=True)  # (B, 1, s, s)
        return functional.interpolate(heat.detach(), images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]

    return read


def _occlusion(model: nn.Module):
    occlusion = _captum().Occlusion(model)

    def read(images: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        side = max(2, images.shape[-1] // 8)
        with torch.no_grad():
            heat = occlusion.attribute(images, (1, side, side), strides=(1, side, side), target=columns)
        return heat[:, 0].clamp(min=0)

    return read


def _captum():
    from captum import attr  # seconds to import, and only those who localise need it

    return attr


def _scaled(heat: torch.Tensor) -> torch.Tensor:
    """Each map (B, S, S) divided by its maximum; maps without evidence stay 0."""
    top = heat.flatten(1).max(1).values[:, None, None]
    return torch.where(top > 0, heat / top.clamp(min=torch.finfo(heat.dtype).tiny), 0.0).float()
