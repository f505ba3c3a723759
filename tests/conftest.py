"""Fixtures of every floor: the real films beside the checkout, a tiny phantom set, an outputs folder of its own."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores, and so do the programs that they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"real data absent: no folder shared/{name} beside the checkout")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``cuda`` skip where there is no card. The notebooks, which take longest, begin first."""
    import torch

    items.sort(key=lambda item: item.path.name != "test_nbval.py")

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA card here"))


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def own_outputs(request, tmp_path_factory) -> Iterator[Path]:
    """Every test writes its runs, stores and phantom sets into a folder of its own, never into the user's.

    It is emptied after the test, unless the test failed: all of them together are 20 GB. The empty folder stays, so
    that no later test gets the same name.
    """
    folder = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXR_OUTPUTS", str(folder))
        yield folder
    if not request.node.stash.get(FAILED, False):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)


@pytest.fixture(scope="session")
def nih_1k() -> Path:
    """1,049 real films of 256 px in the NIH layout."""
    return _shared("nih-1k")


@pytest.fixture(scope="session")
def nih_fullres() -> Path:
    """96 original films of 1024 px, six of them RGBA, with 12 boxes."""
    return _shared("nih-fullres")


@pytest.fixture(scope="session")
def nih_more() -> Path:
    """388 further real films of 256 px, none of which is in ``nih_1k``."""
    return _shared("nih-more")


@pytest.fixture(scope="session")
def odd_films() -> Path:
    """Real films in other forms; ``turned`` holds 20 that lie on their left side."""
    return _shared("odd-films")


@pytest.fixture(scope="session")
def cases() -> Path:
    """Small data folders of nine real films each, as people have them."""
    return _shared("cases")


@pytest.fixture(scope="session")
def nih_metadata() -> Path:
    """All 112,120 rows, the official lists, all boxes, a published model's predictions."""
    return _shared("nih-metadata")


@pytest.fixture(scope="session")
def dicom() -> Path:
    return _shared("dicom")


@pytest.fixture(scope="session")
def tiny_phantom(tmp_path_factory) -> Path:
    """96 phantom films of 64 px, every finding present: small, so that a stage of training takes seconds."""
    from cxrlib.phantom import phantom

    return phantom.write(tmp_path_factory.mktemp("phantom") / "tiny", images=96, size=64, seed=1)


@pytest.fixture(scope="session")
def layout_set(tmp_path_factory):
    """Function that gives the folder of a phantom set in a dataset's layout: 48 films of 32 px, drawn once."""
    from functools import cache

    from cxrlib.phantom import layouts

    @cache
    def folder(layout: str, hospital: str = "A") -> Path:
        place = tmp_path_factory.mktemp("layouts") / layout
        return layouts.write(place, images=48, size=32, seed=3, layout=layout, hospital=hospital)

    return folder
