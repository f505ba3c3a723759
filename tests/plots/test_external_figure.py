import matplotlib.pyplot as plt
import numpy as np

from cxrlib import paths
from cxrlib.evaluation import external, thresholds
from cxrlib.plots import results
from cxrlib.report import report


def side(seed, sharp):
    draw = np.random.default_rng(seed)
    answers = (draw.random((240, 15)) < 0.3).astype(np.float32)
    logits = sharp * (2 * answers - 1) + draw.normal(size=answers.shape)
    answers[:, 4] = np.nan if seed else answers[:, 4]
    return external.Films(answers, 1 / (1 + np.exp(-logits)), np.arange(240) // 2)


def test_the_figure_and_the_report_show_the_drop_and_what_is_not_labelled(own_outputs):
    home, there = side(0, 2), side(1, 0.5)
    table = external.drop(home, there)
    fig, ax = plt.subplots()
    results.external_drop(table, ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()][4] == "Mass (240 and 0)"
    assert "there: no film with a known label" in [text.get_text() for text in ax.texts]
    drawn = np.concatenate([line.get_xdata() for line in ax.lines])
    assert np.isin(table["there_auc"].dropna(), drawn).all()
    plt.close(fig)
    run = paths.Run("other")
    run.tables.mkdir(parents=True)
    made = thresholds.fit_decisions(home.labels, home.probabilities)
    again = external.decisions_there(made, there)
    table.to_csv(run.tables / "external.csv", index=False)
    external.calibrations(made, again, there, replicates=20).to_csv(
        run.tables / "external_calibration.csv", index=False
    )
    external.judgements(made, again, there).to_csv(run.tables / "external_thresholds.csv", index=False)
    page = report.build("other").read_text()
    assert "In another dataset" in page
    assert "not compared: there: no film with a known label" in page
    assert f"{table.iloc[-1]['there_auc']:.3f} there" in page
    assert "fitted again" in page
    assert "chosen again" in page
    (run.tables / "external.csv").unlink()
    assert "In another dataset" not in report.build("other").read_text()
