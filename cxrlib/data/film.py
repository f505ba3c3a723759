"""From a chest with its signs to the grey values of a film: tissue layers, exposure, noise, borders, marker."""

from itertools import pairwise

import cv2
import numpy as np

from cxrlib.data import anatomy


def develop(chest: anatomy.Chest, rng: np.random.Generator, *, view: str) -> np.ndarray:
    """The film of a chest, (S, S) uint8, bone and fluid bright, air dark."""
    canvas, body = chest.canvas, chest.body
    lungs = np.maximum(*chest.lungs)
    heart = canvas.area(body.heart(), soft=0.007)
    density = body.girth * _soft_tissue(chest)
    density += _abdomen(chest, rng)
    air = lungs * (0.55 + 0.45 * canvas.blur(lungs, 0.035)) * (1 - 0.9 * heart) * (1 - 0.92 * _mediastinum(chest))
    vessels = _vessels(chest, rng) * chest.markings
    density -= 0.78 * body.air * air * chest.clear * (1 - 0.34 * np.minimum(vessels, 1))
    density += 0.06 * heart + _bones(chest) + chest.extra
    density *= 1 + 0.02 * canvas.field(rng, 0.3)
    return _expose(chest, density, rng, view=view)


def _soft_tissue(chest: anatomy.Chest) -> np.ndarray:
    """Chest wall, neck, shoulders and breasts; 1 is the density of a chest without lungs."""
    canvas, body = chest.canvas, chest.body
    wide = 0.068 * body.girth
    flank = body.half + wide
    half = [(0.085, -0.1), (0.09, 0.02), (0.13, 0.075), (0.3, 0.12), (0.42, 0.17), (0.5, 0.26), (0.56, 0.42),
            (0.56, 0.6), (flank + 0.02, 0.5), (flank - 0.01, 0.42), (flank, 0.6), (flank, 1.1)]  # fmt: skip
    right = np.array(half)
    outline = np.concatenate([right * (1, 1), (right * (-1, 1))[::-1]]) + (body.centre, 0)
    cover = canvas.area(outline, soft=0.006)
    middle = np.exp(-(((canvas.x - np.float32(body.centre)) / np.float32(0.17)) ** 2))
    tissue = cover * (0.42 + 0.45 * canvas.blur(cover, 0.06) + 0.3 * middle)
    if body.breast:
        radius = 0.13 + 0.045 * body.breast
        for sign in (-1, 1):
            x, y = body.centre + sign * 0.52 * body.half, body.dome[0] - 0.055
            inside = canvas.disc(x, y, radius, 0.025, 0.9)
            tissue = tissue + 0.3 * body.breast * inside * anatomy.ramp(0.5 + (canvas.y - y) / (2 * radius))
    return tissue


def _abdomen(chest: anatomy.Chest, rng: np.random.Generator) -> np.ndarray:
    """Liver, spleen and stomach under the domes, with the gas bubble of the stomach."""
    canvas, body = chest.canvas, chest.body
    inside = body.centre + np.array([-1, 1]) * body.half
    halves = []
    for side, sign in ((0, -1), (1, 1)):
        dome = body.lung(side)[19:35]
        halves.append(np.concatenate([dome, [(body.centre, dome[-1, 1] + 0.005), (body.centre, 1.1), (inside[side], 1.1),
                                             (inside[side] + sign * 0.01, dome[0, 1] + 0.03)]]))  # fmt: skip
    cover = canvas.area(*halves, soft=0.006)
    bubble = canvas.disc(body.centre + 0.45 * body.half, body.dome[1] + 0.06, 0.05 * rng.uniform(0.4, 1), 0.03, 0.6)
    depth = 0.28 + 0.9 * np.clip(canvas.y - np.float32(body.dome[0] - 0.02), 0, 0.4)
    return cover * depth * (1 - bubble * rng.uniform(0, 1))


def _mediastinum(chest: anatomy.Chest) -> np.ndarray:
    """Great vessels with the aortic knob, and the windpipe as a gap in them; a share of the air they replace."""
    canvas, body = chest.canvas, chest.body
    x, high, low = body.centre + body.shift, body.apex, body.dome[0]
    half = 0.155 * body.half
    band = np.array([(x - half, high - 0.12), (x + half, high - 0.12), (x + 1.25 * half, high + 0.12),
                     (x + 1.1 * half, low + 0.05), (x - half, low + 0.05), (x - 1.15 * half, high + 0.1)])  # fmt: skip
    knob = canvas.disc(x + 0.165 * body.half, high + 0.29 * (low - high), 0.03 + 0.0002 * body.age, 0.015, 1.2)
    trunk = canvas.disc(x + 0.19 * body.half, high + 0.42 * (low - high), 0.033, 0.02, 1.3)
    carina = high + 0.34 * (low - high)
    pipe = [np.array([(x - 0.004, -0.05), (x, carina)]), np.array([(x, carina), (x - 0.05, carina + 0.05)]),
            np.array([(x, carina), (x + 0.06, carina + 0.055)])]  # fmt: skip
    windpipe = canvas.blur(canvas.lines(pipe, [0.034, 0.02, 0.02]), 0.004)
    return np.maximum.reduce([canvas.area(band, soft=0.006), knob, 0.8 * trunk]) * (1 - 0.3 * windpipe)


def _vessels(chest: anatomy.Chest, rng: np.random.Generator) -> np.ndarray:
    """Hila and the vessels that fan out of them, thinner towards the chest wall."""
    curves, widths = [], []
    bend = np.linspace(0, 1, 7)
    blobs = np.float32(0)
    for side, sign in ((0, -1), (1, 1)):
        hilum = chest.body.hilum(side)
        blobs = blobs + 0.6 * chest.canvas.disc(*hilum, 0.042, 0.05, 1.6)
        angles = np.linspace(-1.25, 1.35, 9) + 0.12 * rng.standard_normal(9)
        reach = chest.body.half * (0.62 + 0.28 * np.maximum(angles, 0)) * rng.uniform(0.85, 1.15, 9)
        curl = 0.25 * rng.standard_normal(9)
        heading = angles[:, None] + curl[:, None] * bend  # (9, 7)
        run = reach[:, None] * bend
        stems = hilum + np.stack([sign * run * np.cos(heading), run * np.sin(heading)], -1)  # (9, 7, 2)
        for stem, thick in zip(stems, rng.uniform(0.008, 0.014, 9), strict=True):
            curves += list(pairwise(stem[::2]))
            widths += list(thick * np.array([1, 0.6, 0.3]))
        turns = heading[:, 2:5] + rng.choice([-1, 1], (9, 3)) * rng.uniform(0.35, 0.7, (9, 3))
        length = reach[:, None] * rng.uniform(0.25, 0.45, (9, 3))
        tips = stems[:, 2:5] + np.stack([sign * length * np.cos(turns), length * np.sin(turns)], -1)
        for start, tip in zip(stems[:, 2:5].reshape(-1, 2), tips.reshape(-1, 2), strict=True):
            curves.append(np.stack([start, tip]))
            widths.append(0.0035)
    tree = chest.canvas.lines(curves, widths)
    return chest.canvas.blur(tree, 0.0035) + blobs


def _bones(chest: anatomy.Chest) -> np.ndarray:
    """Ribs, clavicles, shoulder blades, arms and spine, as added density."""
    canvas, body = chest.canvas, chest.body
    behind, before, rims = _ribs(body)
    ribs = 0.12 * canvas.lines(behind, [0.024] * len(behind)) + 0.07 * canvas.lines(before, [0.024] * len(before))
    ribs += 0.07 * canvas.lines(rims, [0.004] * len(rims))
    collar, blade, arm = [], [], []
    for sign in (-1, 1):
        x, y = body.centre, body.apex
        collar.append(np.array([(x + sign * dx, y + dy) for dx, dy in
                                [(0.035, 0.085), (0.09, 0.072), (0.16, 0.04), (0.24, 0.012), (0.31, 0.015)]]))  # fmt: skip
        blade.append(np.array([(x + sign * dx, y + dy) for dx, dy in
                               [(0.27, 0.03), (0.4, 0.06), (0.37, 0.16), (0.35, 0.33), (0.31, 0.2)]]))  # fmt: skip
        arm.append(np.array([(x + sign * 0.41, y + 0.06), (x + sign * 0.47, y + 0.2), (x + sign * 0.53, y + 0.5)]))
    bones = canvas.blur(ribs, 0.0025) + 0.17 * canvas.lines(collar, [0.024, 0.024])
    bones += 0.07 * canvas.area(*blade, soft=0.008) + 0.22 * canvas.blur(canvas.lines(arm, [0.055, 0.055]), 0.005)
    return bones + _spine(chest)


def _ribs(body: anatomy.Anatomy) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Hind parts, front parts and lower rims of nine pairs of ribs, as curves (n, 2)."""
    behind, before, rims = [], [], []
    low = body.dome[0] + 0.1
    step = (low - body.apex) / 9.4
    along = np.linspace(0, 1, 9)
    for number in range(9):
        start = body.apex - 0.035 + step * number
        rise = 0.02 * min(number, 4) / 4
        top = start - rise * np.sin(np.pi * along * 0.9) + (0.035 + 0.011 * number) * along**1.6
        out = body.wall(np.clip((top[-1] - body.apex) / (low - body.apex), 0, 1))
        x = 0.04 + (out - 0.035) * np.sin(np.pi / 2 * along)
        front = np.linspace(0, 1, 6)
        fx, fy = out * (1 - 0.55 * front**1.3), top[-1] + (0.05 + 0.1 * front) * front**0.7 + 0.02 * front
        for sign in (-1, 1):
            hind = np.column_stack([body.centre + sign * x, top])
            behind.append(hind)
            rims.append(hind + (0, 0.01))
            if number < 7:
                before.append(np.column_stack([body.centre + sign * fx, fy]))
    return behind, before, rims


def _spine(chest: anatomy.Chest) -> np.ndarray:
    canvas, body = chest.canvas, chest.body
    away = np.abs(canvas.x - np.float32(body.centre))
    column = anatomy.ramp((0.045 - away) / 0.012)
    discs = 0.75 + 0.25 * np.cos(canvas.y * np.float32(2 * np.pi / 0.052))
    return 0.16 * column * discs


def _expose(chest: anatomy.Chest, density: np.ndarray, rng: np.random.Generator, *, view: str) -> np.ndarray:
    """Tone curve, exposure, scatter (more on portable films), grain, collimator and marker, as uint8."""
    canvas = chest.canvas
    portable = view == "AP"
    exposure = rng.uniform(1.05, 1.5)
    grey = 1 - np.exp(np.float32(-exposure) * np.maximum(density, 0))
    grey = 0.85 * grey + 0.15 * canvas.blur(grey, 0.06)
    grey = 0.03 + rng.uniform(0.9, 1.0) * grey + portable * rng.uniform(0, 0.12) * (1 - grey)
    grey += rng.uniform(0.003, 0.012) * rng.standard_normal(grey.shape, np.float32)
    pixels = np.clip(grey * 255, 0, 255).astype(np.uint8)
    _mark(pixels, rng, portable=portable)
    return _collimate(pixels, rng)


def _mark(pixels: np.ndarray, rng: np.random.Generator, *, portable: bool) -> None:
    """The side marker at the patient's left shoulder, and the word that portable films carry."""
    size = len(pixels)
    scale, thick = size / 900, max(1, size // 340)
    spot = (int(size * rng.uniform(0.88, 0.94)), int(size * rng.uniform(0.06, 0.14)))
    cv2.putText(pixels, "L", spot, cv2.FONT_HERSHEY_DUPLEX, 1.6 * scale, 245, thick, cv2.LINE_AA)
    if portable and rng.random() < 0.6:
        at = (int(size * 0.04), int(size * rng.uniform(0.05, 0.1)))
        cv2.putText(pixels, "PORTABLE", at, cv2.FONT_HERSHEY_SIMPLEX, 0.7 * scale, 235, thick, cv2.LINE_AA)


def _collimate(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Black edges where the beam was narrowed, on a third of the films."""
    if rng.random() < 0.35:
        size = len(pixels)
        top, bottom, left, right = (rng.uniform(0, 0.035, 4) * size).astype(int)
        pixels[:top] = pixels[size - bottom :] = 3
        pixels[:, :left] = pixels[:, size - right :] = 3
    return pixels
