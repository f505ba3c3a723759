"""Every dataset's reader against phantom sets in its layout, whose truth is known, and against what users do wrong."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrlib import UserError, labels
from cxrlib.data import check, records, sources, splits, store
from cxrlib.data.sources import film_rows, mapping, openi, padchest, vindr
from cxrlib.phantom import hospitals

ALL = [name for name in sources.SOURCES if name != "nih"]
WITH_IDS = [name for name in ALL if name not in ("vindr", "rsna")]
WITH_LATERALS = ("chexpert", "mimic", "padchest", "openi")
LABELS = list(labels.LABELS)


@pytest.fixture(scope="module")
def truth():
    """What was drawn in ``layout_set``, film by film."""
    return hospitals.sample_cohort("A", 48, 3, 0.12)


def in_order(name, truth):
    """The truth in the order of a layout's table: CheXpert's train.csv comes before valid.csv."""
    return truth.sort_values("test", kind="stable").reset_index(drop=True) if name == "chexpert" else truth


@pytest.fixture
def copy(layout_set, tmp_path):
    """Function that copies a layout's set to a place where it may be spoilt."""
    return lambda name: shutil.copytree(layout_set(name), tmp_path / name)


def table_of(folder):
    return sources.other(folder).table


def edit(file, old, new, count=1):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, count))


@pytest.mark.parametrize("name", sources.SOURCES)
def test_each_source_has_one_shape(name):
    source = sources.SOURCES[name]
    assert source.name == name
    assert source.words.keys() <= {*labels.FINDINGS}
    assert all(words.own and words.source for words in source.words.values())
    assert {*source.unlabelled} == {*labels.FINDINGS} - source.words.keys()
    for text in (source.title, source.paper, source.table, source.films, source.views, source.patients, source.split):
        assert text


@pytest.mark.parametrize("name", ALL)
def test_a_folder_is_recognised_also_one_folder_deeper(name, layout_set):
    folder = layout_set(name)
    assert sources.other(folder).source.name == name
    assert sources.other(folder.parent).source.name == name
    assert records.find_table(folder).parent == folder


def test_nih_is_left_to_records_and_has_the_same_rows(layout_set):
    folder = layout_set("nih")
    assert sources.other(folder) is None
    source = sources.SOURCES["nih"]
    rows = source.read(source.find(folder), film_rows.Hear())
    films = records.read(folder)
    assert (rows[["image", *LABELS]] == films[["image", *LABELS]]).all(axis=None)
    assert source.locate(folder, rows) == (films["path"].tolist(), [])
    assert films[LABELS].dtypes.eq("uint8").all()


@pytest.mark.parametrize("name", ALL)
def test_films_have_the_columns_and_values_of_any_films(name, layout_set, truth):
    truth = in_order(name, truth)
    films = records.read(layout_set(name))
    assert tuple(films.columns) == records.COLUMNS
    assert films["image"].is_unique
    assert all(Path(path).is_file() for path in films["path"])
    assert len(films) == len(truth)
    assert films["view"].tolist() == (
        ["PA"] * 48 if name == "vindr" else [""] * 48 if name == "rsna" else [*truth["view"]]
    )
    laterals = sum(films.attrs["left_out"].values())
    assert laterals == (12 if name in WITH_LATERALS else 0)
    assert (films["dataset"] == "phantom-3").all()
    assert films["patient"].between(0, 2**53).all()
    if name in ("chexpert", "padchest"):
        assert films["sex"].tolist() == truth["sex"].tolist()
        assert films["age"].tolist() == truth["age"].tolist()


@pytest.mark.parametrize("name", ALL)
def test_labels_are_what_was_drawn_and_unknown_where_a_dataset_has_no_word(name, layout_set, truth):
    truth = in_order(name, truth)
    films, source = records.read(layout_set(name)), sources.SOURCES[name]
    assert films[source.unlabelled].isna().all(axis=None)
    for finding in source.words:
        drawn = truth[finding].to_numpy()
        if name == "padchest" and finding == "Infiltration":
            drawn = drawn | truth["Consolidation"].to_numpy()  # its tree puts the one below the other
        read = films[finding].to_numpy(float)
        known = ~np.isnan(read)
        agree = (read == drawn)[known].mean()
        assert agree > 0.9 if name == "vindr" else agree == 1  # VinDr's readers err
        assert known.mean() > 0.85
    if source.unlabelled:
        assert films[LABELS].dtypes.eq("float32").all()
    nothing = truth[list(labels.FINDINGS)].sum(axis=1).to_numpy() == 0
    if name != "vindr":
        assert (films["No Finding"].to_numpy() == nothing).all()


@pytest.mark.parametrize("name", WITH_IDS)
def test_films_of_a_patient_stay_together(name, layout_set, truth):
    truth = in_order(name, truth)
    patient = records.read(layout_set(name))["patient"]
    groups = pd.DataFrame({"read": patient, "drawn": truth["patient"]}).drop_duplicates()
    assert groups["read"].is_unique
    assert groups["drawn"].is_unique


@pytest.mark.parametrize("name", ["vindr", "rsna"])
def test_without_patient_ids_each_film_is_a_patient_and_it_is_said(name, layout_set):
    folder = layout_set(name)
    assert records.read(folder)["patient"].is_unique
    assert any("patient of its own" in doubt for doubt in sources.doubts(folder))
    report = check.folder(folder, fast=True)
    assert any(problem.level == "warning" and "doubts" in problem.what for problem in report.problems)


def test_doubts_about_a_dataset_are_told_at_the_start_of_a_run(layout_set):
    from cxrlib.workbook import pipeline

    found = pipeline.data(str(layout_set("rsna")), size=16)
    assert found["doubts"] == list(sources.SOURCES["rsna"].doubts)
    assert found["parts"].keys() == {"train", "val", "test"}


ids = st.one_of(st.integers(0, 10**12 - 1).map(str), st.text("abcdef0123456789-", min_size=1, max_size=40))


def test_ids_are_read_as_text_and_not_as_numbers(tmp_path):
    """Two numbers of 36 digits that no floating-point number tells apart, and one with zeros before it."""
    text = "839860488694292331637988235681460987"
    (tmp_path / "t.csv").write_text(f"a,b\n{text},{text}\n{text[:-1]}8,{text[:-1]}8\n007,007\n")
    table = film_rows.read_columns(tmp_path / "t.csv", ["a"], ["b"], film_rows.Hear())
    assert table["a"].tolist() == table["b"].tolist() == [text, text[:-1] + "8", "007"]


@settings(max_examples=40)
@given(st.lists(ids, min_size=1, max_size=20, unique_by=lambda text: text.lstrip("0") or "0"))
def test_a_patients_number_depends_on_the_id_alone_and_no_two_share_one(some):
    numbers = film_rows.number_patients(pd.Series(some), "t.csv")
    assert len({*numbers}) == len(some)
    assert (numbers >= 0).all()
    assert numbers.max() < 2**52
    again = film_rows.number_patients(pd.Series(some[::-1] + some[:1]), "t.csv")
    assert again.tolist() == [*numbers[::-1], numbers[0]]


def test_two_ids_that_become_one_number_are_refused():
    with pytest.raises(UserError, match="'75' and '075' both become number 75"):
        film_rows.number_patients(pd.Series(["75", "8", "075"]), "t.csv")


@pytest.mark.parametrize("name", ["chexpert", "mimic"])
def test_the_official_split_is_taken(name, layout_set, truth):
    truth = in_order(name, truth)
    films = records.read(layout_set(name))
    in_test, in_val, source = sources.other(layout_set(name)).split(films)
    assert in_test.tolist() == truth["test"].tolist()
    assert "official" in source
    assert (in_val is None) == (name == "chexpert")
    if name == "mimic":
        assert in_val.tolist() == (~truth["test"] & (truth["patient"] % 10 == 0)).tolist()


def test_the_validation_films_of_an_official_split_are_taken(layout_set, truth):
    films = records.read(layout_set("mimic"))
    parts = splits.make(films, layout_set("mimic"))
    assert len(parts.val) == (~truth["test"] & (truth["patient"] % 10 == 0)).sum()
    assert splits.overlap(parts.train, parts.val) == splits.overlap(parts.train, parts.test) == 0


def test_a_patient_in_two_official_parts_is_refused(copy):
    folder = copy("mimic")
    file = folder / "mimic-cxr-2.0.0-split.csv"
    table = pd.read_csv(file)
    several = table["subject_id"].value_counts().index[0]
    row = table.index[table["subject_id"] == several][0]
    table.loc[row, "split"] = "train" if table.loc[row, "split"] == "test" else "test"
    table.to_csv(file, index=False)
    films = records.read(folder)
    with pytest.raises(UserError, match="in two parts of the official split, a leak"):
        sources.other(folder).split(films)


def test_without_an_official_split_patients_are_drawn(copy):
    folder = copy("padchest")
    parts = splits.make(records.read(folder), folder)
    assert parts.source.startswith("drawn by patient")
    folder = copy("vindr")
    parts = splits.make(records.read(folder), folder)
    assert parts.source.startswith("drawn by film")


def test_uncertain_labels_become_what_is_asked(layout_set):
    raw = pd.concat([pd.read_csv(layout_set("chexpert") / f"{name}.csv") for name in ("train", "valid")])
    raw = raw[raw["Frontal/Lateral"] == "Frontal"]["Edema"].to_numpy()
    read = {
        word: records.read(layout_set("chexpert"), uncertain=word)["Edema"].to_numpy() for word in film_rows.UNCERTAIN
    }
    sure = raw != -1
    assert (raw == -1).any()
    assert np.isnan(read["unknown"][~sure]).all()
    assert (read["positive"][~sure] == 1).all()
    assert (read["negative"][~sure] == 0).all()
    for values in read.values():
        assert (values[sure] == np.nan_to_num(raw[sure])).all()
    with pytest.raises(UserError, match="uncertain 'maybe' is unknown; choose unknown, positive, negative"):
        records.read(layout_set("chexpert"), uncertain="maybe")


@pytest.mark.parametrize("name", ALL)
def test_a_missing_film_stops_or_is_left_out_by_name(name, copy):
    folder = copy(name)
    films = records.read(folder)
    Path(films["path"][0]).unlink()
    with pytest.raises(UserError, match=r"1 of the 48 frontal films.*--allow-missing"):
        records.read(folder)
    rest = records.read(folder, allow_missing=True)
    assert rest.attrs["missing"] == [films["image"][0]]
    assert len(rest) == 47
    assert not check.folder(folder, fast=True).fit


@pytest.mark.parametrize("name", ALL)
def test_check_says_which_dataset_it_is_and_what_it_lacks(name, layout_set):
    report, source = check.folder(layout_set(name), fast=True), sources.SOURCES[name]
    assert report.fit, str(report)
    assert source.title in report.facts["dataset"]
    assert report.facts["frontal_films"] == 48
    assert (
        sum(report.facts["left_out"].values() if name in WITH_LATERALS else []) == report.facts["films_in_table"] - 48
    )
    said = [problem for problem in report.problems if problem.what == "findings that are not labelled here"]
    assert [problem.count for problem in said] == ([len(source.unlabelled)] if source.unlabelled else [])
    assert all(finding in str(report) for finding in source.unlabelled)


def test_check_decodes_the_films_of_another_dataset(copy):
    folder = copy("vindr")
    films = records.read(folder)
    with Path(films["path"][5]).open("r+b") as file:
        file.truncate(300)
    report = check.folder(folder, progress=False)
    assert [problem.what for problem in report.problems if problem.level == "missing"] == [
        "films that cannot be decoded"
    ]
    assert report.facts["film_modes"] == {"DICOM": 47}
    assert not any("colour" in problem.what for problem in report.problems)


def test_a_table_with_the_films_of_another_dataset(copy, layout_set):
    folder = copy("chexpert")
    shutil.rmtree(folder / "train")
    shutil.rmtree(folder / "valid")
    shutil.copytree(layout_set("nih") / "images", folder / "images")
    with pytest.raises(
        UserError, match=r"train\.csv is of CheXpert.* named as those of NIH ChestX-ray14, such as 0000"
    ):
        records.read(folder)
    report = check.folder(folder, fast=True)
    assert any("NIH ChestX-ray14" in example for problem in report.problems for example in problem.examples)


def test_tables_of_two_datasets_are_refused_with_both_named(copy, layout_set):
    folder = copy("chexpert")
    shutil.copy(layout_set("nih") / "Data_Entry_2017.csv", folder)
    for read in (records.read, records.find_table):
        with pytest.raises(UserError, match=r"NIH ChestX-ray14 \(Data_Entry_2017\.csv\) and CheXpert \(train\.csv\)"):
            read(folder)
    assert not check.folder(folder, fast=True).fit


def test_two_datasets_in_one_folder_are_not_chosen_from(copy, tmp_path):
    copy("chexpert"), copy("openi")
    with pytest.raises(UserError, match=r"holds 2 data folders \(chexpert, openi\); give one of them"):
        records.read(tmp_path)


SPOILT = {
    "a path": (
        "chexpert",
        "train.csv",
        "/study1/view1",
        "/study/view1",
        r"line \d+.*: Path '.*expected a path such as",
    ),
    "a label": ("chexpert", "train.csv", "Frontal,AP,1.0,", "Frontal,AP,2.0,", r"No Finding '2\.0'; expected '1\.0'"),
    "a sex": ("chexpert", "train.csv", "Male", "Mister", "Sex 'Mister'"),
    "a short row": ("chexpert", "valid.csv", "Frontal,", "", "a row needs 19 cells"),
    "a column": ("chexpert", "train.csv", ",Edema,", ",Oedema,", "has no column 'Edema'"),
    "a list that is code": (
        "padchest",
        "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",
        "['",
        "[__import__('os').system('true'), '",
        "Labels .* expected a list such as",
    ),
    "a projection": (
        "padchest",
        "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",
        ",PA,",
        ",XX,",
        "Projection 'XX'",
    ),
    "a target": ("rsna", "stage_2_train_labels.csv", ",1\n", ",3\n", "Target '3'"),
    "a class": ("vindr", "train.csv", "No finding", "Normal", "class_name 'Normal'"),
    "a part": ("mimic", "mimic-cxr-2.0.0-split.csv", ",test\n", ",testing\n", "split 'testing'"),
    "a report": ("openi", "ecgen-radiology/1.xml", "</MeSH>", "", r"1\.xml is not a readable report"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_wrong_cell_is_named_by_its_file(what, copy):
    name, file, old, new, message = SPOILT[what]
    folder = copy(name)
    edit(folder / file, old, new)
    with pytest.raises(UserError, match=message) as caught:
        records.read(folder)
    assert "\n" not in str(caught.value)
    report = check.folder(folder, fast=True)
    assert not report.fit


OTHER_FILMS = {
    "labels": ("mimic", "mimic-cxr-2.0.0-chexpert.csv", "study_id"),
    "split": ("mimic", "mimic-cxr-2.0.0-split.csv", "dicom_id"),
    "classes": ("rsna", "stage_2_detailed_class_info.csv", "patientId"),
}


@pytest.mark.parametrize("what", OTHER_FILMS)
def test_a_second_table_of_other_films_is_refused(what, copy):
    name, file, key = OTHER_FILMS[what]
    folder = copy(name)
    table = pd.read_csv(folder / file, dtype=str, keep_default_na=False)
    table[key] = "9" + table[key]
    table.to_csv(folder / file, index=False)
    with pytest.raises(UserError, match=r"is about none of the films in .*take both from one download"):
        records.read(folder)


def test_mimic_without_metadata_is_told_what_is_absent(copy):
    folder = copy("mimic")
    (folder / "mimic-cxr-2.0.0-metadata.csv").unlink()
    with pytest.raises(UserError, match=r"holds no mimic-cxr-2\.0\.0-metadata\.csv"):
        records.read(folder)


def test_openi_without_reports_has_no_labels_and_is_refused(copy):
    folder = copy("openi")
    shutil.rmtree(folder / "ecgen-radiology")
    with pytest.raises(UserError, match="none of the 14 findings is known for any film; the labels of OpenI"):
        records.read(folder)
    assert not check.folder(folder, fast=True).fit


def test_kaggles_copy_of_openi(tmp_path, layout_set):
    pngs = sorted((layout_set("openi") / "NLMCXR_png").glob("*.png"))[:3]
    (tmp_path / "images").mkdir()
    for k, file in enumerate(pngs):
        shutil.copy(file, tmp_path / "images" / f"{k}_IM-0001-1001.dcm.png")
    rows = "0,0_IM-0001-1001.dcm.png,Frontal\n1,1_IM-0001-1001.dcm.png,Frontal\n2,2_IM-0001-1001.dcm.png,Lateral\n"
    (tmp_path / "indiana_projections.csv").write_text("uid,filename,projection\n" + rows)
    reports = 'uid,MeSH\n0,Cardiomegaly/borderline;Pleural Effusion/left\n1,normal\n2,"No Indexing"\n'
    (tmp_path / "indiana_reports.csv").write_text(reports)
    films = records.read(tmp_path)
    assert films.attrs["left_out"] == {"lateral": 1}
    assert np.isnan(films["Cardiomegaly"][0])
    assert films["Effusion"].tolist() == [1, 0]
    assert films["No Finding"].isna().tolist() == [True, False]


def test_other_endings_and_two_files_for_one_film(copy):
    folder = copy("padchest")
    films = records.read(folder)
    first = Path(films["path"][0])
    other = first.rename(first.with_suffix(".JPG"))
    assert records.read(folder)["path"][0] == str(other)
    (other.parent.parent / "more").mkdir()
    (other.parent.parent / "more" / other.with_suffix(".jpeg").name).write_bytes(b"another film")
    with pytest.raises(UserError, match="1 films have no file of their own; first"):
        records.read(folder)


def test_votes_of_readers():
    votes, readers = np.array([0, 1, 2, 3, 1, 1]), np.array([3, 3, 3, 3, 2, 1])
    assert np.array_equal(vindr.majority(votes, readers), [0, 0, 1, 1, np.nan, 1], equal_nan=True)


@settings(max_examples=40)
@given(
    st.lists(st.text(st.characters(exclude_characters="'\\\"", codec="ascii", exclude_categories=["C"]), min_size=1))
)
def test_any_list_that_python_writes_is_parsed(items):
    assert padchest.parse_list(str(items)) == {item.strip().lower() for item in items} - {""}


@pytest.mark.parametrize("text", ["[open('x')]", "pneumonia", "['a' 'b']", "['a'", "['\\x41']", "[['a']]", "{'a'}"])
def test_no_other_text_is_taken_for_a_list(text):
    assert padchest.parse_list(text) is None


def test_mesh_terms():
    assert openi.label(["cardiomegaly/borderline"], ("Cardiomegaly",)) == -1
    assert openi.label(["cardiomegaly/borderline", "cardiomegaly/mild"], ("Cardiomegaly",)) == 1
    assert openi.label(["thickening/pleura/apex"], ("Thickening/pleura",)) == 1
    assert openi.label(["thickening/bronchovascular"], ("Thickening/pleura",)) == 0
    assert openi.label(["mass/mediastinum", "masses"], ("Mass",)) == 0


def test_relative_paths_as_names_go_through_store_and_predictions(layout_set, tmp_path):
    from cxrlib.evaluation import predict

    films = records.read(layout_set("chexpert"))
    assert films["image"].str.contains("/").all()
    pixels = store.build(films, 16, progress=False)
    assert pixels.rows(films).tolist() == [sorted(films["image"]).index(name) for name in films["image"]]
    probabilities = np.random.default_rng(0).random((len(films), 15))
    predict.table(films, probabilities).to_csv(tmp_path / "test.csv", index=False)
    assert predict.read(tmp_path / "test.csv", films).images == films["image"].tolist()


@pytest.mark.parametrize("name", ["chexpert", "mimic", "openi"])
def test_a_store_keeps_films_that_a_call_does_not_ask_for(name, layout_set):
    films = records.read(layout_set(name))
    store.build(films, 16, progress=False)
    half = films[films["patient"] != films["patient"][0]].reset_index(drop=True)
    assert len(half) < len(store.build(half, 16, progress=False).names) == len(films)


def test_boxes_of_rsna_lie_on_its_positive_films(layout_set):
    boxes, films = records.read_boxes(layout_set("rsna")), records.read(layout_set("rsna"))
    assert {*boxes["image"]} == {*films["image"][films["Pneumonia"] == 1]}
    assert ((boxes[["x", "y"]].to_numpy() + boxes[["w", "h"]].to_numpy()) <= records.BOX_PIXELS).all()
    assert records.find_boxes(layout_set("rsna")).name == "stage_2_train_labels.csv"


def test_a_change_of_any_table_is_noticed(copy):
    folder = copy("mimic")
    films = records.read(folder)
    before = store.folder_fingerprints(folder, films)["tables"]
    edit(folder / "mimic-cxr-2.0.0-split.csv", ",train\n", ",validate\n")
    assert store.folder_fingerprints(folder, films)["tables"] != before
    folder = copy("openi")
    films = records.read(folder)
    before = store.folder_fingerprints(folder, films)["tables"]
    (folder / "ecgen-radiology" / "3.xml").unlink()
    assert store.folder_fingerprints(folder, films)["tables"] != before


def test_the_table_of_findings_is_whole():
    table = sources.coverage()
    assert table.index.tolist() == list(labels.FINDINGS)
    assert table.shape[1] == len(sources.SOURCES)
    assert (table["NIH ChestX-ray14"] == table.index).all()
    assert (table["RSNA Pneumonia Challenge 2018"] != "").sum() == 1
    lines = sources.coverage_markdown().splitlines()
    assert len(lines) == 2 + len(labels.FINDINGS)
    unknown = [line.count("| – ") for line in lines[2:]]
    assert unknown == (table == "").sum(axis=1).tolist()


MAPPING = """\
dataset = "our-hospital"
table = "ours.csv"
films = "png"
path = "file"
patient = "mrn"
view = "projection"
sex = "gender"
age = "years"
[findings]
Effusion = "fluid"
Pneumonia = ["lobar", "broncho"]
"""
ROWS = """\
file;mrn;projection;gender;years;fluid;lobar;broncho
a.png;K-17;pa;m;70;1;0;0
sub/b.png;K-17;AP;m;70;;0;1
c.png;0012;Lateral;f;33;1;1;1
d.png;0012;Frontal;f;;-1;;0
"""


@pytest.fixture
def ours(tmp_path, layout_set):
    """Folder of a hospital with a CSV of its own."""
    pngs = sorted((layout_set("openi") / "NLMCXR_png").glob("*.png"))
    (tmp_path / "png" / "sub").mkdir(parents=True)
    for file, name in zip(pngs, ("a.png", "sub/b.png", "c.png", "d.png"), strict=False):
        shutil.copy(file, tmp_path / "png" / name)
    (tmp_path / "columns.toml").write_text(MAPPING)
    (tmp_path / "ours.csv").write_text(ROWS)
    return tmp_path


def test_any_csv_by_a_mapping_file(ours):
    films = records.read(ours)
    assert films["image"].tolist() == ["a.png", "sub/b.png", "d.png"]
    assert films["dataset"].unique().tolist() == ["our-hospital"]
    assert films["patient"].tolist()[0] == films["patient"].tolist()[1] != films["patient"].tolist()[2] == 12
    assert films["view"].tolist() == ["PA", "AP", ""]
    assert films["sex"].tolist() == ["M", "M", "F"]
    assert films["follow_up"].tolist() == [0, 1, 1]
    assert np.array_equal(films["Effusion"], [1, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(films["Pneumonia"], [0, 1, np.nan], equal_nan=True)
    assert films["Mass"].isna().all()
    assert films["No Finding"].isna().all()
    assert records.read(ours, uncertain="positive")["Effusion"][2] == 1
    report = check.folder(ours, fast=True)
    assert report.fit
    assert "table separated by semicolons" in str(report)


def test_a_mapping_file_decides_over_a_known_table(ours, layout_set):
    shutil.copy(layout_set("chexpert") / "train.csv", ours)
    assert len(records.read(ours)) == 3


def test_a_mapping_of_one_column_of_words(ours):
    text = MAPPING.partition("[findings]")[0].replace('view = "projection"\n', "")
    text += (
        'labels = "said"\nseparator = ","\npart = "fold"\n[findings]\nMass = ["tumour", "mass"]\n"No Finding" = "ok"\n'
    )
    (ours / "columns.toml").write_text(text)
    rows = 'a.png,1,m,1,"Tumour, old",train\nd.png,2,f,2,OK,test\nc.png,3,f,3,,train\n'
    (ours / "ours.csv").write_text("file,mrn,gender,years,said,fold\n" + rows)
    films = records.read(ours)
    assert np.array_equal(films["Mass"], [1, 0, np.nan], equal_nan=True)
    assert np.array_equal(films["No Finding"], [0, 1, np.nan], equal_nan=True)
    assert sources.other(ours).split(films)[0].tolist() == [False, True, False]
    assert any("taken as frontal" in doubt for doubt in sources.doubts(ours))


WRONG_MAPPINGS = {
    "a finding that does not exist": ("Effusion =", "Effusions =", "'Effusions' is unknown; did you mean Effusion?"),
    "a setting that does not exist": ("patient =", "patients =", "'patients' is unknown; did you mean patient?"),
    "a column that does not exist": ('"fluid"', '"water"', "Effusion is the column 'water', which is not in ours.csv"),
    "a table that does not exist": ('"ours.csv"', '"their.csv"', r"names the table their\.csv, which is not there"),
    "a table elsewhere": ('"ours.csv"', '"../ours.csv"', "must lie in the folder of this file"),
    "no dataset": ('dataset = "our-hospital"\n', "", "does not say dataset"),
    "a dataset of two words": ("our-hospital", "Our Hospital", "write one word"),
    "no findings": (MAPPING.partition("[findings]")[2], "\n", "maps none of the 14 findings"),
    "no TOML": ("dataset =", "dataset", "cannot be read"),
    "a number for a column": ('age = "years"', "age = 3", "age is 3; write it as text"),
}


@pytest.mark.parametrize("what", WRONG_MAPPINGS)
def test_a_wrong_mapping_file_is_named(what, ours):
    old, new, message = WRONG_MAPPINGS[what]
    edit(ours / "columns.toml", old, new)
    with pytest.raises(UserError, match=message) as caught:
        records.read(ours)
    assert str(ours) in str(caught.value)
    assert not check.folder(ours, fast=True).fit


WRONG_ROWS = {
    "a path outside": ("a.png;", "../a.png;", "expected the path of a film below"),
    "a film twice": ("d.png;", "a.png;", "must have one row only"),
    "a label": (";1;0;0\n", ";7;0;0\n", "fluid '7'"),
    "a view": (";pa;", ";oblique;", "projection 'oblique'"),
    "no patient": ("K-17;pa", ";pa", "patient ''; expected the patient's id"),
}


@pytest.mark.parametrize("what", WRONG_ROWS)
def test_a_wrong_row_of_a_mapped_table_is_named(what, ours):
    old, new, message = WRONG_ROWS[what]
    edit(ours / "ours.csv", old, new)
    with pytest.raises(UserError, match=message):
        records.read(ours)


def test_without_a_column_of_patients_it_is_said(ours):
    edit(ours / "columns.toml", 'patient = "mrn"\n', "")
    assert records.read(ours)["patient"].is_unique
    assert any("patient of its own" in doubt for doubt in sources.doubts(ours))


def test_the_example_in_the_documentation_is_valid(tmp_path):
    text = mapping.__doc__.partition("\n\n")[2].partition("\n\nA cell")[0]
    file = tmp_path / "columns.toml"
    file.write_text("\n".join(line.removeprefix("    ") for line in text.splitlines()))
    settings = mapping.load(file)
    assert settings["findings"]["Pneumonia"] == ("pneumonia", "bronchopneumonia")
