"""Anatomy of a phantom's frontal chest: shapes in body coordinates, rasterised at the film's size.

Body coordinates: the film is the unit square, x to the right (the patient's left side, as on any film), y downwards;
1 is ``FILM_CM``. Layers of tissue add to a density, air reduces it, and a tone curve gives the grey level, as in a
real X-ray. Sides: 0 is the patient's right, 1 the left.
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


def sample(rng: np.random.Generator, jitter: np.random.Generator, *, sex: str, age: float, view: str) -> Anatomy:
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
