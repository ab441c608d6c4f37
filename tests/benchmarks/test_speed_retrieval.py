"""Speed and memory of retrieval on generated embeddings, beside bare faiss and the library."""

import statistics
from functools import partial

import faiss
import numpy as np
import pytest

from sobook.retrieval import evaluate
from sobook.statistics import compare_classes
from tests.benchmarks import timing

IMAGES, CLASSES, DIM = 60_502, 11_316, 384  # the test set of Stanford Online Products


def clustered(images: int, classes: int, dim: int):
    """Unit rows (images, dim) around centers, and their labels; at least two images per class."""
    rng = np.random.default_rng(0)
    labels = np.r_[np.arange(classes), np.arange(classes), rng.integers(0, classes, images)]
    labels = labels[:images]
    centers = rng.standard_normal((classes, dim), dtype=np.float32)
    points = centers[labels] + 1.5 * rng.standard_normal((images, dim), dtype=np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True), labels


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

    ours = partial(evaluate, points, labels, ks=ks)
    times = timing.take_turns({"ours": ours, "bare": bare}, 5)
    ratios = timing.ratios(times["ours"], times["bare"])
    print(f"k = {k}: ratios {np.sort(ratios).round(2)}")
    assert statistics.median(ratios) < 1.1


def test_interval_of_ten_thousand_resamples():
    """At most .1 s at the size of SOP; twice that for a paired comparison with its test."""
    points, labels = clustered(IMAGES, CLASSES, 8)
    first, second = evaluate(points, labels, ks=(1,)), evaluate(points[:, :6], labels, ks=(1,))
    assert timing.seconds(lambda: first.interval(1)) < 0.1
    assert timing.seconds(lambda: compare_classes(first, second)) < 0.2
