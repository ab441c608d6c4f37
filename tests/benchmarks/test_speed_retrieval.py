"""Speed and memory of retrieval on generated embeddings, beside bare faiss and the library."""

import resource
import statistics
import subprocess
import sys
import time

import faiss
import numpy as np
import pytest
import torch

from sobook.retrieval import evaluate
from sobook.statistics import compare_classes

try:  # pytorch-metric-learning 3
    from pytorch_metric_learning.evaluation import AccuracyCalculator
except ImportError:  # 2
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

IMAGES, CLASSES, DIM = 60_502, 11_316, 384  # the test set of Stanford Online Products


def clustered(images: int, classes: int, dim: int):
    """Unit rows (images, dim) around centers, and their labels; at least two images per class."""
    rng = np.random.default_rng(0)
    labels = np.r_[np.arange(classes), np.arange(classes), rng.integers(0, classes, images)]
    labels = labels[:images]
    centers = rng.standard_normal((classes, dim), dtype=np.float32)
    points = centers[labels] + 1.5 * rng.standard_normal((images, dim), dtype=np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True), labels


def seconds(function, *arguments, **options) -> float:
    started = time.perf_counter()
    function(*arguments, **options)
    return time.perf_counter() - started


@pytest.mark.parametrize("k", [1, 10, 100, 1000])
def test_evaluate_beside_bare_faiss(k):
    """Within 1.1 × of the search alone, at the same depth."""
    points, labels = clustered(20_000, 3_000, DIM)
    ks = tuple(each for each in (1, 10, 100, 1000) if each <= k)
    depth = max(k, int(np.bincount(labels).max()) - 1)

    def bare():
        index = faiss.IndexFlatIP(DIM)
        index.add(points)
        index.search(points, depth + 1)

    ratios = [seconds(evaluate, points, labels, ks=ks) / seconds(bare) for _ in range(5)]
    print(f"k = {k}: ratios {np.sort(ratios).round(2)}")
    assert statistics.median(ratios) < 1.1


def test_evaluate_beside_accuracy_calculator():
    """Faster than pytorch-metric-learning for the metrics both have."""
    points, labels = clustered(IMAGES, CLASSES, DIM)
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    theirs = AccuracyCalculator(include=names, k="max_bin_count")
    rows, classes = torch.from_numpy(points), torch.from_numpy(labels)
    ours = seconds(evaluate, points, labels, ks=(1,))
    other = seconds(theirs.get_accuracy, rows, classes)
    print(f"{ours:.1f} s, AccuracyCalculator {other:.1f} s, ratio {ours / other:.2f}")
    assert ours < other


def search_and_measure() -> None:
    points, labels = clustered(IMAGES, CLASSES, DIM)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    evaluate(points, labels, ks=(1, 10, 100, 1000))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB only there")
def test_memory():
    """Peak memory beyond what making the embeddings took: at most 1 GB, in a process of its own."""
    script = "from tests.benchmarks import test_speed_retrieval as t; t.search_and_measure()"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    print(f"peak extra memory {int(done.stdout) / 1024**2:.2f} GiB")
    assert int(done.stdout) <= 1024**2


def test_interval_of_ten_thousand_resamples():
    """At most .1 s at the size of SOP; twice that for a paired comparison with its test."""
    points, labels = clustered(IMAGES, CLASSES, 8)
    first, second = evaluate(points, labels, ks=(1,)), evaluate(points[:, :6], labels, ks=(1,))
    assert seconds(first.interval, 1) < 0.1 and seconds(compare_classes, first, second) < 0.2
