"""Patients by the dataset that numbers them: 123 of one hospital is not 123 of another.

A data folder may name its dataset in ``dataset.txt``, one word such as ``our-hospital``; its patients are then that
dataset's. Without it each row is judged by its film's name: ``00000013_005.png`` is of NIH's patient 13, of whom there
are ``NIH_PATIENTS``. A number that no dataset claims is ``UNNAMED`` and may be anybody's of that number. Where name and
row differ, as after a wrong re-index, the film counts as of both.
"""

import numpy as np
import pandas as pd

from cxrlib.data import builder, records, splits, store

NIH, UNNAMED = "nih", records.UNNAMED
NIH_PATIENTS = 30805
"""Patients of ChestX-ray14, numbered from 1 (Wang et al. 2017); all 112,120 of its films are named after theirs."""
NIH_NAME = r"^(\d{8})_\d{3}\."

ByDataset = dict[str, np.ndarray]
"""Patients by dataset: sorted int64, none twice."""


def of(films: pd.DataFrame) -> ByDataset:
    """The patients of films, by dataset."""
    rows = by_film(films)
    return {name: np.unique(own["patient"].to_numpy(np.int64)) for name, own in rows.groupby("dataset")}


def by_film(films: pd.DataFrame) -> pd.DataFrame:
    """A row per film and patient that it may be of: film (its position), dataset, patient."""
    own, claims = films["patient"].to_numpy(np.int64), claimed(films)
    says = films["dataset"].to_numpy(object) if "dataset" in films else np.full(len(films), "", object)
    judged = np.isin(says, ("", NIH))  # by the film's name
    named = judged & (claims >= 1) & (claims <= NIH_PATIENTS)
    rows = pd.DataFrame({"film": np.arange(len(films)), "dataset": says, "patient": own})
    rows.loc[says == "", "dataset"] = np.where(named & (claims == own), NIH, UNNAMED)[says == ""]
    other = named & (claims != own)
    by_name = pd.DataFrame({"film": np.flatnonzero(other), "dataset": NIH, "patient": claims[other]})
    return pd.concat([rows, by_name], ignore_index=True) if len(by_name) else rows


def claimed(films: pd.DataFrame) -> np.ndarray:
    """The patient's number in each film's name, (N,) int64; -1 where its name is not of NIH's form."""
    numbers = films["image"].astype("str").str.extract(NIH_NAME, expand=False)
    return pd.to_numeric(numbers).fillna(-1).to_numpy(np.int64)


def misnamed(films: pd.DataFrame) -> np.ndarray:
    """Whether each film is named after another patient than its row's, (N,) bool; never where a dataset is declared."""
    rows = by_film(films)
    return np.bincount(rows["film"], minlength=len(films)) > 1


def doubts(films: pd.DataFrame, parts: splits.Parts, pixels: store.Store | None = None) -> list[str]:
    """What makes one doubt that the patients are told apart, in sentences for a run's first lines; mostly none.

    Pictures under two patients are looked for where there are ``pixels``.
    """
    found = []
    if count := int((wrong := misnamed(films)).sum()):
        seen = of(pd.concat([parts.train, parts.val]))
        both = np.intersect1d(seen.get(NIH, []), of(parts.test).get(NIH, []))
        found.append(
            f"{count:,} films are named after another patient than their row's, first {films['image'][wrong].iloc[0]}"
            + (f"; by their names {len(both):,} patients are both trained on and tested" if len(both) else "")
            + f". Mend the Patient ID column, or name the dataset in {records.DATASET} if the names mean nothing"
        )
    pairs = twins(films, pixels) if pixels else []
    if pairs:
        found.append(
            f"{len(pairs):,} pictures are there under two patients, first {' = '.join(pairs[0])}; keep one film of each"
        )
    return found


def twins(films: pd.DataFrame, pixels: store.Store) -> list[tuple[str, str]]:
    """Pairs of films of different patients whose stored pixels are the same, by the store's checksums and the pixels."""
    columns = builder.read_manifest(pixels.folder)["films"]
    sums = pd.Series(columns["pixel_crc"], index=columns["name"]).reindex(films["image"]).to_numpy()
    rows = pd.DataFrame({"image": films["image"], "patient": films["patient"], "sum": sums}).dropna()
    rows = rows[rows["sum"].duplicated(keep=False)]
    found = []
    for _, group in rows.groupby("sum"):
        first = group.iloc[0]
        for other in group.iloc[1:].itertuples():
            if other.patient != first["patient"] and _same(pixels, first["image"], other.image):
                found.append((first["image"], other.image))
    return found


def _same(pixels: store.Store, one: str, other: str) -> bool:
    """Whether two films have the same pixels, and more than one grey."""
    a, b = pixels.pixels[pixels.rows(pd.DataFrame({"image": [one, other]}))]
    return bool((a == b).all() and a.min() != a.max())
