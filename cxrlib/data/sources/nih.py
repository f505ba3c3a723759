"""NIH ChestX-ray14, and any folder in its layout: read by ``records``, described here as the other datasets are."""

from pathlib import Path

import pandas as pd

from cxrlib import labels
from cxrlib.data.sources import film_rows
from cxrlib.data.sources.film_rows import Hear, Source, Tables, Words

WORDS = {name: Words((name,), "Wang et al., CVPR 2017, arXiv 1705.02315v5, table 2") for name in labels.FINDINGS}


def find(folder: Path) -> Tables:
    """The label table of a folder in NIH's layout."""
    from cxrlib.data import records  # ``records`` asks this package which dataset a folder is

    names = [file for name in records.TABLES for file in (name, f"{name}.gz")]
    table = next((folder / name for name in names if (folder / name).is_file()), None)
    return {"labels": table} if table else {}


def read(tables: Tables, hear: Hear) -> pd.DataFrame:
    """Rows of the label table. The parts are those of the official lists, as ``splits`` reads them."""
    from cxrlib.data import records

    films = records.read_csv(tables["labels"], on_wrong=hear.on_wrong, on_assumed=hear.on_assumed)
    rows = film_rows.blank_rows(len(films))
    rows["file"] = films["image"]
    rows["patient"] = films["patient"].astype("str")
    shared = ["image", "follow_up", "age", "sex", "view", *labels.LABELS]
    return rows.assign(**{name: films[name] for name in shared})


def locate(folder: Path, rows: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Paths of the films, in ``images/`` or ``images_001/images/`` to ``images_012/images/``."""
    from cxrlib.data import records

    files = records.scan(folder)
    found, doubtful = records.files_of_films(rows["file"], files)
    return [files.get(found.get(name, ""), "") for name in rows["file"]], doubtful


SOURCE = Source(
    name="nih",
    title="NIH ChestX-ray14",
    paper="Wang et al., ChestX-ray8, CVPR 2017",
    table="Data_Entry_2017.csv",
    films="images/00000001_000.png, or images_001/images/",
    views="all are frontal (PA and AP)",
    patients="by Patient ID",
    split="train_val_list.txt and test_list.txt; without them drawn by patient",
    words=WORDS,
    find=find,
    read=read,
    locate=locate,
    named=r"\d{8}_\d{3}\.\w+",
)
