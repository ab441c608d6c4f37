"""Figures of studies: they draw, describe themselves, and show all their points."""

import itertools

import numpy as np
import pandas as pd
import pytest

from sobook.studies import figures, report, study


def modes_table() -> pd.DataFrame:
    rows = [
        {"so_weight": w, "center": c, "margin": 0.1, "seed": s, "setting": name}
        for (w, c), s, name in itertools.product(
            [(0, False), (0, True), (10, False)], range(3), "ab"
        )
    ]
    table, rng = pd.DataFrame(rows), np.random.default_rng(0)
    measured = ("rms_cosine", "rms_cosine_centred", "recall_at_1", "recall_without_common")
    for column in (*measured, "cosine_of_mean_proxy_and_mean_embedding", "rms_floor"):
        table[column] = rng.uniform(size=len(table))
    return table.assign(train_classes=10)


def draw(kind: str):
    table = modes_table()
    if kind == "common_mode":
        return figures.common_mode({"one": table, "two": table})
    if kind == "regimes":
        return figures.regimes(table, 64)
    baseline = {"so_weight": 0} if kind == "differences" else {}
    one = study.Study("s", "A study", "head", baseline=baseline, grid={"so_weight": [0, 10]})
    one.grid.update(center=[False, True], seed=[0, 1, 2])
    found = table[(table["setting"] == "a")]
    return figures.differences(one, report.summary(one, found))


@pytest.mark.parametrize("kind", ["common_mode", "regimes", "differences", "means"])
def test_figures_draw_and_have_alternative_texts(kind):
    figure = draw(kind)
    figure.canvas.draw()
    assert len(figure.get_label()) > 40


def test_no_panel_of_the_regimes_cuts_its_points_off():
    table = pd.DataFrame(
        [
            {"setting": name, "so_weight": weight, "rms_cosine": rms, "train_classes": classes}
            for name, classes, high in [("few", 8, 0.16), ("equal", 64, 0.25), ("many", 320, 0.31)]
            for weight, rms in [(0, high), (100, high / 4)]
        ]
    ).assign(seed=0, rms_floor=0.0)
    axes = figures.regimes(table, 64).axes
    assert len({axis.get_ylim() for axis in axes}) == 1
    assert axes[0].get_ylim()[0] == 0 and axes[0].get_ylim()[1] > 0.31
