"""Nothing stale: whatever is read and changes is noticed by what depends on it, and by nothing else.

Asked of the fingerprints themselves, on the real notebooks and a run that is made up: nothing is executed or trained.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import pandas as pd
import pytest

from cxrlib import paths, provenance
from cxrlib.data import records, splits, store
from cxrlib.phantom import phantom
from cxrlib.training import checkpoint, stage_folder
from cxrlib.workbook import pipeline, run_record, settings

READ = re.compile(r"Data_Entry_2017\.csv|(train_val|test)_list\.txt|dataset\.txt|images/.*\.png")
BOXES = ("00_exploration", "07_localisation", "08_reading_room")
"""The notebooks that read boxes."""


@pytest.fixture
def films(tiny_phantom, tmp_path):
    """A data folder of this test's own."""
    return shutil.copytree(tiny_phantom, tmp_path / "films")


class Chain:
    """A run of the real notebooks that is finished, by what its folder and record say."""

    def __init__(self, films):
        self.films, self.home, self.books = str(films), paths.Run("demo"), settings.chain()
        self.shares = settings.share(self.books, {"data": self.films, "run": "demo"})
        for stage in run_record.STAGES:
            name = f"stage{stage}_0.001_{stage}"
            paths.write_json(self.home.stage(stage) / "best.json", {"best": name})
            paths.write_json(self.home.stage(stage) / f"{name}.json", {"sha256": f"{stage}" * 64})
            paths.write_text(self.home.stage(stage) / f"{name}.safetensors", "weights")
        self.look()

    def look(self):
        self.kept = {"run": "demo", "notebooks": {}, "data": pipeline.data(self.films, known=True)}

    def prints(self):
        return {book.stem: run_record.fingerprint(book, self.books, self.shares, self.kept) for book in self.books}

    def after(self, stem, *, itself=True):
        """A notebook and those that its results go on to."""
        later = [book.stem for book in self.books if book.stem > stem and "stage" in stem]
        return {*([stem] if itself else []), *later}


@pytest.fixture
def chain(films):
    return Chain(films)


def differing(one, other):
    return {name for name in one if one[name] != other[name]}


def test_every_file_of_the_data_folder_that_is_read_is_known_by_what_lies_in_it(films):
    table = records.read(films)
    before, noticed = store.folder_fingerprints(films, table), {}
    for file in sorted(path for path in films.rglob("*") if path.is_file()):
        kept, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
        file.write_bytes(kept + b" ")
        noticed[str(file.relative_to(films))] = differing(before, store.folder_fingerprints(films, table))
        file.write_bytes(kept)
        os.utime(file, ns=times)
    assert store.folder_fingerprints(films, table) == before
    assert noticed.pop("BBox_List_2017.csv") == {"boxes"}
    for name, what in noticed.items():
        assert len(what) == bool(READ.fullmatch(name)), name
    assert {name for name, what in noticed.items() if what == {"films"}} == {
        f"images/{name}" for name in table["image"]
    }


def test_a_changed_film_table_or_list_has_all_done_again_and_boxes_what_reads_them(films, chain):
    before, everything = chain.prints(), {book.stem for book in chain.books}
    assert chain.prints() == before
    film = next((films / "images").glob("*.png"))
    cv2.imwrite(str(film), 255 - cv2.imread(str(film), 0))
    chain.look()
    assert differing(before, chain.prints()) == everything
    before = chain.prints()
    (films / records.BOXES).unlink()
    chain.look()
    assert differing(before, chain.prints()) == {*BOXES}
    before = chain.prints()
    for name in splits.OTHER_NAMES:
        (films / name).unlink()
    chain.look()
    assert differing(before, chain.prints()) == everything


def test_every_parameter_counts_for_its_notebook_and_those_after_it(chain):
    before = chain.prints()
    for book in chain.books:
        for name, value in {**settings.parameters(book), **chain.shares[book.stem]}.items():
            kept = dict(chain.shares[book.stem])
            chain.shares[book.stem][name] = f"{value}x" if isinstance(value, str) else value + 1
            assert differing(before, chain.prints()) == chain.after(book.stem), (book.stem, name)
            chain.shares[book.stem] = kept


def test_every_word_of_a_notebook_counts_for_it_and_those_after_it(chain, tmp_path):
    own = shutil.copytree(paths.notebooks(), tmp_path / "notebooks")
    before, chain.books = chain.prints(), settings.chain(own)
    assert chain.prints() == before
    for book in chain.books:
        kept = book.read_text()
        content = json.loads(kept)
        content["cells"][-1]["source"] = [*content["cells"][-1]["source"], "\n "]
        book.write_text(json.dumps(content))
        assert differing(before, chain.prints()) == chain.after(book.stem)
        book.write_text(kept)


@pytest.mark.parametrize("stage", run_record.STAGES)
@pytest.mark.parametrize("file", ["best.json", "checkpoint.json", "checkpoint.safetensors"])
def test_a_stages_checkpoint_counts_for_all_after_it_however_it_came_there(chain, stage, file):
    before, folder = chain.prints(), chain.home.stage(stage)
    file = folder / file.replace("checkpoint", f"stage{stage}_0.001_{stage}")
    file.write_text(file.read_text().replace(f"{stage}" * 64, "a" * 64) + " ")
    assert differing(before, chain.prints()) == chain.after(f"0{stage}_stage{stage}", itself=False)


def test_what_travels_with_a_checkpoint_counts_for_nobody(chain):
    before, file = chain.prints(), chain.home.stage(5) / "stage5_0.001_5.json"
    paths.write_json(file, {**paths.read_json(file), checkpoint.ATTACHED: {"calibration": 1}})
    assert chain.prints() == before


def test_files_that_another_hand_made_or_took_away_have_their_notebook_done_again(chain):
    (book,) = (book for book in chain.books if book.stem == "06_evaluation")
    outputs = ["figures/roc.png", "stage5/stage5_0.001_5.json", "stage5/best.json", "tables/auc_test.csv"]
    for name in (f"notebooks/{book.name}", outputs[0], outputs[3]):
        paths.write_text(chain.home.root / name, "before")
    entry = {
        "state": "done",
        "fingerprint": "f",
        "outputs": outputs,
        "made": run_record.marks(chain.home, book, outputs),
    }
    chain.kept["notebooks"][book.stem] = entry
    assert run_record.unchanged(chain.home, chain.kept, book, "f")
    assert not run_record.unchanged(chain.home, chain.kept, book, "g")
    for name, counts in zip(outputs, (True, False, False, True), strict=True):
        file = chain.home.root / name
        kept = file.read_text()
        file.write_text(kept + " ")
        assert run_record.unchanged(chain.home, chain.kept, book, "f") != counts, name
        file.unlink()
        assert not run_record.unchanged(chain.home, chain.kept, book, "f"), name
        file.write_text(kept)
    assert run_record.unchanged(chain.home, chain.kept, book, "f")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package whose source is looked at in place of the real one's."""
    copy = shutil.copytree(paths.PACKAGE, tmp_path / "copy" / "cxrlib", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(paths, "PACKAGE", copy)
    return copy


def modules(package):
    """Every module of the package by name, and its file."""
    for file in sorted(package.rglob("*.py")):
        name = ".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        yield name, file


def noticed(package, ask, change):
    """The modules whose change makes ``ask`` answer otherwise."""
    before, found = ask(), set()
    for name, file in modules(package):
        kept, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
        file.write_text(change(kept.decode()))
        if ask() != before:
            found.add(name)
        file.write_bytes(kept)
        os.utime(file, ns=times)
    assert ask() == before
    return found


def meaning(source):
    return source + "\nADDED = 1\n"


def looks(source):
    """Another first docstring, a comment at every line's end that takes one, a string that says something."""
    said = re.sub(r'\A"""', '"""In other words: ', source)
    said = re.sub(r"^(import \w+)$", r"\1  # for what follows", said, flags=re.M)
    return said + '\n\n"""Nothing follows."""\n# no more\n'


ROOTS = {
    "stage": ("cxrlib.training.fit", "cxrlib.data.batches", "cxrlib.training.losses"),
    "drawing": ("cxrlib.phantom.phantom",),
    "evaluation": ("cxrlib.evaluation.summary", "cxrlib.report.report"),
}


@pytest.mark.parametrize("roots", ROOTS.values(), ids=ROOTS)
def test_any_meaning_in_the_import_closure_counts_and_nothing_else_does(package, roots):
    def ask():
        return provenance.code_version(*roots)

    assert noticed(package, ask, meaning) == {*provenance.closure(*roots)}
    assert noticed(package, ask, looks) == set()


def test_a_stage_knows_the_whole_loop_and_the_score_but_not_what_is_shown(package):
    found = noticed(package, lambda: stage_folder.code_version.__wrapped__("cxrlib.metrics"), meaning)
    floors = {"cxrlib.data.batches", "cxrlib.training.losses", "cxrlib.metrics", "cxrlib.training.fit"}
    assert floors <= found
    assert not found & {
        *stage_folder.NOT_IN_CODE,
        "cxrlib.training.schedules",
        "cxrlib.workbook.cli",
        "cxrlib.phantom.phantom",
    }


@pytest.mark.parametrize("stem", ["01_stage1", "06_evaluation"])
def test_a_notebook_knows_what_it_imports(package, chain, stem):
    (book,) = (book for book in chain.books if book.stem == stem)
    found = noticed(package, lambda: run_record.code_version(book), meaning)
    assert {"cxrlib.data.splits", "cxrlib.evaluation.summary", "cxrlib.training.fit"} - found <= (
        {"cxrlib.training.fit"} if stem == "06_evaluation" else set()
    )
    assert ("cxrlib.evaluation.subgroups" in found) == (stem == "06_evaluation")
    assert not found & {"cxrlib.workbook.pipeline", "cxrlib.workbook.cli", "cxrlib.report.report"}


def test_the_closure_is_what_python_imports():
    """What is loaded, asked of Python itself, is in the closure; the rest of it is imported later, in functions."""
    asked = "import sys, cxrlib.training.fit; print(*(n for n in sys.modules if n.startswith('cxrlib.')))"
    loaded = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
    assert {*loaded} <= {*provenance.closure("cxrlib.training.fit")}


def test_imports_in_functions_and_relative_ones_are_seen_and_those_for_types_are_not():
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import cxrlib.one
else:
    import cxrlib.two
def late():
    from . import three
    from ..four import five
if __name__ == "__main__":
    import cxrlib.six
"""
    found = {name for name in provenance.imports(ast.parse(source), "cxrlib.data") if name.startswith("cxrlib.")}
    assert found == {"cxrlib.two", "cxrlib.data", "cxrlib.data.three", "cxrlib.four", "cxrlib.four.five"}


def test_the_drawn_set_lies_in_a_folder_named_after_the_code_that_draws(package, monkeypatch):
    monkeypatch.setattr(phantom, "_complete", lambda folder: True)
    found = noticed(package, lambda: str(phantom.default()), meaning)
    assert {"cxrlib.phantom.phantom", "cxrlib.phantom.cohort", "cxrlib.phantom.chest", "cxrlib.labels"} <= found
    assert not found & {"cxrlib.paths", "cxrlib.data.store", "cxrlib.training.fit"}


def test_two_tables_that_differ_are_told_and_two_that_agree_are_not(films):
    table = pd.read_csv(films / records.TABLES[0], dtype=str, keep_default_na=False)
    table.to_csv(films / records.TABLES[1], index=False)
    assert records.rivals(films) == ""
    table.loc[0, "Finding Labels"] = "Hernia"
    table.to_csv(films / records.TABLES[1], index=False)
    told = [words for words in pipeline.data(str(films), known=True)["doubts"] if "is used" in words]
    assert len(told) == 1
    assert told[0].startswith("Data_Entry_2017.csv is used, and Data_Entry_2017_v2020.csv")
