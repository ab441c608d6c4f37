"""DeiT-Small on a GPU: images a second, fraction of the chip's matrix peak, memory, loader.

Skips without one. Run it alone: ``pytest -o addopts= -s tests/benchmarks/test_speed_gpu.py``.
"""

import time

import pytest
import torch

from sobook.training.config import TrainConfig
from tests.benchmarks.test_speed_training import start

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
T4_MEMORY = 13e9  # bytes: what a 16 GB card has left for a run
GOAL = 0.4  # of the measured matrix peak
# Multiply-adds of DeiT-Small's forward pass at 224 pixels, 198 tokens (timm's count: 4.6 G);
# forward and backward are three passes, a multiply-add two operations.
OPERATIONS = 4.6e9 * 2 * 3


def matrix_peak(dtype) -> float:
    """Operations a second of the best of a few large matrix products."""
    size, best = 8192, 0.0
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - start))
    return best


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_deit_small(precision, compiled, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    config = TrainConfig.recipe(
        "cub200", dataset="aviary", weights=None, precision=precision, compile=compiled,
        options={"species": 40, "images_per_species": 90, "size": 256}, images_per_class=0,
        warmup_epochs=0, selection="last", workers=8, checkpoint_minutes=1e6,
        run_dir=tmp_path / "run",
    )  # fmt: skip
    tuning = start(config, monkeypatch)
    tuning.epoch(1)
    torch.cuda.reset_peak_memory_stats()
    images = tuning.steps_per_epoch * config.batch_size * 3

    def epochs():
        torch.cuda.synchronize()
        start = time.perf_counter()
        for epoch in (2, 3, 4):
            tuning.epoch(epoch)
        torch.cuda.synchronize()
        return images / (time.perf_counter() - start)

    speed, without_loader = epochs(), ready_tensors(tuning)
    share = speed * OPERATIONS / matrix_peak(getattr(torch, precision))
    memory = torch.cuda.max_memory_allocated()
    with capsys.disabled():
        print(
            f"\n{torch.cuda.get_device_name()}, {precision}, compiled {compiled}: {speed:.0f} "
            f"images/s, {share:.0%} of the measured matrix peak (goal {GOAL:.0%}), "
            f"{memory / 1e9:.1f} GB (goal {T4_MEMORY / 1e9:.0f}), loader keeps "
            f"{speed / without_loader:.0%} of the speed on ready tensors (goal 95%)"
        )
    assert memory < T4_MEMORY


def ready_tensors(tuning) -> float:
    """Images a second when the batch is on the GPU already."""
    pictures, labels = (part.cuda() for part in tuning._batches(1)[0])
    torch.cuda.synchronize()
    began, steps = time.perf_counter(), 40
    for step in range(steps):
        tuning.trainer.step(step % tuning.steps_per_epoch, pictures, labels)
    torch.cuda.synchronize()
    return steps * len(labels) / (time.perf_counter() - began)
