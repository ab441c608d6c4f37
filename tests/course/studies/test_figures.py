"""The figure of a study."""

import pytest

from sobook.course.studies import figures, report, study


def drawn(one, table):
    return figures.draw(one, table, report.summary(one, table), report.comparisons(one, table))


@pytest.mark.parametrize("seeds, baseline", [(1, {"so_weight": 0}), (3, {"so_weight": 0}), (3, {})])
def test_every_setting_is_a_row(baseline, seeds, made_up):
    grid = {"so_weight": [0, 10], "center": [False, True], "seed": list(range(seeds))}
    one = study.Study("s", "A study", "head", baseline=baseline, grid=grid)
    figure = drawn(one, made_up(one, frozen_recall_at_1=0.4))
    figure.canvas.draw()
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(rows) == 4 and all(row in figure.get_label() for row in rows)
    assert len(figure.axes) == (2 if baseline and seeds > 1 else 1)


def test_curves_have_a_frozen_line_and_hollow_dots_where_nothing_is_shown(made_up):
    grid = {"dim": [8, 16], "so_weight": [0, 10], "epochs": [1, 2, 4], "seed": [0, 1, 2]}
    options = {"baseline": {"so_weight": 0}, "x": "epochs", "panels": "dim"}
    one = study.Study("s", "A study", "head", grid=grid, **options)
    unsure = made_up(one, frozen_recall_at_1=0.4)
    sure = unsure.assign(recall_at_1=unsure["recall_at_1"] + (unsure["so_weight"] > 0) * 50)
    figure = drawn(one, sure)
    assert len(figure.axes) == 4  # Recall@1 and its difference, for two dimensions
    lines = figure.axes[0].get_lines()
    assert any(line.get_ydata() == pytest.approx([0.4, 0.4]) for line in lines)

    def faces(axis):
        dots = [line for line in axis.get_lines() if line.get_marker() == "s"]
        return {line.get_markerfacecolor() for line in dots if len(line.get_xdata())}

    assert "white" not in faces(figure.axes[2])
    assert faces(drawn(one, unsure).axes[2]) == {"white"}
