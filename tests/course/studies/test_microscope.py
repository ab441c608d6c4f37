"""The committed page and figures of the study data/studies/microscope.py."""

import itertools
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from sobook import figures
from sobook.course.aviary import microscope, species

DATA = Path(__file__).resolve().parents[3] / "data"
study = SimpleNamespace(**runpy.run_path(str(DATA / "studies/microscope.py")))


@pytest.fixture
def made_up(rng):
    """PA moves marks by 1 and nuisances by 2, of which SO adds a tenth; epoch 1 is half of it."""
    birds = [one.name for one in species.species(8)]
    usual = pd.DataFrame(1.0, index=birds, columns=list(microscope.KINDS))
    usual[list(microscope.NUISANCES)] = 2.0
    usual += rng.normal(0, 0.01, usual.shape)
    moved = {("frozen", 0, 0): usual / 4}
    for seed, epoch in itertools.product(range(3), (1, 2)):
        moved["PA", seed, epoch] = usual * epoch / 2 * (1 + 0.01 * (seed - 1))
        moved["PA+SO", seed, epoch] = moved["PA", seed, epoch] * 1.1
    return study.with_means(pd.concat(moved, names=["method", "seed", "epoch", "bird"]))


def test_the_tables_hold_what_was_measured(made_up):
    ends = study.at_end(made_up).set_index(["method", "change"])
    assert ends.loc[("PA", "one mark"), "moved"] == pytest.approx(1, abs=0.01)
    assert ends.loc[("PA", "one nuisance"), "moved"] == pytest.approx(2, abs=0.01)
    assert ends.loc[("PA+SO", "mark / nuisance"), "moved"] == pytest.approx(0.5, abs=0.01)
    assert ends.loc[("frozen", "light"), "moved"] == pytest.approx(0.5, abs=0.01)
    assert ends.loc[("PA+SO − PA", "light"), "moved"] == pytest.approx(0.2, abs=0.002)
    cap = made_up.xs(("PA", 2), level=("method", "epoch"))["cap"].groupby("bird").mean()
    assert ends.loc[("PA", "cap"), "low"] < cap.mean() == ends.loc[("PA", "cap"), "moved"]
    assert set(ends["n"]) == {8}
    means = study.over_epochs(made_up)
    assert means.loc[("PA", 2, 2), "cap"] == pytest.approx(2 * means.loc[("PA", 2, 1), "cap"])
    figure = study.picture_over_epochs(means)  # the single changes: tests/figures/test_curves.py
    assert [axis.get_title() for axis in figure.axes] == list(study.MEANS)
    low, high = figure.axes[0].get_ylim()
    assert low == 0 and high > 2  # one scale, on which all of them can be seen
    assert len(figure.axes[0].lines) == 1 + 2 * (3 + 1)
    assert "one mark, PA 0.50 to 1.00" in figures.alt_text(figure)


def test_the_committed_page_is_the_one_of_the_committed_table():
    ends = pd.read_csv(DATA / "results/microscope.csv")
    means = pd.read_csv(DATA / "results/microscope_epochs.csv", index_col=[0, 1, 2])
    seeds = means.index.unique("seed")
    assert "marks, PA+SO:" in figures.alt_text(study.picture(ends))
    assert study.page(ends, len(seeds)) == (DATA / "results/microscope.md").read_text()
    at_end = means.xs(means.index.unique("epoch").max(), level="epoch").groupby("method").mean()
    for method in study.METHODS:  # the two tables agree
        its = ends[ends["method"] == method].set_index("change")["moved"].astype(float)
        assert np.allclose(its, at_end.loc[method, its.index], atol=2e-4)
