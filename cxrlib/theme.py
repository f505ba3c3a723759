"""Theme of all figures: fonts, sizes, and one colour per finding, split, stage and run.

The colours are from Paul Tol's schemes (https://personal.sron.nl/~pault/), which colour-blind readers can distinguish.
Where many lines share an axes, they also differ in dash pattern or marker, for print in grey. The plot functions call
``use()``, so a notebook need not.
"""

from cxrlib import labels

_HUES = ("#332288", "#117733", "#882255", "#0077BB", "#CC3311", "#999933", "#AA4499", "#EE7733")
_DASHES = ("-", (0, (4, 1.5)))

FINDING_COLOURS: dict[str, str] = {
    **{finding: _HUES[i % len(_HUES)] for i, finding in enumerate(labels.FINDINGS)},
    labels.NO_FINDING: "#555555",
}
"""Eight hues, each used twice. Together with ``FINDING_DASHES`` each finding has a unique line."""

FINDING_DASHES: dict[str, str | tuple] = {
    **{finding: _DASHES[i // len(_HUES)] for i, finding in enumerate(labels.FINDINGS)},
    labels.NO_FINDING: (0, (1, 1)),
}

SPLIT_COLOURS: dict[str, str] = {"train": "#004488", "val": "#DDAA33", "test": "#BB5566"}
"""Tol's high-contrast scheme. In grey the three are dark, light and medium."""

STAGE_COLOURS: dict[int, str] = {1: "#E0BC3A", 2: "#9FA04C", 3: "#5E8575", 4: "#37648B", 5: "#1F2F6B"}
"""From light (stage 1) to dark (stage 5), so that the order is visible in grey."""

RUN_COLOURS: tuple[str, ...] = ("#004488", "#BB5566", "#DDAA33", "#117733", "#882255")
MARKERS: tuple[str, ...] = ("o", "s", "D", "^", "v", "P", "X")

INK, MUTED, FAINT, PAPER = "#222222", "#666666", "#D5D5D5", "#FFFFFF"
SEQUENTIAL = "cividis"
"""Colour map for amounts. It is perceptually uniform, for colour-blind readers and in grey too."""

_THEME = {
    "figure.dpi": 84,
    "figure.facecolor": PAPER,
    "savefig.dpi": 120,
    "savefig.bbox": "tight",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "cxrlib",
}


def use() -> None:
    """Set the theme for all later figures. A second call changes nothing."""
    import matplotlib  # heavy, and only plots need it

    matplotlib.rcParams.update(_THEME)


def name(label: str) -> str:
    """Display name of a label: without underscores."""
    return label.replace("_", " ")
