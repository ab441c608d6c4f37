"""Speed and memory of retrieval at the size of SOP's test set, beside bare faiss and the library.

60,502 × 384 embeddings of 11,316 classes are generated: nothing is downloaded.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import pytest

from sobook.retrieval import compare_classes, evaluate

IMAGES, CLASSES, DIM = 60_502, 11_316, 384
QUERIES = 10_000  # of the growth


def clustered(images: int, classes: int, dim: int, seed: int = 0):
    """Unit rows (images, dim) around centers, and their labels; two images a class or more."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(classes), np.arange(classes), rng.integers(0, classes, images)]
    labels = labels[:images]
    centers = rng.standard_normal((classes, dim), dtype=np.float32)
    points = centers[labels] + 1.5 * rng.standard_normal((images, dim), dtype=np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True), labels


def seconds(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def bare_search(points: np.ndarray, k: int, queries: int | None = None) -> None:
    index = faiss.IndexFlatIP(points.shape[1])
    index.add(points)
    index.search(points[:queries], k + 1)


@pytest.fixture(scope="module")
def products():
    return clustered(IMAGES, CLASSES, DIM)


@pytest.mark.parametrize("k", [1, 1000])
def test_evaluate_beside_bare_faiss(benchmark, products, k):
    """Within 1.25 × of the search alone, at the same k."""
    points, labels = products
    ks = (1,) if k == 1 else (1, 10, 100, 1000)
    ours = seconds(lambda: benchmark.pedantic(evaluate, (points, labels), {"ks": ks}, rounds=1))
    depth = max(k, int(np.bincount(labels).max()) - 1)
    bare = seconds(lambda: bare_search(points, depth))
    benchmark.extra_info |= {"bare_faiss_seconds": bare, "ratio": ours / bare}
    print(f"k = {k}: {ours:.1f} s, bare faiss {bare:.1f} s, ratio {ours / bare:.2f}")
    assert ours < 1.25 * bare


def test_evaluate_beside_accuracy_calculator(benchmark, products):
    """Faster than pytorch-metric-learning for the measures both have."""
    torch = pytest.importorskip("torch")
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    points, labels = products
    measures = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    theirs = calculator.AccuracyCalculator(include=measures, k="max_bin_count")
    rows, classes = torch.from_numpy(points), torch.from_numpy(labels)
    found = {}
    ours = seconds(
        lambda: found.update(
            ours=benchmark.pedantic(evaluate, (points, labels), {"ks": (1,)}, rounds=1)
        )
    )
    other = seconds(lambda: found.update(theirs=theirs.get_accuracy(rows, classes)))
    benchmark.extra_info |= {"accuracy_calculator_seconds": other, "ratio": ours / other}
    print(f"{ours:.1f} s, AccuracyCalculator {other:.1f} s, ratio {ours / other:.2f}")
    assert found["ours"].map_at_r == pytest.approx(
        found["theirs"]["mean_average_precision_at_r"], abs=1e-6
    )
    assert ours < other


def test_memory(benchmark):
    """Peak memory beyond the embeddings themselves: at most 1 GB, in a process of its own."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs Linux: the peak is reset in /proc")
    script = (
        "import sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from test_speed_retrieval import *\n"
        "def kib(what):\n"
        "    lines = open('/proc/self/status')\n"
        "    return int(next(line for line in lines if line.startswith(what)).split()[1])\n"
        "points, labels = clustered(IMAGES, CLASSES, DIM)\n"
        "evaluate(points[:500], np.arange(500) % 7)\n"  # whatever the libraries take once
        "before = kib('VmRSS')\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"  # making the points had a peak of its own
        "evaluate(points, labels, ks=(1, 10, 100, 1000))\n"
        "print(kib('VmHWM') - before)\n"
    )
    command = [sys.executable, "-c", script, os.path.dirname(os.path.abspath(__file__))]
    done = benchmark.pedantic(
        subprocess.run, (command,), {"capture_output": True, "text": True, "check": True}, rounds=1
    )
    extra = int(done.stdout) / 1024**2
    benchmark.extra_info["extra_gib"] = extra
    print(f"peak extra memory {extra:.2f} GiB")
    assert extra <= 1


def test_interval_of_ten_thousand_resamples(benchmark):
    """At most 2 s at the size of SOP, for one result and for a paired comparison."""
    points, labels = clustered(IMAGES, CLASSES, 8)
    first = evaluate(points, labels, ks=(1,))
    second = evaluate(points[:, :6], labels, ks=(1,))
    took = seconds(lambda: benchmark.pedantic(first.interval, (1,), rounds=1))
    paired = seconds(lambda: compare_classes(first, second))
    print(f"interval {took:.2f} s, paired comparison {paired:.2f} s")
    assert took < 2 and paired < 2


@pytest.fixture(scope="module")
def growth():
    """Collects (images, approximate) → seconds, and plots them into build/bench at the end."""
    from sobook.figures.style import COLORS, new_figure, use_style

    points = {}
    yield points
    with use_style():
        figure = new_figure(7, 4.5)
        axis = figure.add_subplot()
        for approximate, name, shade in ((False, "exact", "PA"), (True, "approximate", "PA+SO")):
            sizes = sorted(size for size, kind in points if kind == approximate)
            took = [points[size, approximate] for size in sizes]
            axis.loglog(sizes, took, "o-", color=COLORS[shade], label=name)
        axis.set(
            xlabel="images in the gallery",
            ylabel="seconds",
            title=f"evaluate, {QUERIES:,} queries, 32 dimensions",
        )
        axis.legend()
        file = Path("build/bench/retrieval_growth.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=100)
    print(f"\n{file}")


@pytest.mark.parametrize("images", [10_000, 30_000, 100_000, 300_000, 1_000_000])
@pytest.mark.parametrize("approximate", [False, True])
def test_growth(benchmark, growth, images, approximate):
    """10,000 queries against galleries of 10⁴ to 10⁶ images in 32 dimensions.

    The exact search grows with queries times gallery; the approximate one first trains its lists.
    """
    points, labels = clustered(images + QUERIES, images // 10, 32)
    gallery = {"gallery": points[:images], "gallery_labels": labels[:images]}
    options = {**gallery, "ks": (1, 10), "approximate": approximate}
    queries = points[images:], labels[images:]
    result = benchmark.pedantic(evaluate, queries, options, rounds=1)
    growth[images, approximate] = benchmark.stats.stats.min
    benchmark.extra_info |= {"images": images, "neighbors_found": result.neighbors_found}
    benchmark.group = "growth"
    took = growth[images, approximate]
    found = result.neighbors_found
    how = "exact" if found is None else f"approximate, {found:.2f} of the exact neighbors found"
    print(f"{QUERIES:,} queries among {images:,} images: {took:.1f} s, {how}")
    assert found is None or found > 0.5
