"""Settings of a second or two for the tests of training, and a run that has finished."""

import pytest

from sobook.training.config import TrainConfig
from sobook.training.loop import fit

pytest.register_assert_rewrite("tests.training.reading")  # so that its asserts say what differs


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
def config(settings, tmp_path):
    """`settings` with a run folder of this test's own."""
    return settings.replace(run_dir=tmp_path / "run")


@pytest.fixture(scope="session")
def finished(settings, tmp_path_factory):
    """The run of `settings`: tests read it, or copy it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return fit(settings.replace(run_dir=folder), progress=False)
