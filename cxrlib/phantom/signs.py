"""Radiological signs of the 14 findings, each drawn at a known place.

A sign may first change the person (``RESHAPE``: a larger heart, a flat diaphragm), then it draws on the chest
(``DRAW``). A drawing function returns the covers of its lesions, (S, S) arrays, from which the boxes are taken.

The signs follow D. M. Hansell et al., Fleischner Society: Glossary of Terms for Thoracic Imaging, Radiology
2008;246:697-722 (below "Fleischner"), W. Herring, Learning Radiology (below "Herring"), and L. R. Goodman,
Felson's Principles of Chest Roentgenology (below "Felson").
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cxrlib.phantom.chest import FILM_CM, Anatomy, Chest, ramp, smooth

CONSPICUITY = 1.0
"""Contrast of the signs. At 1 they are clearer than on most real films, where many labels depend on signs that are
hard to see. So a phantom AUC shows that the workbook works, not how well it reads real films."""

NODULE_CM = (1.4, 2.8)
MASS_CM = (3.6, 7.0)
"""Diameters in cm. Nodules have at most 3 cm, masses more (Fleischner)."""

Covers = list[np.ndarray]


def infiltration(chest: Chest, rng: np.random.Generator) -> Covers:
    """Patchy opacity without a border, with visible vessels, anywhere in one or both lungs (Herring)."""
    covers = []
    for side in (0, 1) if rng.random() < 0.4 else (int(rng.integers(2)),):
        across, height = rng.uniform(0.45, 0.7), rng.uniform(0.3, 0.75)
        zone = np.exp(-(((chest.across - across) / 0.36) ** 2) - ((chest.height[side] - height) / 0.22) ** 2)
        cover = zone * ramp(0.55 + 0.45 * chest.canvas.field(rng, 0.05)) * chest.lungs[side]
        chest.fill(cover, 0.85 * strength(rng))
        covers.append(cover)
    return covers


def mass(chest: Chest, rng: np.random.Generator) -> Covers:
    """Mass: one lobulated opacity of more than 3 cm with a clear edge (Fleischner)."""
    side, place = _place(chest, rng)
    radius = rng.uniform(*MASS_CM) / 2 / FILM_CM
    turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    bumps = 1 + 0.07 * rng.standard_normal(14)
    outline = smooth(np.column_stack([np.cos(turn) * bumps, np.sin(turn) * bumps]))
    outline *= 2 * radius / np.ptp(outline, axis=0).max()
    cover = chest.canvas.area(place + outline, soft=0.006) * chest.lungs[side]
    density = strength(rng)
    chest.fill(cover, 0.85 * density)
    chest.extra += 0.05 * density * cover
    return [cover]


def nodule(chest: Chest, rng: np.random.Generator) -> Covers:
    """Round opacities of at most 3 cm (Fleischner): one, or several."""
    covers, density = [], strength(rng)
    for _ in range(int(rng.choice([1, 2, 3, 5], p=[0.3, 0.2, 0.2, 0.3]))):
        side, place = _place(chest, rng)
        cover = chest.canvas.disc(*place, rng.uniform(*NODULE_CM) / 2 / FILM_CM, 0.014) * chest.lungs[side]
        chest.fill(cover, 0.85 * density)
        chest.extra += 0.1 * density * cover
        covers.append(cover)
    return covers


def pneumonia(chest: Chest, rng: np.random.Generator) -> Covers:
    """Bronchopneumonia: unsharp patches of about 1 to 2 cm that merge in one lower zone (Felson; Herring)."""
    side = int(rng.integers(2))
    body, sign = chest.body, (-1, 1)[side]
    middle = np.array(
        [body.centre + sign * rng.uniform(0.5, 0.65) * body.half, body.dome[side] - rng.uniform(0.09, 0.16)]
    )
    cover = 0.6 * chest.canvas.disc(*middle, 0.1, 0.12, 1.1)
    for dx, dy in 0.05 * rng.standard_normal((18, 2)):
        cover = np.maximum(cover, chest.canvas.disc(middle[0] + dx, middle[1] + dy, rng.uniform(0.012, 0.024), 0.028))
    cover = cover * chest.lungs[side]
    chest.fill(cover, 0.85 * strength(rng))
    return [cover]


def consolidation(chest: Chest, rng: np.random.Generator) -> Covers:
    """Consolidation of a lobe or a part: dense, sharp at the fissure, with dark bronchi (Fleischner; Felson)."""
    side, upper = int(rng.integers(2)), rng.random() < 0.5
    height = chest.height[side]
    fissure = rng.uniform(0.42, 0.5) + 0.1 * (chest.across - 0.5)
    if upper:
        cover = ramp((fissure - height) / 0.02) * ramp((height - fissure + rng.uniform(0.26, 0.4)) / 0.12)
    else:
        cover = ramp((height - fissure) / 0.02) * ramp((fissure + rng.uniform(0.28, 0.4) - height) / 0.12)
    cover = cover * ramp(0.9 + 0.25 * chest.canvas.field(rng, 0.12)) * chest.lungs[side]
    density = strength(rng)
    chest.fill(cover, 0.92 * density)
    chest.extra -= 0.25 * density * _bronchi(chest, rng, side, upper) * cover
    return [cover]


def edema(chest: Chest, rng: np.random.Generator) -> Covers:
    """Bat-wing edema: both perihilar zones opaque, outer third clear, strong upper vessels, septal lines (Felson)."""
    covers, density = [], strength(rng)
    for side, sign in ((0, -1), (1, 1)):
        wing = np.exp(-((np.abs(chest.across - 0.36) / 0.3) ** 3) - np.abs((chest.height[side] - 0.52) / 0.3) ** 3)
        cover = wing * (0.85 + 0.15 * chest.canvas.field(rng, 0.04)) * chest.lungs[side]
        chest.fill(cover, 0.85 * density)
        x = chest.body.centre + sign * chest.body.half * np.array([0.87, 0.96])
        rungs = [np.column_stack([x, (y, y)]) for y in chest.body.angle[side] - 0.04 - 0.022 * np.arange(6)]
        chest.extra += 0.15 * chest.canvas.lines(rungs, [0.004] * 6) * chest.lungs[side]
        covers.append(cover)
    chest.markings *= 1.5
    return covers


def fibrosis(chest: Chest, rng: np.random.Generator) -> Covers:
    """Reticular pattern: a net of lines and small rings at both bases and under the pleura (Fleischner)."""
    covers, density = [], strength(rng)
    for side in (0, 1):
        zone = ramp((0.6 * chest.across + 0.9 * chest.height[side] - rng.uniform(0.75, 0.95)) / 0.3)
        nets = [ramp(1.2 - 1.8 * np.abs(chest.canvas.field(rng, cell))) for cell in (0.034, 0.02)]
        net = chest.canvas.blur(0.6 * nets[0] + 0.4 * nets[1], 0.004)
        cover = zone * chest.lungs[side]
        chest.fill(cover * (0.25 + 0.75 * net), 0.9 * density)
        covers.append(cover)
    return covers


def _place(chest: Chest, rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """Random place inside a lung, outside mediastinum and heart: side and (x, y)."""
    side = int(rng.integers(2))
    height = rng.uniform(0.22, 0.72)
    low = 0.4 if side == 0 else 0.42 + 0.25 * max(0.0, height - 0.45) / 0.3
    reach = chest.body.wall(np.array(height)) * rng.uniform(low, 0.8)
    y = chest.body.apex + height * (chest.body.dome[side] - chest.body.apex)
    return side, np.array([chest.body.centre + (-1, 1)[side] * reach, y])


def _bronchi(chest: Chest, rng: np.random.Generator, side: int, upper: bool) -> np.ndarray:
    """Cover of four bronchi from the hilum outwards, up or down."""
    hilum = chest.body.hilum(side)
    angles = (-1 if upper else 1) * np.linspace(0.25, 1.1, 4) + 0.1 * rng.standard_normal(4)
    run = np.array([0.02, 0.1, 0.2])[:, None] * np.ones(4)
    x, y = (-1, 1)[side] * run * np.cos(angles), run * np.sin(angles + 0.1 * run)
    return chest.canvas.lines(list((hilum + np.stack([x, y], -1)).transpose(1, 0, 2)), [0.009] * 4)


def strength(rng: np.random.Generator) -> float:
    """Random density of a lesion: 0.55 to 1, times CONSPICUITY."""
    return CONSPICUITY * rng.uniform(0.55, 1.0)


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
        chest.fill(cover, 0.9 * strength(rng))
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
    chest.fill(cover, 0.9 * strength(rng))
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
        chest.extra += 0.14 * CONSPICUITY * cover
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
    chest.extra -= 0.13 * CONSPICUITY * beyond
    line = chest.canvas.lines([shrunk[:21]], [0.006]) * chest.lungs[side]
    chest.extra += 0.22 * CONSPICUITY * chest.canvas.blur(line, 0.0015)
    return [beyond * (chest.height[side] < 0.75)]


def emphysema(chest: Chest, rng: np.random.Generator) -> Covers:
    """Bullae: dark round spaces with very thin walls near the apex (Fleischner). ``overinflate`` does the rest."""
    covers = []
    for side in (0, 1):
        across = chest.body.centre + (-1, 1)[side] * rng.uniform(0.5, 0.68) * chest.body.half
        y, radius = chest.body.apex + rng.uniform(0.1, 0.2), rng.uniform(0.03, 0.06)
        whole, hollow = (chest.canvas.disc(across, y, r, 0.012) * chest.lungs[side] for r in (radius, radius - 0.006))
        chest.extra += (0.08 * (whole - hollow) - 0.05 * hollow) * CONSPICUITY
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
        chest.fill(band, 0.9 * CONSPICUITY)
        chest.extra += 0.04 * CONSPICUITY * band
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
    chest.extra += (0.2 * whole - 0.55 * above) * CONSPICUITY
    return [whole]


DRAW: dict[str, Callable[[Chest, np.random.Generator], Covers]] = {
    "Atelectasis": atelectasis,
    "Cardiomegaly": cardiomegaly,
    "Effusion": effusion,
    "Infiltration": infiltration,
    "Mass": mass,
    "Nodule": nodule,
    "Pneumonia": pneumonia,
    "Pneumothorax": pneumothorax,
    "Consolidation": consolidation,
    "Edema": edema,
    "Emphysema": emphysema,
    "Fibrosis": fibrosis,
    "Pleural_Thickening": pleural_thickening,
    "Hernia": hernia,
}
