"""Speed and memory of the losses beside the usual way to compute them, and their growth.

Proxy Anchor stands beside pytorch-metric-learning, soft orthogonality beside its (C, C) definition.
Both sides take turns in one process, so that a busy machine slows both alike; only two idle cores
give ratios worth quoting. Notation: B batch, C classes, D embedding dimension.
"""

import statistics
import time

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from sobook.losses import ProxyAnchor, soft_orthogonality

SECONDS = 6  # for the rounds of one comparison


def peak_extra_memory(function) -> int:
    """Most bytes that torch held at once during a call, beyond what it needs to hold anyway."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = least = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # negative where memory is given back
        least = min(least, held)  # a step begins by giving back the last step's gradients
        peak = max(peak, held - least)
    return peak


def best_times(*functions) -> list[float]:
    """Least seconds of each function, called in turn."""
    times, end = [[] for _ in functions], time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times[0]) < 3:
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    ratios = [other / ours for ours, other in zip(times[0], times[-1], strict=True)]
    print(f"  median of paired ratios {statistics.median(ratios):.2f}")
    return [min(seconds) for seconds in times]


def proxy_anchor(classes: int, size: int, dim: int, make=ProxyAnchor):
    torch.manual_seed(0)
    loss, embeddings = make(classes, dim), torch.randn(size, dim, requires_grad=True)
    labels = torch.randint(classes, (size,))

    def step() -> float:
        embeddings.grad = loss.proxies.grad = None
        value = loss(embeddings, labels)
        value.backward()
        return value.item()

    return step


def orthogonality(classes: int, _: int, dim: int, function=soft_orthogonality):
    torch.manual_seed(0)
    proxies = torch.randn(classes, dim, requires_grad=True)

    def step() -> float:
        proxies.grad = None
        value = function(proxies)
        value.backward()
        return value.item()

    return step


def full_soft_orthogonality(proxies):
    """The definition, ‖P̂P̂ᵀ − I‖², with all pairs of classes in memory."""
    unit = normalize(proxies, dim=1)
    gap = unit @ unit.T - torch.eye(len(unit))  # (C, C)
    return gap.square().sum() / (len(unit) * (len(unit) - 1))


@pytest.mark.parametrize(
    "make, usual, classes, dim, faster, memory",
    [
        (proxy_anchor, ProxyAnchorLoss, 11_318, 384, 1.8, 0.7),
        (proxy_anchor, ProxyAnchorLoss, 100, 384, 1.2, 1.1),
        (orthogonality, full_soft_orthogonality, 11_318, 512, 25, 0.05),
        (orthogonality, full_soft_orthogonality, 100, 512, 0.8, 1.1),
    ],
)
def test_faster_than_the_usual_way(make, usual, classes, dim, faster, memory, capsys):
    ours, other = make(classes, 180, dim), make(classes, 180, dim, usual)
    assert ours() == pytest.approx(other(), rel=1e-4)  # the same loss; warms both up
    with capsys.disabled():
        print(f"\n{make.__name__}, C {classes:,}, D {dim}, {torch.get_num_threads()} threads")
        own, theirs = best_times(ours, other)
        fraction = peak_extra_memory(ours) / peak_extra_memory(other)
        print(f"  {theirs * 1e3:.2f} / {own * 1e3:.2f} ms = {theirs / own:.2f} (goal {faster})")
        print(f"  memory {fraction:.3f} of the usual (goal {memory})")
    assert theirs / own >= faster and fraction <= memory


@pytest.mark.parametrize("make", [proxy_anchor, orthogonality])
def test_grows_no_faster_than_the_number_of_classes(make):
    sizes = [1000, 2000, 4000, 8000, 16000]
    steps = [make(classes, 180, 384) for classes in sizes]
    for values in (best_times(*steps), [peak_extra_memory(step) for step in steps]):
        assert np.polyfit(np.log(sizes), np.log(values), 1)[0] < 1.15
