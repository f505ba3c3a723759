"""``cxr predict`` from the command line: what is printed and written, how it goes on, and what a mistake gives."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cxrlib import paths
from cxrlib.data import film_quality
from cxrlib.evaluation import film_reader
from cxrlib.labels import display_name
from cxrlib.workbook import cli, predicting
from tests.evaluation import tiny_reader


@pytest.fixture(autouse=True)
def trained(own_outputs, monkeypatch):
    """The run ``base`` with one stage of a tiny network. Drawn films are no chest films for the pixels' judge."""
    monkeypatch.setattr(film_quality, "judge", lambda film: film_quality.Judged(film.pixels))
    with tiny_reader.small_networks():
        yield tiny_reader.save(paths.Run("base").stage(1))


@pytest.fixture
def films(tiny_phantom, tmp_path):
    """Five films, and two that cannot be read."""
    folder = tmp_path / "films"
    folder.mkdir()
    for film in sorted((tiny_phantom / "images").iterdir())[:5]:
        (folder / film.name).write_bytes(film.read_bytes())
    (folder / "empty.png").touch()
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def table(folder):
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_one_film_gives_a_table_of_80_columns_and_writes_nothing(trained, films, own_outputs, encoding, monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2))
    before = sorted(own_outputs.rglob("*"))
    film = next(films.glob("0*.png"))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        assert cli.call(["predict", str(film)]) == 0
    said = out.buffer.getvalue().decode(encoding)
    lines = said.splitlines()
    assert lines[0] == str(film)
    assert max(map(len, lines[1:])) <= 80
    reader = film_reader.Reader.open(trained)
    (answer,) = reader.stream([film])
    for row in reader.interpreter().findings(answer.network):
        (line,) = [line for line in lines if line.startswith(f"{display_name(row['finding']):19}")]
        right = row["ppv"] if row["decision"] == "positive" else row["npv"]
        for number in (f"{100 * row['probability']:.1f} %", f"{row['network']:.3f}", f"{100 * right:.1f} %"):
            assert number in line
        assert row["decision"] in line.lower()
    assert "the base rate in validation" in said
    assert sorted(own_outputs.rglob("*")) == before


def test_many_films_give_files_and_those_that_cannot_be_read_are_told_one_by_one(films, own_outputs, capsys):
    assert cli.call(["predict", str(films)]) == 1
    out, err = capsys.readouterr()
    assert "5 of 7 films have numbers, 2 were refused" in out
    refused = [line for line in err.splitlines() if line.startswith("refused: ")]
    assert len(refused) == 2
    assert "empty.png is empty" in refused[0]
    (folder,) = (own_outputs / "predictions").iterdir()
    assert folder.name.startswith("films-stage1_")
    assert len(table(folder)) == 5 * 15 + 2
    assert json.loads((folder / "predictions.json").read_text())["counts"] == {"films": 7, "read": 5, "refused": 2}
    page = (folder / "predictions.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 5
    assert "empty.png" in page


def test_a_killed_call_goes_on_where_it_was(films, tmp_path, monkeypatch, capsys):
    """Ctrl-C after two kept films; the next call reads the other five, and a third one, of another rule, none."""
    words = ["predict", str(films), "--out", str(tmp_path / "out"), "--batch-size", "1"]
    stream, read = film_reader.Reader.stream, []

    def counted(self, asked, **how):
        for answer in stream(self, asked, **how):
            read.append(answer.film)
            yield answer

    def killed(self, asked, **how):
        for i, answer in enumerate(stream(self, asked, **how)):
            if i == 2:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(predicting, "KEEP_EVERY", 1)
    monkeypatch.setattr(film_reader.Reader, "stream", killed)
    assert cli.call(words) == 130
    assert "goes on from here" in capsys.readouterr().err
    monkeypatch.setattr(film_reader.Reader, "stream", counted)
    assert cli.call(words) == 1
    assert "2 of 7 films were read before" in capsys.readouterr().err
    assert len(read) == 5
    whole = table(tmp_path / "out")
    assert cli.call([*words, "--rule", "f1", "--heat"]) == 1
    assert len(read) == 5
    assert "heat maps" in (tmp_path / "out" / "predictions.html").read_text(encoding="utf-8").lower()
    again = table(tmp_path / "out")
    assert {row["rule"] for row in again} == {"f1", ""}
    assert [row["network"] for row in again] == [row["network"] for row in whole]
    other = tiny_reader.save(tmp_path / "other" / "stage1", seed=1)
    assert cli.call([*words, "--ckpt", str(other)]) == 1
    assert "starts anew" in capsys.readouterr().err
    assert len(read) == 12
    assert [row["network"] for row in table(tmp_path / "out")] != [row["network"] for row in whole]


def test_a_prevalence_of_ones_own_changes_what_calls_are_worth(films, tmp_path, capsys):
    film, own = str(next(films.glob("0*.png"))), tmp_path / "rare.csv"
    own.write_text("finding,prevalence\n" + "".join(f"{name},0.001\n" for name in ("Mass", "Nodule")))
    assert cli.call(["predict", film, "--prevalence", str(own)]) == 0
    told = capsys.readouterr().out
    assert "at the prevalence: rare.csv, else the base rate in validation" in " ".join(told.split())
    assert cli.call(["predict", film]) == 0
    plain = capsys.readouterr().out
    lines = [{line[:19].strip(): line for line in text.splitlines()} for text in (told, plain)]
    assert lines[0]["Mass"] != lines[1]["Mass"]
    assert lines[0]["Hernia"] == lines[1]["Hernia"]


def test_a_refused_film_alone_has_no_table(films, capsys):
    assert cli.call(["predict", str(films / "empty.png")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "empty.png is empty (0 bytes)" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("absent.png", "absent.png is not there"),
        ("{here}/nothing", "there are no films in"),
        ("{film} --run other", "there is no run 'other'; give --run NAME (the runs are: none yet) or --ckpt"),
        ("{film} --ckpt nothing", "there is no checkpoint 'nothing'"),
        ("{film} --rule best", "threshold rule 'best' is unknown; choose youden, f1, sensitivity_90"),
        ("{film} --prevalence none.csv", "none.csv is not there"),
        ("{film} --batch-size 0", "batch"),
        ("{here} --out {film}", "cannot write"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(films, tmp_path, capsys, words, says):
    (tmp_path / "nothing").mkdir()
    film = next(films.glob("0*.png"))
    assert cli.call(["predict", *words.format(film=film, here=tmp_path).split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_a_checkpoint_of_phantoms_and_one_without_calibration_say_so(films, capsys, monkeypatch):
    path = tiny_reader.save(paths.Run("bare").stage(1), calibrated=False)
    paths.write_json(path.with_suffix(".json"), paths.read_json(path.with_suffix(".json")) | {"size": 32})
    monkeypatch.setattr(film_reader, "trained_on", lambda meta: ["phantom-0"])
    assert cli.call(["predict", str(next(films.glob("0*.png"))), "--run", "bare"]) == 0
    out, err = capsys.readouterr()
    assert "drawn phantom films" in err
    assert "carries no calibration" in err
    assert "POSITIVE" not in out
    assert not Path("predictions.csv").exists()


def test_torchvision_is_imported_without_torchs_compiler():
    code = """import sys
from cxrlib.workbook import predicting
predicting._import_torchvision()
from cxrlib.training import network
network.build("none")
assert not [name for name in sys.modules if name.startswith(("torch._dynamo", "torch._inductor"))]"""
    subprocess.run([sys.executable, "-c", code], check=True)
