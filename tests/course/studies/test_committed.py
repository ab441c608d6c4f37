"""Committed studies can be reproduced: two runs here, larger parts and a whole study at night."""

import dataclasses

import numpy as np
import pytest

from sobook.course.studies import report, study

# Other processors and libraries add in another order, which training amplifies: as another seed.
TOLERANCE = {"recall_at_1": 0.02, "rms_cosine": 0.02, "mean_cosine": 0.02}


@pytest.mark.parametrize(
    "name, grid",
    [
        ("convergence_heads", {"dim": [64], "so_weight": [0, 30], "epochs": [20], "seed": [300]}),
        pytest.param(
            "randomized_so", {"so_weight": [0, 100], "seed": [300, 301]}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_part_of_a_study_is_reproduced(name, grid, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "_result_file", lambda _, key: tmp_path / f"{key}.json")
    part = dataclasses.replace(study.load(name), grid=grid)
    rerun = study.run(part, jobs=1, progress=False).dropna(axis="columns", how="all")
    assert len(rerun) == len(part.plan())
    factors = [name for name in part.factors if name in rerun]
    both = rerun.merge(report.committed(name), on=factors, suffixes=("", "_committed"))
    assert len(both) == len(rerun)
    for metric, tolerance in TOLERANCE.items():
        assert (both[metric] - both[f"{metric}_committed"]).abs().max() < tolerance, metric
    assert np.ptp(both["rms_cosine"]) > 0.1  # the effect of SO, far above the tolerance


@pytest.mark.slow
def test_a_whole_study_comes_to_the_same_verdicts(tmp_path, monkeypatch):
    one, committed = study.load("threshold_so_aviary"), report.committed("threshold_so_aviary")
    monkeypatch.setattr(study, "_result_file", lambda _, key: tmp_path / f"{key}.json")
    rerun = study.run(one, progress=False)
    verdicts = [report.comparisons(one, table)["verdict"].tolist() for table in (rerun, committed)]
    assert verdicts[0] == verdicts[1]
