"""Chest anatomy drawn in body coordinates, and the film that an X-ray makes of it.

Body coordinates: the film is the unit square, x to the right (the patient's left side is at the right, as on
any film), y downwards, 1 = ``FILM_CM``. A film is made as an X-ray makes it: layers of tissue add up to a
density, air takes away from it, and a tone curve turns density into grey. Sides: 0 the patient's right, 1 left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

FILM_CM = 36.0
"""Side of a film in cm: 2,500 pixels of 0.143 mm, the most frequent original in the dataset's table."""

_BITS = 4  # fractional bits of the rasteriser's coordinates
_WALL = np.array([(0, 0.42), (0.02, 0.52), (0.08, 0.66), (0.18, 0.79), (0.35, 0.91), (0.55, 0.98), (0.8, 1), (1, 0.99)])
_MEDIAL = np.array([(0, 0.36), (0.02, 0.25), (0.08, 0.17), (0.25, 0.14), (1, 0.11)])
"""Edges of a lung: height (0 apex, 1 costophrenic angle) against distance from the midline (1 = half width)."""

_DOWN, _UP = np.linspace(0, 1, 20), np.array([0.8, 0.5, 0.25, 0.15, 0.08, 0.04, 0.015])
_ALONG = np.linspace(0.99, 0.12, 16)[1:]
_DOME = np.clip((_ALONG - 0.42) / 0.57, 0, 1) ** 2.2 + 0.4 * np.clip((0.42 - _ALONG) / 0.3, 0, 1) ** 2
_OUTLINE = np.concatenate([np.interp(_DOWN, *_WALL.T), _ALONG, np.interp(_UP, *_MEDIAL.T)])
"""Outline of a lung: down the chest wall, along the dome (depth below its top, 1 = ``arch``), up the mediastinum."""


@dataclass(frozen=True)
class Anatomy:
    """Anatomy of one person on one film. Lengths are in film units."""

    centre: float  # x of the spine
    half: float  # inner half width of the thorax at its widest
    apex: float  # y of the lung apices
    dome: tuple[float, float]  # y of the diaphragm's domes
    arch: float  # height of a dome above its costophrenic angle
    ctr: float  # cardiothoracic ratio
    shift: float = 0.0  # mediastinal shift in x
    air: float = 1.0  # transparency of the lungs
    vessels: float = 1.0  # strength of the vessel markings
    breast: float = 0.0  # size of the breast shadows
    girth: float = 1.0  # thickness of the soft tissue
    age: float = 50.0

    @property
    def angle(self) -> np.ndarray:
        """Costophrenic angles: y of the right and the left one, (2,)."""
        return np.array(self.dome) + self.arch

    def wall(self, height: np.ndarray) -> np.ndarray:
        """Inner half width of the rib cage at a height between apex (0) and costophrenic angle (1)."""
        return self.half * np.interp(height, _WALL[:, 0], _WALL[:, 1])

    def lung(self, side: int) -> np.ndarray:
        """Outline of a lung without heart, (42, 2): down the chest wall, along the dome, up the mediastinum."""
        tall = self.dome[side] + self.arch - self.apex
        y = np.concatenate([self.apex + tall * _DOWN, self.dome[side] + self.arch * _DOME, self.apex + tall * _UP])
        return np.column_stack([self.centre + (-1, 1)[side] * self.half * _OUTLINE, y])

    def heart(self) -> np.ndarray:
        """Outline of the heart, (n, 2). Its width is ``ctr`` times the inner width of the thorax."""
        bottom, top = self.dome[1] + 0.035, self.apex + 0.42 * (self.dome[0] - self.apex)
        across = [-0.10, -0.3, -0.38, -0.25, 0.2, 0.62, 0.72, 0.55, 0.3, 0.22]
        down = [0, 0.3, 0.62, 0.98, 1.03, 1.0, 0.8, 0.5, 0.2, -0.02]
        x, y = smooth(np.column_stack([across, down])).T
        width = 2 * self.half * self.ctr
        x = x / np.ptp(x) * width
        return np.column_stack([self.centre + self.shift + x, top + y * (bottom - top)])

    def hilum(self, side: int) -> np.ndarray:
        """Centre of a hilum, (2,)."""
        x = self.centre + self.shift + (-0.27, 0.29)[side] * self.half
        return np.array([x, self.apex + (0.5, 0.475)[side] * (self.dome[0] - self.apex)])


def sample_anatomy(
    rng: np.random.Generator, jitter: np.random.Generator, *, sex: str, age: float, view: str
) -> Anatomy:
    """Random anatomy of a healthy person. ``rng`` gives the person, and ``jitter`` the pose on this film.

    On AP films the patient lies or sits. The breath is shallower, so the domes are higher. The heart is magnified,
    because it is farther from the film (W. Herring, Learning Radiology, chapter on technical adequacy).
    """
    portable = view == "AP"
    dome = 0.735 + 0.02 * rng.normal() + 0.014 * jitter.normal() - 0.045 * portable
    return Anatomy(
        centre=0.5 + 0.012 * jitter.normal(),
        half=float(np.clip(0.365 + 0.016 * rng.normal() - 0.012 * (sex == "F") - 0.03 * (age < 14), 0.29, 0.4)),
        apex=0.135 + 0.012 * rng.normal() + 0.012 * jitter.normal(),
        dome=(dome, dome + 0.022),
        arch=0.088 + 0.006 * rng.normal(),
        ctr=float(np.clip(0.43 + 0.02 * rng.normal() + 0.02 * portable, 0.37, 0.48)),
        breast=float(rng.uniform(0.5, 1.1)) if sex == "F" and age > 14 else 0.0,
        girth=float(np.clip(1 + 0.12 * rng.normal(), 0.75, 1.3)),
        age=age,
    )


class Canvas:
    """Rasteriser of shapes in body coordinates for a film of ``size`` × ``size`` pixels."""

    def __init__(self, size: int, *, turn: float = 0.0, zoom: float = 1.0):
        """``turn`` is in degrees about the film's centre. ``zoom`` above 1 makes the body larger."""
        self.size = size
        angle = np.deg2rad(turn)
        self._turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        back = np.linalg.inv(self._turn).astype(np.float32)
        column, row = _grid(size)
        self.x = back[0, 0] * column + back[0, 1] * row + np.float32(0.5)  # (S, S), body coordinates of each pixel
        self.y = back[1, 0] * column + back[1, 1] * row + np.float32(0.5)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Pixel coordinates of body coordinates (..., 2), in the rasteriser's fixed-point format, int32."""
        film = (np.asarray(points) - 0.5) @ self._turn.T + 0.5
        return np.round((film * self.size - 0.5) * (1 << _BITS)).astype(np.int32)

    def area(self, *outlines: np.ndarray, soft: float = 0.0) -> np.ndarray:
        """Cover of the union of outlines, (S, S) float32 in 0..1. ``soft`` (film units) blurs its edge."""
        cover = np.zeros((self.size, self.size), np.uint8)
        for outline in outlines:
            cv2.fillPoly(cover, [self.pixels(outline)], 255, cv2.LINE_AA, _BITS)
        return self.blur(cover.astype(np.float32) * np.float32(1 / 255), soft)

    def lines(self, curves: Sequence[np.ndarray], widths: Sequence[float]) -> np.ndarray:
        """Cover of curves (n, 2) with these widths, (S, S) float32. Lines below a pixel are fainter, not thinner."""
        cover = np.zeros((self.size, self.size), np.uint8)
        ends = np.cumsum([len(curve) for curve in curves])
        points = self.pixels(np.concatenate(curves))
        across = np.asarray(widths) * self.size
        thick = np.maximum(1, np.round(across)).astype(int)
        ink = (np.ceil(15 * np.minimum(1, across / thick)) * 17).astype(int)
        pens = thick * 256 + ink
        for pen in np.unique(pens):  # thin and faint lines first, so that they do not overwrite the others
            same = [points[ends[k] - len(curves[k]) : ends[k]] for k in np.flatnonzero(pens == pen)]
            cv2.polylines(cover, same, False, int(pen % 256), int(pen // 256), cv2.LINE_AA, _BITS)
        return cover.astype(np.float32) * np.float32(1 / 255)

    def disc(self, x: float, y: float, radius: float, edge: float, aspect: float = 1.0) -> np.ndarray:
        """Cover of a disc, or of an ellipse ``aspect`` times as high, (S, S) in 0..1. ``edge`` is the edge's width."""
        cover = np.zeros((self.size, self.size), np.float32)
        column, row = (self.pixels(np.array((x, y))) / (1 << _BITS)).tolist()
        reach = 1.3 * (radius + edge) * max(1.0, aspect) * self.size + 1
        near = tuple(slice(max(0, int(at - reach)), max(0, int(at + reach) + 2)) for at in (row, column))
        squares = (self.x[near] - np.float32(x)) ** 2 + ((self.y[near] - np.float32(y)) / np.float32(aspect)) ** 2
        cover[near] = ramp((np.float32(radius) - np.sqrt(squares)) / np.float32(edge) + np.float32(0.5))
        return cover

    def blur(self, values: np.ndarray, soft: float) -> np.ndarray:
        """Gaussian blur with standard deviation ``soft`` (film units). Wide blurs are computed at quarter size."""
        deviation = soft * self.size
        if deviation <= 0.3:
            return values
        if deviation < 4:
            return cv2.GaussianBlur(values, (0, 0), deviation)
        quarter = (max(1, self.size // 4),) * 2
        small = cv2.GaussianBlur(cv2.resize(values, quarter, interpolation=cv2.INTER_AREA), (0, 0), deviation / 4)
        return cv2.resize(small, (self.size, self.size), interpolation=cv2.INTER_LINEAR)

    def field(self, rng: np.random.Generator, cell: float) -> np.ndarray:
        """Smooth noise of mean 0 and standard deviation about 1, (S, S), with grains of ``cell`` film units."""
        grains = max(2, min(self.size, round(1 / cell)))
        small = rng.standard_normal((grains, grains), np.float32)
        return cv2.resize(small, (self.size, self.size), interpolation=cv2.INTER_CUBIC) * np.float32(1.3)


@dataclass
class Chest:
    """Chest while it is drawn: the canvas, the anatomy, and the layers that the signs change."""

    canvas: Canvas
    body: Anatomy
    lungs: list[np.ndarray]  # cover of the two lungs, heart not cut out
    across: np.ndarray  # |x - midline| / half width of the rib cage there: 0 medial, 1 lateral
    height: list[np.ndarray]  # 0 apex, 1 costophrenic angle, per side
    clear: np.ndarray  # 1 - share of the lung's air that fluid or tissue replaces
    markings: np.ndarray  # strength of the vessels
    extra: np.ndarray  # density added on top

    @classmethod
    def of(cls, body: Anatomy, canvas: Canvas) -> "Chest":
        lungs = [canvas.area(body.lung(side), soft=0.003) for side in (0, 1)]
        height = [(canvas.y - np.float32(body.apex)) / np.float32(body.angle[side] - body.apex) for side in (0, 1)]
        wall = body.wall(np.linspace(0, 1, 64)).astype(np.float32)
        at = np.clip(height[1] * 63, 0, 63).astype(np.intp)
        across = np.abs(canvas.x - np.float32(body.centre)) / wall[at]
        ones = np.ones((canvas.size, canvas.size), np.float32)
        return cls(canvas, body, lungs, across, height, ones, ones * np.float32(body.vessels), ones * 0)

    def fill(self, cover: np.ndarray, amount: float) -> None:
        """Replace the share ``amount`` of the air under ``cover``. Several fillings multiply, so some air remains."""
        self.clear *= 1 - np.clip(cover * np.float32(amount), 0, 0.97)


def smooth(corners: np.ndarray, rounds: int = 3) -> np.ndarray:
    """Smooth a closed polygon by cutting its corners (Chaikin 1974), (n, 2) to (n * 2**rounds, 2)."""
    for _ in range(rounds):
        following = np.roll(corners, -1, axis=0)
        corners = np.stack([0.75 * corners + 0.25 * following, 0.25 * corners + 0.75 * following], 1).reshape(-1, 2)
    return corners


def ramp(values: np.ndarray) -> np.ndarray:
    """Smooth step: 0 below 0, 1 above 1."""
    clipped = np.clip(values, 0, 1)
    return clipped * clipped * (3 - 2 * clipped)


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of each pixel's centre, relative to the film's centre, (S, S) float32 each."""
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size) - np.float32(0.5)
    return np.meshgrid(centres, centres)


def draw_film(chest: Chest, rng: np.random.Generator, *, view: str) -> np.ndarray:
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


def _soft_tissue(chest: Chest) -> np.ndarray:
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
            tissue = tissue + 0.4 * body.breast * inside * ramp(0.5 + (canvas.y - y) / (2 * radius))
    return tissue


def _abdomen(chest: Chest, rng: np.random.Generator) -> np.ndarray:
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


def _mediastinum(chest: Chest) -> np.ndarray:
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


def _vessels(chest: Chest, rng: np.random.Generator) -> np.ndarray:
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


def _bones(chest: Chest) -> np.ndarray:
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


def _ribs(body: Anatomy, pairs: int = 9) -> tuple[list[np.ndarray], list[np.ndarray]]:
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


def _spine(chest: Chest) -> np.ndarray:
    canvas, body = chest.canvas, chest.body
    away = np.abs(canvas.x - np.float32(body.centre))
    column = ramp((0.045 - away) / 0.012)
    discs = 0.75 + 0.25 * np.cos(canvas.y * np.float32(2 * np.pi / 0.052))
    return 0.16 * column * discs


def _expose(chest: Chest, density: np.ndarray, rng: np.random.Generator, *, view: str) -> np.ndarray:
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
