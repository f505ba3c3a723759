"""Identity of a film: which patient it is of, by dataset, and which image it is, by a hash of its pixels.

Patients: a data folder may name its dataset in ``dataset.txt``, one word such as ``our-hospital``; its patients are
then of that dataset, and 123 of one hospital is not 123 of another. Without the file each row is judged by the name of
its film: ``00000013_005.png`` is of NIH's patient 13, of whom there are ``NIH_PATIENTS``. A number that no dataset
claims is ``UNNAMED`` and may be of any dataset. Where name and row differ, as after a wrong re-index, the film counts
as of both patients.

Hash: a film is averaged to 32 × 32 pixels; the 128 bits are the signs of its cosine transform at the 128 lowest
frequencies but the first few, which chests share (a DCT hash as Zauner 2010 compares them, with more bits). Signs near
zero may flip, so two films are compared by two numbers: how many bits differ, and which share of the amplitudes of one
film the differing bits have. The same image differs only where its amplitudes are almost nothing.

Measured on 1,437 films of NIH at 256² (a million pairs of different patients) and 2,700 phantom films (3.6 million):
different images never came below 17 bits and a share of 0.024 (phantom: 5 and 0.0017). The same image as a store
of 64 to 224 pixels, as JPEG of quality 50 or better, or as a negative stayed at 5 bits and 0.0007: all are recognised.
Of stores of 48 pixels 99.7 % are, of JPEG 75 at 64 pixels 99.9 %, of JPEG 20 99.0 %, after a gamma of 0.9 89 %, after
cutting 1 % off each side 0.5 %. An image that is turned, mirrored, cropped or equalised counts as another one.
"""

from functools import cache

import numpy as np
import pandas as pd
from scipy import fft

from cxrlib.data import images, records, splits, store
from cxrlib.data.store import Store

NIH, UNNAMED = "nih", records.UNNAMED
NIH_PATIENTS = 30805
"""Patients of ChestX-ray14, numbered from 1 (Wang et al. 2017). All its 112,120 film names contain the number."""
NIH_NAME = r"^(\d{8})_\d{3}\."

ByDataset = dict[str, np.ndarray]
"""Patients by dataset: sorted unique int64."""


def patients_by_dataset(films: pd.DataFrame) -> ByDataset:
    """Patients of films, by dataset."""
    rows = patients_by_film(films)
    return {name: np.unique(own["patient"].to_numpy(np.int64)) for name, own in rows.groupby("dataset")}


def patients_by_film(films: pd.DataFrame) -> pd.DataFrame:
    """Table with a row per film and possible patient: film (its position), dataset, patient."""
    own, in_name = films["patient"].to_numpy(np.int64), patients_in_names(films)
    source = films["dataset"].to_numpy(object) if "dataset" in films else np.full(len(films), "", object)
    is_nih_name = np.isin(source, ("", NIH)) & (in_name >= 1) & (in_name <= NIH_PATIENTS)
    rows = pd.DataFrame({"film": np.arange(len(films)), "dataset": source, "patient": own})
    rows.loc[source == "", "dataset"] = np.where(is_nih_name & (in_name == own), NIH, UNNAMED)[source == ""]
    other = is_nih_name & (in_name != own)
    by_name = pd.DataFrame({"film": np.flatnonzero(other), "dataset": NIH, "patient": in_name[other]})
    return pd.concat([rows, by_name], ignore_index=True) if len(by_name) else rows


def patients_in_names(films: pd.DataFrame) -> np.ndarray:
    """Patient number in each film's name, (N,) int64; -1 if the name does not have NIH's form."""
    numbers = films["image"].astype("str").str.extract(NIH_NAME, expand=False)
    return pd.to_numeric(numbers).fillna(-1).to_numpy(np.int64)


def named_after_another_patient(films: pd.DataFrame) -> np.ndarray:
    """Whether each film's name has another patient than its row, (N,) bool. False for films of another dataset."""
    rows = patients_by_film(films)
    return np.bincount(rows["film"], minlength=len(films)) > 1


def doubts(films: pd.DataFrame, parts: splits.Parts, pixels: store.Store | None = None) -> list[str]:
    """Warnings about patient numbers that may be wrong, for the start of a run. Usually there are none.

    With ``pixels``, films of two patients with identical pixels are reported too.
    """
    warnings = []
    if count := int((wrong := named_after_another_patient(films)).sum()):
        trained = patients_by_dataset(pd.concat([parts.train, parts.val]))
        both = np.intersect1d(trained.get(NIH, []), patients_by_dataset(parts.test).get(NIH, []))
        warnings.append(
            f"{count:,} films have another patient in their name than in their row, first "
            f"{films['image'][wrong].iloc[0]}"
            + (f"; by their names {len(both):,} patients are in training and in test" if len(both) else "")
            + f". Correct the Patient ID column, or name the dataset in {records.DATASET} if the names mean nothing"
        )
    pairs = same_image_of_two_patients(films, pixels) if pixels else []
    if pairs:
        warnings.append(
            f"{len(pairs):,} images appear under two patients, first {' = '.join(pairs[0])}; keep one film of each"
        )
    return warnings


def same_image_of_two_patients(films: pd.DataFrame, pixels: store.Store) -> list[tuple[str, str]]:
    """Pairs of films of different patients with identical stored pixels. Films of one grey level do not count."""
    columns = store.read_manifest(pixels.folder)["films"]
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


HASH_SIDE, HASH_BITS = 32, 128
LOWEST_FREQUENCY = 2.0
"""Lowest frequency, in half waves per film. Lower ones are broad shading, which is alike in all chests."""
DIFFERING_BITS = 8
"""Most bits in which two copies of one image may differ."""
SHARE = 0.001
"""Largest share of the film's amplitudes (their sum is 1) at these bits."""
LEAST = 1.0
"""Least structure of a film that can be recognised: root mean square over the film, in grey levels. Real films have 17
or more. Blank and nearly blank films have less, and would all be alike."""

_FILMS, _QUERIES = 1024, 256  # films per read, films per comparison


def film_amplitudes(store: Store, films: pd.DataFrame) -> np.ndarray:
    """Amplitudes of these films, from which hashes are made: (N, 128) float32, NaN for a film without structure."""
    rows = store.rows(films)
    result = np.empty((len(rows), HASH_BITS), np.float32)
    for start in range(0, len(rows), _FILMS):
        chunk = rows[start : start + _FILMS]
        pixels = np.empty((len(chunk), store.size, store.size), np.uint8)
        store.gather(chunk, pixels)
        result[start : start + len(chunk)] = image_amplitudes(pixels)
    return result


def image_amplitudes(pixels: np.ndarray) -> np.ndarray:
    """Amplitudes of (N, height, width) uint8 at the 128 frequencies: (N, 128) float32, NaN without structure."""
    small = np.stack([images.shrink(image, HASH_SIDE) for image in pixels]).astype(np.float64)
    amplitude = fft.dctn(small, axes=(1, 2), norm="ortho")[:, *_frequencies()]
    structure = np.sqrt(np.square(amplitude).sum(1)) / HASH_SIDE
    return np.where(structure[:, None] < LEAST, np.nan, amplitude).astype(np.float32)


def hashes(amplitudes: np.ndarray) -> np.ndarray:
    """Hashes (N, 2) uint64 of amplitudes (N, 128). The hash of NaN is zero."""
    bits = np.packbits(np.ascontiguousarray(amplitudes > 0), axis=1)
    return bits.view(">u8").astype(np.uint64)


def match_hashes(amplitudes: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Index into ``hashes`` (H, 2) of the image with these amplitudes (N, 128): (N,) int64, -1 for no match.

    The nearest hash wins. A film without structure has no match.
    """
    matches = np.full(len(amplitudes), -1, np.int64)
    hash_signs = _signs(np.unpackbits(np.ascontiguousarray(hashes, ">u8").view(np.uint8), axis=1))
    for start in range(0, len(amplitudes), _QUERIES) if len(hashes) else ():
        part = amplitudes[start : start + _QUERIES]
        agreement = _signs(part > 0) @ hash_signs.T  # (n, H): equal bits minus different bits
        query, candidate = np.nonzero(np.abs(agreement) >= HASH_BITS - 2 * DIFFERING_BITS)
        weight = np.abs(part[query])
        polarity = np.where(agreement[query, candidate] < 0, -1, 1)[:, None]  # a negative has all signs changed
        differs = (_signs(part[query] > 0) * polarity) != hash_signs[candidate]
        share = (weight * differs).sum(1) / weight.sum(1)  # NaN for a film without structure
        for k in sorted(np.flatnonzero(share <= SHARE), key=lambda k: -share[k]):
            matches[start + query[k]] = candidate[k]
    return matches


def _signs(bits: np.ndarray) -> np.ndarray:
    return np.where(bits, np.float32(1), np.float32(-1))


@cache
def _frequencies() -> tuple[np.ndarray, np.ndarray]:
    """The 128 frequencies down and across, in half waves per film, from low to high: (128,) int64 each."""
    down, across = (axis.ravel() for axis in np.indices((HASH_SIDE, HASH_SIDE)))
    distance = np.hypot(down, across)
    order = np.lexsort((down, distance.round(9)))
    order = order[distance[order] >= LOWEST_FREQUENCY][:HASH_BITS]
    return down[order], across[order]
