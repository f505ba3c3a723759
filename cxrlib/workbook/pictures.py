"""The figures that a run left, as they go into its report: embedded, with a title and a caption."""

import base64
from pathlib import Path

HEAVY = 300_000  # bytes; a larger SVG gives way to the PNG beside it

CAPTIONS = {
    "films_best": (
        "Films it stands highest",
        "Of the films with a finding, those ranked best against the films without.",
    ),
    "films_worst": ("Films it stands lowest", "Of the films with a finding, those ranked worst: look at these first."),
    "stages": ("Mean AUC stage by stage", "Validation and test, with 95 % intervals by patient."),
    "loss": ("Learning curves", "Loss, and validation AUC; the star is the epoch that was kept."),
    "gain": ("What the stage won", "Difference in validation AUC to the parent, with 95 % intervals by patient."),
    "leak": ("Split by film or by patient", "What a split by film fakes, on a reader that knows no medicine."),
    "distance": ("Which layers moved", "How far from the parent's weights, group by group."),
    "losses": ("Losses compared", "The same head trained with each loss."),
    "pr_test": ("Precision and recall", "The dotted line is the prevalence, which guessing reaches."),
    "reliability": ("Calibration", "Predicted against observed frequency, before and after calibration."),
    "thresholds": ("Thresholds", "Chosen on the validation part, applied to the test part."),
    "subgroups": ("On whom it fails", "AUC by sex, age and view, with intervals and numbers."),
    "view_shortcut": ("Does it read the view?", "AUC over all films beside AUC within AP and within PA films."),
    "localisation": ("Where it looks", "How often a heat map's maximum lies in the box, beside two controls."),
    "hits_and_misses": ("Hits and misses", "White: the box. Tinted: where it looks. Above hits, below misses."),
    "second_opinion": ("A second opinion", "The same films by Grad-CAM, above, and by occlusion, below."),
    "published": ("Beside published results", "Official split only."),
    "prevalence": ("How common each finding is", "Share of films, part by part."),
    "co_occurrence": (
        "Findings that come together",
        "Of the films with the row's finding, the share with the column's.",
    ),
    "films_per_patient": ("Films per patient", "Why a split by film leaks: patients come back."),
    "age_sex_view": ("Age, sex and view", "Who is on the films, and how they were taken."),
    "view_by_finding": ("View by finding", "A finding that is mostly seen on AP films can be guessed from the view."),
}
"""Titles of the figures that are known, in the order they are shown; others follow under their file's name."""

FILMS = ("films_best", "films_worst")
ELSEWHERE = ("roc_test", "stages", "auc_test")  # shown in sections of their own, or there drawn in the table


def read(stem: Path) -> dict[str, str] | None:
    """A figure as a data address (SVG, or PNG where that is much lighter), with title and caption; None if absent."""
    vector, picture = stem.with_name(stem.name + ".svg"), stem.with_name(stem.name + ".png")
    light = vector.is_file() and (vector.stat().st_size < HEAVY or not picture.is_file())
    file, kind = (vector, "svg+xml") if light else (picture, "png")
    if not file.is_file():
        return None
    title, caption = CAPTIONS.get(stem.name, (stem.name.replace("_", " ").capitalize(), ""))
    address = f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
    return {"stem": stem.name, "title": title, "caption": caption, "address": address}


def others(folder: Path) -> list[dict[str, str]]:
    """The figures of a folder that have no section of their own: known ones first, then the rest by name."""
    stems = {file.stem for ending in ("svg", "png") for file in folder.glob(f"*.{ending}")}
    known = [name for name in CAPTIONS if name in stems]
    order = known + sorted(stems - set(known))
    return [read(folder / name) for name in order if name not in (*FILMS, *ELSEWHERE)]
