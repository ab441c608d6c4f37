"""What is said before a long run."""

import pytest
import torch

from sobook.training import estimate as estimating
from sobook.training.config import TrainConfig
from sobook.training.estimate import estimate


@pytest.fixture
def config():
    return TrainConfig(dim=8, batch_size=4, epochs=3, device="cpu")


def test_an_estimate_is_measured(config):
    found = estimate(config, images=400, steps=1)
    assert found.batch_size == 4 and found.minutes > 0 and found.peak_bytes is None
    assert "batches of 4: about" in str(found)


def test_it_takes_the_steps_of_the_run(config, monkeypatch):
    """Gradient checkpointing was left out, and with it a third of the time and most of the gain."""
    seen = []
    step = estimating.Trainer.step

    def watching(trainer, *batch):
        seen.append((trainer.model.backbone.grad_checkpointing, trainer.precision))
        return step(trainer, *batch)

    monkeypatch.setattr(estimating.Trainer, "step", watching)
    changed = config.replace(gradient_checkpointing=True, precision="bfloat16")
    estimate(changed, images=100, steps=2)
    assert seen == [(True, torch.bfloat16)] * 3


def test_what_does_not_fit_is_embedded_in_chunks_and_the_batch_stays(config, monkeypatch):
    tried = []

    def measure(config, steps):
        tried.append(config.chunk_size)
        if (config.chunk_size or config.batch_size) > 50:
            raise torch.cuda.OutOfMemoryError("too large")
        return 0.5, 9e9

    monkeypatch.setattr(estimating, "_measure", measure)
    found = estimate(config.replace(batch_size=180), images=4500)
    assert tried == [None, 90, 45]
    assert (found.batch_size, found.chunk_size) == (180, 45)
    assert found.minutes == pytest.approx(3 * 25 * 0.5 / 60)


def test_what_does_not_fit_at_all_is_an_error(config, monkeypatch):
    def measure(*_):
        raise torch.cuda.OutOfMemoryError("too large")

    monkeypatch.setattr(estimating, "_measure", measure)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        estimate(config, images=100)
