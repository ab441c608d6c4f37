"""Speed and memory of the losses beside the usual way to compute them, and their growth.

Proxy Anchor stands beside pytorch-metric-learning, soft orthogonality beside its (C, C) definition.
Both sides take turns in one process, so that a busy machine slows both alike; only two idle cores
give ratios worth quoting. Notation: B batch, C classes, D embedding dimension.
"""

from statistics import median

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from sobook.losses import ProxyAnchor, soft_orthogonality
from tests.benchmarks import timing
from tests.benchmarks.step import anchor_step, orthogonality_step

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


def full_soft_orthogonality(proxies):
    """The definition, ‖P̂P̂ᵀ − I‖², with all pairs of classes in memory."""
    unit = normalize(proxies, dim=1)
    gap = unit @ unit.T - torch.eye(len(unit))  # (C, C)
    return gap.square().sum() / (len(unit) * (len(unit) - 1))


@pytest.mark.parametrize(
    "make, own, usual, classes, dim, faster, memory",
    [
        (anchor_step, ProxyAnchor, ProxyAnchorLoss, 11_318, 384, 1.8, 0.7),
        (anchor_step, ProxyAnchor, ProxyAnchorLoss, 100, 384, 1.2, 1.1),
        (orthogonality_step, soft_orthogonality, full_soft_orthogonality, 11_318, 512, 25, 0.05),
        (orthogonality_step, soft_orthogonality, full_soft_orthogonality, 100, 512, 0.8, 1.1),
    ],
)
def test_faster_than_the_usual_way(make, own, usual, classes, dim, faster, memory, capsys):
    steps = {each: make(classes, dim, make=each) for each in (own, usual)}
    assert steps[own]() == pytest.approx(steps[usual](), rel=1e-4)  # the same loss
    times = timing.take_turns(steps, 3, least_seconds=SECONDS)
    ratio, pairs = min(times[usual]) / min(times[own]), timing.ratios(times[usual], times[own])
    fraction = peak_extra_memory(steps[own]) / peak_extra_memory(steps[usual])
    with capsys.disabled():
        print(f"\n{make.__name__}, C {classes:,}, D {dim}, {torch.get_num_threads()} threads")
        print(f"  {ratio:.2f} times as fast (goal {faster}), median of pairs {median(pairs):.2f}")
        print(f"  memory {fraction:.3f} of the usual (goal {memory})")
    assert ratio >= faster and fraction <= memory


@pytest.mark.parametrize("make", [anchor_step, orthogonality_step])
def test_grows_no_faster_than_the_number_of_classes(make):
    sizes = [1000, 2000, 4000, 8000, 16000]
    steps = {classes: make(classes, 384) for classes in sizes}
    times = timing.take_turns(steps, 3, least_seconds=SECONDS)
    memory = [peak_extra_memory(step) for step in steps.values()]
    for values in ([min(each) for each in times.values()], memory):
        assert np.polyfit(np.log(sizes), np.log(values), 1)[0] < 1.15
