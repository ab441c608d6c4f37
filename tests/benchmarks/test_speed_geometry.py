"""Speed of the geometry of 11,318 proxies, of large maps, and of the explorer in a browser.

`make bench`; plain umap-learn and ours run side by side, on SOBOOK_BENCH_POINTS points (60,000).
"""

import os

import numpy as np
import pytest

from sobook import geometry, maps

POINTS = int(os.environ.get("SOBOOK_BENCH_POINTS", 60_000))


def test_describe_eleven_thousand(benchmark):
    proxies = np.random.default_rng(0).standard_normal((11_318, 512)).astype(np.float32)
    shape = benchmark.pedantic(geometry.describe, (proxies,), rounds=1)
    assert shape.orthogonality > shape.orthogonality_floor


def clusters(points: int, dim: int = 128, classes: int = 500) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((classes, dim), dtype=np.float32)
    return centres[rng.integers(0, classes, points)] + rng.standard_normal(
        (points, dim), np.float32
    )


def plain(points):
    import umap

    return umap.UMAP(n_neighbors=15, metric="cosine", random_state=0).fit_transform(points)


@pytest.mark.parametrize("method", [maps.project, plain], ids=["sobook", "umap-learn"])
def test_map_of_many_points(benchmark, method):
    points = clusters(POINTS)
    method(points[:5000])  # numba compiles on the first call
    plane = benchmark.pedantic(method, (points,), rounds=1)
    assert plane.shape == (POINTS, 2)
