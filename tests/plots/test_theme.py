"""One look: every finding its own line, apart in grey as well, and nothing heavy at import."""

from itertools import pairwise

from cxrlib import labels
from cxrlib.plots import common


def lightness(colour: str) -> float:
    """Relative luminance (WCAG) of a hex colour, 0 black to 1 white: what is left of it in grey."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_label_has_a_line_of_its_own():
    lines = [(common.FINDING_COLOURS[label], common.FINDING_DASHES[label]) for label in labels.LABELS]
    assert len(set(lines)) == len(labels.LABELS)


def test_lines_stand_out_on_paper():
    for colour in common.FINDING_COLOURS.values():
        assert 1.05 / (lightness(colour) + 0.05) >= 2.4, f"{colour} is too faint on white"


def test_parts_stay_apart_in_grey():
    found = sorted(lightness(colour) for colour in common.SPLIT_COLOURS.values())
    assert all((light + 0.05) / (dark + 0.05) > 1.8 for dark, light in pairwise(found))


def test_stages_darken_in_order():
    found = [lightness(common.STAGE_COLOURS[stage]) for stage in range(1, 6)]
    assert found == sorted(found, reverse=True)


def test_use_twice_changes_nothing():
    import matplotlib

    common.use_theme()
    before = dict(matplotlib.rcParams)
    common.use_theme()
    assert dict(matplotlib.rcParams) == before
