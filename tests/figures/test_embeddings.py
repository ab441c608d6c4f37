"""Maps: against scikit-learn and umap-learn, and on layouts whose quality is known; spheres."""

import matplotlib as mpl
import numpy as np
import pytest
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from sobook import figures, geometry
from sobook.errors import SobookError
from sobook.figures import embeddings, style
from tests.figures.reading import PA, legend, texts


@pytest.fixture
def clusters(rng):
    labels = np.repeat(np.arange(4), 12)
    centers = rng.normal(size=(4, 16))
    return centers[labels] + 0.2 * rng.normal(size=(48, 16)), labels, centers


def test_maps_print_trustworthiness_and_draw_proxies_as_stars(clusters):
    points, labels, centers = clusters
    figure = figures.embedding_maps(
        {"PA": points, "PA+SO": -points},
        labels,
        method="pca",
        proxies={"PA": centers},
        class_names="wxyz",
    )
    left, right = figure.axes
    assert left.get_title() == "PA" and left.title.get_color() == PA
    assert "trustworthiness 0." in left.get_xlabel() and left.get_xlabel().startswith("PCA")
    star = mpl.markers.MarkerStyle("*").get_path().vertices.shape
    count = [
        sum(
            len(c.get_offsets())
            for c in axis.collections
            if c.get_paths()[0].vertices.shape == star
        )
        for axis in (left, right)
    ]
    assert count == [4, 0]
    assert legend(figure) == ["w", "x", "y", "z", "proxy"]
    assert "fitted on its own" in texts(figure)


def test_many_classes_are_gray_but_for_twelve(rng):
    labels = np.repeat(np.arange(30), 3)
    points = rng.normal(size=(90, 8))
    figure = figures.embedding_maps({"PA": points}, labels, method="pca")
    assert legend(figure)[::12] == ["class 0", "18 other classes"]
    rest, *shown = figure.axes[0].collections
    assert [len(c.get_offsets()) for c in (rest, *shown)] == [54] + 12 * [3]
    assert mpl.colors.to_hex(rest.get_facecolor()[0]) == style.QUIET.lower()


def test_twenty_classes_can_be_told_apart():
    styles = embeddings.class_styles(np.arange(20))
    assert len(set(styles.values())) == 20


def test_maps_check_their_input(clusters):
    points, labels, centers = clusters
    with pytest.raises(ValueError, match="48 embeddings but 3 labels"):
        figures.embedding_maps({"PA": points}, labels[:3], method="pca")
    with pytest.raises(ValueError, match="same names"):
        figures.embedding_maps({"PA": points}, labels, method="pca", proxies={"SO": centers})


def test_images_of_classes_without_a_proxy_are_hollow(clusters):
    points, labels, centers = clusters
    figure = figures.embedding_maps(
        {"PA": points},
        labels,
        method="pca",
        class_names="wxyz",
        proxies={"PA": centers[:2]},
        proxy_labels=[0, 1],
    )
    hollow = [c for c in figure.axes[0].collections if (c.get_facecolor()[:, 3] == 0).any()]
    assert [len(c.get_offsets()) for c in hollow] == [12, 12]
    assert "test class: no proxy" in legend(figure)
    assert "neighbors kept" in figure.axes[0].get_xlabel()


def test_panel_of_maps_has_a_row_a_setting_a_column_a_seed_and_pca(clusters):
    points, labels, _ = clusters
    figure = figures.map_panel(points, labels, n_neighbors=(5, 8), seeds=(0, 1))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == [
        "5 neighbors, seed 0",
        "5 neighbors, seed 1",
        "PCA",
        "8 neighbors, seed 0",
        "8 neighbors, seed 1",
    ]
    shown = [axis.get_xlabel() for axis in figure.axes if axis.get_title()]
    assert all("trustworthiness" in text and "kept" in text for text in shown)


def test_spheres_share_their_view_and_show_all_points(rng):
    labels = np.repeat(np.arange(3), 10)
    points, proxies = rng.normal(size=(30, 3)), np.eye(3)
    figure = figures.spheres({"PA": (points, proxies), "PA+SO": (points, proxies)}, labels)
    left, right = figure.axes
    assert (left.elev, left.azim) == (right.elev, right.azim)
    assert left.get_title() == "PA: RMS cosine 0.00, coherence 0.00"
    drawn = np.concatenate(
        [np.stack(c._offsets3d, axis=1) for c in left.collections if hasattr(c, "_offsets3d")]
    )
    assert len(drawn) == 30
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1)
    with pytest.raises(ValueError, match="3 dimensions, not 5"):
        figures.spheres({"PA": (rng.normal(size=(30, 5)), proxies)}, labels)


def clouds(seed=0, classes=5, each=30, dim=12):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    centers = rng.normal(size=(classes, dim))
    return centers[labels] + 0.3 * rng.normal(size=(len(labels), dim)), labels


def test_quality_equals_slow_loops_and_scikit_learn():
    points, _ = clouds()
    plane = points[:, :2]
    found = embeddings.quality(points, plane, n_neighbors=7)
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
    best = embeddings.quality(circle, circle, n_neighbors=6)
    assert best.trustworthiness == pytest.approx(1) and best.overlap == pytest.approx(1)
    shuffled = embeddings.quality(
        circle, np.random.default_rng(1).permutation(circle), n_neighbors=6
    )
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
    plane = embeddings.project(points, n_neighbors=9, seed=3)
    unit = geometry.unit_rows(points)
    exact = NearestNeighbors(n_neighbors=9, metric="cosine").fit(unit).kneighbors()[1][:, :8]
    indices, distances = given["precomputed_knn"]
    np.testing.assert_array_equal(indices[:, 0], np.arange(len(points)))
    np.testing.assert_array_equal(indices[:, 1:], exact)
    expected = 1 - np.take_along_axis(unit @ unit.T, indices, axis=1)
    np.testing.assert_allclose(distances, expected, atol=1e-6)
    np.testing.assert_array_equal(plane, embeddings.project(points, n_neighbors=9, seed=3))
    assert embeddings.quality(points, plane).trustworthiness > 0.8


def test_larger_maps_take_what_umap_finds_itself(monkeypatch):
    monkeypatch.setattr(embeddings, "_EXACT_UP_TO", 100)
    points, _ = clouds()
    plane = embeddings.project(points, n_neighbors=9)
    assert embeddings.quality(points, plane).trustworthiness > 0.8
    np.testing.assert_array_equal(plane, figures.project(points, n_neighbors=9))


def test_placing_lands_among_the_neighbors():
    points, labels = clouds(classes=3)
    plane = np.array([[0.0, 0], [10, 0], [0, 10]])[labels]
    centers = np.stack([points[labels == c].mean(axis=0) for c in range(3)])
    np.testing.assert_allclose(
        embeddings.place(centers, points, plane), [[0, 0], [10, 0], [0, 10]], atol=0.5
    )


def test_align_undoes_a_turn_a_mirror_a_shift_and_a_scale():
    onto = np.random.default_rng(0).normal(size=(20, 2))
    turn = np.array([[0.6, -0.8], [0.8, 0.6]]) @ np.diag([1, -1])
    np.testing.assert_allclose(embeddings.align(3 * onto @ turn + 5, onto), onto, atol=1e-9)


def test_input_is_checked():
    with pytest.raises(ValueError, match="5 embeddings but 4 places"):
        embeddings.quality(np.eye(5), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="choose umap or pca"):
        embeddings.project(np.eye(5), method="tsne")
    with pytest.raises(SobookError, match="nothing to map"):
        figures.embedding_maps({}, [])
    with pytest.raises(SobookError, match="n_neighbors is empty"):
        figures.map_panel(np.eye(5), range(5), n_neighbors=())


@pytest.mark.parametrize("method", ["umap", "pca"])
@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, 5), "3 points in 5 dimension.* at least 4 in 2"), ((9, 1), "9 points in 1 dimension")],
)
def test_too_little_for_a_map_is_one_sentence(method, shape, message, rng):
    """UMAP and scikit-learn failed with sentences on eigenvalues and components of their own."""
    with pytest.raises(SobookError, match=message):
        embeddings.project(rng.normal(size=shape), method=method)
    with pytest.raises(SobookError, match=message):
        embeddings.quality(rng.normal(size=shape), np.zeros((shape[0], 2)))


@pytest.mark.parametrize("method", ["umap", "pca"])
def test_four_points_make_a_map(method, rng):
    plane = embeddings.project(points := rng.normal(size=(4, 8)), method=method)
    assert plane.shape == (4, 2) and np.isfinite(plane).all()
    assert embeddings.quality(points, plane).n_neighbors == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [(1, "n_neighbors is 1: it must be at least 2"), (0, "n_neighbors is 0"), ("5", "is '5'")],
)
def test_neighbors_of_a_map_are_checked(given, message, rng):
    with pytest.raises(SobookError, match=message):
        embeddings.project(rng.normal(size=(9, 4)), n_neighbors=given)


def test_the_inset_shows_one_class_by_finer_labels(rng):
    labels = np.repeat(np.arange(3), 20)
    points = np.eye(3)[labels] + 0.1 * rng.normal(size=(60, 3))
    inset = (1, np.arange(60) // 5, "by species")
    figure = figures.embedding_maps({"PA": points}, labels, method="pca", inset=inset)
    above, box = figure.axes
    assert box.get_title() == "in the frame: by species"
    (frame,) = above.patches
    (left, right), (low, high) = above.get_xlim(), above.get_ylim()
    assert left < frame.get_x() and frame.get_x() + frame.get_width() < right
    assert low < frame.get_y() and frame.get_y() + frame.get_height() < high
    colors = {tuple(c) for dots in box.collections for c in dots.get_facecolors()}
    assert 2 <= len(colors) <= 4  # species of that class
    with pytest.raises(ValueError, match="class 7"):
        figures.embedding_maps({"PA": points}, labels, method="pca", inset=(7, labels, ""))


def test_maps_say_the_neighbors_that_were_used(rng):
    """Of six points no map has 15 neighbors, which is what was printed below it."""
    points = rng.normal(size=(6, 4))
    figure = figures.embedding_maps({"PA": points}, [0, 0, 0, 1, 1, 1], n_neighbors=np.int64(15))
    assert figure.axes[0].get_xlabel().startswith("UMAP, 5 neighbors, seed 0")
