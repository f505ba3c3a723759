"""Download: failures of the client become clear messages, and films are used in the cache. The client is a double."""

import errno
import io
import os
import sys
import urllib.error
from types import SimpleNamespace

import pytest
import samples

from cxrlib import UserError
from cxrlib.data import download, radiologists, records, splits


@pytest.fixture
def client(monkeypatch):
    """Double of kagglehub with a download function of the test."""

    def install(fetch):
        monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=fetch))

    return install


def failing(error):
    def fetch(_):
        raise error

    return fetch


def http(status):
    error = type("KaggleApiHTTPError", (Exception,), {})(f"{status} error")
    error.response = SimpleNamespace(status_code=status)
    return error


def named(name):
    return type(name, (Exception,), {})("as the client says it")


FAILURES = {
    "no network": (type("ConnectionError", (OSError,), {})("Name or service not known"), "no connection"),
    "connection lost": (ConnectionResetError(errno.ECONNRESET, "reset"), "no connection"),
    "slow network": (named("ReadTimeout"), "no connection"),
    "no credentials": (named("UnauthenticatedError"), r"kaggle\.json"),
    "wrong credentials": (http(401), r"kaggle\.json"),
    "terms not accepted": (http(403), r"kaggle\.json"),
    "no such dataset": (http(404), "has no dataset"),
    "no handle": (ValueError("Invalid dataset handle: x"), "owner/name"),
    "disk full": (OSError(errno.ENOSPC, "No space left"), "disk is full"),
    "interrupted": (KeyboardInterrupt(), "the same command resumes it"),
    "something else": (RuntimeError("the moon\nis full"), "failed: the moon$"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_in_plain_words(name, client):
    error, message = FAILURES[name]
    client(failing(error))
    with pytest.raises(UserError, match=message):
        download.dataset("owner/films")


def test_without_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(UserError, match="install"):
        download.dataset()


@pytest.mark.parametrize("below", ["", "versions/3", "a/b/c"])
def test_the_folder_with_the_table_is_found_and_used_in_place(below, client, tmp_path):
    folder = samples.write_folder(tmp_path / below if below else tmp_path, films=6)
    client(lambda handle: str(tmp_path))
    assert download.dataset() == folder


def test_a_download_of_something_else(client, tmp_path):
    client(lambda handle: str(tmp_path))
    with pytest.raises(UserError, match="holds no Data_Entry"):
        download.dataset("someone/cats")


def test_the_cache_is_the_users_and_only_for_the_call(client, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", "before")
    seen = []

    def fetch(handle):
        seen.append((handle, os.environ["KAGGLEHUB_CACHE"]))
        return str(samples.write_folder(tmp_path / "films", films=6))

    client(fetch)
    download.dataset(cache=tmp_path / "cache")
    assert seen == [(download.NIH, str(tmp_path / "cache"))]
    assert os.environ["KAGGLEHUB_CACHE"] == "before"


def test_the_names_of_a_resized_mirror(tmp_path):
    """The resized copy of 224² has films in images-224/images-224 and NIH in the names of lists and boxes."""
    folder = samples.write_folder(tmp_path / "mirror")
    (folder / "images-224").mkdir()
    (folder / "images").rename(folder / "images-224" / "images-224")
    films = records.read(folder)
    tested = films["patient"] > 12
    (folder / "test_list_NIH.txt").write_text("\n".join(films["image"][tested]))
    (folder / "train_val_list_NIH.txt").write_text("\n".join(films["image"][~tested]))
    (folder / "BBox_List_2017_Official_NIH.csv").write_text(
        f"Image Index,Finding Label,Bbox [x,y,w,h],,,\n{films['image'][1]},Effusion,512,0,128,64,,,\n"
    )
    parts = splits.make(films, folder)
    assert "official" in parts.source
    assert len(parts.test) == tested.sum()
    boxes = records.scale_boxes(records.read_boxes(folder), 224, 224)
    assert boxes.loc[0, ["x", "y", "w", "h"]].tolist() == [112, 0, 28, 14]


def test_radiologists_labels_are_put_beside_the_data_once(tmp_path, monkeypatch):
    asked = []

    def opened(url, timeout):
        asked.append(url)
        name = "00000001_000.png" if "test_labels" in url else "00000002_000.png"
        return io.BytesIO(f"Image Index,Pneumothorax,Airspace opacity,Nodule or mass\n{name},YES,NO,NO\n".encode())

    monkeypatch.setattr(download.urllib.request, "urlopen", opened)
    files = download.expert_labels(tmp_path)
    assert download.expert_labels(tmp_path) == files == radiologists.find(tmp_path)
    assert len(asked) == 2
    assert radiologists.read(*files)["set"].tolist() == ["test", "val"]


def test_a_page_to_sign_in_is_not_kept_as_the_labels(tmp_path, monkeypatch):
    page = b"<!doctype html>\n<html><body>Sign in</body></html>\n"
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(page))
    with pytest.raises(UserError, match=r"answer for test_labels\.csv is not the file of labels; Google asks"):
        download.expert_labels(tmp_path)
    assert not any(tmp_path.iterdir())


def test_labels_are_put_into_a_folder_that_is_there(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder; give the data folder"):
        download.expert_labels(tmp_path / "nowhere")


def test_without_the_form_it_says_where_to_get_them(tmp_path, monkeypatch):
    def refused(url, timeout):
        raise urllib.error.HTTPError(url, 403, "Forbidden", {}, None)

    monkeypatch.setattr(download.urllib.request, "urlopen", refused)
    with pytest.raises(UserError, match=r"403.*short form at https://cloud\.google\.com.*validation_labels\.csv into"):
        download.expert_labels(tmp_path)
    assert not any(tmp_path.iterdir())
