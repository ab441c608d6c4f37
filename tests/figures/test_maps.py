"""Maps: against scikit-learn and umap-learn, and on layouts whose quality is known."""

import numpy as np
import pytest
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from sobook import geometry
from sobook.figures import maps


def clouds(seed=0, classes=5, each=30, dim=12):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    return rng.normal(size=(classes, dim))[labels] + 0.3 * rng.normal(
        size=(len(labels), dim)
    ), labels


def test_quality_equals_slow_loops_and_scikit_learn():
    points, _ = clouds()
    plane = points[:, :2]
    found = maps.quality(points, plane, k=7)
    unit = geometry.unit_rows(points)
    expected = trustworthiness(unit, plane, n_neighbors=7, metric="cosine")
    assert found.trustworthiness == pytest.approx(expected, abs=1e-6)
    shared = 0
    for i in range(len(points)):
        near = sorted((j for j in range(len(points)) if j != i), key=lambda j: -unit[i] @ unit[j])
        flat = sorted(
            (j for j in range(len(points)) if j != i),
            key=lambda j: np.linalg.norm(plane[i] - plane[j]),
        )
        shared += len(set(near[:7]) & set(flat[:7]))
    assert found.overlap == pytest.approx(shared / 7 / len(points), abs=1e-9)


def test_a_faithful_map_keeps_everything_and_a_shuffled_one_nothing():
    turns = np.sort(np.random.default_rng(0).uniform(0, 2 * np.pi, 80))
    circle = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    best = maps.quality(circle, circle, k=6)
    assert best.trustworthiness == pytest.approx(1) and best.overlap == pytest.approx(1)
    shuffled = maps.quality(circle, np.random.default_rng(1).permutation(circle), k=6)
    assert shuffled.overlap < 0.25 and shuffled.trustworthiness < 0.7
    assert str(best) == "trustworthiness 1.00, 100% of 6 neighbors kept"


def test_umap_gets_the_exact_neighbors_and_is_seeded(monkeypatch):
    import umap

    points, labels = clouds()
    given = {}

    class Spy(umap.UMAP):
        def __init__(self, **options):
            given.update(options)
            super().__init__(**options)

    monkeypatch.setattr(umap, "UMAP", Spy)
    plane = maps.project(points, n_neighbors=9, seed=3)
    unit = geometry.unit_rows(points)
    exact = NearestNeighbors(n_neighbors=9, metric="cosine").fit(unit).kneighbors()[1][:, :8]
    indices, distances = given["precomputed_knn"]
    np.testing.assert_array_equal(indices[:, 0], np.arange(len(points)))
    np.testing.assert_array_equal(indices[:, 1:], exact)
    expected = 1 - np.take_along_axis(unit @ unit.T, indices, axis=1)
    np.testing.assert_allclose(distances, expected, atol=1e-6)
    np.testing.assert_array_equal(plane, maps.project(points, n_neighbors=9, seed=3))
    assert maps.quality(points, plane).trustworthiness > 0.8


def test_placing_lands_among_the_neighbors():
    points, labels = clouds(classes=3)
    plane = np.array([[0.0, 0], [10, 0], [0, 10]])[labels]
    centers = np.stack([points[labels == c].mean(axis=0) for c in range(3)])
    np.testing.assert_allclose(
        maps.place(centers, points, plane), [[0, 0], [10, 0], [0, 10]], atol=0.5
    )


def test_align_undoes_a_turn_a_mirror_a_shift_and_a_scale():
    onto = np.random.default_rng(0).normal(size=(20, 2))
    turn = np.array([[0.6, -0.8], [0.8, 0.6]]) @ np.diag([1, -1])
    np.testing.assert_allclose(maps.align(3 * onto @ turn + 5, onto), onto, atol=1e-9)


def test_input_is_checked():
    with pytest.raises(ValueError, match="5 embeddings but 4 places"):
        maps.quality(np.eye(5), np.zeros((4, 2)))
    with pytest.raises(ValueError, match='"umap" or "pca"'):
        maps.project(np.eye(5), method="tsne")
    with pytest.raises(ValueError, match="at least 4"):
        maps.project(np.eye(3))


def test_the_inverted_file_finds_nearly_all_neighbors_and_never_the_point_itself():
    points, _ = clouds(classes=40, each=50, dim=24)
    unit = geometry.unit_rows(points).astype(np.float32)
    similarities, found = maps._nearly(unit, 14)
    exact = maps.nearest(unit, 14)[1]
    assert (found != np.arange(len(unit))[:, None]).all()
    assert (
        np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, exact, strict=True)]) > 0.9 * 14
    )
    np.testing.assert_allclose(similarities, (unit[:, None] * unit[found]).sum(-1), atol=1e-5)


def test_what_numba_compiles_for_umap_is_kept_on_disk():
    import umap

    maps.project(np.random.default_rng(0).normal(size=(30, 8)), n_neighbors=5)
    for function in (umap.umap_.smooth_knn_dist, umap.umap_.compute_membership_strengths):
        assert function.stats.cache_path
        assert function.stats.cache_hits or function.stats.cache_misses
