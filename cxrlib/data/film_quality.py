"""Film quality, by cheap measures on the pixels: what is no frontal chest film, negatives, turned films, unusual greys.

**How a film lies.** A film is brought to 8 x 8 pixels and compared with a Gaussian model of chest films: the average
film ``TEMPLATE`` and the 16 directions in which films differ most, ``EVEN`` and ``ODD``. ``distances`` has eight
distances, one for each way in which a film can be turned by quarters and inverted. A film lies as the smallest one says
if the distance is small and the others are clearly larger. A mirrored film cannot be told from an upright one: the
model is symmetric.

**What is no chest film.** ``judge`` refuses pictures that are constant, too small, too long, coloured, noise,
screenshots, or as far from the model in all eight ways as hardly any film is. What is wrong but can be put right with
certainty is put right, and said.

Measured on real films of NIH at 256² (``tests/data/test_film_quality.py`` and ``test_film_judge.py`` repeat it):

======== ===== ================================= ===================================================================
films    n     false alarms                      found
======== ===== ================================= ===================================================================
nih-1k   1,049 0 of 1,046                        both negatives, and the one film that lies upside down
nih-more 388   0 of 388 (not seen by the model)
turned   20                                      20 of 20, to the left
======== ===== ================================= ===================================================================

The other 1,434 films, changed: 1,420 of their negatives are found. Turned to the left 1,419, upside down 1,420 and to
the right 1,419 (99.0 %), inverted as well 1,419, 1,420 and 1,419. At most 1 is named wrongly, and the rest are not
certain. ``judge`` refuses most of the rest, and reads at most 3 (0.2 %) in a wrong position. No phantom film is
refused.

Pixels alone accept a mirrored film and most pictures of the middle of a film, and they know nothing of other body
parts. For these ``evaluation.gate`` asks the network's features.
"""

from functools import cache
from typing import NamedTuple

import cv2
import numpy as np

from cxrlib.data import images

SIDE = 8
FRAME_SIDE = 64
"""Side in pixels of the film on which its frame is looked for."""

# Left half of the mean of the standardised films of nih-1k and their mirror images, in hundredths of a standard
# deviation. ``tests/benchmarks/compare_gate.py --model FOLDER`` computes it and the modes again.
_LEFT_HALF = [
    [-170, -142, -96, 7],
    [-18, -8, -62, -18],
    [29, 1, -99, -17],
    [11, -8, -82, 23],
    [-19, -6, -27, 70],
    [-46, 17, 45, 107],
    [-75, 53, 107, 139],
    [-88, 76, 139, 160],
]
TEMPLATE = np.hstack([_LEFT_HALF, np.fliplr(_LEFT_HALF)]).astype(np.float64)
"""Average chest film at 8 x 8 pixels, in hundredths of its standard deviation, symmetric."""

EVEN = """
    -46 -49 -31 -17 -29 -26 -13 -14 -5 -13 -12 -16 20 -6 -15 -19 46 5 -7 -14 67 20 -1 -10 76 29 0 -9 71 29 0 -9
    -25 -25 -15 -10 -44 -16 12 1 -31 5 32 6 -26 15 35 6 -21 27 40 5 -14 34 34 5 -11 11 9 -1 -7 -13 -8 -8
    40 31 5 -18 6 -16 -32 -22 -20 -32 -25 -9 -27 -28 -3 4 -17 -14 18 8 -4 12 31 11 8 22 21 8 20 14 7 3
    -17 -11 -14 -14 21 9 -16 -15 18 0 -24 -8 16 4 -12 3 15 14 4 6 5 24 15 5 -19 21 12 2 -41 2 0 -4
    10 2 -2 -5 5 -8 -13 -3 6 -8 1 6 11 -5 14 10 17 1 18 8 14 -3 6 2 3 -23 -12 -5 -1 -26 -13 -8
    -18 -21 -11 4 16 7 6 11 6 -11 -1 14 -7 -19 3 15 -9 -20 4 11 -5 -12 5 7 4 3 7 6 3 -2 0 2
    -7 6 6 -6 20 21 7 -2 -3 3 -4 -2 -14 1 -1 -2 -9 8 4 -4 2 12 0 -6 9 -2 -9 -10 9 -6 -10 -11
    1 -2 -16 -22 4 8 -2 -12 1 11 1 -5 -2 10 4 1 -3 4 2 4 -5 -11 -3 4 -1 -12 3 9 11 -1 10 13
    10 -1 -5 -13 9 0 10 0 4 -5 16 -3 3 -7 12 -9 4 -8 2 -13 2 -2 0 -10 0 9 3 -3 -7 4 1 -2
    0 -3 -2 1 6 -7 -8 1 8 -2 0 4 7 3 5 5 -3 6 6 0 -15 1 -2 -5 -10 0 -8 -9 13 19 -1 -8
    19 -5 -20 2 3 -4 0 8 2 5 0 8 -5 4 -6 3 -6 4 -9 2 2 7 -4 1 5 5 -2 -1 -1 -5 -4 -4
"""
ODD = """
    21 14 19 14 25 -1 -5 17 17 -15 -5 30 20 -15 7 31 29 -5 18 25 38 12 19 17 47 26 13 8 53 31 11 4
    8 7 -7 -9 6 14 8 -12 4 20 7 -19 1 22 2 -16 -1 20 -2 -11 1 22 4 -4 3 21 11 2 7 17 9 2
    -1 2 4 5 0 0 1 8 -1 -1 4 13 -4 4 10 14 -10 10 20 14 -16 13 20 10 -21 11 8 4 -23 7 3 1
    29 24 6 -4 15 9 1 -4 -2 0 -2 -3 -9 -4 -2 0 -13 -8 0 2 -12 -10 0 2 -5 -7 0 1 5 -3 -1 0
    0 0 2 5 8 -3 -6 3 6 -7 -11 2 4 -7 -13 -1 1 -6 -18 -4 -5 1 -11 -2 -9 14 3 1 -11 18 6 2
"""
"""Modes of the films around the template: left halves (8 x 4) of the 16 first principal components, each times its
standard deviation, in hundredths. The right half is the mirror image in ``EVEN``, and its negative in ``ODD``."""

REST = 0.0533
"""Variance of each direction that is no mode."""

TURNED = ("", "to the left", "upside down", "to the right")
"""How a film lies, by the quarter turns to the left that it was given."""

FARTHEST = 320.0
"""Distance above which a picture is no chest film in any position. Of 1,434 real films none is beyond (the largest are
303 and 276); noise starts at 650."""

CERTAIN, MARGIN = 240.0, 25.0
"""A position other than upright is certain up to this distance, if every other one is farther by the margin."""

BLACK, WHITE, LEVELS = 30, 225, 64
"""Mean grey below and above which a film is unusual, and the fewest grey levels. NIH's: 48 to 211; 134 or more."""

SMALLEST = 32
"""Shortest side in pixels of a film that can be judged, and read by the network."""

LONGEST = 1.7
"""Longest side divided by the shortest. A detector of 35 x 43 cm has 1.23; a wide screen has 1.78."""

COLOUR = 6.0
"""Colour (``images.colour_of``) above which a picture is no film. Films in colour files have 0, tinted ones up to 2.4,
as JPEG of quality 30 up to 3.7; a film photographed from a screen has about 7, and most photographs 11 or more."""

FINE, SHARP, SCREEN = 0.12, 0.016, 4e-4
"""Share of fine detail, share of sharp edges, and product of even areas and edges, above which a picture is noise, a
text, or a screenshot, at 256 pixels or more. Real films reach 0.061, 0.011 and 2.2e-4. In a smaller picture edges are
closer together, so the first two are divided by its size: drawn films of 128 px reach 0.158 of 0.24, and 0.021 of
0.032."""

BLURRED = 1e-4
"""Share of fine detail below which a picture is blurred. Real films have 0.0012 or more, and enlarged from 64² to 256²
0.00015 or more; digits of 8² enlarged so 0.00002 to 0.00009."""

DETAILED = 128
"""Shortest side in pixels from which detail is judged."""


class Judged(NamedTuple):
    """Judgement of a film: the pixels to be read (height, width) uint8, and what is to be said of them.

    ``refusal`` is "" or says why the picture cannot be read as a frontal chest film, and what to do; ``pixels`` are
    then those of the file. ``righted`` is "" or says what was put right in ``pixels``: "a negative, inverted".
    ``notes`` are remarks on films that are read all the same. ``lies`` is the ``position`` of what may be a film.
    """

    pixels: np.ndarray
    refusal: str = ""
    righted: str = ""
    notes: tuple[str, ...] = ()
    lies: str = ""


class Position(NamedTuple):
    """Position of a film: quarter turns to the left that it was given (0 to 3), and whether it is a negative."""

    quarters: int
    negative: bool

    def __str__(self) -> str:
        """Text such as "negative", "to the left" or "negative, upside down"; "" for upright."""
        return ", ".join(filter(None, ["negative" if self.negative else "", TURNED[self.quarters]]))


UPRIGHT = Position(0, False)
POSITIONS = tuple(Position(quarters, negative) for negative in (False, True) for quarters in range(4))
"""All positions, in the order of ``distances``."""


class GreyLevels(NamedTuple):
    """Grey levels of a film: their mean (0 black to 255 white) and how many of the 256 occur."""

    mean: float
    count: int


def judge(film: images.Film) -> Judged:
    """Judgement of a film by its pixels alone: refused, righted where that is certain, or accepted as it is."""
    pixels = film.pixels
    small = _reduced(pixels)
    refusal = _no_film(film, small)
    if refusal:
        return Judged(pixels, refusal)
    away = distances(small)
    if away.min() > FARTHEST:
        return Judged(pixels, "it does not look like a frontal chest film; take a frontal film of the whole chest")
    notes = tuple(filter(None, [unusual_grey(pixels)]))
    found, certain = _nearest(away)
    if found == UPRIGHT:
        return Judged(pixels, notes=notes)
    upright = righted(pixels, found)
    if not certain or _nearest(distances(upright))[0] != UPRIGHT:
        found = f"it looks inverted or turned ({found}), but not certainly so"
        return Judged(pixels, f"{found}; look at it, and save it upright and positive")
    return Judged(upright, righted=_said(found), notes=notes, lies=str(found))


def _no_film(film: images.Film, small: np.ndarray) -> str:
    """Reason, by everything but the distances, why a picture is no chest film, and what to do; "" for none.

    ``small`` are its pixels, ``_reduced``.
    """
    pixels = film.pixels
    height, width = pixels.shape
    if pixels.min() == pixels.max():
        return f"it shows nothing: all its pixels have the grey {pixels.flat[0]}; export the film again"
    if min(height, width) < SMALLEST:
        return f"it is too small ({width} x {height} pixels, {SMALLEST} or more are needed); take the original film"
    if max(height, width) > LONGEST * min(height, width):
        return f"no film is so long ({width} x {height} pixels); cut out one frontal film, or export the original"
    if film.colour > COLOUR:
        return "its colours carry information, and a film is grey: it is a photograph or a screenshot; export the film"
    detail = _detail(pixels, small)
    closer = max(1.0, 256 / min(height, width))
    if detail.fine > FINE * closer:
        return "it is noise, a text or a pattern of fine lines, not a film; take the original film"
    if detail.edges > SHARP * closer or detail.even * detail.edges > SCREEN:
        return "it looks like a screenshot, a page or a photograph (even areas, sharp edges); export the film alone"
    if detail.fine < BLURRED:
        return "it has no detail: it is blurred, or a tiny picture that was enlarged; take the original film"
    return ""


def position(pixels: np.ndarray) -> str:
    """How a film lies: "negative", "to the left", "to the right", "upside down", "negative, to the left" …

    "" for upright, and where nothing else is certain. ``pixels`` is (height, width) uint8. A film without contrast is
    upright.
    """
    found, certain = _nearest(distances(pixels))
    return str(found) if certain else ""


def righted(pixels: np.ndarray, found: Position) -> np.ndarray:
    """Pixels of a film in this position turned upright and made positive, contiguous."""
    pixels = np.rot90(pixels, -found.quarters)
    return np.ascontiguousarray(255 - pixels if found.negative else pixels)


def _nearest(away: np.ndarray) -> tuple[Position, bool]:
    """The nearest position by ``distances``, and whether it is certain.

    A film is upright unless another position is nearer by the margin.
    """
    order = np.argsort(away, kind="stable")
    nearest, second = away[order[0]], away[order[1]]
    if away[0] - nearest < MARGIN:
        return UPRIGHT, True
    return POSITIONS[order[0]], bool(nearest <= CERTAIN and second - nearest >= MARGIN)


def _said(found: Position) -> str:
    negative = "a negative, inverted" if found.negative else ""
    by = "" if found.quarters == 2 else " by 90°"
    turned = f"turned {TURNED[found.quarters]}{by}, turned back" if found.quarters else ""
    return "; ".join(filter(None, [negative, turned]))


def distances(pixels: np.ndarray) -> np.ndarray:
    """Distance of a film from the model of chest films in each of ``POSITIONS``, (8,), 0 or more.

    It is the squared Mahalanobis distance of the film, brought to 8 x 8 pixels, mean 0 and standard deviation 1, after
    it was turned back and made positive. Real upright films have 15 to 310, half of them less than 55.
    """
    small = standardised(cv2.resize(without_frame(pixels), (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    back = [np.rot90(small, -quarters).ravel() for quarters in range(4)]
    apart = np.array([*back, *(-one for one in back)]) - TEMPLATE.ravel() / 100  # (8, 64)
    return np.einsum("ij,jk,ik->i", apart, _precision(), apart)


@cache
def _precision() -> np.ndarray:
    """Inverse covariance of the model, (64, 64)."""
    halves = [
        (np.array(text.split(), np.float64).reshape(-1, SIDE, SIDE // 2), s) for text, s in ((EVEN, 1), (ODD, -1))
    ]
    modes = np.concatenate([np.concatenate([half, s * half[:, :, ::-1]], 2) for half, s in halves])  # (16, 8, 8)
    modes = modes.reshape(len(modes), -1) / 100
    return np.linalg.inv(modes.T @ modes + REST * np.eye(SIDE * SIDE))


class _Detail(NamedTuple):
    """Detail of a film at up to 256 pixels: shares of the variance, of the neighbours and of the pixels, 0 to 1."""

    fine: float = np.nan
    """Share of the variance that a blur of 1.5 pixels removes; NaN for a film too small to tell."""
    edges: float = 0.0
    """Share of horizontal neighbours that differ by more than 60 of 255."""
    even: float = 0.0
    """Share of pixels in horizontal runs of one grey, neither black nor white, as long as 1/16 of the width."""


def _detail(pixels: np.ndarray, small: np.ndarray) -> _Detail:
    if min(pixels.shape) < DETAILED:
        return _Detail()
    values = small.astype(np.float32)
    fine = cv2.norm(values, cv2.GaussianBlur(values, (9, 9), 1.5), cv2.NORM_L2SQR) / values.size
    edges = np.count_nonzero(cv2.absdiff(small[:, 1:], small[:, :-1]) > 60) / small.size
    rows = pixels[:: -(-pixels.shape[0] // 256)]
    same = (rows[:, 1:] == rows[:, :-1]) & (rows[:, 1:] > 3) & (rows[:, 1:] < 252)
    run = np.ones((1, pixels.shape[1] // 16), np.uint8)
    even = cv2.erode(same.view(np.uint8), run).mean(dtype=np.float64)
    return _Detail(fine / max(float(cv2.meanStdDev(small)[1].item()) ** 2, 1e-9), edges, float(even))


def _reduced(pixels: np.ndarray) -> np.ndarray:
    """Film whose shorter side has at most 256 pixels."""
    factor = 256 / min(pixels.shape)
    return cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA) if factor < 1 else pixels


def grey_levels(pixels: np.ndarray) -> GreyLevels:
    """Grey levels of a film (height, width) uint8."""
    counts = cv2.calcHist([pixels], [0], None, [256], [0, 256]).ravel()
    return GreyLevels(float(counts @ np.arange(256) / pixels.size), int(np.count_nonzero(counts)))


def unusual_grey(pixels: np.ndarray) -> str:
    """What is unusual in a film's grey levels, such as "nearly black (mean 5 of 255)". "" if nothing is."""
    mean, count = grey_levels(pixels)
    if mean < BLACK or mean > WHITE:
        return f"nearly {'black' if mean < BLACK else 'white'} (mean {mean:.0f} of 255)"
    return f"{count} grey levels" if count < min(LEVELS, pixels.size // 4) else ""


def without_frame(pixels: np.ndarray) -> np.ndarray:
    """Film at ``FRAME_SIDE``² without the outer rows and columns whose median is black or white.

    These are what a collimator or a scanned frame left. If little more than a third would be left, nothing is cut off.
    """
    small = cv2.resize(pixels, (FRAME_SIDE, FRAME_SIDE), interpolation=cv2.INTER_AREA)
    small = small[_inner(np.median(small, 1))]
    return small[:, _inner(np.median(small, 0))]


def _inner(medians: np.ndarray) -> slice:
    kept = np.flatnonzero((medians > 8) & (medians < 247))
    return slice(kept[0], kept[-1] + 1) if len(kept) >= 0.37 * len(medians) else slice(None)


def standardised(grid: np.ndarray) -> np.ndarray:
    """Values of mean 0 and standard deviation 1, float64. All 0 if they are all the same."""
    centred = grid - grid.mean(dtype=np.float64)
    spread = centred.std()
    return centred / spread if spread > 0 else centred
