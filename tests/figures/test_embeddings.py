"""Maps: against scikit-learn and umap-learn, and on layouts of known quality; spheres."""

import matplotlib as mpl
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from sobook import figures, geometry
from sobook.errors import SobookError
from sobook.figures import embeddings
from tests.figures.reading import PA, legend, texts

LABELS = np.repeat(np.arange(4), 12)


@pytest.fixture
def centers(rng):
    return rng.normal(size=(4, 16))


@pytest.fixture
def points(rng, centers):
    return centers[LABELS] + 0.3 * rng.normal(size=(48, 16))


def test_maps_print_trustworthiness_draw_proxies_as_stars_and_enlarge_a_class(points, centers):
    stars = dict.fromkeys(("PA", "PA+SO"), centers[:2])
    figure = figures.embedding_maps(
        {"PA": points, "PA+SO": -points},
        LABELS,
        method="pca",
        proxies=stars,
        proxy_labels=[0, 1],
        class_names="wxyz",
        inset=(1, np.arange(48) // 4, "by species"),
    )
    left, right, box, _ = figure.axes
    assert left.get_title() == "PA" and left.title.get_color() == PA
    assert left.get_xlabel().startswith("PCA") and "trustworthiness 0." in left.get_xlabel()
    star = mpl.markers.MarkerStyle("*").get_path().vertices.shape
    for axis in (left, right):
        marks = [c for c in axis.collections if c.get_paths()[0].vertices.shape == star]
        assert [len(mark.get_offsets()) for mark in marks] == [2]
    hollow = [c for c in left.collections if (c.get_facecolor()[:, 3] == 0).any()]
    assert [len(c.get_offsets()) for c in hollow] == [12, 12]  # classes without a proxy
    assert legend(figure) == ["w", "x", "y", "z", "proxy", "test class: no proxy"]
    assert "fitted on its own" in texts(figure)
    assert box.get_title() == "in the frame: by species"
    (frame,) = left.patches
    assert left.get_xlim()[0] < frame.get_x() < frame.get_x() + frame.get_width()
    assert frame.get_x() + frame.get_width() < left.get_xlim()[1]
    colors = {tuple(c) for dots in box.collections for c in dots.get_facecolors()}
    assert 2 <= len(colors) <= 3  # species of that class


def test_the_panel_has_a_row_per_setting_a_column_per_seed_and_pca(points):
    figure = figures.map_panel(points, LABELS, class_names="wxyz")
    shown = [axis for axis in figure.axes if axis.get_title()]
    titles = [f"{k} neighbors, seed {seed}" for k in (5, 15, 47) for seed in (0, 1)]
    assert [axis.get_title() for axis in shown] == [*titles[:2], "PCA", *titles[2:]]
    assert all("kept" in axis.get_xlabel() for axis in shown)


def test_spheres_share_their_view_and_show_all_points(rng):
    labels, points, proxies = np.repeat(np.arange(3), 10), rng.normal(size=(30, 3)), np.eye(3)
    figure = figures.spheres({"PA": (points, proxies), "PA+SO": (points, proxies)}, labels)
    left, right = figure.axes
    assert (left.elev, left.azim) == (right.elev, right.azim)
    assert left.get_title() == "PA: RMS cosine 0.00, coherence 0.00"
    dots = [c._offsets3d for c in left.collections if hasattr(c, "_offsets3d")]
    drawn = np.concatenate([np.stack(places, axis=1) for places in dots])
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), np.ones(30))


def test_overlap_equals_slow_loops(points):
    plane, unit, k = points[:, :2], geometry.unit_rows(points), 7
    measured = embeddings.quality(points, plane, n_neighbors=k)
    shared = 0
    for i in range(len(points)):
        others = [j for j in range(len(points)) if j != i]
        near = sorted(others, key=lambda j: -unit[i] @ unit[j])[:k]
        flat = sorted(others, key=lambda j: np.linalg.norm(plane[i] - plane[j]))[:k]
        shared += len({*near} & {*flat})
    assert measured.overlap == pytest.approx(shared / k / len(points), abs=1e-9)


def test_umap_gets_the_exact_neighbors_and_is_seeded(points, monkeypatch):
    import umap

    given = {}

    class Spy(umap.UMAP):
        def __init__(self, **options):
            given.update(options)
            super().__init__(**options)

    monkeypatch.setattr(umap, "UMAP", Spy)
    plane = embeddings.project(points, n_neighbors=9, seed=3)
    unit = geometry.unit_rows(points)
    exact = NearestNeighbors(n_neighbors=9, metric="cosine").fit(unit).kneighbors()[1][:, :8]
    indices, distances = given["precomputed_knn"]
    np.testing.assert_array_equal(indices, np.hstack([np.arange(48)[:, None], exact]))
    expected = 1 - np.take_along_axis(unit @ unit.T, indices, axis=1)
    np.testing.assert_allclose(distances, expected, atol=1e-6)
    np.testing.assert_array_equal(plane, embeddings.project(points, n_neighbors=9, seed=3))
    monkeypatch.setattr(embeddings, "_EXACT_UP_TO", 40)
    larger = embeddings.project(points, n_neighbors=9, seed=3)  # with UMAP's own neighbors
    for kept in (plane, larger):
        assert embeddings.quality(points, kept, n_neighbors=9).trustworthiness > 0.9


def test_placing_lands_among_the_neighbors_and_align_undoes_a_turn_and_a_mirror(points, centers):
    corners = np.array([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    np.testing.assert_allclose(embeddings.place(centers, points, corners[LABELS]), corners, atol=1)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]]) @ np.diag([1, -1])
    moved = 3 * corners @ turn + 5  # place and scale do not matter
    np.testing.assert_allclose(embeddings.align(moved, corners), turn.T, atol=1e-9)


def test_input_is_checked(points):
    with pytest.raises(SobookError, match="places"):
        embeddings.quality(points, np.zeros((4, 2)))
    with pytest.raises(SobookError, match="umap or pca"):
        embeddings.project(points, method="tsne")
    with pytest.raises(SobookError, match="at least 4"):
        embeddings.project(points[:3])
