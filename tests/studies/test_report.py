"""What a study found: paired differences, corrections, and the files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sobook import cli
from sobook.statistics import holm
from sobook.studies import report, study

RESULTS = Path(__file__).resolve().parents[2] / "data/results"


def test_table_summary_and_files(tiny_study, tmp_path):
    command = ["study", str(tiny_study), "--out", str(tmp_path)]
    assert cli.main([*command, "--jobs", "1"]) == 0
    table = pd.read_csv(tmp_path / "tiny.csv")
    assert len(table) == 12 and table["config"].is_unique
    text = (tmp_path / "tiny.md").read_text()
    assert "sobook study tiny" in text and "versions" in text and "12" in text
    assert (tmp_path / "tiny.png").stat().st_size > 1000
    written = (tmp_path / "tiny.csv").read_text()
    assert cli.main([*command, "--only-gather"]) == 0
    assert (tmp_path / "tiny.csv").read_text() == written


def test_summary_against_scipy(rng):
    one = study.Study("s", "s", "head", baseline={"so_weight": 0}, select_by="validation")
    one.grid.update(so_weight=[0, 10, 100], seed=list(range(5)))
    table = pd.DataFrame([settings for _, settings in one.plan()])
    table["recall_at_1"], table["validation"] = rng.uniform(size=(2, len(table)))
    result = report.summary(one, table).set_index("so_weight")
    runs = table.pivot(index="seed", columns="so_weight", values="recall_at_1")
    for weight in (0, 10, 100):
        row, values = result.loc[weight], runs[weight]
        interval = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
        assert (row["mean"], row["low"], row["high"]) == pytest.approx((values.mean(), *interval))
        if weight:
            test = stats.ttest_1samp(values - runs[0], 0)
            found = row[["difference_low", "difference_high", "p"]]
            assert tuple(found) == pytest.approx((*test.confidence_interval(), test.pvalue))
    np.testing.assert_allclose(result["p_holm"][1:], holm(result["p"][1:]))
    assert np.isnan(result["difference"][0]) and np.isnan(result["p_holm"][0])
    best = table.groupby("so_weight")["validation"].mean().idxmax()
    assert result.index[result["chosen"]].tolist() == [best]


def test_methods_with_parameters_of_their_own_have_one_baseline():
    cases = ({"method": "PA", "scale": 16}, {"method": "ArcFace", "loss_options.scale": 8})
    one = study.Study(
        "own", "own", "head", baseline={"method": "PA"}, grid={"seed": [0, 1]}, cases=cases
    )
    table = pd.DataFrame(
        {
            "method": ["PA", "PA", "ArcFace", "ArcFace"],
            "scale": [16, 16, None, None],
            "loss_options.scale": [None, None, 8, 8],
            "seed": [0, 1, 0, 1],
            "recall_at_1": [0.5, 0.6, 0.55, 0.7],
        }
    )
    rows = report.summary(one, table).set_index("method")
    assert rows.loc["ArcFace", "difference"] == pytest.approx(0.075)
    assert np.isnan(rows.loc["PA", "difference"])


@pytest.mark.parametrize("name", ["aviary_lambda_heads", "baselines_heads", "regimes_heads"])
def test_committed_reports_show_what_the_tables_hold(name):
    one, table = study.load(name), pd.read_csv(RESULTS / f"{name}.csv")
    committed = (RESULTS / f"{name}.md").read_text()
    rows = [line for line in report.markdown(one, report.summary(one, table), {}).splitlines()]
    assert [row for row in rows if row.startswith("| ") and row not in committed] == []
