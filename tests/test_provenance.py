"""Fingerprints change when, and only when, what they stand for does; a folder is held by one process at a time."""

import hashlib
import subprocess
import sys

import pytest

from cxrlib import UserError, labels, paths, provenance
from cxrlib.plots import common


def test_digest_knows_values_not_their_order():
    assert provenance.digest({"a": 1, "b": [2, 3]}) == provenance.digest({"b": [2, 3], "a": 1})
    assert provenance.digest({"a": 1}) != provenance.digest({"a": 2})
    assert provenance.digest([2, 3]) != provenance.digest([3, 2])
    assert len(provenance.digest("")) == 16


def test_digest_refuses_what_json_has_not():
    with pytest.raises(ValueError, match="JSON"):
        provenance.digest(float("nan"))


def test_file_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"film")
    assert provenance.file_sha256(tmp_path / "file") == hashlib.sha256(b"film").hexdigest()


def test_code_version_tells_rooms_apart():
    assert provenance.code_version(labels) == provenance.code_version(labels)
    assert provenance.code_version(labels) != provenance.code_version(common)


def test_versions_name_what_computes():
    found = provenance.versions()
    assert {"python", "platform", "cxrlib", "torch", "numpy"} <= found.keys()


def test_time_is_utc():
    assert provenance.now().endswith("+00:00")


def test_revision_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("CXR_PROJECT", str(tmp_path))
    assert provenance.git_revision() == ""


def test_revision_says_when_files_differ(tmp_path, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "first")
    monkeypatch.setenv("CXR_PROJECT", str(tmp_path))
    assert len(provenance.git_revision()) == 40
    (tmp_path / "file").touch()
    assert provenance.git_revision().endswith("+changes")


HOLD = (
    "import sys; from pathlib import Path; from cxrlib import paths\n"
    "with paths.lock_folder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


def test_a_folder_is_held_once_and_let_go_however_the_holder_ends(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=f"in use by process {holder.pid} "), paths.lock_folder(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with paths.lock_folder(tmp_path):
        assert (tmp_path / ".holder.json").exists()
    assert not (tmp_path / ".holder.json").exists()


def test_importing_the_package_imports_nothing_heavy():
    code = "import cxrlib, sys; print([name for name in ('torch', 'matplotlib', 'pandas') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
