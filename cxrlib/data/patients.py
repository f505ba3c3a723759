"""Patients of films, by dataset: number 123 of one hospital is not number 123 of another.

``dataset.txt`` in a data folder may name the dataset of its patients, such as ``our-hospital``. Without it the film's
name decides: ``00000013_005.png`` is of NIH's patient 13 (of 1 to ``NIH_PATIENTS``). Other patients belong to
``UNNAMED``: they may be patients of any dataset with that number. If name and row have different numbers, as after a
wrong re-index, the film counts for both patients.
"""

import numpy as np
import pandas as pd

from cxrlib.data import builder, records, splits, store

NIH, UNNAMED = "nih", records.UNNAMED
NIH_PATIENTS = 30805
"""Patients of ChestX-ray14, numbered from 1 (Wang et al. 2017). All its 112,120 film names contain the number."""
NIH_NAME = r"^(\d{8})_\d{3}\."

ByDataset = dict[str, np.ndarray]
"""Patients by dataset: sorted unique int64."""


def of(films: pd.DataFrame) -> ByDataset:
    """Patients of films, by dataset."""
    rows = by_film(films)
    return {name: np.unique(own["patient"].to_numpy(np.int64)) for name, own in rows.groupby("dataset")}


def by_film(films: pd.DataFrame) -> pd.DataFrame:
    """Table with a row per film and possible patient: film (its position), dataset, patient."""
    own, in_name = films["patient"].to_numpy(np.int64), claimed(films)
    source = films["dataset"].to_numpy(object) if "dataset" in films else np.full(len(films), "", object)
    is_nih_name = np.isin(source, ("", NIH)) & (in_name >= 1) & (in_name <= NIH_PATIENTS)
    rows = pd.DataFrame({"film": np.arange(len(films)), "dataset": source, "patient": own})
    rows.loc[source == "", "dataset"] = np.where(is_nih_name & (in_name == own), NIH, UNNAMED)[source == ""]
    other = is_nih_name & (in_name != own)
    by_name = pd.DataFrame({"film": np.flatnonzero(other), "dataset": NIH, "patient": in_name[other]})
    return pd.concat([rows, by_name], ignore_index=True) if len(by_name) else rows


def claimed(films: pd.DataFrame) -> np.ndarray:
    """Patient number in each film's name, (N,) int64; -1 if the name does not have NIH's form."""
    numbers = films["image"].astype("str").str.extract(NIH_NAME, expand=False)
    return pd.to_numeric(numbers).fillna(-1).to_numpy(np.int64)


def misnamed(films: pd.DataFrame) -> np.ndarray:
    """Whether each film's name has another patient than its row, (N,) bool. False for films of another dataset."""
    rows = by_film(films)
    return np.bincount(rows["film"], minlength=len(films)) > 1


def doubts(films: pd.DataFrame, parts: splits.Parts, pixels: store.Store | None = None) -> list[str]:
    """Warnings about patient numbers that may be wrong, for the start of a run. Usually there are none.

    With ``pixels``, films of two patients with identical pixels are reported too.
    """
    warnings = []
    if count := int((wrong := misnamed(films)).sum()):
        trained = of(pd.concat([parts.train, parts.val]))
        both = np.intersect1d(trained.get(NIH, []), of(parts.test).get(NIH, []))
        warnings.append(
            f"{count:,} films have another patient in their name than in their row, first "
            f"{films['image'][wrong].iloc[0]}"
            + (f"; by their names {len(both):,} patients are in training and in test" if len(both) else "")
            + f". Correct the Patient ID column, or name the dataset in {records.DATASET} if the names mean nothing"
        )
    pairs = twins(films, pixels) if pixels else []
    if pairs:
        warnings.append(
            f"{len(pairs):,} images appear under two patients, first {' = '.join(pairs[0])}; keep one film of each"
        )
    return warnings


def twins(films: pd.DataFrame, pixels: store.Store) -> list[tuple[str, str]]:
    """Pairs of films of different patients with identical stored pixels. Films of one grey level do not count."""
    columns = builder.read_manifest(pixels.folder)["films"]
    sums = pd.Series(columns["pixel_crc"], index=columns["name"]).reindex(films["image"]).to_numpy()
    rows = pd.DataFrame({"image": films["image"], "patient": films["patient"], "sum": sums}).dropna()
    rows = rows[rows["sum"].duplicated(keep=False)]
    pairs = []
    for _, group in rows.groupby("sum"):  # equal checksums: compare the pixels
        first = group.iloc[0]
        for other in group.iloc[1:].itertuples():
            if other.patient != first["patient"] and _same(pixels, first["image"], other.image):
                pairs.append((first["image"], other.image))
    return pairs


def _same(pixels: store.Store, one: str, other: str) -> bool:
    """Whether two films have the same pixels, and more than one grey level."""
    a, b = pixels.pixels[pixels.rows(pd.DataFrame({"image": [one, other]}))]
    return bool((a == b).all() and a.min() != a.max())
