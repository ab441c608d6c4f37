"""A tiny study, and made-up tables, for the tests of studies and of their reports."""

from pathlib import Path

import pandas as pd
import pytest

from sobook.course.studies import study

TINY = """
title = "tiny"
trainer = "head"
baseline = {{ so_weight = 0 }}
select_by = "validation_recall_at_1"

[fixed]
dataset = "aviary"
root = "{root}"
options = {{ species = 8, images_per_species = 6, size = 64, seed = 0 }}
epochs = 2
batch_size = 10
dim = 8
validation_fraction = 0.5

[grid]
so_weight = [0, 10, 100]
seed = [0, 1, 2, 3]
"""


@pytest.fixture
def tiny_study(tmp_path, tiny_aviary, monkeypatch) -> Path:
    """A study of 12 short runs, with its own data root."""
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))
    file = tmp_path / "tiny.toml"
    file.write_text(TINY.format(root=tiny_aviary))
    return file


@pytest.fixture
def made_up(rng):
    """A function: the table of a study with random Recall@1, and these columns."""

    def make(of: study.Study, **columns) -> pd.DataFrame:
        table = pd.DataFrame([varied for _, varied in of.plan()]).reindex(columns=of.factors)
        table["recall_at_1"] = rng.uniform(0.5, 0.6, len(table))
        return table.assign(**columns)

    return make
