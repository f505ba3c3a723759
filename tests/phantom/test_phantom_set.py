"""Writing of a phantom set: the same for any number of processes, in NIH's folders, complete or absent."""

import errno
import os
import signal
import subprocess
import sys
from multiprocessing import parent_process
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cxrlib import UserError
from cxrlib.data import check, parallel, records, splits
from cxrlib.phantom import phantom


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """60 films in chunks of 7, so that each of three processes draws several chunks."""
    return phantom.write(tmp_path_factory.mktemp("plain") / "set", 60, 48, 5, workers=1)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(phantom, "_CHUNK", 7)


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_processes_draws_the_same_bytes(plain, tmp_path, workers):
    assert files(phantom.write(tmp_path / "set", 60, 48, 5, workers=workers)) == files(plain)


def test_chunks_may_be_done_in_any_order(plain, tmp_path, monkeypatch):
    def backwards(work, jobs, workers):
        return ((key, work(*job)) for key, job in reversed(jobs.items()))

    monkeypatch.setattr(parallel, "run_in_processes", backwards)
    assert files(phantom.write(tmp_path / "set", 60, 48, 5)) == files(plain)


def die_in_a_worker(folder: str, size: int, seed: int, cases: list) -> list[str]:
    """Begin a film and die, except in the main process."""
    if parent_process() is not None:
        Path(folder, cases[0].file).write_bytes(b"half a film")
        os._exit(1)
    return phantom._draw_all(folder, size, seed, cases)


def test_dead_processes_are_survived(plain, tmp_path, monkeypatch):
    run = parallel.run_in_processes
    monkeypatch.setattr(parallel, "run_in_processes", lambda _, jobs, workers: run(die_in_a_worker, jobs, workers))
    assert files(phantom.write(tmp_path / "set", 60, 48, 5, workers=2)) == files(plain)


def test_small_sets_are_drawn_in_one_process_unless_told_otherwise(tmp_path, monkeypatch):
    asked = []
    run = parallel.run_in_processes
    monkeypatch.setattr(parallel, "cores", lambda: 8)
    monkeypatch.setattr(
        parallel, "run_in_processes", lambda work, jobs, workers: asked.append(workers) or run(work, jobs, 1)
    )
    phantom.write(tmp_path / "small", 20, 32)
    phantom.write(tmp_path / "told", 20, 32, workers=2)
    monkeypatch.setattr(phantom, "_SERIAL_PIXELS", 1000)
    phantom.write(tmp_path / "large", 60, 32)
    assert asked == [1, 2, 8]


def test_the_whole_dataset_is_shared_out_as_it_is_downloaded():
    assert sum(phantom.DOWNLOADED) == 112_120
    assert phantom.shares(112_120) == list(phantom.DOWNLOADED)


@pytest.mark.parametrize("films", [1, 11, 60, 1000, 20_000])
def test_fewer_films_are_shared_out_in_the_same_proportions(films):
    found = phantom.shares(films)
    assert sum(found) == films
    assert len(found) == 12
    np.testing.assert_allclose(found, np.array(phantom.DOWNLOADED) * films / 112_120, atol=1)


def test_twelve_folders_hold_the_same_set_in_order(plain, tmp_path):
    folder = phantom.write(tmp_path / "set", 60, 48, 5, folders=12)
    outer = [f"images_{i:03d}" for i in range(1, 13)]
    assert sorted(path.name for path in folder.glob("images*")) == outer
    inside = [sorted(path.name for path in (folder / name / "images").iterdir()) for name in outer]
    assert [len(names) for names in inside] == phantom.shares(60)
    assert [name for names in inside for name in names] == sorted(path.name for path in (plain / "images").iterdir())
    assert {Path(name).name: data for name, data in files(folder).items()} == {
        Path(name).name: data for name, data in files(plain).items()
    }


def test_twelve_folders_are_a_data_folder_like_any_other(plain, tmp_path):
    folder = phantom.write(tmp_path / "set", 60, 48, 5, folders=12)
    films = records.read(folder)
    check.folder(folder, progress=False).require()
    assert records.fingerprint(films) == records.fingerprint(records.read(plain))
    assert splits.make(films, folder).source.startswith("official lists")
    assert len(records.read_boxes(folder))


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"workers": 1.5}, {"folders": 3}, {"folders": -1}])
def test_workers_and_folders_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        phantom.write(tmp_path / "set", 4, 32, **wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="a process group's Ctrl-C is POSIX")
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_nothing_behind(tmp_path, workers):
    words = f"phantom {tmp_path / 'set'} --images 100000 --size 64 --workers {workers}".split()
    code = "import sys; from cxrlib.workbook import cli; sys.exit(cli.call(sys.argv[1:]))"
    child = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, start_new_session=True)
    said = b""
    while b"film/s" not in said:  # the bar shows that films are being drawn
        said += child.stderr.read1()
        assert child.poll() is None, said
    os.killpg(child.pid, signal.SIGINT)
    rest = child.stderr.read()  # until the last process has ended
    assert child.wait() == 130, rest
    assert b"Traceback" not in rest
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_told_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    monkeypatch.setattr(phantom, "draw", None)
    with pytest.raises(UserError, match=r"needs about 6\d\d MB, and the disk \S+ has 1 MB free"):
        phantom.write(tmp_path / "set", 20_000, 224)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_is_one_message(tmp_path, monkeypatch):
    def work(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(phantom, "_draw_all", work)
    with pytest.raises(UserError, match=r"disk .* is full"):
        phantom.write(tmp_path / "set", 20, 32, workers=1)
    assert not list(tmp_path.iterdir())


def test_a_file_limit_met_by_a_real_process_is_one_message(tmp_path):
    """An error of the operating system in the worker that writes: files have at most 300 bytes."""
    resource = pytest.importorskip("resource")
    code = "import sys; from cxrlib.workbook import cli; sys.exit(cli.call(sys.argv[1:]))"
    words = f"phantom {tmp_path / 'set'} --images 60 --size 64 --workers 2".split()
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)),
    )
    assert done.returncode == 2
    assert "is full for a file of this size" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file: it is a file; move it away"):
        phantom.write(tmp_path / "file" / "set", 4, 32)


def test_the_room_that_is_asked_for_is_enough_and_not_twice_too_much(tmp_path):
    for size in (32, 128, 256):
        folder = phantom.write(tmp_path / str(size), 12, size)
        # on average half a block per file is empty
        taken = sum(path.stat().st_size + 2048 for path in (folder / "images").iterdir())
        assert taken <= phantom.room(12, size) < 1.5 * taken


def test_drawing_processes_start_without_pandas():
    code = "import sys, cxrlib.phantom.phantom; print(sorted({'pandas', 'scipy', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
