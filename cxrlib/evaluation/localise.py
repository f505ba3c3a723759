"""Where the network looks: heat maps for one finding of one film, held against the radiologists' boxes.

A map is made for the finding in question, never one for all, from the film normalised as in training. Boxes differ in
size: a heart's covers an eighth of the film and a nodule's a hundredth, so every rate stands beside the rate that a
blind pointer would reach, and a table without it would rank findings by the size of their boxes.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from cxrlib import labels
from cxrlib.data import batches, records, store
from cxrlib.errors import UserError
from cxrlib.evaluation import delong, intervals

METHODS = ("gradcam", "hirescam", "occlusion")
OVERLAPS = (0.1, 0.25, 0.5, 0.75)
REGION = 0.5
"""The region that a map points out: where it is at least this share of its maximum."""

CELLS = 4
"""A layer's map should be at least so many cells wide; layer4's has seven on films of 224 pixels."""

LEAST = 10
"""Patients that an interval of a rate needs: a resample of fewer knows nothing of its own error."""

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
    gradient, negative evidence cut. "hirescam" (Draelos & Carin 2020): weighted by the gradient place by place, which
    at layer4 is the same, and in lower layers, as small films need, is what the network used. "occlusion" (Zeiler &
    Fergus 2014): how far the logit falls when a square of an eighth of the side is greyed out; it needs no gradient,
    and 64 readings of each film. A map is 1 at its maximum, and 0 throughout where nothing speaks for the label. The
    network is read in eval mode and given back as it was.
    """
    if method not in METHODS:
        raise UserError(f"method {method!r} is unknown; choose {', '.join(METHODS)}")
    if len(images) != len(columns):
        raise UserError(f"{len(images)} films and {len(columns)} labels; give one label per film")
    if len(images) == 0:
        return np.empty((0, *images.shape[-2:]), np.float32)
    device, wanted = next(model.parameters()).device, torch.as_tensor(np.asarray(columns, np.int64))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        read = _occlusion(model) if method == "occlusion" else _cam(model, at or layer(images.shape[-1]), method)
        parts = zip(images.split(batch_size), wanted.split(batch_size), strict=True)
        found = [_scaled(read(part.to(device), these.to(device))).cpu() for part, these in parts]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.cat(found).numpy()


def judge(
    model: nn.Module,
    pixels: store.Store,
    films: pd.DataFrame,
    wanted: pd.DataFrame,
    boxes: pd.DataFrame,
    *,
    method: str = "gradcam",
    at: str = "",
    batch_size: int = 16,
) -> pd.DataFrame:
    """``scores`` of every target, a row each in the order of ``wanted``: ``targets(films, boxes)`` or a part of them.

    Films are read, mapped and judged batch by batch, and no map outlives its batch: memory is the same for 10 boxes and
    for 984.
    """
    found = [scores(np.empty((0, 1, 1)), np.empty((0, 1, 1), bool))]
    for batch in _batches(model, pixels, films, wanted, batch_size):
        these = wanted.iloc[batch.rows.numpy()]
        heat = maps(model, batch.images, _columns(these), method=method, at=at, batch_size=batch_size)
        found.append(scores(heat, masks(these, boxes, pixels.size)))
    return pd.concat(found, ignore_index=True)


def show(
    model: nn.Module, pixels: store.Store, films: pd.DataFrame, wanted: pd.DataFrame, *, method: str = "gradcam"
) -> np.ndarray:
    """The maps themselves, (T, S, S), for a few targets to look at."""
    parts = [
        maps(model, batch.images, _columns(wanted.iloc[batch.rows.numpy()]), method=method)
        for batch in _batches(model, pixels, films, wanted, 16)
    ]
    return np.concatenate(parts) if parts else np.empty((0, pixels.size, pixels.size), np.float32)


def sample(wanted: pd.DataFrame, n: int, *, seed: int = 0) -> pd.DataFrame:
    """At most ``n`` targets in their order, drawn at random and shared evenly among the findings."""
    turn = wanted.sample(frac=1, random_state=seed).groupby("finding").cumcount()
    return wanted.loc[turn.sort_values(kind="stable").index[:n].sort_values()].reset_index(drop=True)


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
    for box in records.scale_boxes(boxes[boxes["image"].isin(wanted["image"])], size, size).itertuples():
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
    return pd.DataFrame(rows, columns=["hit", "chance", "iou", "iobb"], dtype=np.float64)


def table(wanted: pd.DataFrame, scored: pd.DataFrame, *, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Per finding and for all: rates with 95 % intervals by patient; wanted and scored row by row alike.

    Columns finding, boxes (films with one), patients, then each with _low and _high: hit, chance, iou (mean), iobb,
    iou_10, iou_25 … (share with at least so much), iobb_10 …, lift (hits per hit of blind pointing: 1 is no better than
    chance); p (two-sided, hits against the boxes' shares of their films, by t over patients). No interval, and no p,
    where fewer than ``LEAST`` patients are. Findings without a box are not listed; without any box the table is empty.
    """
    values = scored.assign(**{
        f"{name}_{round(100 * least)}": scored[name] >= least for name in ("iou", "iobb") for least in OVERLAPS
    })  # fmt: skip
    names = [*values, "lift"]
    rows = []
    present = [finding for finding in labels.FINDINGS if (wanted["finding"] == finding).any()]
    for finding in [*present, ALL] if present else []:
        these = np.ones(len(wanted), bool) if finding == ALL else (wanted["finding"] == finding).to_numpy()
        patients, part = wanted["patient"].to_numpy()[these], values[these].to_numpy(np.float64)
        ones = np.ones_like(part)
        with_lift = np.column_stack([part, part[:, 0]]), np.column_stack([ones, part[:, 1]])  # hit over chance
        found = np.stack(intervals.ratio(*with_lift, patients, replicates=replicates, seed=seed), 1)  # (columns, 3)
        if found[0, 0] == 0:  # not one hit: the lift's upper end is the hit rate's
            found[-1, 1:] = found[0, 1:] / part[:, 1].mean()
        if len(np.unique(patients)) < LEAST:
            found[:, 1:] = np.nan
        rows.append([finding, int(these.sum()), len(np.unique(patients)), *found.ravel(), _p(part, patients)])
    ends = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["finding", "boxes", "patients", *ends, "p"])


def adjusted(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """``table`` of several methods with p_holm, adjusted for all findings of all methods; ``ALL`` has none."""
    every = pd.concat(tables, names=["way"])
    single = every["finding"] != ALL
    every["p_holm"] = np.nan
    every.loc[single, "p_holm"] = intervals.holm(every.loc[single, "p"].to_numpy(np.float64))
    return {way: every[every.index.get_level_values("way") == way].droplevel("way") for way in tables}


def _p(scored: np.ndarray, patients: np.ndarray) -> float:
    """Two-sided p of hits (first column) against chance (second), by patient; NaN for fewer patients than ``LEAST``."""
    rows = np.unique(patients, return_inverse=True)[1].ravel()
    if rows.max() + 1 < LEAST:
        return np.nan
    beyond = delong.share(scored[:, 0] - scored[:, 1], np.ones(len(scored)), rows, int(rows.max()) + 1)
    return beyond.test()[2]


def _batches(model: nn.Module, pixels: store.Store, films: pd.DataFrame, wanted: pd.DataFrame, batch_size: int):
    """The films of the targets, one row each, normalised as in training; nothing where there are none."""
    if wanted.empty:
        return []
    chosen, device = films.iloc[wanted["row"]], next(model.parameters()).device
    return batches.Batches(pixels, chosen, batch_size=batch_size).epoch(0, on=device)


def _columns(wanted: pd.DataFrame) -> list[int]:
    return [labels.column(finding) for finding in wanted["finding"]]


def _cam(model: nn.Module, at: str, method: str):
    room = _captum()
    if method == "gradcam":
        weigh = partial(room.LayerGradCam(model, model.get_submodule(at)).attribute, relu_attributions=True)
    else:
        weigh = room.LayerGradientXActivation(model, model.get_submodule(at)).attribute

    def read(images: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        images = images.detach().requires_grad_()  # a frozen network has no gradient of its own to follow
        with torch.enable_grad():
            heat = weigh(images, target=columns)  # (B, 1, s, s) or, channel by channel, (B, C, s, s)
        heat = heat.detach().sum(1, keepdim=True).clamp(min=0)
        return functional.interpolate(heat, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]

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
