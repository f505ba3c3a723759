"""Film quality, by cheap measures on the pixels: unusual grey levels, negatives, and films that lie on their side.

A film is brought to 8 x 8 pixels and compared with ``TEMPLATE``, the average chest film. A film that stands upright
correlates with it, a negative with its negative, and a turned film with the template turned. Grey levels are judged by
their mean and number.

Measured on real films of NIH at 256² (``tests/data/test_film_quality.py`` repeats it; 0.2 ms a film):

======== ===== =================================== ==================================================================
films    n     false alarms                        found
======== ===== =================================== ==================================================================
nih-1k   1,049 0 of 1,046                          both negatives, and the one film that lies upside down
nih-more 388   0 of 388 (not seen by the template)
turned   20                                        20 of 20, to the left
======== ===== =================================== ==================================================================

The other 1,434 films, changed: of their negatives 1,421 (99.1 %) are called negative. Turned to the left 1,380
(96.2 %), upside down 1,400 (97.6 %) and to the right 1,368 (95.4 %) are named rightly, and at most 4 are named wrongly.
No phantom film alarms. A mirrored film is not found, and one that is inverted and turned only by chance.
"""

from typing import NamedTuple

import cv2
import numpy as np

from cxrlib.data import images

SIDE = 8
FRAME_SIDE = 64
"""Side in pixels of the film on which its frame is looked for."""

# Mean of the standardised films of nih-1k at 8 x 8, made symmetric, in tenths of a standard deviation.
TEMPLATE = np.array(
    [
        [-22, -18, -12, 1, 1, -12, -18, -22],
        [-2, -1, -8, -2, -2, -8, -1, -2],
        [4, 0, -12, -2, -2, -12, 0, 4],
        [1, -1, -10, 3, 3, -10, -1, 1],
        [-2, -1, -3, 9, 9, -3, -1, -2],
        [-6, 2, 6, 13, 13, 6, 2, -6],
        [-10, 7, 14, 18, 18, 14, 7, -10],
        [-11, 10, 17, 20, 20, 17, 10, -11],
    ],
    np.float64,
)
TURNED = ("", "to the left", "upside down", "to the right")
"""How a film lies, by the quarter turns to the left that it was given."""

NEGATIVE = -0.4
"""Correlation with the template below which a film is a negative. The real negatives have -0.76 and -0.89."""

TURN, MARGIN = 0.5, 0.3
"""Correlation with the turned template from which a film lies so, and by how much it must exceed the upright one."""

BLACK, WHITE, LEVELS = 30, 225, 64
"""Mean grey below and above which a film is unusual, and the fewest grey levels. NIH's: 48 to 211; 134 or more."""


class GreyLevels(NamedTuple):
    """Grey levels of a film: their mean (0 black to 255 white) and how many of the 256 occur."""

    mean: float
    count: int


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


def position(pixels: np.ndarray) -> str:
    """How a film lies: "negative", "to the left", "to the right", "upside down", or "" for upright.

    ``pixels`` is (height, width) uint8. A film without contrast is upright.
    """
    upright, *turned = likeness(pixels)
    most = int(np.argmax(turned))
    if -upright > max(-NEGATIVE, turned[most]):
        return "negative"
    return TURNED[most + 1] if turned[most] > TURN and turned[most] - upright > MARGIN else ""


def likeness(pixels: np.ndarray) -> np.ndarray:
    """Correlation of a film with the template turned to the left by 0, 1, 2 and 3 quarters, (4,) from -1 to 1."""
    small = standardised(cv2.resize(without_frame(pixels), (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    return np.array([np.mean(small * np.rot90(_STANDARD, quarters)) for quarters in range(4)])


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


_STANDARD = standardised(TEMPLATE)


class Judged(NamedTuple):
    """Film as the network may see it: ``pixels`` (height, width) uint8, ``refusal`` "" if it is fit, else the reason.

    ``righted`` says what was done to it, such as "a negative, inverted".
    """

    pixels: np.ndarray
    refusal: str = ""
    righted: str = ""
    notes: tuple[str, ...] = ()


def judge(film: images.Film) -> Judged:
    """Judgement on a film by its pixels."""
    return Judged(film.pixels)
