"""The model card: its head is YAML, its tables hold the run's numbers, and no name breaks out of them."""

import json

import made_up
import mistune
import pandas as pd
import pytest
import yaml

from cxrlib import labels
from cxrlib.report import model_card

NASTY = '<script>x</script> | **b** [l](http://x) `c`\n# h\n---\n"q": {{ 7*7 }}'


def meta(**changes):
    usual = {
        "name": "stage2_0.0001_6",
        "sha256": "0f" * 32,
        "stage": 2,
        "recipe": {"schedule": "scratch", "loss": "focal", "lr": 1e-4, "groups": ["layer4", "fc"]},
        "epochs_so_far": 6,
        "ancestors": [{"name": "stage1_0.001_3", "sha256": "ab" * 32}],
        "seen": {"trained": {}, "validated": {}},
        "gaps": [],
        "size": 64,
        "weights": "none",
        "origin": "nothing",
        "labels": list(labels.LABELS),
    }
    return {**usual, **changes}


@pytest.fixture
def home(own_outputs):
    home = made_up.run("nice")
    (home.predictions / "test.json").write_text(json.dumps({"weights": "0f" * 32}))
    return home


def head(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_head_is_yaml_with_the_results_of_the_tables(home):
    read = head(model_card.text(home, meta()))
    assert read["license"] == "other"
    assert read["library_name"] == "pytorch"
    (result,) = read["model-index"][0]["results"]
    auc = pd.read_csv(home.tables / "auc_test.csv").set_index("finding")["auc"]
    assert result["metrics"][0]["value"] == pytest.approx(auc.iloc[-1], abs=1e-4)
    huggingface_hub = pytest.importorskip("huggingface_hub")
    huggingface_hub.ModelCard(model_card.text(home, meta()), ignore_metadata_errors=False)


def test_every_finding_and_group_is_in_the_tables_with_its_interval(home):
    text = model_card.text(home, meta())
    for row in pd.read_csv(home.tables / "auc_test.csv").itertuples():
        if row.finding in labels.FINDINGS and row.auc == row.auc:
            line = next(
                line for line in text.splitlines() if line.startswith(f"| {labels.display_name(row.finding)} |")
            )
            assert f"{row.auc:.3f}" in line
    assert "| women | 60 | 20 | 0.800 (0.700–0.900) |" in text
    assert "| calibrated | 0.110 |" in text
    assert "| Grad-CAM | 70 | 27 % | 10 % |" in text


def test_tables_that_are_missing_or_of_another_checkpoint_are_named_and_not_shown(home):
    (home.tables / "subgroups.csv").unlink()
    (home.tables / "calibration.csv").write_text("finding\nMass\n")
    text = model_card.text(home, meta())
    assert "Not measured: tables/subgroups.csv is not there yet." in text
    assert "tables/calibration.csv cannot be read" in text
    text = model_card.text(home, meta(sha256="aa" * 32))
    assert "not known to be of this checkpoint" in text
    assert "0.800" not in text
    assert "model-index" not in head(text)


def test_no_name_breaks_out_of_the_card(home):
    data = pd.read_csv(home.tables / "data.csv").assign(split=NASTY)
    data.to_csv(home.tables / "data.csv", index=False)
    groups = pd.read_csv(home.tables / "subgroups.csv")
    groups["group"] = NASTY
    groups.to_csv(home.tables / "subgroups.csv", index=False)
    usual, nasty = (
        model_card.text(home, one) for one in (meta(), meta(name=NASTY, origin=NASTY, weights=NASTY, gaps=[NASTY]))
    )
    page = mistune.create_markdown(escape=False, plugins=["table"])(nasty.split("---\n", 2)[2])
    assert "<script" not in page
    assert "<a href" not in page
    assert "49" not in page.split("{{ 7")[0][-3:]
    assert page.count("<h1") == 1
    assert "{{ 7*7 }}" in page.replace("&quot;", '"')
    assert page.count("<tr>") == mistune.html(usual.split("---\n", 2)[2]).count("<tr>") + 1  # the gap's row
    assert head(nasty)["model-index"][0]["name"] == f"nice/{NASTY}"


def test_a_network_of_drawn_films_says_so(home):
    from cxrlib.training import lineage

    drawn = {"trained": {"phantom-0": lineage.pack_numbers([1, 2, 3])}, "validated": {}}
    text = model_card.text(home, meta(seen=drawn))
    assert "Trained on drawn films only" in text
    assert "| patients trained, dataset phantom-0 | 3 |" in text
    assert "Trained on drawn films only" not in model_card.text(home, meta())
