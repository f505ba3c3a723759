"""Opacities of the lung as signs of seven findings: fluid or tissue in the air spaces.

There is one function per finding, as in ``signs``, which also has the full sources.
"""

import numpy as np

from cxrlib.data.anatomy import FILM_CM, Chest, ramp, smooth

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
