"""Tables in the forms that people have: the same films whatever wrote them, and a refusal where that is unknown."""

import csv
import gzip
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import HEADER, row

from cxrlib import UserError, labels
from cxrlib.data import records, tables

PLAIN = [name for name in HEADER.split(",")[:7] if name]
AGES = {"58": 58, "058Y": 58, "58,0": 58, "0": 0, "": np.nan, "412": np.nan}

films = st.lists(
    st.tuples(
        st.sets(st.sampled_from(labels.FINDINGS), max_size=4),
        st.integers(0, 200),
        st.integers(1, 30805),
        st.sampled_from(sorted(AGES)),
        st.sampled_from(["M", "F", ""]),
        st.sampled_from(["PA", "AP", ""]),
    ),
    min_size=1,
    max_size=6,
)
forms = st.fixed_dictionaries(
    {
        "separator": st.sampled_from(",;\t"),
        "encoding": st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
        "line_end": st.sampled_from(["\n", "\r\n"]),
        "last_end": st.booleans(),
        "gzip": st.booleans(),
        "quoted": st.booleans(),
        "columns": st.booleans(),
        "no_finding": st.booleans(),
        "one": st.sampled_from(["1", "1.0", "1,0", "True"]),
        "between": st.sampled_from(["|", ";", ",", " ", ", ", " | "]),
        "spell": st.sampled_from([str, str.lower, str.upper, lambda text: text.replace("_", " ")]),
        "sexes": st.sampled_from([{"M": "M", "F": "F", "": ""}, {"M": "male", "F": "Female", "": "unknown"}]),
        "number": st.sampled_from(["{}", "{}.0", "{},0", "{:08d}"]),
        "header": st.sampled_from([str, str.lower, lambda text: text.replace(" ", "_")]),
        "trailing": st.booleans(),
    }
)


def write(path, rows, form):
    """Write films as a table in this form."""
    header = [*PLAIN[:1], *PLAIN[2:], *labels.FINDINGS] if form["columns"] else [*PLAIN]
    if form["columns"] and form["no_finding"]:
        header.append(labels.NO_FINDING)
    out = io.StringIO()
    quoting = csv.QUOTE_ALL if form["quoted"] else csv.QUOTE_MINIMAL
    writer = csv.writer(out, delimiter=form["separator"], lineterminator=form["line_end"], quoting=quoting)
    end = [""] if form["trailing"] else []
    writer.writerow([*map(form["header"], header), *end])
    for i, (findings, follow_up, patient, age, sex, view) in enumerate(rows):
        names = [name for name in labels.FINDINGS if name in findings] or [labels.NO_FINDING]
        film, text = f"film {i}.png", form["between"].join(map(form["spell"], names))
        plain = [
            form["number"].format(follow_up),
            form["number"].format(patient),
            age,
            form["sexes"][sex],
            view.lower(),
        ]
        if form["columns"]:
            marks = [form["one"] if name in names else "0" for name in header[6:]]
            writer.writerow([film, *plain, *marks, *end])
        else:
            writer.writerow([film, text, *plain, *end])
    text = out.getvalue() if form["last_end"] else out.getvalue().removesuffix(form["line_end"])
    data = text.encode(form["encoding"])
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@given(films, forms)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_table_in_any_form_is_the_same_films(tmp_path, rows, form):
    path = tmp_path / ("table.csv.gz" if form["gzip"] else "table.csv")
    write(path, rows, form)
    read = records.read_csv(path)
    expected = pd.DataFrame(
        [(f"film {i}.png", row[2], row[1], AGES[row[3]], *row[4:]) for i, row in enumerate(rows)],
        columns=["image", "patient", "follow_up", "age", "sex", "view"],
    )
    pd.testing.assert_frame_equal(read[expected.columns], expected, check_dtype=False)
    for name in labels.FINDINGS:
        assert read[name].tolist() == [name in row[0] for row in rows]
    assert read[labels.NO_FINDING].tolist() == [not row[0] for row in rows]


LAST = row(2, 0)
ROWS = (row(1, 0), LAST)


def text_of(separator=",", header=HEADER, rows=ROWS):
    return "".join(f"{line}\n" for line in (header, *rows)).replace(",", separator)


def findings_table(*cells, header=None):
    """Table with a column for each finding. ``cells``: those of each row, "1" for a finding."""
    columns = header or [*labels.FINDINGS]
    lines = [",".join([PLAIN[0], *PLAIN[2:], *columns])]
    lines += [f"0000000{i}_000.png,0,{i},50,F,PA,{','.join(values)}" for i, values in enumerate(cells, 1)]
    return "\n".join(lines) + "\n"


def zeros(*ones, n=14, one="1"):
    return [one if k in ones else "0" for k in range(n)]


def told(tmp_path, text, encoding="utf-8"):
    """What was assumed of a table: the cases by what."""
    path, notes = tmp_path / "Data_Entry_2017.csv", {}
    path.write_bytes(text.encode(encoding))
    records.read_csv(path, on_assumed=lambda what, cases: notes.update({what: cases} if cases else {}))
    return notes


def test_nothing_is_assumed_of_the_datasets_own_form(tmp_path):
    assert told(tmp_path, text_of()) == {}
    assert told(tmp_path, text_of(header=HEADER + ",", rows=[row(1, 0, age="058Y") + ","])) == {}


ASSUMED = {
    "table separated by semicolons": text_of(";"),
    "table separated by tabs": text_of("\t"),
    "labels written in another way": text_of(rows=[row(1, 0, finding="No finding"), row(2, 0, finding="mass")]),
    "Patient Gender in other words": text_of(rows=[row(1, 0, sex="female")]),
    "Patient ID with decimals": text_of(rows=[row(1, 0).replace(",1,50", ",1.0,50")]),
    "Patient Age with a decimal comma": text_of(rows=[row(1, 0, age='"58,0"')]),
    "columns named in another way": text_of(header=HEADER.replace("Patient ID", "patient_id")),
    "columns of 0 and 1 in place of Finding Labels": findings_table(zeros(1), zeros()),
    "No Finding is where all 14 findings are 0": findings_table(zeros(1), zeros()),
}


@pytest.mark.parametrize("what", ASSUMED)
def test_what_is_assumed_is_told(what, tmp_path):
    assert what in told(tmp_path, ASSUMED[what])


def test_what_is_assumed_is_told_with_its_cases(tmp_path):
    assert told(tmp_path, text_of(";"), "utf-16")["file in UTF-16"] == ["Data_Entry_2017.csv"]
    labels_told = told(tmp_path, ASSUMED["labels written in another way"])["labels written in another way"]
    assert labels_told == ["'No finding' as No Finding", "'mass' as Mass"]
    assert told(tmp_path, ASSUMED["Patient Gender in other words"]) == {
        "Patient Gender in other words": ["'female' as F"]
    }


@pytest.mark.parametrize("absent", [{2}, {4}, {5}, {6}, {2, 4, 5, 6}])
def test_a_table_may_lack_follow_up_age_sex_and_view(absent, tmp_path):
    """Columns 2, 4, 5 and 6 of NIH's header. What is there is read as ever; what is not is unknown, and this is
    told."""
    whole = [line.split(",")[:7] for line in text_of(rows=[row(5, 0), row(7, 0), row(5, 1)]).splitlines()]
    (tmp_path / "whole.csv").write_text("".join(",".join(cells) + "\n" for cells in whole))
    kept = [[cell for k, cell in enumerate(cells) if k not in absent] for cells in whole]
    notes = told(tmp_path, "".join(",".join(cells) + "\n" for cells in kept))
    films, expected = (records.read_csv(tmp_path / name) for name in ("Data_Entry_2017.csv", "whole.csv"))
    names = {2: "follow_up", 4: "age", 5: "sex", 6: "view"}
    assert notes["columns that the table does not have, unknown for all films"] == [names[k] for k in sorted(absent)]
    same = [name for name in films if name not in {names[k] for k in absent}]
    pd.testing.assert_frame_equal(films[same], expected[same])
    assert films["follow_up"].tolist() == [0, 0, 1]
    if 4 in absent:
        assert films["age"].isna().all()
    for k, name in ((5, "sex"), (6, "view")):
        assert (films[name] == "").all() == (k in absent)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark(encoding, tmp_path):
    notes = told(tmp_path, text_of("\t"), encoding)
    assert notes["file in UTF-16 without a byte order mark"] == ["Data_Entry_2017.csv"]
    (tmp_path / "plain.csv").write_text(text_of("\t"))
    expected = records.read_csv(tmp_path / "plain.csv")
    pd.testing.assert_frame_equal(records.read_csv(tmp_path / "Data_Entry_2017.csv"), expected)


REFUSED = {
    "header with two separators": (text_of(header=HEADER.replace(",", ";", 1)), "a row needs 10 cells"),
    "two separators alike": ("Image Index;Patient ID,Patient Age\n1.png;1,2\n", "commas and by semicolons"),
    "row cut in the middle": (
        text_of(rows=[row(1, 0), "00000051_001.png,No Finding,1,5"]),
        r"line 3: row '00000051_001",
    ),
    "row with a cell more": (text_of(rows=[row(1, 0), LAST + ",x"]), r"line 3: row .*; a row needs 11 cells"),
    "row far too long": (text_of(rows=[row(1, 0) + ",1" * 30, LAST]), "line 2: row"),
    "row with a comma in a label": (text_of(rows=[row(1, 0, finding="Mass,Nodule")]), "line 2: row"),
    "semicolon row in a comma table": (text_of(rows=[row(1, 0), LAST.replace(",", ";")]), "line 3"),
    "film twice": (text_of(rows=[row(1, 0), row(1, 0)]), "one row only"),
    "No Finding beside a finding": (text_of(rows=[row(1, 0, finding="no finding; mass")]), "beside a finding"),
    "two separators of labels": (text_of(rows=[row(1, 0, finding="Mass|Nodule; Edema")]), "unknown label"),
    "empty label": (text_of(rows=[row(1, 0, finding="Mass;")]), "unknown label ''"),
    "words that are no label": (text_of(rows=[row(1, 0, finding="Mass and Nodule")]), "unknown label 'Mass and"),
    "sexes as numbers": (text_of(rows=[row(1, 0, sex="1")]), "expected M or F or nothing"),
    "patient with thousands": (text_of(rows=[row(1, 0).replace(",1,50", ',"1,024",50')]), "expected a whole number"),
    "patient a fraction": (text_of(rows=[row(1, 0).replace(",1,50", ",1.5,50")]), "expected a whole number"),
    "finding column absent": (findings_table(zeros(n=13), header=labels.FINDINGS[:13]), "no column 'Hernia'"),
    "finding column a probability": (findings_table(zeros(1, one="0.7")), r"expected 0, 1, nothing \(unknown\)"),
    "finding column twice": (
        findings_table(zeros(n=15), header=[*labels.FINDINGS, "mass"]),
        "twice: 'Mass' and 'mass'",
    ),
    "No Finding beside a column": (
        findings_table(zeros(1, 14, n=15), header=[*labels.FINDINGS, "No Finding"]),
        "No Finding '1'; it must be 1 where",
    ),
    "nothing at all in a row": (
        findings_table(zeros(n=15), header=[*labels.FINDINGS, "No Finding"]),
        "No Finding '0'; it must be 1 where",
    ),
    "labels that contradict a column": (
        text_of(header=HEADER + ",Mass", rows=[row(1, 0, finding="Mass") + ",1", LAST + ",1"]),
        "line 3: Mass '1'; it contradicts the row's Finding Labels",
    ),
    "another dataset": (
        "Path,Sex,Age\nCheXpert/p1.jpg,F,3\n",
        r"has no column 'Image Index'.*it has 'Path', 'Sex', 'Age'",
    ),
    "no table": ("one\nline\n", "it has 'one'. A table needs Image Index, Finding Labels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_known_is_refused(name, tmp_path):
    text, message = REFUSED[name]
    path = tmp_path / "Data_Entry_2017.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        records.read_csv(path)
    assert "\n" not in str(caught.value)


def test_columns_that_agree_with_the_labels_are_read(tmp_path):
    rows = [row(1, 0, finding="Mass") + ",1,0", row(2, 0) + ",0,1"]
    assert told(tmp_path, text_of(header=HEADER + ",Mass,No Finding", rows=rows)) == {}


def test_a_last_line_cut_in_the_patient_is_refused(tmp_path):
    """The line has as many cells as the header, so only the film's name tells."""
    path = tmp_path / "Data_Entry_2017.csv"
    header = "Image Index,Finding Labels,Follow-up #,Patient Age,Patient Sex,View Position,Patient ID"
    lines = [header, "00000050_000.png,Mass,0,50,F,PA,50", "00000051_001.png,Mass,1,50,F,PA,5"]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 3: Patient ID '5'; the film's name has another patient"):
        records.read_csv(path)
    path.write_text("\n".join(lines) + "1")
    assert records.read_csv(path)["patient"].tolist() == [50, 51]


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_cells_or_a_user_error(tmp_path, data):
    path = tmp_path / "Data_Entry_2017.csv"
    path.write_bytes(data)
    with pytest.raises(UserError, match="Data_Entry"):
        records.read_csv(path)


@pytest.mark.parametrize("text", ["Mass|Nodule", "mass,NODULE", "mass nodule", "Nodule ; mass", "Mass  Nodule"])
def test_labels_in_any_spelling(text):
    np.testing.assert_array_equal(labels.encode(tables.spell_labels(text)), labels.encode("Mass|Nodule"))


@given(st.sets(st.sampled_from(labels.LABELS), min_size=1), st.sampled_from("|;, "), st.booleans())
def test_labels_are_spelt_as_the_dataset_does(names, separator, lower):
    text = separator.join(sorted(names))
    assert set(tables.spell_labels(text.lower() if lower else text).split("|")) == names


@given(st.text(max_size=40))
def test_a_text_that_is_no_label_is_not_made_one(text):
    words = set("".join(c if c.isalpha() else " " for c in text.casefold()).split())
    if not words & {word for name in tables._SPELLING for word in name.split()}:
        assert not {*tables.spell_labels(text).split("|")} & {*labels.LABELS}


BOXES = "Image Index;Finding Label;Bbox [x;y;w;h]\n1.png;Mass;{};2;30,25;40\n2.png;Mass;5;2;30,5;40\n"


def test_boxes_with_semicolons_and_decimal_commas(tmp_path):
    (tmp_path / records.BOXES).write_text(BOXES.format("225,0847"))
    notes = {}
    boxes = records.read_boxes(tmp_path, on_assumed=lambda what, cases: notes.update({what: cases}))
    assert boxes["x"].tolist() == [225.0847, 5]
    assert boxes["w"].tolist() == [30.25, 30.5]
    assert {"table separated by semicolons", "decimal commas in box x", "decimal commas in box w"} == set(notes)


@pytest.mark.parametrize("cell", ["1,024", "225,084"])
def test_a_comma_that_may_be_one_of_thousands_is_refused(cell, tmp_path):
    (tmp_path / records.BOXES).write_text(BOXES.format(cell))
    with pytest.raises(UserError, match=f"line 2: box x '{cell}'"):
        records.read_boxes(tmp_path)


@pytest.mark.real
@pytest.mark.parametrize("form", [(";", "utf-8-sig"), ("\t", "utf-16"), (",", "utf-8")])
def test_all_rows_in_another_form_are_the_same_table(form, nih_metadata, tmp_path):
    original = records.find_table(nih_metadata)
    separator, encoding = form
    text = gzip.decompress(original.read_bytes()).decode().replace(",", separator)
    path = tmp_path / "Data_Entry_2017.csv"
    path.write_text(text, encoding=encoding, newline="\r\n")
    pd.testing.assert_frame_equal(records.read_csv(path), records.read_csv(original))


@pytest.mark.real
@pytest.mark.parametrize("name", ["chexpert_train.csv.gz", "vinbigdata-train.csv.gz", "nlmcxr_dicom_metadata.csv.gz"])
def test_the_table_of_another_dataset_is_named_by_its_columns(name, nih_metadata):
    table = nih_metadata.parent / "other-datasets" / name
    if not table.is_file():
        pytest.skip(f"{table} is absent")
    with pytest.raises(UserError, match=r"no column 'Image Index'.*; it has .*A table needs Image Index"):
        records.read_csv(table)
