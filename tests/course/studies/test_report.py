"""What a study found: paired differences, corrections, and the files."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sobook import cli
from sobook.course.studies import report, study
from sobook.statistics import holm

RESULTS = Path(__file__).resolve().parents[3] / "data/results"
STUDIES = RESULTS.with_name("studies")


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


def made_up(study_, rng, **columns):
    """A table with a row per run of a study, its metrics drawn at random unless given."""
    table = pd.DataFrame([settings for _, settings in study_.plan()])
    for name in study_.factors:
        if name not in table:
            table[name] = None
    table["recall_at_1"] = rng.uniform(0.5, 0.6, len(table))
    return table.assign(**columns)


def a_study(grid, baseline, cases=({},), **family):
    return study.Study(
        "s", "s", "head", baseline=baseline, grid=grid, cases=cases, family=study.Family(**family)
    )


def test_the_family_is_what_the_study_declares(rng):
    grid = {"so_weight": [0, 10, 100], "epochs": [1, 2], "seed": [0, 1, 2]}
    everything = a_study(grid, {"so_weight": 0})
    table = made_up(everything, rng, before=0.1, after=rng.uniform(size=18))
    assert len(report.comparisons(everything, table)) == 4
    some = a_study(grid, {"so_weight": 0}, where=({"epochs": 2, "so_weight": [10, 0]},))
    family = report.comparisons(some, table)
    assert len(family) == 1 and report.summary(some, table)["verdict"].notna().sum() == 1
    both = a_study(grid, {"so_weight": 0}, metrics=("recall_at_1", "after"))
    family = report.comparisons(both, table)
    assert len(family) == 8
    np.testing.assert_allclose(family["p_holm"], holm(family["p"]))
    within = a_study({"seed": [0, 1, 2]}, {}, columns=(("before", "after"),))
    family = report.comparisons(within, table[:3])
    assert family["metric"].tolist() == ["after − before"]
    assert family["difference"][0] == pytest.approx(table["after"][:3].mean() - 0.1)


def test_a_large_family_shows_less(rng):
    """The same difference, alone and among nineteen others that are nothing."""
    weights = list(range(21))
    one = a_study({"so_weight": weights, "seed": [0, 1, 2, 3]}, {"so_weight": 0})
    table = made_up(one, rng)
    alone = a_study(one.grid, {"so_weight": 0}, where=({"so_weight": 1},))
    seeds = {seed: 0.53 + 0.01 * seed for seed in range(4)}
    base = table["so_weight"] == 0
    table.loc[base, "recall_at_1"] = table["seed"][base].map(seeds)
    treated = table["so_weight"] == 1
    table.loc[treated, "recall_at_1"] = table["seed"][treated].map(seeds) + [0.1, 0.11, 0.12, 0.2]
    assert report.comparisons(alone, table)["verdict"].tolist() == ["higher"]
    rows = report.summary(one, table).set_index("so_weight")
    assert rows.loc[1, "p"] < 0.05 < rows.loc[1, "p_holm"]
    assert rows.loc[1, "verdict"] == "no difference shown"


def test_converged_is_when_twice_the_epochs_change_less_than_is_claimed(rng):
    one = a_study(
        {"so_weight": [0, 10], "epochs": [5, 10, 20], "seed": [0, 1, 2]}, {"so_weight": 0}
    )
    table = made_up(one, rng)
    level = {5: 0.5, 10: 0.52, 20: 0.521}
    table["recall_at_1"] = table["epochs"].map(level) + 0.001 * table["seed"]
    gains = {5: [0.0301, 0.03, 0.0299], 10: [0.0101, 0.01, 0.0099], 20: [0, 0.001, -0.001]}
    for epochs, gain in gains.items():
        rows = (table["epochs"] == epochs) & (table["so_weight"] == 10)
        table.loc[rows, "recall_at_1"] += np.array(gain)[table["seed"][rows]]
    found = report.convergence(one, table).set_index("epochs")
    assert found.index.tolist() == [5, 10]  # 20 has no double
    assert found["change"].tolist() == pytest.approx([0.02, 0.001])
    assert found["limit"].tolist() == pytest.approx([0.005, 0.005])  # a large claim is no license
    assert found["converged"].tolist() == ["no", "yes"]
    small = a_study(one.grid, one.baseline, smallest_effect=0.0005)
    assert report.convergence(small, table)["converged"].tolist() == ["no", "no"]
    only_five = a_study(one.grid, one.baseline, where=({"epochs": 5},))
    assert report.convergence(only_five, table)["epochs"].tolist() == [5]
    table.loc[table["epochs"] == 20, "recall_at_1"] += 0.01 * (table["seed"] - 1)
    assert report.convergence(one, table)["converged"].tolist() == ["no", "not shown"]


def test_map_at_r_stands_beside_the_family_without_a_verdict(rng):
    one = a_study({"so_weight": [0, 10], "seed": [0, 1, 2]}, {"so_weight": 0})
    table = made_up(one, rng)
    table["map_at_r"] = 0.1 + 0.01 * (table["so_weight"] == 10) + 0.001 * table["seed"]
    found = report.outside_family(one, table)
    assert found["metric"].tolist() == ["map_at_r"]
    assert found["difference"].tolist() == pytest.approx([0.01])
    assert not {"p", "p_holm", "verdict"} & set(found.columns)
    assert "1 of 1 intervals exclude 0" in report.headline(one, table)
    in_family = a_study(one.grid, one.baseline, metrics=("recall_at_1", "map_at_r"))
    assert report.outside_family(in_family, table).empty


def test_a_study_that_ends_below_frozen_says_so(rng):
    one = a_study({"so_weight": [0, 10], "seed": [0, 1]}, {"so_weight": 0})
    below = report.headline(one, made_up(one, rng, frozen_recall_at_1=0.7))
    assert "2 of 2 settings end below the frozen encoder" in below
    above = made_up(one, rng, frozen_recall_at_1=0.3)
    assert "frozen" not in report.headline(one, above)
    page = report.markdown(one, above, {})
    assert "| not at all (frozen) |" in page and "0.3000" in page


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


SHIPPED = sorted(STUDIES.glob("*.toml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_declared_study_can_be_reported(file, rng, monkeypatch):
    """Before its runs, with made-up results: also where a factor is called "setting"."""
    monkeypatch.setenv("CUB_58_42", "photographs")
    monkeypatch.setenv("DEIT_TINY", "weights.pth")
    one = study.load(file.stem)
    columns = {*one.family.metrics, one.metric, *sum(one.family.columns, ())} - {"recall_at_1"}
    if one.select_by:
        columns.add(one.select_by)
    columns |= {"frozen_recall_at_1", "rms_cosine", "mean_cosine"}
    table = made_up(one, rng)
    for column in sorted(columns):
        table[column] = rng.uniform(0.1, 0.9, len(table))
    table["seed"] = table["seed"].astype(int)
    family = report.comparisons(one, table)
    assert bool(len(family)) == bool(one.baseline or one.family.columns)
    page = report.markdown(one, table, {})
    assert ("The whole family:" in page) == bool(one.family.metrics or one.family.columns)


COMMITTED = [f for f in sorted(RESULTS.glob("*.csv")) if (STUDIES / f"{f.stem}.toml").exists()]


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_committed_reports_show_what_the_tables_hold(file):
    one, table = study.load(file.stem), pd.read_csv(file)
    facts = json.loads(file.with_suffix(".json").read_text())
    assert report.markdown(one, table, facts) == file.with_suffix(".md").read_text()
