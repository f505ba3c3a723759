"""Radiological signs of the 14 findings on a phantom film, each at a known place.

A sign may first change the anatomy (``RESHAPE``: a larger heart, a flat diaphragm). Then it draws on the chest
(``DRAW``). A drawing function returns the covers of its lesions, (S, S) arrays; the boxes are made from them.

The signs follow D. M. Hansell et al., Fleischner Society: Glossary of Terms for Thoracic Imaging, Radiology
2008;246:697-722 (below "Fleischner"), W. Herring, Learning Radiology (below "Herring"), and L. R. Goodman,
Felson's Principles of Chest Roentgenology (below "Felson").
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cxrlib.data import opacities
from cxrlib.data.anatomy import Anatomy, Chest, ramp

Covers = opacities.Covers


def enlarge_heart(body: Anatomy, rng: np.random.Generator) -> Anatomy:
    """Cardiomegaly: a heart wider than half the inner width of the thorax (Danzer 1919; Herring)."""
    return replace(body, ctr=rng.uniform(0.57, 0.7))


def overinflate(body: Anatomy, rng: np.random.Generator) -> Anatomy:
    """Emphysema: low, flat diaphragm, narrow vertical heart, dark lungs, few vessels (Fleischner; Felson)."""
    drop = rng.uniform(0.05, 0.085)
    dome, arch = (body.dome[0] + drop + 0.01, body.dome[1] + drop), rng.uniform(0.03, 0.045)
    ctr = max(0.33, body.ctr - 0.09) if body.ctr <= 0.5 else body.ctr
    air = body.air * rng.uniform(1.04, 1.12)
    return replace(body, dome=dome, arch=arch, ctr=ctr, air=air, vessels=body.vessels * 0.5)


def lose_volume(body: Anatomy, rng: np.random.Generator) -> Anatomy:
    """Atelectasis: diaphragm higher on the collapsed side, mediastinum moved to that side (Fleischner; Felson)."""
    side = int(rng.integers(2))
    rise = rng.uniform(0.03, 0.07)
    dome = (body.dome[0] - rise * (side == 0), body.dome[1] - rise * (side == 1))
    return replace(body, dome=dome, shift=body.shift + (-1, 1)[side] * rng.uniform(0.008, 0.03))


def shrink(body: Anatomy, rng: np.random.Generator) -> Anatomy:
    """Fibrosis: both lungs lose some volume (Fleischner)."""
    rise = rng.uniform(0.01, 0.035)
    return replace(body, dome=(body.dome[0] - rise, body.dome[1] - rise))


RESHAPE: dict[str, Callable[[Anatomy, np.random.Generator], Anatomy]] = {
    "Cardiomegaly": enlarge_heart,
    "Emphysema": overinflate,
    "Atelectasis": lose_volume,
    "Fibrosis": shrink,
}


def atelectasis(chest: Chest, rng: np.random.Generator) -> Covers:
    """Plate-like bands above the diaphragm, or a dense triangle of a collapsed lower lobe (Fleischner; Felson)."""
    side = int(rng.integers(2))  # the first draw, so the side is that of lose_volume
    body, sign = chest.body, (-1, 1)[side]
    if rng.random() < 0.35:
        edge = 0.3 + 0.85 * (chest.height[side] - 0.42)
        cover = ramp((edge - chest.across) / 0.05 + 0.5) * ramp((chest.height[side] - 0.42) / 0.08)
        cover = cover * chest.lungs[side]
        chest.fill(cover, 0.9 * opacities.strength(rng))
        return [cover]
    plates = []
    for row in range(int(rng.integers(1, 4))):
        start, end = np.array([rng.uniform(0.2, 0.5), rng.uniform(0.75, 0.97)]) * body.half
        y = body.dome[side] - 0.025 - 0.05 * row - rng.uniform(0, 0.035)
        tilt = rng.uniform(-0.06, 0.06)
        along = np.linspace(0, 1, 8)
        bow = 0.008 * np.sin(np.pi * along)
        curve = np.column_stack([body.centre + sign * (start + (end - start) * along), y + tilt * along - bow])
        plates.append(chest.canvas.lines([curve], [rng.uniform(0.012, 0.024)]))
    cover = chest.canvas.blur(np.maximum.reduce(plates), 0.005) * chest.lungs[side]
    chest.fill(cover, 0.9 * opacities.strength(rng))
    return [cover]


def cardiomegaly(chest: Chest, rng: np.random.Generator) -> Covers:
    """Cover of the heart. ``enlarge_heart`` has made it larger, so nothing is drawn here."""
    return [chest.canvas.area(chest.body.heart())]


def effusion(chest: Chest, rng: np.random.Generator) -> Covers:
    """Pleural fluid that blunts the costophrenic angle, with a meniscus up to the chest wall (Fleischner; Herring)."""
    covers = []
    for side in (0, 1) if rng.random() < 0.3 else (int(rng.integers(2)),):
        level = rng.uniform(0.18, 0.55)
        surface = 1 - level * (0.55 + 0.55 * np.clip(chest.across, 0, 1) ** 3)
        cover = ramp((chest.height[side] - surface) / 0.04 + 0.5) * chest.lungs[side]
        chest.fill(cover, 0.97)
        chest.extra += 0.14 * opacities.CONSPICUITY * cover
        covers.append(cover)
    return covers


def pneumothorax(chest: Chest, rng: np.random.Generator) -> Covers:
    """Pleural line away from the chest wall, and outside it air without vessels (Fleischner; Herring)."""
    side = int(rng.integers(2))
    lung, hilum = chest.body.lung(side), chest.body.hilum(side)
    height = np.clip((lung[:, 1:] - chest.body.apex) / (chest.body.angle[side] - chest.body.apex), 0, 1)
    collapse = rng.uniform(0.17, 0.42)
    shrunk = hilum + (lung - hilum) * (1 - collapse * (1 - 0.75 * height**3))
    inside = chest.canvas.area(shrunk, soft=0.003)
    beyond = chest.lungs[side] * (1 - inside)
    chest.markings *= 1 - beyond
    chest.fill(inside * chest.lungs[side], 0.5 * collapse)
    chest.extra -= 0.13 * opacities.CONSPICUITY * beyond
    line = chest.canvas.lines([shrunk[:21]], [0.006]) * chest.lungs[side]
    chest.extra += 0.22 * opacities.CONSPICUITY * chest.canvas.blur(line, 0.0015)
    return [beyond * (chest.height[side] < 0.75)]


def emphysema(chest: Chest, rng: np.random.Generator) -> Covers:
    """Bullae: dark round spaces with very thin walls near the apex (Fleischner). ``overinflate`` does the rest."""
    covers = []
    for side in (0, 1):
        across = chest.body.centre + (-1, 1)[side] * rng.uniform(0.5, 0.68) * chest.body.half
        y, radius = chest.body.apex + rng.uniform(0.1, 0.2), rng.uniform(0.03, 0.06)
        whole, hollow = (chest.canvas.disc(across, y, r, 0.012) * chest.lungs[side] for r in (radius, radius - 0.006))
        chest.extra += (0.08 * (whole - hollow) - 0.05 * hollow) * opacities.CONSPICUITY
        chest.markings *= 1 - hollow
        covers.append(whole)
    return covers


def pleural_thickening(chest: Chest, rng: np.random.Generator) -> Covers:
    """Band of soft tissue along the chest wall, often over the apex, with a wavy inner edge (Fleischner; Felson)."""
    covers = []
    for side in (0, 1) if rng.random() < 0.4 else (int(rng.integers(2)),):
        lung, hilum = chest.body.lung(side), chest.body.hilum(side)
        wave = 0.03 * np.sin(np.linspace(0, rng.uniform(4, 9), len(lung)) + rng.uniform(0, 6))
        inner = hilum + (lung - hilum) * (1 - rng.uniform(0.1, 0.2) + wave)[:, None]
        band = chest.lungs[side] * (1 - chest.canvas.area(inner, soft=0.004)) * ramp((chest.across - 0.45) / 0.1)
        band = band * ramp((rng.uniform(0.65, 0.85) - chest.height[side]) / 0.1)
        chest.fill(band, 0.9 * opacities.CONSPICUITY)
        chest.extra += 0.04 * opacities.CONSPICUITY * band
        covers.append(band)
    return covers


def hernia(chest: Chest, rng: np.random.Generator) -> Covers:
    """Hiatal hernia: a round shadow behind the heart with air above fluid (Herring; Felson)."""
    radius = rng.uniform(0.06, 0.095)
    x = chest.body.centre + rng.uniform(0.0, 0.05)
    y = chest.body.dome[0] - radius * rng.uniform(0.6, 1.0)
    whole = chest.canvas.disc(x, y, radius, 0.008)
    hollow = chest.canvas.disc(x, y, radius - 0.012, 0.008)
    level = y - rng.uniform(-0.15, 0.25) * radius
    above = hollow * ramp((level - chest.canvas.y) / 0.006 + 0.5)
    chest.fill(whole, 0.9)
    chest.extra += (0.2 * whole - 0.55 * above) * opacities.CONSPICUITY
    return [whole]


DRAW: dict[str, Callable[[Chest, np.random.Generator], Covers]] = {
    "Atelectasis": atelectasis,
    "Cardiomegaly": cardiomegaly,
    "Effusion": effusion,
    "Infiltration": opacities.infiltration,
    "Mass": opacities.mass,
    "Nodule": opacities.nodule,
    "Pneumonia": opacities.pneumonia,
    "Pneumothorax": pneumothorax,
    "Consolidation": opacities.consolidation,
    "Edema": opacities.edema,
    "Emphysema": emphysema,
    "Fibrosis": opacities.fibrosis,
    "Pleural_Thickening": pleural_thickening,
    "Hernia": hernia,
}
