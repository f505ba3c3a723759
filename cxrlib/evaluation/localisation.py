"""Localisation: heat maps for one finding of one film, compared with the radiologists' boxes.

A map is made for the finding in question, never one for all, from the film normalised as in training. Boxes differ in
size: a heart's covers an eighth of the film and a nodule's a hundredth. So every rate stands beside the rate that
pointing without looking at the film would reach; without it findings would be ranked by the size of their boxes.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from cxrlib import UserError, labels
from cxrlib.data import batches, records, store
from cxrlib.evaluation import delong, intervals

METHODS = ("gradcam", "hirescam", "occlusion")
OVERLAPS = (0.1, 0.25, 0.5, 0.75)
REGION = 0.5
"""Region of a map: where it is at least this share of its maximum."""

CELLS = 4
"""Minimum width of a layer's map in cells; layer4 has seven on images of 224 pixels."""

LEAST = 10
"""Patients needed for the interval of a rate; resamples of fewer underestimate the error."""

ALL = "all findings"


def layer(size: int) -> str:
    """The deepest layer group of a ResNet whose map is at least ``CELLS`` wide for images of this side in pixels."""
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
    """Heat maps, one label per image: images (N, 1, S, S) normalised, columns (N,) → (N, S, S), 0..1.

    "gradcam" (Selvaraju et al. 2017): the channels of layer ``at`` ("": as ``layer`` chooses) weighted by their mean
    gradient, negative values set to 0. "hirescam" (Draelos & Carin 2020): weighted by the gradient at each place; equal
    to Grad-CAM at layer4, and closer to what the network used in lower layers, which small images need. "occlusion"
    (Zeiler & Fergus 2014): the fall of the logit when a square of an eighth of the side is grey; it needs no gradient,
    but 64 forward passes per image. A map is 1 at its maximum, or 0 everywhere if nothing raises the logit. The network
    runs in eval mode; its modes are restored.
    """
    if method not in METHODS:
        raise UserError(f"method {method!r} is unknown; choose {', '.join(METHODS)}")
    if len(images) != len(columns):
        raise UserError(f"{len(images)} films and {len(columns)} labels; give one label per film")
    if len(images) == 0:
        return np.empty((0, *images.shape[-2:]), np.float32)
    device, label_columns = next(model.parameters()).device, torch.as_tensor(np.asarray(columns, np.int64))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        explain = _occlusion(model) if method == "occlusion" else _cam(model, at or layer(images.shape[-1]), method)
        parts = zip(images.split(batch_size), label_columns.split(batch_size), strict=True)
        heat = [_scaled(explain(part.to(device), these.to(device))).cpu() for part, these in parts]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.cat(heat).numpy()


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
    """Scores (``scores``) of the targets ``wanted``, in their order: ``targets(films, boxes)`` or a part of them.

    Works batch by batch and keeps no map, so memory is the same for 10 boxes and for 984.
    """
    rows = [scores(np.empty((0, 1, 1)), np.empty((0, 1, 1), bool))]
    for batch in _batches(model, pixels, films, wanted, batch_size):
        these = wanted.iloc[batch.rows.numpy()]
        heat = maps(model, batch.images, _columns(these), method=method, at=at, batch_size=batch_size)
        rows.append(scores(heat, masks(these, boxes, pixels.size)))
    return pd.concat(rows, ignore_index=True)


def show(
    model: nn.Module, pixels: store.Store, films: pd.DataFrame, wanted: pd.DataFrame, *, method: str = "gradcam"
) -> np.ndarray:
    """Heat maps (T, S, S) of a few targets, for figures."""
    parts = [
        maps(model, batch.images, _columns(wanted.iloc[batch.rows.numpy()]), method=method)
        for batch in _batches(model, pixels, films, wanted, 16)
    ]
    return np.concatenate(parts) if parts else np.empty((0, pixels.size, pixels.size), np.float32)


def sample(wanted: pd.DataFrame, n: int, *, seed: int = 0) -> pd.DataFrame:
    """Random sample of at most ``n`` targets, evenly from the findings, in their order."""
    turn = wanted.sample(frac=1, random_state=seed).groupby("finding").cumcount()
    return wanted.loc[turn.sort_values(kind="stable").index[:n].sort_values()].reset_index(drop=True)


def with_random_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy of the network with random weights: the control of a localisation (Adebayo et al. 2018).

    Its maps show what any network responds to, such as bright places. Only hits beyond those of the control are learnt;
    maps equal to the control's show the image, not the network.
    """
    control = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in control.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return control


def targets(films: pd.DataFrame, boxes: pd.DataFrame, *, strict: bool = False) -> pd.DataFrame:
    """Targets of localisation, a row per film and finding with a box: columns row (in films), image, patient, finding.

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
    rows = boxes.loc[here, ["image", "finding"]].drop_duplicates(ignore_index=True)
    rows.insert(0, "row", at.loc[rows["image"]].to_numpy())
    rows.insert(2, "patient", films["patient"].to_numpy()[rows["row"]])
    rows.attrs["elsewhere"] = int((~here).sum())
    return rows


def masks(wanted: pd.DataFrame, boxes: pd.DataFrame, size: int) -> np.ndarray:
    """Masks of the targets' boxes, (T, size, size) bool; several boxes of one finding are joined.

    A box covers every pixel that it touches, so that none vanishes on small images.
    """
    covered = np.zeros((len(wanted), size, size), bool)
    place = {pair: t for t, pair in enumerate(zip(wanted["image"], wanted["finding"], strict=True))}
    for box in records.scale_boxes(boxes[boxes["image"].isin(wanted["image"])], size, size).itertuples():
        if (box.image, box.finding) in place:
            left, top, right, bottom = box.x, box.y, box.x + box.w, box.y + box.h
            mask = covered[place[box.image, box.finding]]
            mask[int(np.floor(top)) : int(np.ceil(bottom)), int(np.floor(left)) : int(np.ceil(right))] = True
    return covered


def scores(heat: np.ndarray, boxes: np.ndarray) -> pd.DataFrame:
    """Hit and overlap of each map with its boxes: heat (T, S, S), boxes (T, S, S) bool as from ``masks``.

    Columns hit: 1 if the maximum lies in a box (pointing game, Zhang et al. 2016); of several equal maxima the share
    inside, so an empty map scores like a random point. chance: the boxes' share of the image, the hit rate of a random
    point. iou: common area over joint area of the map's region and the boxes. iobb: common area over the region's area.
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
    """Rates per finding and over all, with 95 % intervals by patient; wanted and scored have the same rows.

    Columns finding, boxes (films with one), patients, then each with _low and _high: hit, chance, iou (mean), iobb,
    iou_10, iou_25 … (share with an IoU of at least 0.10, 0.25 …), iobb_10 …, lift (hit over chance; 1 is a random
    point); p (two-sided, hit against chance, by t over patients). No interval and no p for fewer than ``LEAST``
    patients. Findings without a box are not listed; without any box the table is empty.
    """
    overlaps = [(name, least) for name in ("iou", "iobb") for least in OVERLAPS]
    values = scored.assign(**{f"{name}_{round(100 * least)}": scored[name] >= least for name, least in overlaps})
    names = [*values, "lift"]
    rows = []
    present = [finding for finding in labels.FINDINGS if (wanted["finding"] == finding).any()]
    for finding in [*present, ALL] if present else []:
        these = np.ones(len(wanted), bool) if finding == ALL else (wanted["finding"] == finding).to_numpy()
        patients, part = wanted["patient"].to_numpy()[these], values[these].to_numpy(np.float64)
        ones = np.ones_like(part)
        with_lift = np.column_stack([part, part[:, 0]]), np.column_stack([ones, part[:, 1]])  # hit over chance
        rates = np.stack(intervals.ratio(*with_lift, patients, replicates=replicates, seed=seed), 1)  # (columns, 3)
        if rates[0, 0] == 0:  # without a hit the lift's interval is that of the hit rate over chance
            rates[-1, 1:] = rates[0, 1:] / part[:, 1].mean()
        if len(np.unique(patients)) < LEAST:
            rates[:, 1:] = np.nan
        rows.append([finding, int(these.sum()), len(np.unique(patients)), *rates.ravel(), _p(part, patients)])
    ends = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["finding", "boxes", "patients", *ends, "p"])


def adjusted(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Tables of several methods with p_holm, adjusted for all findings of all methods; the row ``ALL`` has none."""
    every = pd.concat(tables, names=["method"])
    single = every["finding"] != ALL
    every["p_holm"] = np.nan
    every.loc[single, "p_holm"] = intervals.holm(every.loc[single, "p"].to_numpy(np.float64))
    return {name: every[every.index.get_level_values("method") == name].droplevel("method") for name in tables}


def _p(scored: np.ndarray, patients: np.ndarray) -> float:
    """Two-sided p of hits (first column) against chance (second), by patient; NaN for fewer patients than ``LEAST``."""
    rows = np.unique(patients, return_inverse=True)[1].ravel()
    if rows.max() + 1 < LEAST:
        return np.nan
    excess = delong.share(scored[:, 0] - scored[:, 1], np.ones(len(scored)), rows, int(rows.max()) + 1)
    return excess.test()[2]


def _batches(model: nn.Module, pixels: store.Store, films: pd.DataFrame, wanted: pd.DataFrame, batch_size: int):
    """Batches of the targets' images, one row each, normalised as in training; empty without targets."""
    if wanted.empty:
        return []
    chosen, device = films.iloc[wanted["row"]], next(model.parameters()).device
    return batches.Batches(pixels, chosen, batch_size=batch_size).epoch(0, on=device)


def _columns(wanted: pd.DataFrame) -> list[int]:
    return [labels.column(finding) for finding in wanted["finding"]]


def _cam(model: nn.Module, at: str, method: str):
    captum = _captum()
    if method == "gradcam":
        attribute = partial(captum.LayerGradCam(model, model.get_submodule(at)).attribute, relu_attributions=True)
    else:
        attribute = captum.LayerGradientXActivation(model, model.get_submodule(at)).attribute

    def explain(images: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        images = images.detach().requires_grad_()  # needed if all parameters are frozen
        with torch.enable_grad():
            heat = attribute(images, target=columns)  # (B, 1, s, s) or, channel by channel, (B, C, s, s)
        heat = heat.detach().sum(1, keepdim=True).clamp(min=0)
        return functional.interpolate(heat, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]

    return explain


def _occlusion(model: nn.Module):
    occlusion = _captum().Occlusion(model)

    def explain(images: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        side = max(2, images.shape[-1] // 8)
        with torch.no_grad():
            heat = occlusion.attribute(images, (1, side, side), strides=(1, side, side), target=columns)
        return heat[:, 0].clamp(min=0)

    return explain


def _captum():
    from captum import attr  # takes seconds to import, and only heat maps need it

    return attr


def _scaled(heat: torch.Tensor) -> torch.Tensor:
    """Maps (B, S, S), each divided by its maximum; empty maps stay 0."""
    top = heat.flatten(1).max(1).values[:, None, None]
    return torch.where(top > 0, heat / top.clamp(min=torch.finfo(heat.dtype).tiny), 0.0).float()
