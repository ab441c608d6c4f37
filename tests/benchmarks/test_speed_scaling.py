"""How the losses grow with B, C and D: exponents fitted to times and memory, printed and plotted.

An exponent e means that ten times the size takes 10ᵉ times as long. Nothing may grow faster than
linearly in C. The plot goes to build/bench/scaling.png.
"""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sobook.losses import ProxyAnchor, soft_orthogonality
from tests.benchmarks.test_speed_losses import peak_extra_memory

OUT = Path(__file__).resolve().parents[2] / "build" / "bench" / "scaling.png"
AT = {"B": 180, "C": 4000, "D": 384}
GRID = {
    "B": [45, 90, 180, 360, 720],
    "C": [1000, 2000, 4000, 8000, 16000],
    "D": [96, 192, 384, 768, 1536],
}
NOISE = 0.15  # an exponent is fitted to five noisy times
FOUND: dict[tuple[str, str], tuple[list[int], list[float], float, float]] = {}


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
    FOUND[make.__name__, letter] = GRID[letter], times, in_time, memory
    with capsys.disabled():
        print(f"\n{make.__name__}: time grows like {letter}^{in_time:.2f}, memory {memory:.2f}")
    if letter == "C":
        assert in_time < 1 + NOISE and memory < 1 + NOISE


def test_plot():
    """Drawn from what the tests above measured."""
    if not FOUND:
        pytest.skip("draws what test_growth measured in the same run")
    import matplotlib.pyplot as plt

    from sobook.figures.style import use_style

    with use_style():
        figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True, layout="constrained")
        for axis, letter in zip(axes, "BCD", strict=True):
            for name, mark in (("proxy_anchor", "o-"), ("orthogonality", "s--")):
                if (name, letter) in FOUND:
                    sizes, times, power, _ = FOUND[name, letter]
                    label = f"{name.replace('_', ' ')}: {letter}^{power:.2f}"
                    axis.loglog(sizes, np.array(times) * 1e3, mark, label=label)
            axis.set(xlabel=letter)
            axis.set_xticks(GRID[letter], [f"{size:,}" for size in GRID[letter]])
            axis.minorticks_off()
            axis.legend()
        axes[0].set_ylabel("forward + backward (ms)")
        OUT.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(OUT, dpi=110)
        plt.close(figure)
    assert OUT.stat().st_size > 10_000
