"""Film of a phantom's chest: tissue layers, exposure, noise, black borders and markers give the pixels."""

import cv2
import numpy as np

from cxrlib.data import anatomy


def develop(chest: anatomy.Chest, rng: np.random.Generator, *, view: str) -> np.ndarray:
    """Pixels of a chest's film, (S, S) uint8. Bone and fluid are bright, air is dark."""
    canvas, body = chest.canvas, chest.body
    lungs = np.maximum(*chest.lungs)
    heart = canvas.area(body.heart(), soft=0.007)
    density = body.girth * _soft_tissue(chest)
    density += _abdomen(chest, rng)
    air = lungs * (0.55 + 0.45 * canvas.blur(lungs, 0.035)) * (1 - 0.9 * heart) * (1 - 0.92 * _mediastinum(chest))
    vessels = _vessels(chest, rng) * chest.markings
    density -= 0.78 * body.air * air * chest.clear * (1 - 0.3 * np.minimum(vessels, 1))
    density += 0.06 * heart + _bones(chest) + chest.extra
    density *= 1 + 0.02 * canvas.field(rng, 0.3)
    return _expose(chest, density, rng, view=view)


def _soft_tissue(chest: anatomy.Chest) -> np.ndarray:
    """Density of chest wall, neck, shoulders and breasts. 1 is a chest without lungs."""
    canvas, body = chest.canvas, chest.body
    wide = 0.085 * body.girth
    flank = body.half + wide
    x = [0.085, 0.09, 0.13, 0.3, 0.42, 0.5, 0.56, 0.56, flank + 0.02, flank - 0.01, flank, flank]
    y = [-0.1, 0.02, 0.075, 0.12, 0.17, 0.26, 0.42, 0.6, 0.5, 0.42, 0.6, 1.1]
    right = np.column_stack([x, y])
    outline = np.concatenate([right, right[::-1] * (-1, 1)]) + np.array((body.centre, 0))
    cover = canvas.area(outline, soft=0.006)
    middle = np.exp(-(((canvas.x - np.float32(body.centre)) / np.float32(0.17)) ** 2))
    tissue = cover * (0.42 + 0.45 * canvas.blur(cover, 0.06) + 0.3 * middle)
    if body.breast:
        radius = 0.13 + 0.045 * body.breast
        for sign in (-1, 1):
            x, y = body.centre + sign * 0.6 * body.half, body.dome[0] - 0.085
            inside = canvas.disc(x, y, radius, 0.025, 0.9)
            tissue = tissue + 0.4 * body.breast * inside * anatomy.ramp(0.5 + (canvas.y - y) / (2 * radius))
    return tissue


def _abdomen(chest: anatomy.Chest, rng: np.random.Generator) -> np.ndarray:
    """Density of liver, spleen and stomach under the domes, with the stomach's gas bubble."""
    canvas, body = chest.canvas, chest.body
    halves = []
    for side, sign in ((0, -1), (1, 1)):
        dome = body.lung(side)[19:35]
        edge = body.centre + sign * body.half
        below = [(body.centre, dome[-1, 1] + 0.005), (body.centre, 1.1), (edge, 1.1), (edge, dome[0, 1] + 0.03)]
        halves.append(np.concatenate([dome, below]))
    cover = canvas.area(*halves, soft=0.006)
    bubble = canvas.disc(body.centre + 0.45 * body.half, body.dome[1] + 0.06, 0.05 * rng.uniform(0.4, 1), 0.03, 0.6)
    depth = 0.28 + 0.9 * np.clip(canvas.y - np.float32(body.dome[0] - 0.02), 0, 0.4)
    return cover * depth * (1 - bubble * rng.uniform(0, 1))


def _mediastinum(chest: anatomy.Chest) -> np.ndarray:
    """Share of air that the great vessels with the aortic knob replace. The windpipe is a gap in them."""
    canvas, body = chest.canvas, chest.body
    x, high, low = body.centre + body.shift, body.apex, body.dome[0]
    half = 0.155 * body.half
    across = x + half * np.array([-1, 1, 1.25, 1.1, -1, -1.15])
    band = np.column_stack([across, [high - 0.12, high - 0.12, high + 0.12, low + 0.05, low + 0.05, high + 0.1]])
    knob = canvas.disc(x + 0.165 * body.half, high + 0.29 * (low - high), 0.03 + 0.0002 * body.age, 0.015, 1.2)
    trunk = canvas.disc(x + 0.19 * body.half, high + 0.42 * (low - high), 0.033, 0.02, 1.3)
    carina = high + 0.34 * (low - high)
    ends = [(x - 0.004, -0.05), (x - 0.05, carina + 0.05), (x + 0.06, carina + 0.055)]  # trachea, two main bronchi
    tubes = [np.array([(x, carina), end]) for end in ends]
    windpipe = canvas.blur(canvas.lines(tubes, [0.034, 0.02, 0.02]), 0.004)
    return np.maximum.reduce([canvas.area(band, soft=0.006), knob, 0.8 * trunk]) * (1 - 0.3 * windpipe)


def _vessels(chest: anatomy.Chest, rng: np.random.Generator) -> np.ndarray:
    """Strength of hila and vessels. The vessels fan out of the hila, fork, and become thin towards the chest wall."""
    stems = 16  # first half right, second half left
    sign = np.repeat([-1, 1], stems // 2)[:, None]
    hila = np.stack([chest.body.hilum(side) for side in (0, 1)])
    heading = np.tile(np.linspace(-1.3, 1.4, stems // 2), 2) + 0.16 * rng.standard_normal(stems)
    reach = chest.body.half * (0.55 + 0.3 * np.maximum(heading, 0)) * rng.uniform(0.7, 1.1, stems)
    bend = np.linspace(0, 1, 7)
    heading = heading[:, None] + 0.3 * rng.standard_normal((stems, 1)) * bend + 0.3 * bend * (heading[:, None] > 0)
    steps = np.diff(reach[:, None] * bend, prepend=0)
    trunk = np.stack([sign * np.cumsum(steps * np.cos(heading), 1), np.cumsum(steps * np.sin(heading), 1)], -1)
    trunk += np.repeat(hila, stems // 2, axis=0)[:, None]  # (16, 7, 2)
    turns = heading[:, 1:6] + rng.choice([-1, 1], (stems, 5)) * rng.uniform(0.3, 0.8, (stems, 5))
    twig = reach[:, None] * rng.uniform(0.15, 0.42, (stems, 5))
    tips = trunk[:, 1:6] + np.stack([sign * twig * np.cos(turns), twig * np.sin(turns)], -1)
    thick = rng.uniform(0.009, 0.015, stems)
    curves = [*trunk[:, :3], *trunk[:, 2:5], *trunk[:, 4:], *np.stack([trunk[:, 1:6], tips], 2).reshape(-1, 2, 2)]
    widths = np.concatenate([thick, 0.55 * thick, 0.28 * thick, np.full(stems * 5, 0.003)])
    blobs = sum(0.6 * chest.canvas.disc(*hilum, 0.042, 0.05, 1.6) for hilum in hila)
    return chest.canvas.blur(chest.canvas.lines(curves, widths), 0.0035) + blobs


_COLLAR = np.array([(0.035, 0.085), (0.09, 0.072), (0.16, 0.04), (0.24, 0.012), (0.31, 0.015)])
_BLADE = np.array([(0.27, 0.03), (0.4, 0.06), (0.37, 0.16), (0.35, 0.33), (0.31, 0.2)])
_ARM = np.array([(0.42, 0.06), (0.48, 0.2), (0.55, 0.5)])
"""Collar bone, shoulder blade and upper arm. The origin is the midline at the height of the lungs' apices."""


def _bones(chest: anatomy.Chest) -> np.ndarray:
    """Added density of ribs, collar bones, shoulder blades, arms and spine."""
    canvas, body = chest.canvas, chest.body
    behind, before = _ribs(body)
    rims = [rib + np.array((0, 0.01)) for rib in behind]
    ribs = 0.12 * canvas.lines(behind, [0.024] * len(behind)) + 0.07 * canvas.lines(before, [0.024] * len(before))
    ribs += 0.07 * canvas.lines(rims, [0.004] * len(rims))
    collar, blade, arm = (
        [shape * (sign, 1) + np.array((body.centre, body.apex)) for sign in (-1, 1)]
        for shape in (_COLLAR, _BLADE, _ARM)
    )
    bones = canvas.blur(ribs, 0.0025) + 0.17 * canvas.lines(collar, [0.024, 0.024])
    bones += 0.07 * canvas.area(*blade, soft=0.008) + 0.22 * canvas.blur(canvas.lines(arm, [0.055, 0.055]), 0.005)
    return bones + _spine(chest)


def _ribs(body: anatomy.Anatomy, pairs: int = 9) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Curves (n, 2) of the ribs: posterior parts and anterior parts."""
    low = body.dome[0] + 0.1
    number = np.arange(pairs)[:, None]
    along, front = np.linspace(0, 1, 9), np.linspace(0, 1, 6)
    y = body.apex - 0.035 + (low - body.apex) / (pairs + 0.4) * number  # (9, 1)
    y = y - 0.005 * np.minimum(number, 4) * np.sin(0.9 * np.pi * along) + (0.035 + 0.011 * number) * along**1.6
    out = body.wall((y[:, -1:] - body.apex) / (low - body.apex))
    x = 0.04 + (out - 0.035) * np.sin(np.pi / 2 * along)
    front_x = out * (1 - 0.55 * front**1.3)
    front_y = y[:, -1:] + (0.05 + 0.1 * front) * front**0.7 + 0.02 * front
    behind, before = np.stack([x, y], -1), np.stack([front_x, front_y], -1)[:7]
    centre = np.array((body.centre, 0))
    return [*(behind + centre), *(behind * (-1, 1) + centre)], [*(before + centre), *(before * (-1, 1) + centre)]


def _spine(chest: anatomy.Chest) -> np.ndarray:
    canvas, body = chest.canvas, chest.body
    away = np.abs(canvas.x - np.float32(body.centre))
    column = anatomy.ramp((0.045 - away) / 0.012)
    discs = 0.75 + 0.25 * np.cos(canvas.y * np.float32(2 * np.pi / 0.052))
    return 0.16 * column * discs


def _expose(chest: anatomy.Chest, density: np.ndarray, rng: np.random.Generator, *, view: str) -> np.ndarray:
    """Pixels from density, uint8: exposure, tone curve, scatter (more on portable films), grain, marker, collimator."""
    canvas = chest.canvas
    portable = view == "AP"
    exposure = rng.uniform(1.05, 1.5)
    grey = 1 - np.exp(np.float32(-exposure) * np.maximum(density, 0))
    grey = 0.85 * grey + 0.15 * canvas.blur(grey, 0.06)
    grey = 0.03 + rng.uniform(0.9, 1.0) * grey + portable * rng.uniform(0, 0.18) * (1 - grey)
    grey += rng.uniform(0.003, 0.012) * rng.standard_normal(grey.shape, np.float32)
    pixels = np.clip(grey * 255, 0, 255).astype(np.uint8)
    _mark(pixels, rng, portable=portable)
    return _collimate(pixels, rng)


def _mark(pixels: np.ndarray, rng: np.random.Generator, *, portable: bool) -> None:
    """Draw the side marker at the patient's left shoulder, and PORTABLE on some portable films."""
    size = len(pixels)
    scale, thick = size / 900, max(1, size // 340)
    place = (int(size * rng.uniform(0.88, 0.94)), int(size * rng.uniform(0.06, 0.14)))
    cv2.putText(pixels, "L", place, cv2.FONT_HERSHEY_DUPLEX, 1.6 * scale, 245, thick, cv2.LINE_AA)
    if portable and rng.random() < 0.6:
        place = (int(size * 0.04), int(size * rng.uniform(0.05, 0.1)))
        cv2.putText(pixels, "PORTABLE", place, cv2.FONT_HERSHEY_SIMPLEX, 0.7 * scale, 235, thick, cv2.LINE_AA)


def _collimate(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blacken the edges of a third of the films, as a collimator does."""
    if rng.random() < 0.35:
        size = len(pixels)
        top, bottom, left, right = (rng.uniform(0, 0.035, 4) * size).astype(int)
        pixels[:top] = pixels[size - bottom :] = 3
        pixels[:, :left] = pixels[:, size - right :] = 3
    return pixels
