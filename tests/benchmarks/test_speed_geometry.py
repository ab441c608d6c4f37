"""Speed of the geometry of 11,318 proxies, and of a map of 60,000 points beside umap-learn."""

import time

import numpy as np
import umap

from sobook import geometry
from sobook.figures.embeddings import project, quality


def test_describe_eleven_thousand(benchmark):
    proxies = np.random.default_rng(0).standard_normal((11_318, 512)).astype(np.float32)
    shape = benchmark.pedantic(geometry.describe, (proxies,), rounds=1)
    assert shape.rms_cosine > shape.rms_floor


def test_map_of_many_points():
    """At most .6 of the time of plain umap-learn, both seeded; trust in the map hardly lower."""

    def plain(points):
        return umap.UMAP(n_neighbors=15, metric="cosine", random_state=0).fit_transform(points)

    rng = np.random.default_rng(0)
    points = rng.standard_normal((500, 128))[rng.integers(0, 500, 60_000)]
    points = (points + rng.standard_normal(points.shape)).astype(np.float32)
    seconds, trust = {}, {}
    for method in (project, plain):
        method(points[:12_000])  # numba compiles on the first call of each kind
        start = time.perf_counter()
        plane = method(points)
        seconds[method] = time.perf_counter() - start
        trust[method] = quality(points, plane).trustworthiness
    assert seconds[project] <= 0.6 * seconds[plain]
    assert trust[project] >= trust[plain] - 0.02
