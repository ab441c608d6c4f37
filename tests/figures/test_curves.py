"""Curves and intervals: the data drawn, in the colors of the methods, on shared axes."""

import numpy as np
import pandas as pd
import pytest
import torch

from sobook import figures
from tests.figures.reading import PA, SO, legend, texts


def metrics(shift=0.0):
    lines = [{"kind": "step", "epoch": 1, "step": 1, "proxy_anchor": 99.0}]
    for epoch in range(4):
        line = {"kind": "epoch", "epoch": epoch, "rms_cosine": 0.1, "recall_at_1": None}
        if epoch:  # nothing is trained before epoch 1
            line |= {"proxy_anchor": 5.0 - epoch + shift, "soft_orthogonality": 0.01}
        lines.append(line)
    return lines


def test_training_curves_draw_epochs_and_say_what_was_not_measured():
    figure = figures.training_curves({"PA": metrics(), "PA+SO": metrics(0.1)}, dim=64)
    panels = {axis.get_title(): axis for axis in figure.axes}
    loss = panels["Proxy Anchor loss"].lines
    assert [line.get_color() for line in loss] == [PA, SO]
    assert list(loss[0].get_xdata()) == [1, 2, 3] and list(loss[0].get_ydata()) == [4, 3, 2]
    chance = panels["RMS cosine of proxies"].lines[-1]
    assert chance.get_ydata()[0] == pytest.approx(1 / 8)
    assert legend(figure) == ["PA", "PA+SO", "random directions, 1/√64"]
    assert len({axis.get_xlim() for axis in figure.axes}) == 1
    assert not panels["Recall@1, held-out classes"].lines and "not measured" in texts(figure)
    assert "held-out classes: not measured" in figures.alt_text(figure)


def test_recall_curves_draw_values_and_intervals():
    recalls = {"PA": {1: 0.6, 2: 0.7, 4: 0.8}, "PA+SO": {1: 0.62, 2: 0.71, 4: 0.83}}
    figure = figures.recall_curves(recalls, {"PA": {1: (0.58, 0.63)}, "PA+SO": {}})
    axis = figure.axes[0]
    assert axis.lines[0].get_ydata().tolist() == [0.6, 0.7, 0.8]
    assert [line.get_color() for line in axis.lines] == [PA, SO]
    assert axis.collections[0].get_segments()[0][:, 1].tolist() == [0.58, 0.63]
    assert "PA+SO: Recall@1 62.0%" in legend(figure)


def test_interval_plot_writes_its_numbers():
    rows = [("PA, Aviary", 0.6, 0.58, 0.63, "PA"), ("PA+SO, Aviary", 0.62, 0.6, 0.65, "PA+SO")]
    figure = figures.interval_plot(rows, "Recall@1", reference=0.5)
    axis = figure.axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["PA, Aviary", "PA+SO, Aviary"]
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first row on top
    assert "0.620  [0.600, 0.650]" in texts(figure) and "95%" in axis.get_xlabel()


def test_movement_plot_sorts_marks_and_nuisances_on_one_scale():
    def table(factor):
        rows = [("cap", "mark", 0.2), ("eye_ring", "mark", 0.4), ("light", "nuisance", 0.3)]
        rows += [("wing_tip", "mark", float("nan"))]  # shows on no bird
        table = pd.DataFrame(rows, columns=["change", "kind", "moved"])
        table["moved"] *= factor
        return table.assign(low=table.moved - 0.1, high=table.moved + 0.1)

    figure = figures.movement_plot({"frozen": table(1), "PA": table(2), "PA+SO": table(3)})
    marks, nuisances = figure.axes
    assert [t.get_text() for t in marks.get_yticklabels()] == ["eye ring", "cap", "wing tip"]
    assert [t.get_text() for t in nuisances.get_yticklabels()] == ["light"]
    assert marks.get_xlim() == nuisances.get_xlim() and marks.get_xlim()[0] == 0
    dots = [line for line in marks.lines if line.get_label() in ("frozen", "PA", "PA+SO")]
    assert [line.get_color() for line in dots] == [figures.COLORS["frozen"], PA, SO]
    assert len({line.get_marker() for line in dots}) == 3
    assert dots[1].get_xdata()[:2].tolist() == [0.8, 0.4]
    assert "marks, PA: eye ring 0.80, cap 0.40" in figures.alt_text(figure)


def test_paired_differences_pair_by_seed():
    values = {"PA": [0.60, 0.62], "PA+SO": torch.tensor([0.63, 0.63])}
    figure = figures.paired_differences(values, (0.0, 0.04))
    left, right = figure.axes
    dots = [line.get_xdata() for line in left.lines[:2]]
    np.testing.assert_allclose(dots, [[0.60, 0.62], [0.63, 0.63]], atol=1e-6)
    np.testing.assert_allclose(right.lines[1].get_xdata(), [0.03, 0.01], atol=1e-6)
    assert left.get_ylim() == right.get_ylim()
    assert right.get_xlabel() == "PA+SO − PA" and "mean +0.020" in texts(figure)
