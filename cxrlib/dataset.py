"""Dataset: a data folder opened in one call, with its films read, decoded into a store, and split by patient."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cxrlib import paths
from cxrlib.data import augmentation, exclusion, records, splits, store, tables
from cxrlib.data.batches import Batches, SoftLabels
from cxrlib.phantom import phantom


@dataclass(frozen=True)
class Dataset:
    """A data folder that has been opened. ``print`` says in three lines what was found, in a fourth what was excluded.

    ``folder`` is where it lies · ``films`` one row per film that can be read, as ``records.read`` gives them ·
    ``store`` their pixels · ``parts`` the films to train, validate and test on · ``excluded`` what a list left out ·
    ``seed`` of the order and variation of training batches.
    """

    folder: Path
    films: pd.DataFrame
    store: store.Store
    parts: splits.Parts
    excluded: exclusion.Excluded = exclusion.NOTHING
    seed: int = 0

    @property
    def fingerprint(self) -> str:
        """16 hex digits for the films, their patients and labels."""
        return records.fingerprint(self.films)

    def batches(
        self,
        batch_size: int,
        *,
        augment: str = "none",
        cap: int = 0,
        variants: int = 0,
        soft: SoftLabels | None = None,
    ) -> tuple[Batches, Batches]:
        """Batches of the training part, shuffled and augmented, and of the validation part, in order and unvaried.

        ``augment`` names a preset. Validation takes the middle of a film where training takes smaller crops. ``cap``,
        ``variants`` and ``soft`` are as in ``Batches``. Validation batches are twice as large, with plain labels.
        """
        variation = augmentation.preset(augment)
        how = {"augment": variation, "cap": cap, "variants": variants, "soft": soft}
        train = Batches(self.store, self.parts.train, batch_size=batch_size, seed=self.seed, shuffle=True, **how)
        return train, Batches(self.store, self.parts.val, batch_size=2 * batch_size, augment=variation.unvaried)

    def summary(self) -> pd.DataFrame:
        """Films, patients and films with each label: a row for each, columns train, val and test."""
        return splits.summary(self.parts).T

    def __str__(self) -> str:
        parts = self.parts
        val, test = (splits.overlap(parts.train, part) for part in (parts.val, parts.test))
        excluded = f"\n{self.excluded}" if self.excluded.file else ""
        return (
            f"{len(self.films)} films of {self.store.size} px, {len(self.films.attrs['missing'])} left out\n"
            f"split: {parts.source}\n"
            f"patients shared by training and validation: {val}; by training and test: {test}{excluded}"
        )


def open(
    folder: str,
    size: int,
    *,
    seed: int = 0,
    allow_missing: bool = False,
    exclude: str = "",
    uncertain: str = tables.UNKNOWN,
    progress: bool = True,
) -> Dataset:
    """Open a data folder in the NIH layout: read and check its table, decode its films once, split them by patient.

    ``folder`` "" means the phantom set, which is drawn first if it is not there. ``size`` is the side of the stored
    films in pixels; ``seed`` draws the order and variation of training batches, not the split, which is the same for
    every seed. With ``allow_missing`` films that are absent or cannot be decoded are left out. ``exclude`` is a CSV of
    films to leave out (see ``data.exclusion``), "" none; they need not be readable, and they change the part of no
    other film. ``uncertain`` says what a label of -1 counts as, one of ``tables.UNCERTAIN``. ``progress`` shows a bar
    while films are decoded.
    Raises UserError for a folder that is absent, a row that is wrong, films that are absent or damaged, and a list of
    which no film is in the folder.
    """
    place = locate(folder)
    everyone = exclusion.read_films(place, exclude, allow_missing=allow_missing, uncertain=uncertain)
    excluded = exclusion.find(everyone, exclude)
    films = excluded.without(everyone)
    pixels = store.build(films, size, allow_missing=allow_missing, progress=progress)
    films = pixels.present(films)
    readable = everyone[everyone["image"].isin({*films["image"]} | excluded.names)].reset_index(drop=True)
    parts = excluded.without_in_parts(splits.make(readable if exclude else films, place))
    return Dataset(place, films, pixels, parts, excluded, seed)


def locate(folder: str) -> Path:
    """The data folder as an absolute path; for "" the phantom set, which is drawn first if it is not there."""
    return paths.resolve(folder) if folder else phantom.default()
