"""What holds for the project as a whole: one list of dependencies, the floors, light imports, the two commands."""

import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()


def python(code, **more):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, **more)


def locked():
    """Every pin of the lock: name to the versions pinned, since platforms may differ."""
    pins = {}
    for line in LOCK.splitlines():
        if line and not line.startswith((" ", "#")):
            pin = Requirement(line)
            pins.setdefault(canonicalize_name(pin.name), []).append(str(pin.specifier).removeprefix("=="))
    return pins


@pytest.mark.parametrize("extra", ["", "test"])
def test_the_lock_pins_what_the_project_asks_for(extra):
    project = PROJECT["project"]
    wanted = project["optional-dependencies"][extra] if extra else project["dependencies"]
    pins = locked()
    for asked in map(Requirement, wanted):
        versions = pins.get(canonicalize_name(asked.name), [])
        assert versions, f"{asked} is not in requirements.lock; run make lock"
        assert all(asked.specifier.contains(version, prereleases=True) for version in versions), asked


def test_every_line_of_the_lock_is_an_exact_pin_and_there_is_no_address():
    assert all(len(version) and not re.search(r"[<>~*,]", version) for pins in locked().values() for version in pins)
    assert not re.search(r"://|--(extra-)?index|--find-links|^-", LOCK, re.MULTILINE)


def test_conda_users_get_the_same_and_nothing_is_listed_twice():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{PROJECT['project']['requires-python']}", "pip"]
    assert pip == {"pip": ["-e .[test]"]}


def test_the_floors_hold():
    linted = subprocess.run([Path(sys.executable).with_name("lint-imports")], capture_output=True, text=True, cwd=ROOT)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize(
    "room", ["cxrlib", "cxrlib.paths", "cxrlib.labels", "cxrlib.metrics", "cxrlib.randomness", "cxrlib.provenance"]
)
def test_the_ground_floor_imports_neither_torch_nor_matplotlib(room):
    done = python(f"import sys, {room}; print(sorted({{'torch', 'matplotlib', 'pandas'}} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr


def test_help_answers_at_once():
    """0.5 s is what is promised; half as much again for a machine that is busy with the other tests."""
    took = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [Path(sys.executable).with_name("cxr"), "--help"], capture_output=True, text=True, cwd=ROOT
        )
        took.append(time.perf_counter() - began)
        assert done.returncode == 0
    assert min(took) < 0.75
    assert "torch" not in python("import sys\n\nprint(sorted(sys.modules))").stdout


def test_make_help_names_every_target():
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    assert sorted(line.split()[1] for line in shown.splitlines()) == sorted(phony)


def test_ci_runs_what_the_readme_says():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "exec make test" in script.read_text()


def test_data_and_outputs_are_never_committed_but_for_their_pages():
    listed = subprocess.run(["git", "ls-files", "data", "outputs"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert set(listed.stdout.split()) <= {"data/README.md", "outputs/README.md"}


def test_the_reports_template_is_part_of_the_package():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["cxrlib"]
    found = {file for pattern in patterns for file in (ROOT / "cxrlib").glob(pattern)}
    assert ROOT / "cxrlib" / "report" / "report.html.j2" in found


def test_a_module_is_named_once_says_first_what_it_holds_and_is_read_in_one_sitting():
    """Someone who sees the tree and each file's first line shall find a subject at the first guess."""
    files = [file for file in (ROOT / "cxrlib").rglob("*.py") if file.name != "__init__.py"]
    assert len({file.name for file in files}) == len(files) <= 100
    for file in files:
        first, *rest = file.read_text().splitlines()
        assert first.startswith('"""'), file
        assert len(first) <= 120, file
        assert len(rest) <= 700, f"{file}: part it, or shorten it"


def test_licence_and_citation_agree_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = PROJECT["project"]
    assert citation["license"] == project["license"] == "MIT"
    assert citation["version"] == project["version"]
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
