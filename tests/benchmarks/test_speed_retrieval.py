"""Speed and memory of retrieval at the size of SOP's test set, beside bare faiss and the library.

60,502 × 384 embeddings of 11,316 classes are generated: nothing is downloaded.
"""

import os
import subprocess
import sys
import time

import faiss
import numpy as np
import pytest

from sobook.retrieval import evaluate
from sobook.statistics import compare_classes

IMAGES, CLASSES, DIM = 60_502, 11_316, 384
QUERIES = 10_000  # of the growth


def clustered(images: int, classes: int, dim: int, seed: int = 0):
    """Unit rows (images, dim) around centers, and their labels; at least two images per class."""
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
    pytest.importorskip("pytorch_metric_learning")
    try:  # 3
        from pytorch_metric_learning.evaluation import AccuracyCalculator
    except ImportError:  # 2
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    points, labels = products
    measures = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    theirs = AccuracyCalculator(include=measures, k="max_bin_count")
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
    """At most .1 s at the size of SOP; twice that for a paired comparison with its test."""
    points, labels = clustered(IMAGES, CLASSES, 8)
    first = evaluate(points, labels, ks=(1,))
    second = evaluate(points[:, :6], labels, ks=(1,))
    took = seconds(lambda: benchmark.pedantic(first.interval, (1,), rounds=1))
    paired = seconds(lambda: compare_classes(first, second))
    print(f"interval {took:.3f} s, paired comparison {paired:.3f} s")
    assert took < 0.1 and paired < 0.2


@pytest.mark.parametrize("images", [10_000, 100_000, 1_000_000])
def test_growth(benchmark, images):
    """10,000 queries against galleries of 10⁴ to 10⁶ images: time grows no faster than those."""
    points, labels = clustered(images + QUERIES, images // 10, 32)
    gallery = {"gallery": points[:images], "gallery_labels": labels[:images]}
    queries = points[images:], labels[images:]
    benchmark.group = "growth"
    benchmark.pedantic(evaluate, queries, {**gallery, "ks": (1, 10)}, rounds=1)
    took = benchmark.stats.stats.min
    print(f"{QUERIES:,} queries among {images:,} images: {took:.1f} s")
    assert took < 2 + 60 * images / 1e6
