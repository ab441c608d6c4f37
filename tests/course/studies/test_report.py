"""The report of a study: paired differences, corrections, and its files."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sobook import cli
from sobook.course.studies import report, study
from sobook.errors import SobookError
from sobook.statistics import holm

RESULTS = Path(__file__).resolve().parents[3] / "data/results"
STUDIES = RESULTS.with_name("studies")


def a_study(grid, baseline, cases=({},), select_by=None, **family):
    options = {"baseline": baseline, "grid": grid, "cases": cases, "select_by": select_by}
    return study.Study("s", "s", "head", family=study.Family(**family), **options)


def test_the_command_writes_table_page_and_figure(tiny_study, tmp_path):
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


def test_summary_equals_scipy(rng, made_up):
    grid = {"so_weight": [0, 10, 100], "seed": list(range(5))}
    one = a_study(grid, {"so_weight": 0}, select_by="chosen_by")
    table = made_up(one, chosen_by=rng.uniform(size=15))
    result = report.summary(one, table).set_index("so_weight")
    runs = table.pivot(index="seed", columns="so_weight", values="recall_at_1")
    for weight in (0, 10, 100):
        row, values = result.loc[weight], runs[weight]
        interval = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
        assert (row["mean"], row["low"], row["high"]) == pytest.approx((values.mean(), *interval))
        if weight:
            test = stats.ttest_1samp(values - runs[0], 0)
            measured = row[["difference_low", "difference_high", "p"]]
            assert tuple(measured) == pytest.approx((*test.confidence_interval(), test.pvalue))
    np.testing.assert_allclose(result["p_holm"][1:], holm(result["p"][1:]))
    assert np.isnan(result["difference"][0]) and np.isnan(result["p_holm"][0])
    best = table.groupby("so_weight")["chosen_by"].mean().idxmax()
    assert result.index[result["chosen"]].tolist() == [best]


def test_the_family_is_the_declared_one(rng, made_up):
    grid = {"so_weight": [0, 10, 100], "epochs": [1, 2], "seed": [0, 1, 2]}
    everything = a_study(grid, {"so_weight": 0})
    table = made_up(everything, before=0.1, after=rng.uniform(size=18))
    assert len(report.comparisons(everything, table)) == 4
    part = a_study(grid, {"so_weight": 0}, where={"epochs": 2, "so_weight": 10})
    assert len(report.comparisons(part, table)) == 1
    assert report.summary(part, table)["verdict"].notna().sum() == 1
    both = a_study(grid, {"so_weight": 0}, metrics=("recall_at_1", "after"))
    family = report.comparisons(both, table)
    assert len(family) == 8
    np.testing.assert_allclose(family["p_holm"], holm(family["p"]))
    within = a_study({"seed": [0, 1, 2]}, {}, columns=(("before", "after"),))
    family = report.comparisons(within, table.drop_duplicates("seed"))
    assert family["metric"].tolist() == ["after − before"]
    mean = table.drop_duplicates("seed")["after"].mean()
    assert family["difference"][0] == pytest.approx(mean - 0.1)


def test_a_declared_family_keeps_its_size(made_up):
    """A hole, a setting that was not run, or a table given twice never corrects for less."""
    one = a_study({"so_weight": [0, 10, 100], "seed": [0, 1, 2]}, {"so_weight": 0})
    table = made_up(one)
    table["recall_at_1"] += table["so_weight"] / 1000
    full = report.comparisons(one, table).set_index("row").loc[1]
    hole = table.copy()
    hole.loc[(hole["so_weight"] == 100) & (hole["seed"] == 2), "recall_at_1"] = np.nan
    for part in (hole, table[table["so_weight"] < 100]):
        family = report.comparisons(one, part).set_index("row")
        assert family.loc[1, "p_holm"] == pytest.approx(2 * full["p"])
    assert report.comparisons(one, hole)["verdict"].tolist()[1] == "not measured"
    with pytest.raises(SobookError, match="twice"):
        report.comparisons(one, pd.concat([table, table]))


def test_converged_is_a_smaller_change_than_the_claim(made_up):
    grid = {"so_weight": [0, 10], "epochs": [5, 10, 20], "seed": [0, 1, 2]}
    one = a_study(grid, {"so_weight": 0})
    table = made_up(one)
    level = {5: 0.5, 10: 0.52, 20: 0.521}
    table["recall_at_1"] = table["epochs"].map(level) + 0.001 * table["seed"]
    gains = {5: [0.0301, 0.03, 0.0299], 10: [0.0101, 0.01, 0.0099], 20: [0, 0.001, -0.001]}
    for epochs, gain in gains.items():
        rows = (table["epochs"] == epochs) & (table["so_weight"] == 10)
        table.loc[rows, "recall_at_1"] += np.array(gain)[table["seed"][rows]]
    doubled = report.convergence(one, table).set_index("epochs")
    assert doubled.index.tolist() == [5, 10]  # 20 has no double
    assert doubled["change"].tolist() == pytest.approx([0.02, 0.001])
    assert doubled["limit"].tolist() == pytest.approx([0.005, 0.005])  # the claims are larger
    assert doubled["converged"].tolist() == ["no", "yes"]
    small = a_study(grid, one.baseline, smallest_effect=0.0005)
    assert report.convergence(small, table)["converged"].tolist() == ["no", "no"]
    only_five = a_study(grid, one.baseline, where={"epochs": 5})
    assert report.convergence(only_five, table)["epochs"].tolist() == [5]
    table.loc[table["epochs"] == 20, "recall_at_1"] += 0.01 * (table["seed"] - 1)
    assert report.convergence(one, table)["converged"].tolist() == ["no", "not shown"]


def test_map_at_r_outside_the_family_has_no_verdict_and_a_fall_below_frozen_is_said(made_up):
    one = a_study({"so_weight": [0, 10], "seed": [0, 1, 2]}, {"so_weight": 0})
    table = made_up(one, frozen_recall_at_1=0.7)
    table["map_at_r"] = 0.1 + 0.01 * (table["so_weight"] == 10) + 0.001 * table["seed"]
    other = report.outside_family(one, table)
    assert other["metric"].tolist() == ["map_at_r"]
    assert other["difference"].tolist() == pytest.approx([0.01])
    assert not {"p", "p_holm", "verdict"} & set(other.columns)
    said = report.headline(one, table)
    assert "1 of 1 intervals exclude 0" in said
    assert "2 of 2 settings end below the frozen encoder" in said
    assert "frozen" not in report.headline(one, table.assign(frozen_recall_at_1=0.3))
    in_family = a_study(one.grid, one.baseline, metrics=("recall_at_1", "map_at_r"))
    assert report.outside_family(in_family, table).empty


def test_methods_with_their_own_parameters_share_one_baseline(made_up):
    arcface = {"method": "ArcFace", "loss": "arcface", "loss_options.scale": 8}
    cases = ({"method": "PA", "scale": 16}, arcface)
    one = a_study({"seed": [0, 1]}, {"method": "PA"}, cases)
    table = made_up(one).sort_values(["method", "seed"], ignore_index=True)
    table["recall_at_1"] = [0.55, 0.7, 0.5, 0.6]  # ArcFace, then PA
    rows = report.summary(one, table).set_index("method")
    assert rows.loc["ArcFace", "difference"] == pytest.approx(0.075)
    assert np.isnan(rows.loc["PA", "difference"])


@pytest.mark.parametrize("name", ["own_pictures", "benchmarks_full"])
def test_a_declared_study_can_be_reported_before_it_runs(name, made_up):
    one = study.load(name)
    columns = {"frozen_recall_at_1", "rms_cosine", one.select_by or one.metric, *one.family.metrics}
    table = made_up(one, **dict.fromkeys(columns - {"recall_at_1"}, 0.5))
    assert len(report.comparisons(one, table)) > 0
    assert "| not at all (frozen) |" in report.markdown(one, table, {})


COMMITTED = [f for f in sorted(RESULTS.glob("*.csv")) if (STUDIES / f"{f.stem}.toml").exists()]


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_committed_reports_show_the_committed_tables(file):
    one, table = study.load(file.stem), pd.read_csv(file)
    facts = json.loads(file.with_suffix(".json").read_text())
    assert report.markdown(one, table, facts) == file.with_suffix(".md").read_text()


def test_a_notebook_shows_prediction_result_table_and_figure():
    title, predicted, result, table, figure = report.show("randomized_so")
    assert "committed" in title and predicted.startswith("Predicted") and "Holm" in result
    assert len(table) == 3 and "SO on a random half" in figure.get_label()
    assert all(not isinstance(part, type(figure)) for part in report.show("cub_heads_tuning"))
    assert "sobook study benchmarks_full" in report.show("benchmarks_full")[0]


@pytest.mark.parametrize(("lead", "said"), [(0.01, "chosen among equals"), (0.2, "by more than")])
def test_a_choice_that_cannot_choose_is_called_one(made_up, lead, said):
    one = a_study({"so_weight": [0, 10, 100], "seed": [0, 1, 2]}, {}, select_by="kept")
    table = made_up(one, train_classes=40, frozen_kept=0.963)
    table["kept"] = 0.9 + 0.03 * table["seed"] + lead * (table["so_weight"] == 10)
    sentence = report.headline(one, table)
    assert said in sentence and "of 10 classes (frozen 0.963)" in sentence
