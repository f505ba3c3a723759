"""Damage of any file: the same command ends with the same bits, or does the step again and says so, or says what to do.

Files are found by a walk of the folder, so a file that is added later is tested by itself. Each file is damaged alone.
By default each file has one kind of damage, another for each file; all kinds of all files are marked slow.
"""

import os
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from training import tiny

from cxrlib import UserError, paths, provenance
from cxrlib.data import images, records, store
from cxrlib.report import report
from cxrlib.training import fit, history_tables
from cxrlib.workbook import run_record
from data import samples


def change_digit(path: Path, at: float = 0.5) -> None:
    """Change the digit nearest to a place, here a share of the length, of a text; one bit of a file without digits."""
    data = bytearray(path.read_bytes())
    digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    if path.suffix in (".npy", ".safetensors", ".png") or not digits:
        return flip_bit(path, at)
    place = min(digits, key=lambda i: abs(i - at * len(data)))
    data[place] = ord(str((int(chr(data[place])) + 1) % 10))
    path.write_bytes(data)
    return None


def flip_bit(path: Path, at: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[min(int(at * len(data)), len(data) - 1)] ^= 4
    path.write_bytes(data)


def zero_tail(path: Path) -> None:
    """Zeros in the last quarter, as a power cut leaves them."""
    data = path.read_bytes()
    path.write_bytes(data[: -len(data) // 4] + bytes(len(data) - len(data[: -len(data) // 4])))


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


KINDS = {
    "digit": change_digit,
    "early digit": lambda path: change_digit(path, 0.1),
    "late digit": lambda path: change_digit(path, 0.95),
    "bit": flip_bit,
    "zeros": zero_tail,
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
}


def walk(folder: Path) -> list[Path]:
    """All files below a folder except locks, as paths relative to it."""
    return sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file() and file.name != ".lock")


def bits(folder: Path) -> dict[Path, bytes]:
    return {file: (folder / file).read_bytes() for file in walk(folder) if not file.name.startswith(".")}


def damages(folder: Path) -> list[tuple[Path, str]]:
    return [(file, kind) for file in walk(folder) for kind in KINDS]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return records.read(samples.write_folder(tmp_path_factory.mktemp("damage") / "nih", films=20))


def build(films, folder: Path) -> store.Store:
    return store.build(films, 16, folder=folder, progress=False)


@pytest.mark.parametrize("state", ["finished", "stopped", "stopped before the manifest"])
def test_a_damaged_store_is_mended_by_the_same_command(state, films, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "CHUNK", 8)
    build(films, tmp_path / "whole")
    whole = bits(tmp_path / "whole")
    place = tmp_path / "made"
    if state == "finished":
        build(films, place)
    else:
        stop_a_build(films, place, monkeypatch, before_manifest="manifest" in state)
    tried = damages(place)
    assert len({file for file, _ in tried}) >= 3
    for file, kind in tried:
        shutil.rmtree(tmp_path / "hurt", ignore_errors=True)
        shutil.copytree(place, tmp_path / "hurt")
        build(films, tmp_path / "hurt") if state == "finished" else None  # the copies' inodes are checked and noted
        before = (tmp_path / "hurt" / file).read_bytes()
        capsys.readouterr()
        KINDS[kind](tmp_path / "hurt" / file)
        hurt = not (tmp_path / "hurt" / file).exists() or (tmp_path / "hurt" / file).read_bytes() != before
        build(films, tmp_path / "hurt")
        assert bits(tmp_path / "hurt") == whole, (file, kind)
        if state == "finished" and hurt and kind != "gone" and not file.name.startswith("."):
            assert "decoded again" in capsys.readouterr().out, (file, kind)


def stop_a_build(films, folder: Path, monkeypatch, *, before_manifest: bool) -> None:
    """Stop a build after two chunks, or after all pixels and before the manifest."""
    work, write, done = images.decode_chunk, paths.write_text, []

    def decode(*job):
        done.append(job)
        if len(done) > 2 and not before_manifest:
            raise KeyboardInterrupt
        return work(*job)

    def write_text(path, text):
        if path.name == store.MANIFEST:
            raise KeyboardInterrupt
        return write(path, text)

    with monkeypatch.context() as patched:
        patched.setattr(images, "decode_chunk", decode)
        patched.setattr(paths, "write_text", write_text)
        with pytest.raises(KeyboardInterrupt):
            build(films, folder)


def test_a_damaged_store_is_not_opened_and_the_advice_helps(films, tmp_path):
    built = build(films, tmp_path / "store")
    pixels = np.array(built.pixels)
    flip_bit(Path(built.pixels.filename), 0.9)
    with pytest.raises(UserError, match=r"damaged at 1 film,.*cxr store again") as caught:
        store.load(tmp_path / "store")
    assert "delete" not in str(caught.value)
    build(films, tmp_path / "store")
    np.testing.assert_array_equal(store.load(tmp_path / "store").pixels, pixels)


def test_only_the_damaged_film_is_decoded_again(films, tmp_path, monkeypatch, capsys):
    built = build(films, tmp_path / "store")
    flip_bit(Path(built.pixels.filename), (128 + 7.5 * 256) / (128 + 20 * 256))
    decode, decoded = images.decode, []
    monkeypatch.setattr(images, "decode", lambda data, path: decoded.append(path) or decode(data, path))
    build(films, tmp_path / "store")
    assert decoded == [sorted(films["path"])[7]]
    assert built.names[7] in capsys.readouterr().out


def test_a_checked_store_is_not_read_again(films, tmp_path, monkeypatch):
    build(films, tmp_path / "store")
    monkeypatch.setattr(store.pixel_sums, "damaged_rows", None)
    build(films, tmp_path / "store")
    store.load(tmp_path / "store")


class Stopping(tiny.TinyBatches):
    """Batches that ask the training to stop in its second epoch."""

    def epoch(self, epoch, start=0, **where):
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        yield from super().epoch(epoch, start, **where)


@pytest.fixture(scope="module", autouse=True)
def no_waiting():
    """Files need not reach the disk here: no test cuts the power."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(paths, "_sync", lambda path: None)
        yield


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A finished stage with moments for the next one, and one that was stopped in its second epoch."""
    root = tmp_path_factory.mktemp("stages")
    train(root / "finished")
    with pytest.raises(fit.Stopped):
        train(root / "stopped", Stopping(8, shuffle=True))
    return root


def train(folder: Path, films: tiny.TinyBatches | None = None):
    """Two epochs of the last layer, on so few films that most of the time goes to the files."""
    films = films or tiny.TinyBatches(8, shuffle=True)
    return tiny.train(folder, {"groups": ("fc",)}, train=films, val=tiny.TinyBatches(4, first=24))


def outcome(folder: Path) -> dict:
    """What a stage gives to others: hashes of its weights, its best.json, its history without times."""
    history = history_tables.read_history(folder)[history_tables.HISTORY_COLUMNS]
    weights = {file.name: provenance.file_sha256(file) for file in folder.glob("stage*.safetensors")}
    tables = [history.to_csv(), (folder / "batches.csv").read_text()]
    return {"weights": weights, "best": paths.read_json(folder / "best.json"), "tables": tables}


def check_damaged_stage(source: Path, file: Path, kind: str, folder: Path, whole: dict) -> None:
    """Damage a file in a copy of a stage, run the same stage, and look at how it ended."""
    shutil.copytree(source, folder, copy_function=os.link)
    before = (folder / file).read_bytes()
    (folder / file).unlink()  # the copy shares its bytes with the source
    (folder / file).write_bytes(before)
    KINDS[kind](folder / file)
    hurt = not (folder / file).exists() or (folder / file).read_bytes() != before
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = train(folder)
    words = " ".join(str(warning.message) for warning in said)
    assert outcome(folder) == whole, (file, kind)
    if hurt and (source.name == "finished") and kind != "gone":
        restored = file.name in (history_tables.HISTORY, "progress.json")  # repeats what other files say
        assert restored or file.stem in words or "trained again" in words, (file, kind, words)
    assert result.best.is_file()
    shutil.rmtree(folder)


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_a_damaged_stage_ends_with_the_same_bits(state, stages, tmp_path):
    whole, kinds = outcome(stages / "finished"), [*KINDS]
    for i, file in enumerate(walk(stages / state)):
        if state == "stopped" and file.suffix != ".json":
            continue  # each costs a training; the slow test has them
        check_damaged_stage(stages / state, file, kinds[i % len(kinds)], tmp_path / "hurt", whole)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_any_damage_of_a_stage_ends_with_the_same_bits(state, stages, tmp_path):
    whole = outcome(stages / "finished")
    for file, kind in damages(stages / state):
        check_damaged_stage(stages / state, file, kind, tmp_path / "hurt", whole)


FILES = {
    "01_stage1": ("stage1/best.json", "stage1/history.csv", "stage1/stage1_1_1.json", "stage1/stage1_1_1.safetensors"),
    "06_evaluation": (
        "tables/auc_test.csv",
        "figures/roc_test.svg",
        "predictions/test.csv",
        "stage1/gate_a.safetensors",
    ),
    "07_localisation": ("tables/localisation.csv", "figures/maps.png"),
}


@pytest.fixture
def run(own_outputs) -> tuple[paths.Run, dict]:
    """A finished run of three notebooks and its record. Nothing in it was executed."""
    home, entries = paths.Run("whole"), {}
    for stem, files in FILES.items():
        book = Path(f"{stem}.ipynb")
        for name in (*files, f"notebooks/{book.name}"):
            paths.write_text(home.root / name, f'{{"value": 0.4791, "of": "{name}", "more": [1, 2, 3, 4, 5, 6, 7]}}\n')
        made = run_record.marks(home, book, files)
        assert [*made] == [f"notebooks/{book.name}", *files]
        entries[stem] = {"state": "done", "fingerprint": "f", "outputs": [*files], "made": made}
    return home, {"run": "whole", "notebooks": entries}


def test_any_damage_of_a_finished_run_is_noticed(run):
    home, record = run
    for file, kind in damages(home.root):
        before = (home.root / file).read_bytes()
        KINDS[kind](home.root / file)
        (stem,) = (stem for stem in FILES if file.as_posix() in record["notebooks"][stem]["made"])
        hurt = not (home.root / file).exists() or (home.root / file).read_bytes() != before
        assert hurt, (file, kind)
        for other in FILES:
            whole = run_record.unchanged(home, record, Path(f"{other}.ipynb"), "f")
            assert whole == (other != stem), (file, kind)
        assert file.as_posix() in run_record.why_again(home, record, Path(f"{stem}.ipynb"), "f")
        said = " ".join(report.not_made_by_run(home, record))
        shown = file.parts[0] in ("tables", "figures", "predictions") and (home.root / file).exists()
        assert (f"{file.as_posix()} is not what {stem} made" in said) == shown, (file, kind)
        paths.write_text(home.root / file, before.decode())
    assert all(run_record.unchanged(home, record, Path(f"{stem}.ipynb"), "f") for stem in FILES)
    assert report.not_made_by_run(home, record) == []


def test_a_table_that_no_notebook_made_is_named(run):
    home, record = run
    paths.write_text(home.tables / "mine.csv", "a,b\n")
    assert report.not_made_by_run(home, record) == ["tables/mine.csv was not made by the notebooks of this run."]
    assert report.not_made_by_run(home, {"notebooks": {}}) == []


def test_what_an_evaluation_attaches_is_no_damage_of_the_stage(run):
    home, record = run
    file = home.root / "stage1/stage1_1_1.json"
    paths.write_json(file, {**paths.read_json(file), "attached": {"calibration": 1}}, guarded=True)
    assert run_record.unchanged(home, record, Path("01_stage1.ipynb"), "f")


@pytest.mark.parametrize("kind", [*KINDS])
def test_a_damaged_record_of_a_run_is_refused_with_an_advice_that_helps(kind, run):
    home, record = run
    paths.write_json(home.run_json, record, guarded=True)
    KINDS[kind](home.run_json)
    if kind != "gone":
        with pytest.raises(UserError, match=r"run\.json .*; delete it and give the run's settings again"):
            run_record.read(home)
        home.run_json.unlink()
    assert run_record.read(home) == {}


def test_a_changed_digit_of_a_guarded_file_is_found_and_an_old_file_is_read(tmp_path):
    file, value = tmp_path / "a.json", {"auc": 0.479, "of": [1, None, "é"], "deep": {"b": 1e-07}}
    paths.write_json(file, value, guarded=True)
    assert paths.read_json(file) == value
    file.write_text(file.read_text().replace("479", "579"))
    with pytest.raises(UserError, match=r"a\.json was changed or damaged"):
        paths.read_json(file)
    paths.write_json(file, value)
    assert paths.read_json(file) == value
