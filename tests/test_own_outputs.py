"""What tests write is removed after them: all of it together is more than many a disk has free."""

import shutil
import subprocess
import sys
from pathlib import Path

TESTS = """
import pytest

@pytest.mark.parametrize("outcome", ["passes", "fails"])
def test_writes(outcome, own_outputs, tmp_path):
    (own_outputs / outcome).write_text("a run")
    (tmp_path / outcome).write_text("a file")
    assert outcome == "passes"
"""


def test_only_what_failed_tests_wrote_is_kept(tmp_path):
    here = Path(__file__).parent
    shutil.copy(here / "conftest.py", tmp_path)
    (tmp_path / "test_writing.py").write_text(TESTS)
    settings, base = here.parent / "pyproject.toml", tmp_path / "base"
    command = [sys.executable, "-m", "pytest", "-c", settings, "--rootdir", tmp_path, "--basetemp", base, tmp_path]
    done = subprocess.run([*command, "-p", "no:cacheprovider"], capture_output=True, text=True, check=False)
    assert "1 failed, 1 passed" in done.stdout
    kept = [path for path in base.rglob("*") if path.is_file() and not path.parent.is_symlink()]
    assert sorted(path.name for path in kept) == ["fails", "fails"]
