"""The figure of a study."""

import pandas as pd
import pytest

from sobook.course.studies import figures, report, study


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("baseline", [{"so_weight": 0}, {}])
def test_every_setting_is_a_row(baseline, seeds, rng):
    grid = {"so_weight": [0, 10], "center": [False, True], "seed": list(range(seeds))}
    one = study.Study("s", "A study", "head", baseline=baseline, grid=grid)
    table = pd.DataFrame([settings for _, settings in one.plan()])
    table["recall_at_1"] = rng.uniform(size=len(table))
    table["frozen_recall_at_1"] = 0.4
    figure = figures.draw(one, table, report.summary(one, table), report.comparisons(one, table))
    figure.canvas.draw()
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(rows) == 4 and all(row in figure.get_label() for row in rows)
    assert len(figure.axes) == (2 if baseline and seeds > 1 else 1)


def test_curves_have_a_frozen_line_and_a_hollow_dot_for_what_is_not_shown(rng):
    grid = {"dim": [8, 16], "so_weight": [0, 10], "epochs": [1, 2, 4], "seed": [0, 1, 2]}
    one = study.Study(
        "s", "A study", "head", baseline={"so_weight": 0}, grid=grid, x="epochs", panels="dim"
    )
    table = pd.DataFrame([settings for _, settings in one.plan()])
    table["recall_at_1"] = rng.uniform(size=len(table)) + (table["so_weight"] > 0) * 50
    table["frozen_recall_at_1"] = 0.4
    figure = figures.draw(one, table, report.summary(one, table), report.comparisons(one, table))
    assert len(figure.axes) == 4  # Recall@1 and its difference, for two dimensions
    lines = figure.axes[0].get_lines()
    assert any(line.get_ydata() == pytest.approx([0.4, 0.4]) for line in lines)

    def faces(axis):
        return {line.get_markerfacecolor() for line in axis.get_lines() if line.get_marker() == "s"}

    assert "white" not in faces(figure.axes[2])
    table["recall_at_1"] = rng.uniform(size=len(table))
    unsure = figures.draw(one, table, report.summary(one, table), report.comparisons(one, table))
    assert faces(unsure.axes[2]) == {"white"}
