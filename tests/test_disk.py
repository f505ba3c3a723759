"""A full disk at every write: one line that says which disk, and the same bits afterwards, with room again.

Two injectors make writes fail: one inside this process, which needs nothing else, and a library in ``../shared/faults``
that also reaches writes of compiled code.
"""

import ast
import builtins
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from training import tiny

from cxrlib import UserError, disk, paths
from cxrlib.data import records, store
from cxrlib.phantom import phantom
from cxrlib.plots import common
from data import samples
from tests.conftest import SHARED

ROOT = Path(__file__).resolve().parents[1]


class Faults:
    """From the ``at``-th write under a folder on, every write, new file, folder and rename fails; 0 for none."""

    def __init__(self, folder: Path, monkeypatch, code: int = errno.ENOSPC) -> None:
        self.folder, self.code, self.at, self.count = str(folder), code, 0, 0
        for module, name in ((builtins, "open"), (io, "open")):
            monkeypatch.setattr(module, name, self._opening(getattr(module, name)))
        for name in ("mkdir", "rename", "replace"):
            monkeypatch.setattr(os, name, self._calling(getattr(os, name)))
        monkeypatch.setattr(tempfile, "mkstemp", self._making(tempfile.mkstemp))
        monkeypatch.setattr(tempfile, "mkdtemp", self._making(tempfile.mkdtemp))

    @contextmanager
    def armed(self, at: int):
        self.at, self.count = at, 0
        try:
            yield
        finally:
            self.at = 0

    def hit(self, path) -> None:
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(self.folder):
            return
        self.count += 1
        if self.at and self.count >= self.at:
            raise OSError(self.code, os.strerror(self.code), os.fspath(path))

    def _opening(self, real):
        def opened(file, mode="r", *rest, **more):
            if not set(mode) & set("wax+") or not str(file).startswith(self.folder):
                return real(file, mode, *rest, **more)
            self.hit(file)
            made = real(file, mode, *rest, **more)
            write = made.write

            def writing(content):
                self.hit(file)
                return write(content)

            with suppress(AttributeError):
                made.write = writing
            return made

        return opened

    def _calling(self, real):
        def called(path, *rest, **more):
            self.hit(path)
            return real(path, *rest, **more)

        return called

    def _making(self, real):
        def made(*rest, dir=None, **more):
            self.hit(dir)
            return real(*rest, dir=dir, **more)

        return made


def bits(folder: Path) -> dict[str, bytes]:
    """Contents of all files that are not hidden, without the progress, which is written only now and then."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith((".", "progress"))]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def write_set(folder: Path) -> None:
    phantom.write(folder / "set", 4, 32, workers=1, progress=False)


def build_store(folder: Path) -> None:
    films = records.read(folder.with_name("films"))
    store.build(films, 16, folder=folder / "store", workers=1, progress=False)


def train_stage(folder: Path) -> None:
    films = tiny.TinyBatches(8, shuffle=True), tiny.TinyBatches(4, first=24)
    tiny.train(folder / "stage1", {"groups": ("fc",), "epochs": 1}, train=films[0], val=films[1])


def write_results(folder: Path) -> None:
    import matplotlib.pyplot as plt
    import pandas as pd

    table = pd.DataFrame({"a": [1, 2]})
    paths.write_csv(folder / "tables" / "a.csv", table)
    paths.write_json(folder / "run.json", {"a": 1}, guarded=True)
    common.save(plt.figure(figsize=(1, 1)), folder / "figures" / "a", table)
    plt.close("all")


def complaint(work, folder: Path) -> str:
    """Message of the UserError that this work ends with, "" for none. Any other error is a traceback."""
    try:
        work(folder)
    except UserError as error:
        return str(error)
    return ""


WORKS = {"phantom": write_set, "store": build_store, "stage": train_stage, "results": write_results}
CHANGING = ("history.csv", "history.json", "run.json", "stage1_0.001_1.json")
"""Files that hold times."""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(paths, "_sync", lambda path: None)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("work", [*WORKS])
def test_a_disk_that_fails_at_any_write_is_one_line_and_nothing_is_lost(work, code, tmp_path, monkeypatch):
    samples.write_folder(tmp_path / "films", films=6)
    folder = tmp_path / "made"
    folder.mkdir()
    faults = Faults(folder, monkeypatch, code)
    with faults.armed(0):
        WORKS[work](folder)
    places, whole = faults.count, bits(folder)
    assert places >= 6
    failed = 0
    step = max(1, places // 12) if work == "stage" else 1  # each costs a training
    for at in range(1, places + 1, step):
        shutil.rmtree(folder)
        folder.mkdir()
        with faults.armed(at):
            said = complaint(WORKS[work], folder)
        failed += bool(said)
        words = "is full (" if code == errno.ENOSPC else "reports an error of its own"
        assert not said or f"the disk {disk.mount(folder)} {words}" in said, at
        assert "permission" not in said, at
        assert "\n" not in said, at
        WORKS[work](folder)
        after = bits(folder)
        assert after.keys() == whole.keys(), at
        assert [name for name in whole if after[name] != whole[name] and Path(name).name not in CHANGING] == [], at
        assert not [file for file in folder.rglob(".*tmp*") if file.is_file()], at
    assert failed >= places // step // 2


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """The injector of ../shared/faults, compiled."""
    source, made = SHARED / "faults" / "faultfs.c", tmp_path_factory.mktemp("faults") / "faultfs.so"
    if not source.is_file() or sys.platform != "linux" or not shutil.which("cc"):
        pytest.skip("no shared/faults beside the checkout, no C compiler, or not Linux")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", made, source, "-ldl"], check=True, capture_output=True)
    return made


DRIVER = """
import json, shutil, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]) / "faults"))
import fault
from cxrlib import UserError
sys.path.insert(0, str(Path("tests").resolve()))
import test_disk
folder, work = Path(sys.argv[2]), test_disk.WORKS[sys.argv[3]]
step = int(sys.argv[4])
folder.mkdir()
fault.arm(0); work(folder); places = fault.off()
whole, said = test_disk.bits(folder), []
for at in range(1, places + 1, step):
    shutil.rmtree(folder); folder.mkdir()
    fault.arm(at)
    try:
        work(folder)
    except UserError as error:
        said.append(str(error))
    except BaseException as error:
        said.append(f"TRACEBACK {error!r}")
    fault.off()
    work(folder)
    after = test_disk.bits(folder)
    wrong = [n for n in whole.keys() | after.keys() if whole.get(n) != after.get(n)]
    wrong = [n for n in wrong if Path(n).name not in test_disk.CHANGING]
    said += [f"OTHER BITS {wrong} after {at}"] if wrong else []
print("SAID " + json.dumps([places, said]))
"""


@pytest.mark.real
@pytest.mark.parametrize(("work", "step"), [("phantom", 1), ("store", 1), ("results", 1), ("stage", 5)])
def test_compiled_code_on_a_full_disk_is_one_line_too(work, step, library, tmp_path):
    """The same with writes of every kind failing, those of safetensors and NumPy included."""
    samples.write_folder(tmp_path / "films", films=6)
    environment = {"LD_PRELOAD": str(library), "FAULT_PREFIX": str(tmp_path / "made"), "FAULT_CTL": str(tmp_path / "c")}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(SHARED), str(tmp_path / "made"), work, str(step)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("SAID ")]
    assert lines, done.stderr
    places, said = json.loads(lines[0].removeprefix("SAID "))
    assert places >= 6
    assert len(said) >= places // step // 2
    assert [words for words in said if f"the disk {disk.mount(tmp_path)} is full (" not in words] == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, r"the disk \S+ is full \(2 kB needed, \S+ \w+ free\); make room on it, and give the same"),
        (errno.EDQUOT, r"your quota on the disk \S+ is used up"),
        (errno.EIO, r"the disk \S+ reports an error of its own \(Input/output error\); look after the disk"),
        (errno.EROFS, r"the disk \S+ is read-only; mount it for writing, or set CXR_OUTPUTS"),
        (errno.EACCES, r"Permission denied; choose another folder or correct its permissions"),
        (errno.EMFILE, r"Too many open files; raise the limit with ulimit -n"),
        (errno.ENOENT, r"its folder was removed meanwhile; give the same command again"),
    ],
)
def test_each_error_of_a_disk_has_its_own_advice(code, words, tmp_path):
    with pytest.raises(disk.DiskError, match=words) as caught, disk.writing(tmp_path / "a" / "b", need=2000):
        raise OSError(code, os.strerror(code))
    assert caught.value.errno == code
    assert "\n" not in str(caught.value)


def test_errors_that_libraries_wrap_are_recognised():
    from safetensors import SafetensorError

    assert disk.number(SafetensorError("I/O error: No space left on device (os error 28)")) == errno.ENOSPC
    assert disk.number(OSError("4096 requested and 0 written")) == errno.ENOSPC
    assert disk.number(ValueError("os error 28")) == 0
    assert disk.number(OSError("image file is truncated")) == 0


def test_a_programming_error_is_not_taken_for_the_disk(tmp_path):
    with pytest.raises(ZeroDivisionError), disk.writing(tmp_path / "a"):
        _ = 1 / 0


def test_room_is_asked_for_with_figures(tmp_path, monkeypatch):
    disk.require(tmp_path / "not" / "there", 1, "a test")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5_000_000))
    with pytest.raises(
        UserError, match=r"a test needs about 1\.20 GB, and the disk \S+ has 5 MB free; make room on it"
    ):
        disk.require(tmp_path / "not" / "there", 1_200_000_000, "a test")


IN_PLACE = {"write_text", "write_bytes", "savefig", "save", "save_file", "dump", "tofile"}
"""Calls that write a file where their first argument, or their object, is a path."""

ALLOWED = {
    "paths.write_bytes": "the atomic helper itself",
    "plots.common.save": "into memory, and into the temporary file of paths.atomic",
    "evaluation.predict.write": "into the temporary file of paths.atomic",
    "evaluation.reading._keep_features": "into the temporary file of paths.atomic",
    "evaluation.gate.save": "safetensors gives bytes, which paths.write_bytes takes",
    "evaluation.prediction_files.__post_init__": "a journal that goes on where it was cut off",
    "evaluation.prediction_files.add": "a journal that goes on where it was cut off",
    "evaluation.prediction_files._text": "opens the temporary file of paths.atomic",
    "training.checkpoint.write_tensors": "into the temporary file of paths.atomic",
    "training.frozen._reserve": "scratch space without a name, gone with the process",
    "training.progress.write": "by rename without a sync, since it need not survive a power cut",
    "training.job.launch": "a log",
    "report.export._write_weights": "into a temporary folder, which is renamed",
    "report.export._copy_gate": "into a temporary folder, which is renamed",
    "report.page._png": "into memory",
    "workbook.live.draw_page": "into memory",
    "data.images.decode_chunk": "pixels of an unfinished store, whose chunks are noted when they are whole",
    "data.images.allocate_pixel_file": "into the temporary file of paths.atomic",
    "data.download.expert_labels": "into the temporary file of paths.atomic",
    "workbook.kernels.output": "in the system's temporary folder",
    "phantom.phantom._draw_all": "into a temporary folder, which is renamed",
    "phantom.phantom._write_tables": "into a temporary folder, which is renamed",
    "phantom.layouts.write": "into a temporary folder, which is renamed",
    "phantom.layouts.draw_files": "into a temporary folder, which is renamed",
}
"""Functions that may write by themselves, and why."""


def writes_in_place(tree: ast.AST) -> list[tuple[str, str]]:
    """Calls that write a file by themselves, as (name of the function around them, text of the call)."""
    found = []

    def visit(node: ast.AST, inside: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else inside
            if isinstance(child, ast.Call) and writes(child):
                found.append((inside, ast.unparse(child)))
            visit(child, name)

    visit(tree, "")
    return found


def writes(call: ast.Call) -> bool:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
    if owner in ("paths", "common", "self", "self.files", "gate", "checkpoint", "exclusion"):  # our own
        return False
    if name == "open":
        modes = [
            argument.value
            for argument in [*call.args, *(key.value for key in call.keywords if key.arg == "mode")]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        ]
        return any(set(mode) & set("wax+") and set(mode) <= set("rwaxbt+") for mode in modes)
    if name in ("to_csv", "to_json"):
        return bool(call.args) or any(key.arg in ("path_or_buf", "path_or_buffer") for key in call.keywords)
    return name in IN_PLACE and (bool(owner) or name == "save_file")


def test_every_file_of_the_package_is_written_by_rename():
    found = set()
    for file in sorted((ROOT / "cxrlib").rglob("*.py")):
        module = ".".join(file.relative_to(ROOT / "cxrlib").with_suffix("").parts)
        found |= {f"{module}.{inside}" for inside, _ in writes_in_place(ast.parse(file.read_text()))}
    assert found - ALLOWED.keys() == set(), "write by paths.write_text, write_bytes, write_csv, write_json or atomic"
    assert ALLOWED.keys() - found == set(), "these no longer write by themselves"


@pytest.mark.parametrize("book", sorted((ROOT / "notebooks").rglob("*.ipynb")), ids=lambda book: book.stem)
def test_every_file_of_a_notebook_is_written_by_rename(book):
    for cell in json.loads(book.read_text())["cells"]:
        if cell["cell_type"] == "code" and not (source := "".join(cell["source"])).lstrip().startswith("%"):
            assert writes_in_place(ast.parse(source)) == []


@pytest.mark.parametrize(
    "source",
    [
        'open(p, "w")',
        'p.open("ab")',
        "t.to_csv(p)",
        "fig.savefig(p)",
        "p.write_text(x)",
        'open(p, mode="x")',
        "np.save(p, x)",
    ],
)
def test_a_write_in_place_is_recognised(source):
    assert writes_in_place(ast.parse(source))


@pytest.mark.parametrize("source", ["open(p)", 'p.open("rb")', "t.to_csv(index=False)", "paths.write_text(p, x)"])
def test_other_calls_are_no_writes(source):
    assert not writes_in_place(ast.parse(source))
