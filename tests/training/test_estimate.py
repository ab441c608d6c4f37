"""What is said before a long run."""

import dataclasses

import pytest
import torch

from sobook.errors import SobookError
from sobook.training import estimate as estimating
from sobook.training.config import TrainConfig
from sobook.training.estimate import DEVICES, Cost, Device, estimate, reckon
from sobook.training.plan import make_encoder, make_plan


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


@pytest.fixture(scope="module")
def plan(tiny_aviary, tiny_options):
    settings = {"root": tiny_aviary, "options": tiny_options, "dim": 16, "batch_size": 8}
    settings |= {"epochs": 4, "selection": "last", "precision": "bfloat16"}
    return make_plan(TrainConfig(**settings), torch.device("cpu"))


def slow_operations(encoder) -> int:
    """Twice the products of all linear layers, convolutions and attentions, by hooks."""
    total = 0

    def add(module, inputs, output):
        nonlocal total
        if isinstance(module, torch.nn.Linear):
            total += 2 * output.numel() * module.in_features
        elif isinstance(module, torch.nn.Conv2d):
            total += 2 * output.numel() * module.weight[0].numel()
        elif type(module).__name__ == "Attention":  # two products of T tokens with T tokens
            total += 2 * 2 * inputs[0].numel() * inputs[0].shape[1]

    for module in encoder.modules():
        module.register_forward_hook(add)
    encoder(torch.zeros(1, 3, encoder.image_size, encoder.image_size))
    return total


def test_operations_are_those_of_the_layers():
    encoder = make_encoder(TrainConfig(dim=16, weights=None))
    assert Cost.count(encoder).operations == slow_operations(encoder)


def test_a_reckoning_by_hand(plan):
    """24 images of 4 classes in batches of 8, one of four epochs frozen: 3 steps, and 9."""
    there, image = DEVICES["L4"], Cost.count(plan.encoder)
    steps, weights = plan.data.batches, sum(w.numel() for w in plan.encoder.parameters())
    images = steps * 8 * (1 + 3 * 3)  # forward passes: a frozen epoch, and three trained ones
    expected = images * image.operations / there.half
    expected += steps * 8 * (2 + 3 * 5) * 2 * image.activations / there.bandwidth
    proxies = 4 * 16
    expected += steps * 13 * 4 * (proxies + 3 * (proxies + weights)) / there.bandwidth
    expected += steps * 4 * 6 * 8 * proxies / there.single
    expected += 24 * image.operations / there.single + 24 * 8 * image.activations / there.bandwidth
    found = reckon(plan, "L4")
    assert 60 * found.minutes == pytest.approx(expected)
    assert found.peak_bytes == pytest.approx(plan.memory, rel=0.01) and found.chunk_size is None
    assert str(found).startswith("at least 0 minutes, 0.0 GB of memory, ")


def test_what_is_too_large_is_reckoned_in_chunks(plan, monkeypatch):
    small = dataclasses.replace(DEVICES["T4"], memory=0.8 * plan.memory)
    monkeypatch.setitem(DEVICES, "T4", small)
    found = reckon(plan, "T4")
    assert 1 <= found.chunk_size < 8 and found.peak_bytes <= 0.9 * small.memory
    assert "with chunk_size" in str(found)
    monkeypatch.setitem(DEVICES, "T4", dataclasses.replace(small, memory=1e6))
    with pytest.raises(SobookError, match="one image needs more memory than a T4 has"):
        reckon(plan, "T4")
    assert "on a T4: a training step of one" in list(estimating.reckon_elsewhere(plan))[0]
    with pytest.raises(SobookError, match="unknown device 'T5': choose T4, L4 or A100"):
        reckon(plan, "T5")


def test_a_dry_run_without_a_gpu_reckons_for_those_of_colab(plan, monkeypatch):
    monkeypatch.setattr(estimating, "this_cpu", lambda: Device(1e9, 1e10, 1e11, 1e11))
    monkeypatch.setattr(estimating, "_measure", lambda *_: (0.5, None))
    said = estimating.dry_run(plan.config.replace(device="cpu"))
    for name in ("T4 (precision float16)", "L4", "A100"):
        assert f"on a {name}, by reckoning: at least 0 minutes" in said
    assert "here the same reckoning gives" in said


def test_a_model_that_cannot_be_counted_is_not_reckoned(plan, monkeypatch):
    def fail(_):
        raise RuntimeError("no values on meta")

    monkeypatch.setattr(estimating.Cost, "count", fail)
    monkeypatch.setattr(estimating, "_measure", lambda *_: (0.5, None))
    said = estimating.dry_run(plan.config.replace(device="cpu"))
    assert "on cpu, in batches of 8" in said and "reckoning" not in said
