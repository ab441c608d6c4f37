"""How fast the losses are, and how much memory they take, beside the usual way to compute them.

Proxy Anchor stands beside pytorch-metric-learning, soft orthogonality beside the definition with
its (C, C) matrix. Both sides of a ratio are timed in turn, so that a busy machine slows both alike;
yet only two idle cores give ratios worth quoting, since threads wait long for a busy one.
Notation: B batch, C classes, D embedding dimension.
"""

import time

import pytest
import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from sobook.losses import ProxyAnchor, soft_orthogonality

THREADS = 2
SECONDS = 6  # for the rounds of one comparison
ROWS = []  # of the table


@pytest.fixture(scope="module", autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def _table(request):
    yield
    heads = ("forward + backward", "usual", "sobook", "faster", "goal", "memory", "goal")
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print()
        for name, *numbers in (heads, *ROWS):
            print(f"{name:<42}" + "".join(f"{number:>12}" for number in numbers))
        print(f"{THREADS} threads; best time of each, in turn; memory: peak extra, ours / usual")
        print("* misses its goal")


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


def compare(benchmark, name, ours, usual, *, faster, memory=None):
    """Time both in turn, note the ratios of their best times, and hold them against the goals."""
    times = []

    def time_usual():
        start = time.perf_counter()
        usual()
        times.append(time.perf_counter() - start)

    start = time.perf_counter()
    assert ours() == pytest.approx(usual(), rel=1e-4)  # the same loss; warms both up
    rounds = int(SECONDS / (time.perf_counter() - start))
    benchmark.pedantic(ours, setup=time_usual, rounds=min(max(rounds, 2), 300))
    own, other = benchmark.stats.stats.min, min(times)  # the least disturbed ones
    ratio, share = other / own, peak_extra_memory(ours) / peak_extra_memory(usual)
    benchmark.extra_info.update(faster=ratio, memory=share)
    row = [name, f"{other * 1e3:.2f} ms", f"{own * 1e3:.2f} ms"]
    row += [f"{ratio:.2f}x" + "*" * (ratio < faster), f"{faster}x"]
    row += [f"{share:.3f}" + "*" * (memory is not None and share > memory), str(memory or "-")]
    ROWS.append(row)
    assert ratio >= faster
    assert memory is None or share <= memory


@pytest.mark.benchmark(group="proxy anchor")
@pytest.mark.parametrize(
    "classes, size, dim, faster, memory",
    [
        (11_318, 180, 384, 1.8, 0.6),
        (11_318, 180, 512, 1.8, 0.6),
        (100, 180, 384, 1.3, None),
        (100, 180, 512, 1.3, None),
    ],
)
def test_proxy_anchor(benchmark, classes, size, dim, faster, memory):
    torch.manual_seed(0)
    ours, usual = ProxyAnchor(classes, dim), ProxyAnchorLoss(classes, dim)
    usual.proxies.data.copy_(ours.proxies.data)
    embeddings = torch.randn(size, dim, requires_grad=True)
    labels = torch.randint(classes, (size,))

    def step(loss):
        embeddings.grad = loss.proxies.grad = None
        value = loss(embeddings, labels)
        value.backward()
        return value.item()

    name = f"Proxy Anchor, C {classes:,}, B {size}, D {dim}"
    compare(
        benchmark,
        name,
        lambda: step(ours),
        lambda: step(usual),
        faster=faster,
        memory=memory,
    )


def full_soft_orthogonality(proxies):
    """The definition, ‖P̂P̂ᵀ − I‖², with all pairs of classes in memory."""
    unit = normalize(proxies, dim=1)
    gap = unit @ unit.T - torch.eye(len(unit))  # (C, C)
    return gap.square().sum() / (len(unit) * (len(unit) - 1))


@pytest.mark.benchmark(group="soft orthogonality")
@pytest.mark.parametrize(
    "classes, dim, faster, memory",
    [(11_318, 512, 25, 0.05), (100, 512, 1, None)],
)
def test_soft_orthogonality(benchmark, classes, dim, faster, memory):
    torch.manual_seed(0)
    proxies = torch.randn(classes, dim, requires_grad=True)

    def step(function):
        proxies.grad = None
        value = function(proxies)
        value.backward()
        return value.item()

    compare(
        benchmark,
        f"Soft orthogonality, C {classes:,}, D {dim}",
        lambda: step(soft_orthogonality),
        lambda: step(full_soft_orthogonality),
        faster=faster,
        memory=memory,
    )
