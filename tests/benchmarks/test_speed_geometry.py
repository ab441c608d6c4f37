"""Speed of the geometry of 11,318 proxies, and of large maps.

`make bench`; plain umap-learn and ours run side by side, on SOBOOK_BENCH_POINTS points (60,000).
"""

import os
import time

import numpy as np

from sobook import geometry
from sobook.figures.embeddings import project, quality

POINTS = int(os.environ.get("SOBOOK_BENCH_POINTS", 60_000))


def test_describe_eleven_thousand(benchmark):
    proxies = np.random.default_rng(0).standard_normal((11_318, 512)).astype(np.float32)
    shape = benchmark.pedantic(geometry.describe, (proxies,), rounds=1)
    assert shape.orthogonality > shape.orthogonality_floor


def clusters(points: int, dim: int = 128, classes: int = 500) -> np.ndarray:
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((classes, dim), dtype=np.float32)
    return centers[rng.integers(0, classes, points)] + rng.standard_normal(
        (points, dim), np.float32
    )


def plain(points):
    import umap

    return umap.UMAP(n_neighbors=15, metric="cosine", random_state=0).fit_transform(points)


def test_map_of_many_points(capsys):
    """At most .6 of the time of plain umap-learn, both seeded; trust in the map hardly lower."""
    points, seconds, trust = clusters(POINTS), {}, {}
    for name, method in (("sobook", project), ("umap-learn", plain)):
        method(points[:12_000])  # numba compiles on the first call of each kind
        start = time.perf_counter()
        plane = method(points)
        seconds[name] = time.perf_counter() - start
        trust[name] = quality(points, plane).trustworthiness
    share = seconds["sobook"] / seconds["umap-learn"]
    with capsys.disabled():
        print(f"\nmap of {POINTS:,} points: {share:.2f} of umap-learn's time (goal 0.6)")
        print({name: f"{seconds[name]:.0f} s, trustworthiness {trust[name]:.3f}" for name in trust})
    assert share <= 0.6
    assert trust["sobook"] >= trust["umap-learn"] - 0.02
