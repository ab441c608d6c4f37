"""Configs of a second or two for the tests of training, and a run that has finished."""

import pytest

from sobook.training.config import TrainConfig
from sobook.training.loop import fit

pytest.register_assert_rewrite("tests.training.reading")  # so that its asserts say what differs


@pytest.fixture
def config(tiny_aviary, tiny_options, tmp_path):
    """Four training species, batches of 8, two epochs: a second or two."""
    return TrainConfig(
        root=tiny_aviary,
        options=tiny_options,
        dim=16,
        epochs=2,
        batch_size=8,
        selection="last",
        so_weight=10.0,
        run_dir=tmp_path / "run",
    )


@pytest.fixture
def finished(config):
    return fit(config, progress=False)


@pytest.fixture(scope="session")
def settings(tiny_aviary, tiny_options):
    """Four training species and batches of 8: three steps an epoch, nine in all."""
    return TrainConfig(
        root=tiny_aviary,
        options=tiny_options,
        dim=16,
        batch_size=8,
        epochs=3,
        so_weight=10.0,
        selection="last",
        device="cpu",
    )


@pytest.fixture
def long_config(settings, tmp_path):
    """`settings` with a run folder: one epoch more than `config`, to go wrong in the middle."""
    return settings.replace(run_dir=tmp_path / "run")
