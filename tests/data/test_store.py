"""Store: complete or absent, the same after any history, and no film is decoded twice."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool

import cv2
import numpy as np
import pandas as pd
import pytest
import samples
from tqdm.auto import tqdm

from cxrlib import UserError
from cxrlib.data import images, parallel, records, splits, store


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """40 films are five chunks, so that a build can be stopped between two."""
    monkeypatch.setattr(store, "CHUNK", 8)


@pytest.fixture
def films(folder) -> pd.DataFrame:
    return records.read(folder)


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the films decoded in this process, in order."""
    names, decode = [], images.decode

    def counted(data, path):
        names.append(os.path.basename(path))  # noqa: PTH119
        return decode(data, path)

    monkeypatch.setattr(images, "decode", counted)
    return names


def build(films, folder, **options) -> store.Store:
    return store.build(films, 16, folder=folder, progress=False, **options)


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def forked(work) -> int:
    """Run ``work`` in a child process that starts at once. Returns its process id.

    The child gets its own lock for progress bars. tqdm's lock is shared after a fork, and if a child with the lock is
    killed, the parent waits for ever.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            tqdm.set_lock(threading.RLock())
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def test_pixels_are_the_films_averaged(films, tmp_path):
    built = build(films, tmp_path / "store")
    assert built.pixels.shape == (40, 16, 16)
    assert built.pixels.dtype == np.uint8
    assert not built.pixels.flags.writeable
    shuffled = films.sample(frac=1, random_state=1)
    for row, path in zip(built.rows(shuffled), shuffled["path"], strict=True):
        film = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(built.pixels[row], cv2.resize(film, (16, 16), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize("way", ["file", "map", "file gone"])
def test_gathered_films_are_those_of_the_map(way, films, tmp_path, monkeypatch):
    built = build(films, tmp_path / "store")
    if way == "map":
        monkeypatch.delattr(os, "preadv")
    elif way == "file gone":
        os.unlink(built.pixels.filename)  # noqa: PTH108
    rows = np.array([7, 0, 39, 7])
    out = np.empty((4, 16, 16), np.uint8)
    built.gather(rows, out)
    np.testing.assert_array_equal(out, built.pixels[rows])


def test_a_map_cut_short_under_a_reader_is_named(films, tmp_path):
    built = build(films, tmp_path / "store")
    os.truncate(built.pixels.filename, 1000)
    with pytest.raises(UserError, match="damaged; run"):
        built.gather(np.array([39]), np.empty((1, 16, 16), np.uint8))


def test_the_size_of_the_source_films_is_recorded(films, tmp_path):
    samples.write_film(tmp_path / "nih" / "images" / films["image"][3], seed=3, side=30)
    assert build(films, tmp_path / "store").film_sizes == {"20x20": 39, "30x30": 1}


def test_lies_under_outputs_and_is_shared(films, own_outputs):
    built = store.build(films, 16, progress=False)
    assert built.folder.parent == own_outputs / "stores"
    assert built.folder.name.startswith("nih-")
    assert built.folder.name.endswith("-16")
    assert store.build(films, 24, progress=False).folder != built.folder
    assert store.build(films, 16, progress=False).fingerprint == built.fingerprint


def test_a_second_build_decodes_nothing(films, tmp_path, decoded):
    build(films, tmp_path / "store")
    before = contents(tmp_path / "store")
    decoded.clear()
    build(films, tmp_path / "store")
    build(films.iloc[5:9], tmp_path / "store")
    assert decoded == []
    assert contents(tmp_path / "store") == before


def test_only_changed_and_added_films_are_decoded(films, tmp_path, decoded):
    build(films.iloc[:30], tmp_path / "store")
    samples.write_film(tmp_path / "nih" / "images" / films["image"][3], seed=77)
    decoded.clear()
    built = build(films, tmp_path / "store")
    assert sorted(decoded) == sorted([films["image"][3], *films["image"][30:]])
    assert contents(tmp_path / "store") == contents(build(films, tmp_path / "fresh").folder)
    assert len(built.names) == 40


def test_a_removed_film_leaves_the_store_and_nothing_is_decoded(films, tmp_path, decoded):
    build(films, tmp_path / "store")
    os.unlink(films["path"][7])  # noqa: PTH108
    decoded.clear()
    left = films.drop(index=7).reset_index(drop=True)
    built = build(left, tmp_path / "store")
    assert decoded == []
    assert films["image"][7] not in built.names
    with pytest.raises(UserError, match=films["image"][7]):
        built.rows(films)
    assert contents(built.folder) == contents(build(left, tmp_path / "fresh").folder)


def test_processes_build_the_same_store(films, tmp_path):
    one = build(films, tmp_path / "one", workers=1)
    two = build(films, tmp_path / "two", workers=2)
    assert contents(one.folder) == contents(two.folder)


def test_a_dead_process_does_not_stop_the_build(films, tmp_path, monkeypatch):
    class Dying:
        def __init__(self, *_, **__):
            pass

        def submit(self, *_):
            raise BrokenProcessPool

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", Dying)
    assert len(build(films, tmp_path / "store", workers=2).names) == 40


def spoil(path: str) -> None:
    with open(path, "r+b") as file:  # noqa: PTH123
        file.truncate(60)


def test_an_undecodable_film_stops_the_build_by_name(films, tmp_path, decoded):
    spoil(films["path"][4])
    with pytest.raises(UserError, match=f"1 films cannot be decoded.*{films['image'][4]}"):
        build(films, tmp_path / "store")
    with pytest.raises(UserError, match="not there"):
        store.load(tmp_path / "store")
    samples.write_film(tmp_path / "nih" / "images" / films["image"][4], seed=4)
    decoded.clear()
    build(films, tmp_path / "store")
    assert decoded == [films["image"][4]]


def test_an_undecodable_film_is_left_out_and_named(films, tmp_path):
    spoil(films["path"][4])
    built = build(films, tmp_path / "store", allow_missing=True)
    assert list(built.missing) == [films["image"][4]]
    present = built.present(films)
    assert len(present) == len(built.names) == 39
    assert present.attrs["missing"] == [films["image"][4]]
    assert (built.pixels[built.rows(present)].reshape(39, -1).max(1) > 0).all()  # no film is black
    with pytest.raises(UserError, match=films["image"][4]):
        built.rows(films)
    with pytest.raises(UserError, match="cannot be decoded"):
        build(films, tmp_path / "store")
    before = contents(built.folder)
    build(films, tmp_path / "store", allow_missing=True)
    assert contents(built.folder) == before


def hidden(monkeypatch, path: str, number: int = errno.EACCES):
    """The system does not let this file be opened, while its size and time stay as they are."""
    opened = os.open

    def guarded(name, *rest, **more):
        if str(name) == path:
            raise OSError(number, os.strerror(number), path)
        return opened(name, *rest, **more)

    monkeypatch.setattr(os, "open", guarded)


PASSING = {"permission": errno.EACCES, "disk": errno.EIO, "network": errno.ESTALE}


@pytest.mark.parametrize("number", PASSING.values(), ids=PASSING)
@pytest.mark.parametrize("allow_missing", [False, True])
def test_a_film_that_could_not_be_read_once_comes_back_by_itself(
    allow_missing, number, films, tmp_path, monkeypatch, decoded
):
    """Neither its size nor its time changes, and nobody touches it."""
    whole = contents(build(films, tmp_path / "whole").folder)
    with monkeypatch.context() as troubled:
        hidden(troubled, films["path"][4], number)
        if allow_missing:
            assert build(films, tmp_path / "store", allow_missing=True).missing.keys() == {films["image"][4]}
        with pytest.raises(UserError, match=f"{films['image'][4]} cannot be read: {os.strerror(number)}"):
            build(films, tmp_path / "store")
    decoded.clear()
    built = build(films, tmp_path / "store", allow_missing=allow_missing)
    assert set(decoded) == {films["image"][4]}
    assert built.missing == {}
    assert contents(built.folder) == whole


def test_a_film_refused_in_a_stopped_build_is_tried_again(films, tmp_path, monkeypatch):
    whole = contents(build(films, tmp_path / "whole").folder)
    with monkeypatch.context() as troubled:
        hidden(troubled, films["path"][4])
        left_behind(films, tmp_path / "store", troubled, chunks_done=3)
    assert contents(build(films, tmp_path / "store", allow_missing=True).folder) == whole


def test_a_film_refused_for_another_reason_says_the_new_one(films, tmp_path, monkeypatch):
    with monkeypatch.context() as troubled:
        hidden(troubled, films["path"][4])
        build(films, tmp_path / "store", allow_missing=True)
        before = contents(tmp_path / "store")
    times = os.stat(films["path"][4])  # noqa: PTH116
    damaged = bytes(times.st_size)
    with open(films["path"][4], "wb") as file:  # noqa: PTH123
        file.write(damaged)
    os.utime(films["path"][4], ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match="neither PNG, JPEG nor DICOM"):
        build(films, tmp_path / "store")
    assert contents(tmp_path / "store") == before
    (reason,) = build(films, tmp_path / "store", allow_missing=True).missing.values()
    assert "neither PNG, JPEG nor DICOM" in reason


def test_a_film_that_may_not_be_read_is_known_by_what_lies_in_the_folder(films, folder, monkeypatch):
    before = store.folder_fingerprints(folder, films)
    with monkeypatch.context() as troubled:
        troubled.setattr(os, "access", lambda path, _: path != films["path"][4])
        assert store.folder_fingerprints(folder, films)["films"] != before["films"]
    assert store.folder_fingerprints(folder, films) == before


def few_handles(work):
    """Run ``work`` in a child process that can open no further file. Returns the child's message."""
    reading, writing = os.pipe()

    def limited():
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        try:
            work()
            os.write(writing, b"no error")
        except UserError as error:
            os.write(writing, str(error).encode())

    child = forked(limited)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        message = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return message


@pytest.mark.parametrize("state", ["whole", "one film more", "loaded"])
def test_too_many_open_files_is_not_damage(state, films, tmp_path):
    build(films.iloc[:39] if state == "one film more" else films, tmp_path / "store")
    before = contents(tmp_path / "store")
    work = (lambda: store.load(tmp_path / "store")) if state == "loaded" else (lambda: build(films, tmp_path / "store"))
    message = few_handles(work)
    assert "Too many open files; raise the limit with ulimit -n, and run again" in message
    assert "delete" not in message
    assert contents(tmp_path / "store") == before


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_shortage_stops_the_build_also_when_films_may_be_missing(number, films, tmp_path, monkeypatch, decoded):
    """A film is not left out because the machine was short of something."""
    build(films.iloc[:20], tmp_path / "store")
    before = contents(tmp_path / "store")
    with monkeypatch.context() as troubled:
        hidden(troubled, films["path"][30], number)
        with pytest.raises(UserError, match=f"{os.strerror(number)}; .*not damaged") as caught:
            build(films, tmp_path / "store", allow_missing=True)
        assert "\n" not in str(caught.value)
    assert finished(tmp_path / "store") == before
    assert build(films, tmp_path / "store", allow_missing=True).missing == {}


def finished(folder) -> dict[str, bytes]:
    """Contents of the finished store, without what a stopped build left for the next one."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("name", [store.MANIFEST, "pixels"])
def test_a_store_that_cannot_be_read_is_kept_and_the_cause_is_named(name, number, films, tmp_path, monkeypatch):
    build(films, tmp_path / "store")
    before = contents(tmp_path / "store")

    def guarded(file, *rest, **more):
        if str(file).startswith(str(tmp_path / "store" / name)):
            raise OSError(number, os.strerror(number), str(file))
        return opened(file, *rest, **more)

    opened = open
    for module, function in (("builtins", "open"), ("io", "open")):
        monkeypatch.setattr(f"{module}.{function}", guarded)
    for look in (lambda: store.load(tmp_path / "store"), lambda: build(films, tmp_path / "store")):
        with pytest.raises(UserError, match=f"{name}.*{os.strerror(number)}.*is kept") as caught:
            look()
        assert "damaged" not in str(caught.value)
        assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert contents(tmp_path / "store") == before


def test_a_film_that_becomes_a_pipe_is_refused_and_not_waited_for(films, tmp_path):
    os.unlink(films["path"][4])  # noqa: PTH108
    os.mkfifo(films["path"][4])
    with pytest.raises(UserError, match=f"{films['image'][4]} cannot be read: it is a pipe or a device"):
        build(films, tmp_path / "store")


def test_films_that_change_a_folders_depth_have_all_decoded_again(folder, tmp_path, decoded):
    """The first films of a folder are dark and look like 12 bits; with those that follow, they are 16-bit films."""
    films = records.read(folder)
    for path in films["path"]:
        cv2.imwrite(path, np.full((20, 20), 4000, np.uint16))
    first = build(films, tmp_path / "store")
    assert (first.pixels == 4000 >> 4).all()
    decoded.clear()
    build(films, tmp_path / "store")
    assert decoded == []
    for path in films["path"][4:]:
        cv2.imwrite(path, np.full((20, 20), 60000, np.uint16))
    os.utime(folder / "images", ns=(0, 0))
    again = build(films, tmp_path / "store")
    assert (again.pixels[:4] == 4000 >> 8).all()
    assert (again.pixels[4:] == 60000 >> 8).all()
    assert contents(again.folder) == contents(build(films, tmp_path / "fresh").folder)


def test_no_film_can_be_decoded(films, tmp_path):
    for path in films["path"]:
        spoil(path)
    with pytest.raises(UserError, match="40 films cannot be decoded"):
        build(films, tmp_path / "store", allow_missing=True)


def test_a_film_gone_since_the_folder_was_read(films, tmp_path):
    os.unlink(films["path"][0])  # noqa: PTH108
    with pytest.raises(UserError, match=films["image"][0]):
        build(films, tmp_path / "store")
    assert len(build(films, tmp_path / "store", allow_missing=True).names) == 39


def test_all_films_gone_since_the_folder_was_read(films, tmp_path):
    for path in films["path"]:
        os.unlink(path)  # noqa: PTH108
    with pytest.raises(UserError, match="none of the 40 films"):
        build(films, tmp_path / "store", allow_missing=True)


def test_what_is_left_out_stays_named_through_the_split(films, tmp_path):
    """The order of a run with --allow-missing: read, build, keep the films in the store, split."""
    folder = tmp_path / "nih"
    listed = films["patient"] > 12
    (folder / splits.TEST_LIST).write_text("\n".join(films["image"][listed]))
    os.unlink(films["path"][1])  # noqa: PTH108
    spoil(films["path"][39])
    read = records.read(folder, allow_missing=True)
    left = build(read, tmp_path / "store", allow_missing=True).present(read)
    parts = splits.make(left, folder)
    assert left.attrs["missing"] == [films["image"][1], films["image"][39]]
    assert len(parts.test) == listed.sum() - 1
    assert len(parts.train) + len(parts.val) == (~listed).sum() - 1


def test_killed_at_any_moment_it_ends_the_same(films, tmp_path):
    whole = contents(build(films, tmp_path / "whole").folder)
    started = time.perf_counter()
    build(films, tmp_path / "timed")
    lasts = time.perf_counter() - started
    moments, caught, trial = random.Random(0), 0, 0
    while caught < 12 and trial < 200:
        folder, trial = tmp_path / f"killed{trial}", trial + 1
        child = forked(lambda folder=folder: build(films, folder))
        time.sleep(lasts * moments.random())  # the random moment of the kill
        os.kill(child, signal.SIGKILL)
        caught += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if (folder / store.MANIFEST).exists():
            assert store.load(folder).pixels.shape == (40, 16, 16)
        assert contents(build(films, folder).folder) == whole
    assert caught >= 12


def left_behind(films, folder, monkeypatch, *, chunks_done: int):
    """Partial folder of a build that was stopped after ``chunks_done`` of its five chunks."""
    work, done = images.decode_chunk, []

    def cut_off(*job):
        if len(done) == chunks_done:
            raise KeyboardInterrupt
        done.append(job)
        return work(*job)

    with monkeypatch.context() as patched:
        patched.setattr(images, "decode_chunk", cut_off)
        with pytest.raises(KeyboardInterrupt):
            build(films, folder)
    return next(folder.glob("partial-*"))


HALF_MADE = {
    "empty file": lambda pixels: os.truncate(pixels, 0),
    "half a header": lambda pixels: os.truncate(pixels, 50),
    "header only": lambda pixels: os.truncate(pixels, 128),
    "short file": lambda pixels: os.truncate(pixels, 128 + 40 * 16 * 16 - 1),
    "no pixels": lambda pixels: pixels.unlink(),
    "other pixels": lambda pixels: np.save(pixels, np.zeros((40, 8, 8), np.uint8)),
    "file never put in place": lambda pixels: pixels.rename(pixels.with_name(".pixels.npy.x.tmp")),
}


@pytest.mark.parametrize("chunks_done", [0, 3])
@pytest.mark.parametrize("name", HALF_MADE)
def test_half_made_files_count_for_nothing(name, chunks_done, films, tmp_path, monkeypatch):
    whole = contents(build(films, tmp_path / "whole").folder)
    partial = left_behind(films, tmp_path / "store", monkeypatch, chunks_done=chunks_done)
    HALF_MADE[name](partial / images.PIXEL_FILE)
    assert contents(build(films, tmp_path / "store").folder) == whole


def test_half_made_files_of_other_films_count_for_nothing(films, tmp_path, monkeypatch):
    partial = left_behind(films.iloc[:30], tmp_path / "store", monkeypatch, chunks_done=3)
    os.truncate(partial / images.PIXEL_FILE, 1000)
    assert contents(build(films, tmp_path / "store").folder) == contents(build(films, tmp_path / "whole").folder)


def test_notes_of_another_size_count_for_nothing(films, tmp_path, monkeypatch):
    left_behind(films, tmp_path / "store", monkeypatch, chunks_done=3)
    built = store.build(films, 24, folder=tmp_path / "store", progress=False)
    assert built.pixels.shape == (40, 24, 24)


def test_the_space_is_claimed_in_one_step(films, tmp_path, monkeypatch):
    """While the space is reserved, no file of that name is visible."""
    seen = []
    allocate = images.allocate_pixel_file

    def watched(path, shape):
        allocate(path, shape)
        seen.append((path.parent / images.PIXEL_FILE).exists())

    monkeypatch.setattr(images, "allocate_pixel_file", watched)
    build(films, tmp_path / "store")
    assert seen == [False]


def test_killed_before_the_manifest_nothing_is_decoded_again(films, tmp_path, monkeypatch, decoded):
    whole = contents(build(films, tmp_path / "whole").folder)

    def killed(path, text):
        if path.name == store.MANIFEST:
            raise KeyboardInterrupt
        return write(path, text)

    write = store.paths.write_text
    with monkeypatch.context() as patched:
        patched.setattr(store.paths, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            build(films, tmp_path / "store")
    decoded.clear()
    assert contents(build(films, tmp_path / "store").folder) == whole
    assert decoded == []


def test_a_store_whose_map_is_damaged_is_decoded_anew_with_the_next_film(films, tmp_path, decoded):
    built = build(films.iloc[:39], tmp_path / "store")
    os.truncate(next(built.folder.glob("pixels-*.npy")), 200)
    decoded.clear()
    assert contents(build(films, tmp_path / "store").folder) == contents(build(films, tmp_path / "whole").folder)
    assert len(decoded) == 80


def test_a_film_that_could_not_be_decoded_does_not_hinder_a_build_without_it(films, tmp_path):
    spoil(films["path"][4])
    build(films.iloc[:20], tmp_path / "store", allow_missing=True)
    rest = films.drop(index=4)
    assert build(rest, tmp_path / "store").names == rest["image"].tolist()


@pytest.mark.slow
def test_killed_with_its_processes_it_ends_the_same(tmp_path):
    folder = samples.write_folder(tmp_path / "many", films=600, side=200)
    films = records.read(folder)
    whole = contents(build(films, tmp_path / "whole").folder)
    code = (
        "from cxrlib.data import records, store; import sys; store.CHUNK = 8\n"
        "films = records.read(sys.argv[1]); print(flush=True)\n"
        "store.build(films, 16, folder=sys.argv[2], workers=2, progress=False)"
    )
    for trial in range(4):
        child = subprocess.Popen([sys.executable, "-c", code, folder, tmp_path / "killed"], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(0.4 + 0.5 * trial)
        child.kill()
        child.wait()
    assert contents(build(films, tmp_path / "killed").folder) == whole


def test_finished_chunks_are_not_done_again(films, tmp_path, monkeypatch, decoded):
    work = images.decode_chunk

    def interrupted(*job):
        if len(decoded) >= 16:
            raise KeyboardInterrupt
        return work(*job)

    monkeypatch.setattr(images, "decode_chunk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(films, tmp_path / "store")
    monkeypatch.setattr(images, "decode_chunk", work)
    build(films, tmp_path / "store")
    assert sorted(decoded) == sorted(films["image"])


def test_chunks_finished_before_a_film_came_in_are_used(films, tmp_path, monkeypatch, decoded):
    test_finished_chunks_are_not_done_again(films.iloc[1:].reset_index(drop=True), tmp_path, monkeypatch, decoded)
    build(films, tmp_path / "store")
    assert len(decoded) == 40


def test_two_builders_at_once(films, tmp_path):
    whole = contents(build(films, tmp_path / "whole").folder)
    children = [forked(lambda: build(films, tmp_path / "both")) for _ in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert contents(tmp_path / "both") == whole


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_too_little_room_is_said_before_the_work(films, tmp_path, monkeypatch, decoded):
    usage = store.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage._replace(free=5_000_000))
    with pytest.raises(UserError, match=r"needs about \d+ MB, and the disk \S+ has 5 MB free"):
        build(films, tmp_path / "store")
    assert decoded == []
    assert contents(tmp_path / "store") == {}


@pytest.mark.parametrize(
    ("room", "name"), [(os, "posix_fallocate"), (images, "decode_chunk"), (store.paths, "write_text")]
)
def test_a_disk_that_fills_up_leaves_what_was_there(room, name, films, tmp_path, monkeypatch):
    build(films.iloc[:20], tmp_path / "store")
    before = contents(tmp_path / "store")
    with monkeypatch.context() as broken:
        broken.setattr(room, name, full)
        with pytest.raises(UserError, match=r"disk .* is full"):
            build(films, tmp_path / "store")
    assert contents(tmp_path / "store") == before
    assert contents(build(films, tmp_path / "store").folder) == contents(build(films, tmp_path / "fresh").folder)


def test_a_real_limit_on_the_size_of_a_file(films, tmp_path):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(UserError, match=r"disk .* is full"):
            build(films, tmp_path / "store")

    assert os.waitpid(forked(limited), 0)[1] == 0
    assert contents(tmp_path / "store") == {}


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_damaged_manifest_is_named(damage, films, tmp_path):
    build(films, tmp_path / "store")
    (tmp_path / "store" / store.MANIFEST).write_text(damage)
    with pytest.raises(UserError, match=r"manifest\.json"):
        store.load(tmp_path / "store")


@pytest.mark.parametrize("length", [0, 50, 1000])
def test_a_truncated_map_is_named(length, films, tmp_path):
    pixels = next(build(films, tmp_path / "store").folder.glob("pixels-*.npy"))
    os.truncate(pixels, length)
    with pytest.raises(UserError, match="damaged"):
        store.load(tmp_path / "store")


def test_a_lost_map_is_named(films, tmp_path):
    next(build(films, tmp_path / "store").folder.glob("pixels-*.npy")).unlink()
    with pytest.raises(UserError, match="gone"):
        store.load(tmp_path / "store")


def test_what_makes_no_sense_is_refused(films, tmp_path):
    with pytest.raises(UserError, match="size"):
        store.build(films, 2, folder=tmp_path / "store")
    with pytest.raises(UserError, match="no films"):
        build(films.iloc[:0], tmp_path / "store")
    build(films, tmp_path / "store")
    with pytest.raises(UserError, match="16 pixels, not 24"):
        store.build(films, 24, folder=tmp_path / "store", progress=False)


@pytest.mark.real
def test_original_films(nih_fullres, tmp_path):
    films = records.read(nih_fullres).iloc[:12].reset_index(drop=True)
    built = store.build(films, 64, folder=tmp_path, progress=False)
    spread = built.pixels.reshape(12, -1).std(1)
    assert (spread > 10).all()
