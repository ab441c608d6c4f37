"""A step of DeiT-Small on a GPU: fraction of the chip's matrix peak, and memory. Skips without.

Run it alone: ``pytest -o addopts= -s tests/benchmarks/test_speed_gpu.py``.
"""

import pytest
import torch

from sobook.encoder import Encoder
from sobook.losses import SoftOrthogonalProxyAnchor
from tests.benchmarks import timing

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
T4_MEMORY = 13e9  # bytes: what a 16 GB card has left for a run
# Multiply-adds of DeiT-Small's forward pass at 224 pixels, 198 tokens (timm's count: 4.6 G);
# forward and backward are three passes, a multiply-add two operations.
OPERATIONS = 4.6e9 * 2 * 3


def best_time(function) -> float:
    def call():
        function()
        torch.cuda.synchronize()

    return min(timing.take_turns({"": call}, 10)[""])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_deit_small(dtype, capsys):
    encoder = Encoder.create("deit_small_distilled_patch16_224", dim=128, weights=None).cuda()
    loss = SoftOrthogonalProxyAnchor(100, 128).cuda()
    optimizer = torch.optim.AdamW([*encoder.parameters(), *loss.parameters()], fused=True)
    images = torch.randn(180, 3, 224, 224, device="cuda")
    labels = torch.randint(100, (180,), device="cuda")

    def step():
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=dtype):
            value = loss(encoder(images), labels)
        value.backward()
        optimizer.step()

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
    peak = 2 * 8192**3 / best_time(lambda: a @ b)
    step()  # its first, which also makes the optimizer's state
    torch.cuda.reset_peak_memory_stats()
    speed, memory = 180 / best_time(step), torch.cuda.max_memory_allocated()
    with capsys.disabled():
        print(f"\n{dtype}: {speed:.0f} images/s, {speed * OPERATIONS / peak:.0%} of the peak")
    assert memory < T4_MEMORY
