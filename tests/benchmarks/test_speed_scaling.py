"""How the losses grow with B, C and D: exponents fitted to times and memory.

An exponent e means that ten times the size takes 10ᵉ times as long. Nothing may grow faster than
linearly in C.
"""

import time

import numpy as np
import pytest
import torch

from sobook.losses import ProxyAnchor, soft_orthogonality
from tests.benchmarks.test_speed_losses import peak_extra_memory

AT = {"B": 180, "C": 4000, "D": 384}
GRID = {
    "B": [45, 90, 180, 360, 720],
    "C": [1000, 2000, 4000, 8000, 16000],
    "D": [96, 192, 384, 768, 1536],
}
NOISE = 0.15  # an exponent is fitted to five noisy times


def proxy_anchor(B: int, C: int, D: int):  # noqa: N803
    loss = ProxyAnchor(C, D)
    embeddings, labels = torch.randn(B, D, requires_grad=True), torch.randint(C, (B,))

    def step():
        embeddings.grad = loss.proxies.grad = None
        loss(embeddings, labels).backward()

    return step


def orthogonality(B: int, C: int, D: int):  # noqa: N803, ARG001
    proxies = torch.randn(C, D, requires_grad=True)

    def step():
        proxies.grad = None
        soft_orthogonality(proxies).backward()

    return step


def best_time(step, repeats: int = 7) -> float:
    step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times)


def exponent(sizes, values) -> float:
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


@pytest.mark.parametrize("letter", ["B", "C", "D"])
@pytest.mark.parametrize("make", [proxy_anchor, orthogonality])
def test_growth(make, letter, capsys):
    torch.manual_seed(0)
    if make is orthogonality and letter == "B":
        pytest.skip("soft orthogonality sees proxies only: no B in it")
    steps = [make(**{**AT, letter: size}) for size in GRID[letter]]
    times = [best_time(step) for step in steps]
    memory = exponent(GRID[letter], [peak_extra_memory(step) for step in steps])
    in_time = exponent(GRID[letter], times)
    with capsys.disabled():
        print(f"\n{make.__name__}: time grows like {letter}^{in_time:.2f}, memory {memory:.2f}")
    if letter == "C":
        assert in_time < 1 + NOISE and memory < 1 + NOISE
