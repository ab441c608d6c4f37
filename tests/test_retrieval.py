"""Retrieval: against brute force, pytorch-metric-learning and scikit-learn.

Notation: N queries, M gallery images, D embedding dimension, R relevant images of a query.
"""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

from sobook import retrieval
from sobook.retrieval import Retrieval, check_labels, evaluate, nearest_neighbors

try:  # pytorch-metric-learning 3
    from pytorch_metric_learning.evaluation import AccuracyCalculator, FaissKMeans
except ImportError:  # 2
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import FaissKMeans

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


# --- The slow, obvious version -------------------------------------------------------------------


def brute_ranking(queries, gallery=None) -> list[list[int]]:
    """All images a query can find: by falling cosine, then by index. Itself is left out."""
    searched = queries if gallery is None else gallery
    units = [np.asarray(row, float) / np.linalg.norm(row) for row in searched]
    ranking = []
    for i, query in enumerate(queries):
        unit = np.asarray(query, float) / np.linalg.norm(query)
        cosines = {j: float(unit @ other) for j, other in enumerate(units)}
        if gallery is None:
            del cosines[i]
        ranking.append(sorted(cosines, key=lambda j, cosines=cosines: (-cosines[j], j)))
    return ranking


def brute_evaluate(queries, labels, gallery=None, gallery_labels=None, ks=(1,), unmatched=None):
    """Recall@K, MAP@R and R-precision, query by query, rank by rank."""
    image_labels = labels if gallery is None else gallery_labels
    hits, at_r, r_precisions = [], [], []
    for label, ranked in zip(labels, brute_ranking(queries, gallery), strict=True):
        relevant = [image_labels[j] == label for j in ranked]
        number = sum(relevant)
        if number == 0:
            if unmatched == "exclude":
                continue
            hits.append([False] * len(ks))
            at_r.append(0.0)
            r_precisions.append(0.0)
            continue
        hits.append([any(relevant[:k]) for k in ks])
        precisions = [sum(relevant[:r]) / r for r in range(1, number + 1) if relevant[r - 1]]
        at_r.append(sum(precisions) / number)
        r_precisions.append(sum(relevant[:number]) / number)
    recall = {k: float(np.mean([row[i] for row in hits])) for i, k in enumerate(ks)}
    return recall, float(np.mean(at_r)), float(np.mean(r_precisions))


def assert_same(result: Retrieval, expected) -> None:
    recall, map_at_r, r_precision = expected
    assert result.recall == pytest.approx(recall, abs=1e-12)
    assert result.map_at_r == pytest.approx(map_at_r, abs=1e-12)
    assert result.r_precision == pytest.approx(r_precision, abs=1e-12)


# --- Data ----------------------------------------------------------------------------------------


def cloud(seed: int, size: int, classes: int, dim: int = 8):
    """Embeddings near their class' center, and labels, some classes having one image only."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size)
    labels[:2] = 0, 1
    embeddings = rng.normal(size=(classes, dim))[labels] + rng.normal(size=(size, dim))
    return embeddings.astype(np.float32), labels


def with_duplicates(seed: int, size: int, classes: int):
    """Every image three times, its copies under the same label."""
    embeddings, labels = cloud(seed, size, classes)
    order = np.random.default_rng(seed).permutation(3 * size)
    return np.tile(embeddings, (3, 1))[order], np.tile(labels, 3)[order]


def corners(seed: int, size: int, classes: int, dim: int = 4):
    """Corners of a cube: cosines are multiples of 1/2 (D = 4), exact in float32, mostly tied."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size)
    labels[:3] = 0, 0, 1
    return rng.choice([-1.0, 1.0], (size, dim)), labels


# --- Measures ------------------------------------------------------------------------------------

CASES = {
    "few classes": (cloud, 40, 3),
    "many singletons": (cloud, 40, 30),
    "duplicates": (with_duplicates, 20, 5),
    "ties": (corners, 40, 4),
}


def assert_measures_equal_brute_force(case, seed, unmatched):
    make, size, classes = CASES[case]
    x, y = make(seed, size, classes)
    for ks in ((1, 2, 4, 8), (3, 39)):
        result = evaluate(x, y, ks=ks, unmatched=unmatched)
        assert_same(result, brute_evaluate(x, y, ks=ks, unmatched=unmatched))
    queries, gallery = (x[: size // 3], y[: size // 3]), (x[size // 3 :], y[size // 3 :])
    options = {"ks": (1, 2, 4, 8), "unmatched": unmatched}
    result = evaluate(*queries, gallery=gallery[0], gallery_labels=gallery[1], **options)
    assert_same(result, brute_evaluate(*queries, *gallery, **options))


@pytest.mark.parametrize("unmatched", ["exclude", "miss"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_measures_equal_brute_force(case, seed, unmatched):
    assert_measures_equal_brute_force(case, seed, unmatched)


@quick
@given(seed=seeds, size=st.integers(6, 30), classes=st.integers(2, 12))
def test_measures_of_any_cloud_equal_brute_force(seed, size, classes):
    embeddings, labels = cloud(seed, size, classes)
    labels[2] = labels[1]  # somebody has a match
    result = evaluate(embeddings, labels, ks=(1, 3, size - 1))
    expected = brute_evaluate(embeddings, labels, ks=(1, 3, size - 1), unmatched="exclude")
    assert_same(result, expected)
    ends = list(result.recall.values())
    assert ends == sorted(ends) and ends[-1] == 1
    assert 0 <= result.map_at_r <= result.r_precision <= 1


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("classes", [4, 40])
@pytest.mark.parametrize("split", [None, 60])
def test_measures_equal_pytorch_metric_learning(seed, classes, split):
    embeddings, labels = cloud(seed, 150, classes, dim=16)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)  # they go by distance
    names = ("precision_at_1", "mean_average_precision_at_r", "r_precision")
    calculator = AccuracyCalculator(include=names)
    rows, classes_of = torch.from_numpy(embeddings), torch.from_numpy(labels)
    if split is None:
        theirs = calculator.get_accuracy(rows, classes_of)
        result = evaluate(embeddings, labels)
    else:
        theirs = calculator.get_accuracy(
            rows[:split], classes_of[:split], rows[split:], classes_of[split:]
        )
        result = evaluate(
            embeddings[:split],
            labels[:split],
            gallery=embeddings[split:],
            gallery_labels=labels[split:],
        )
    assert classes == 4 or not result.matched.all()  # queries without a match take part
    ours = (result.recall[1], result.map_at_r, result.r_precision)
    assert ours == pytest.approx(tuple(float(theirs[name]) for name in names), abs=1e-7)


def test_measures_by_hand():
    # On a half circle from left to right: a b a a b; c stands alone at the end.
    turns = np.radians([0, 10, 21, 33, 46, 90])
    embeddings = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    labels = [5, 9, 5, 5, 9, 7]
    result = evaluate(embeddings, labels, ks=(2, 1))
    # Neighbors: 0: b a a b c | 1: a a a b c | 2: b a a b c | 3: a b b a c | 4: a a b a c
    assert result.ks == (1, 2)
    assert result.hits.tolist() == [
        [False, True],
        [False, False],
        [False, True],
        [True, True],
        [False, False],
        [False, False],
    ]
    assert result.matched.tolist() == [True] * 5 + [False]
    assert result.recall == {1: 1 / 5, 2: 3 / 5}
    assert result.r_precision == pytest.approx((1 / 2 + 0 + 1 / 2 + 1 / 2 + 0) / 5)
    assert result.map_at_r == pytest.approx((1 / 4 + 0 + 1 / 4 + 1 / 2 + 0) / 5)
    missed = evaluate(embeddings, labels, ks=(1, 2), unmatched="miss")
    assert missed.recall == {1: 1 / 6, 2: 3 / 6}
    assert missed.map_at_r == pytest.approx(result.map_at_r * 5 / 6)


def test_the_query_is_left_out_by_index_not_by_position():
    # Two images that are the same file under two labels: each one's nearest is the other.
    # Dropping the first neighbor instead would, for one of them, find the image itself.
    embeddings = [[1, 0], [1, 0], [1, 0.1], [1, 0.2]]
    assert nearest_neighbors(embeddings, 1)[1][:2, 0].tolist() == [1, 0]
    assert evaluate(embeddings, [0, 1, 0, 1], ks=(1,)).hits[:2, 0].tolist() == [False, False]


@pytest.mark.parametrize("copies", [3, 30, 200])
def test_the_query_is_left_out_among_many_copies(copies):
    _, indices = nearest_neighbors(np.ones((copies, 5)), 2)
    assert (indices != np.arange(copies)[:, None]).all()
    assert (indices[:, 0] != indices[:, 1]).all()


def test_hits_follow_the_order_of_the_queries():
    embeddings, labels = cloud(1, 50, 5)
    order = np.random.default_rng(0).permutation(50)
    hits = evaluate(embeddings, labels).hits
    np.testing.assert_array_equal(evaluate(embeddings[order], labels[order]).hits, hits[order])


def test_names_of_classes_and_lengths_of_embeddings_do_not_matter(rng):
    embeddings, labels = cloud(2, 50, 8)
    expected = evaluate(embeddings, labels)
    lengths = 10 ** rng.uniform(-6, 6, (50, 1))
    names = rng.permutation([-3, 0, 7, 10**12, 44, 45, 2, 1])
    same = evaluate(embeddings * lengths, names[labels])
    np.testing.assert_array_equal(same.hits, expected.hits)
    assert same.map_at_r == pytest.approx(expected.map_at_r)


@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_do_not_matter(chunk, monkeypatch):
    embeddings, labels = cloud(3, 50, 5)
    expected, nearest = evaluate(embeddings, labels), nearest_neighbors(embeddings, 6)
    monkeypatch.setattr(retrieval, "_CHUNK", chunk)
    result = evaluate(embeddings, labels)
    np.testing.assert_array_equal(result.hits, expected.hits)
    assert result.map_at_r == expected.map_at_r
    np.testing.assert_array_equal(nearest_neighbors(embeddings, 6)[1], nearest[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_lists_and_arrays_give_the_same_and_are_left_alone(dtype):
    array, labels = cloud(4, 30, 4)
    tensor = torch.nn.Parameter(torch.from_numpy(array).to(dtype))
    before = tensor.detach().clone()
    result = evaluate(tensor, torch.from_numpy(labels))
    assert torch.equal(tensor, before)
    again = evaluate(tensor.tolist(), labels.tolist())
    np.testing.assert_array_equal(again.hits, result.hits)
    own = tensor.detach().float().numpy()
    evaluate(own, labels)
    np.testing.assert_array_equal(own, before.float().numpy())


# --- Neighbors and ties -------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, 79])
def test_neighbors_equal_scikit_learn(k):
    embeddings, _ = cloud(5, 80, 6)
    distances, indices = NearestNeighbors(metric="cosine").fit(embeddings).kneighbors(n_neighbors=k)
    similarities, ours = nearest_neighbors(embeddings, k)
    np.testing.assert_array_equal(ours, indices)
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-5)
    assert similarities.dtype == np.float32 and ours.dtype == np.int64


@pytest.mark.parametrize("k", [1, 40])
def test_neighbors_in_a_gallery_equal_scikit_learn(k):
    embeddings, _ = cloud(6, 60, 6)
    queries, gallery = embeddings[:20], embeddings[20:]
    nearest = NearestNeighbors(n_neighbors=k, metric="cosine").fit(gallery)
    np.testing.assert_array_equal(
        nearest_neighbors(queries, k, gallery=gallery)[1], nearest.kneighbors(queries)[1]
    )


@pytest.mark.parametrize("size", [9, 60, 150])  # faiss searches few and many queries differently
def test_all_neighbors_of_tied_points_come_by_index(size):
    points, _ = corners(size, size, 3)
    np.testing.assert_array_equal(nearest_neighbors(points, size - 1)[1], brute_ranking(points))


@quick
@given(seed=seeds, size=st.integers(4, 40), k=st.integers(1, 39))
def test_ties_at_the_cut_are_broken_by_index(seed, size, k):
    points, _ = corners(seed, size, 2)
    k = min(k, size - 1)
    expected = [ranked[:k] for ranked in brute_ranking(points)]
    assert nearest_neighbors(points, k)[1].tolist() == expected


def test_copies_are_found_and_equal_similarities_come_by_index():
    points, _ = cloud(7, 2000, 2, dim=37)
    similarities, indices = nearest_neighbors(np.tile(points, (3, 1)), 4)
    assert (np.sort(indices[:, :2] % 2000, axis=1) == np.arange(6000)[:, None] % 2000).all()
    np.testing.assert_allclose(similarities[:, :2], 1, atol=1e-5)
    steps, tied = np.diff(similarities), np.diff(similarities) == 0
    assert (steps <= 0).all() and tied.any()
    assert (np.diff(indices)[tied] > 0).all()


@pytest.mark.parametrize("dim, size", [(2, 1800), (3, 1800), (8, 400), (64, 400)])
@pytest.mark.parametrize("search", ["_top_by_faiss", "_top_by_torch"])
def test_neighbors_are_ranked_alike_whatever_k_chunk_and_library(dim, size, search, monkeypatch):
    """On a circle, ties at the cut were ranked again with other rounding than the rest."""
    embeddings, _ = cloud(8, size, 30, dim)
    rows = embeddings / np.linalg.norm(embeddings.astype(float), axis=1, keepdims=True)
    rows = rows.astype(np.float32).astype(float)  # unit rows, and cosines, are rounded once
    cosines = (rows @ rows.T).astype(np.float32)
    np.fill_diagonal(cosines, -np.inf)
    expected = np.argsort(-cosines, axis=1, kind="stable")
    monkeypatch.setattr(retrieval, "_top_by_faiss", getattr(retrieval, search))
    for k, chunk in ((1, 4096), (2, 100), (4, 4096), (5, 13), (60, 4096), (size - 1, 4096)):
        monkeypatch.setattr(retrieval, "_CHUNK", chunk)
        similarities, indices = nearest_neighbors(embeddings, k)
        np.testing.assert_array_equal(indices, expected[:, :k])
        np.testing.assert_allclose(similarities, np.take_along_axis(cosines, indices, 1), atol=2e-6)


# --- Clusters ------------------------------------------------------------------------------------


def two_blobs(wrong: int):
    """Two far blobs of 30 images, the first few of each labeled as the other."""
    rng = np.random.default_rng(0)
    blob = np.repeat([0, 1], 30)
    labels = blob.copy()
    labels[:wrong] = 1
    labels[30 : 30 + wrong] = 0
    return np.eye(2)[blob] + 0.05 * rng.normal(size=(60, 2)), labels, blob


@pytest.mark.parametrize("wrong", [0, 4, 15])
def test_nmi_equals_scikit_learn_and_pytorch_metric_learning(wrong):
    embeddings, labels, blob = two_blobs(wrong)
    nmi = evaluate(embeddings, labels, clusters=True).nmi
    assert nmi == pytest.approx(normalized_mutual_info_score(labels, blob), abs=1e-9)
    calculator = AccuracyCalculator(include=("NMI",), kmeans_func=FaissKMeans())
    unit = torch.from_numpy(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))
    theirs = calculator.get_accuracy(unit, torch.from_numpy(labels))["NMI"]
    assert nmi == pytest.approx(float(theirs), abs=1e-9)
    assert (nmi > 0.999) == (wrong == 0)


def test_nmi_is_seeded_and_only_computed_on_request():
    embeddings, labels = cloud(8, 200, 12)
    assert evaluate(embeddings, labels).nmi is None
    values = [evaluate(embeddings, labels, clusters=True, seed=s).nmi for s in (0, 0, 1, 2, 3)]
    assert values[0] == values[1]
    assert len(set(values)) > 1
    assert all(0 <= value <= 1 for value in values)


# --- What counts ---------------------------------------------------------------------------------


def test_the_interval_is_over_the_queries_the_recall_is_over():
    embeddings, labels = cloud(9, 60, 25)
    for unmatched in ("exclude", "miss"):
        result = evaluate(embeddings, labels, ks=(1, 2), unmatched=unmatched)
        queries, hits = result.by_class(2)
        assert not result.matched.all()
        assert queries.sum() == (result.matched.sum() if unmatched == "exclude" else 60)
        assert hits.sum() / queries.sum() == pytest.approx(result.recall[2])
        low, high = result.interval(2)
        assert low < result.recall[2] < high


# --- Search on a GPU, here by torch on the CPU ---------------------------------------------------


@pytest.fixture
def by_torch(monkeypatch):
    monkeypatch.setattr(retrieval, "_top_by_faiss", retrieval._top_by_torch)


@pytest.mark.parametrize("case", CASES)
def test_torch_search_equals_brute_force(case, by_torch):
    assert_measures_equal_brute_force(case, 0, "miss")


@pytest.mark.parametrize("size", [9, 60, 150])
def test_torch_search_breaks_ties_by_index(size, by_torch):
    points, _ = corners(size, size, 3)
    for k in (1, size // 2, size - 1):
        expected = [ranked[:k] for ranked in brute_ranking(points)]
        assert nearest_neighbors(points, k)[1].tolist() == expected


def test_only_groups_with_both_kinds_are_put_in_order():
    """Ties among the irrelevant alone change no measure: they are left as they come."""
    close = np.array([[1, 1, 0, 1, 0, 1], [1, 0, 0, 1, 1, 1]], bool)
    relevant = np.array([[0, 0, 0, 1, 0, 1, 1], [1, 1, 0, 0, 0, 0, 1]], bool)
    expected = np.array([[0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 1]], bool)
    np.testing.assert_array_equal(retrieval._mixed(close, relevant), expected)


def test_measures_do_not_depend_on_which_ties_are_settled(monkeypatch):
    points, _ = cloud(5, 600, 30, dim=3)
    points[:200], points[200:300] = points[300:500], points[:100]  # copies, of other classes too
    labels = np.random.default_rng(0).integers(0, 30, 600)
    found = evaluate(points, labels, ks=(1, 10, 300))
    monkeypatch.setattr(retrieval, "_mixed", lambda close, _: close)
    every = evaluate(points, labels, ks=(1, 10, 300))
    np.testing.assert_array_equal(found.hits, every.hits)
    assert (found.map_at_r, found.r_precision) == (every.map_at_r, every.r_precision)


@needs_gpu
@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_large_search_runs_on_the_gpu_and_finds_the_same(on_gpu, monkeypatch):
    embeddings, labels = cloud(3, 3000, 60, dim=32)
    expected = evaluate(embeddings[:50], labels[:50])  # too small to be copied
    searched = []

    def spy(queries, gallery, count, search=retrieval._top_by_torch):
        searched.append(gallery.device.type)
        return search(queries, gallery, count)

    monkeypatch.setattr(retrieval, "_top_by_torch", spy)
    rows = torch.from_numpy(embeddings)
    result = evaluate(rows.cuda() if on_gpu else rows, labels, clusters=True)
    small = evaluate(rows[:50].cuda() if on_gpu else rows[:50], labels[:50])
    assert searched == (["cuda", "cuda"] if on_gpu else [])
    np.testing.assert_array_equal(small.hits, expected.hits)
    monkeypatch.setattr(retrieval, "_GPU_PAYS", 1)
    again = evaluate(embeddings, labels)
    assert searched[-1] == "cuda"
    np.testing.assert_array_equal(again.hits, result.hits)
    assert again.map_at_r == pytest.approx(result.map_at_r, abs=1e-6)


# --- Reports -------------------------------------------------------------------------------------


def test_summary_is_ready_for_json_and_str_for_a_log():
    embeddings, labels = cloud(11, 60, 25)
    result = evaluate(embeddings, labels, ks=(2, 4), clusters=True)
    summary = json.loads(json.dumps(result.summary()))
    assert summary["queries"] == 60
    assert summary["unmatched"] == (~result.matched).sum() > 0
    assert summary["recall"] == {str(k): round(v, 6) for k, v in result.recall.items()}
    assert summary["recall_at_2_interval"] == pytest.approx(result.interval(2), abs=1e-6)
    assert summary["map_at_r"] == pytest.approx(result.map_at_r, abs=1e-6)
    assert summary["r_precision"] == pytest.approx(result.r_precision, abs=1e-6)
    assert summary["nmi"] == pytest.approx(result.nmi, abs=1e-6)
    text = f"R@2 {result.recall[2]:.3f}  R@4 {result.recall[4]:.3f}  MAP@R {result.map_at_r:.3f}"
    assert str(result).startswith(text)
    assert "array" not in repr(result)


# --- Bad input -----------------------------------------------------------------------------------

POINTS, LABELS = cloud(0, 6, 2, dim=3)[0], [0, 0, 1, 1, 2, 2]


def with_row(row: int, value: float) -> np.ndarray:
    rows = POINTS.copy()
    rows[row] = value
    return rows


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"embeddings": np.ones(6)}, r"embeddings have shape \(6,\), expected \(N, D\)"),
        ({"embeddings": np.ones((0, 3))}, r"embeddings have shape \(0, 3\), expected \(N, D\)"),
        ({"embeddings": with_row(4, math.nan)}, r"row 4 of the embeddings is .*NaN.* leave it out"),
        ({"embeddings": with_row(1, math.inf)}, r"row 1 of the embeddings is .*infinite"),
        ({"embeddings": with_row(2, 0)}, r"row 2 of the embeddings is zero.* \(1 such rows"),
        ({"labels": LABELS[:4]}, r"int64 \(4,\), expected whole numbers \(6,\)"),
        ({"labels": [[c] for c in LABELS]}, r"int64 \(6, 1\), expected whole numbers \(6,\)"),
        ({"labels": list("aabbcc")}, r"labels are <U1 \(6,\), expected whole numbers"),
        ({"labels": [3] * 6}, r"all labels are the same: with one class only, every image"),
        ({"labels": range(6)}, r"no query has an image of its class .*: check the labels"),
        ({"ks": ()}, r"ks are \[\]: give whole numbers from 1 upwards"),
        ({"ks": (0, 1)}, r"ks are \[0, 1\]: give whole numbers from 1 upwards"),
        ({"ks": (1.5,)}, r"K is 1\.5: it must be a whole number"),
        ({"ks": ("1",)}, r"K is '1': it must be a whole number"),
        ({"ks": "12"}, r"K is '1': it must be a whole number"),
        ({"ks": (1, 6)}, r"K = 6 is larger than the gallery: a query can find 5 images"),
        ({"seed": -1}, r"seed is -1: it must be between 0 and"),
        ({"seed": 2**40}, r"seed is 1099511627776"),
        ({"embeddings": [["a", "b"]] * 6}, r"embeddings are <U1, expected numbers"),
        ({"embeddings": [[None, 1]] * 6}, r"embeddings hold what is no number|NaN"),
        ({"embeddings": POINTS + 1j}, r"embeddings are complex64, expected numbers"),
        ({"unmatched": "exlude"}, r"unmatched 'exlude': choose .*Did you mean 'exclude'\?"),
        ({"gallery": POINTS}, r"give gallery and gallery_labels together, or neither"),
        ({"gallery_labels": LABELS}, r"give gallery and gallery_labels together, or neither"),
        (
            {"gallery": POINTS[:3], "gallery_labels": [0, 1, 2], "ks": (4,)},
            r"K = 4 is larger than the gallery: a query can find 3 images",
        ),
        (
            {"gallery": with_row(5, math.nan), "gallery_labels": LABELS},
            r"row 5 of the gallery is .*NaN",
        ),
        (
            {"gallery": POINTS, "gallery_labels": [7, 7, 7, 8, 8, 8]},
            r"no query has an image of its class in the gallery: check the labels",
        ),
        (
            {"gallery": POINTS[:, :2], "gallery_labels": LABELS},
            r"gallery .*\b2\b|\b2\b.* gallery",  # names its dimension
        ),
    ],
)
def test_bad_input(changes, message):
    arguments = {"embeddings": POINTS, "labels": LABELS, "ks": (1,), **changes}
    with pytest.raises(ValueError, match=message):
        evaluate(**arguments)


@pytest.mark.parametrize("ks", [np.array([2, 1]), np.int64(2), 2, torch.tensor([1, 2]), {2}, [2.0]])
def test_ks_are_plain_numbers(ks):
    result = evaluate(POINTS, LABELS, ks=ks)
    assert result.ks[-1] == 2 and all(type(k) is int for k in result.recall)
    json.dumps(result.summary())


def test_without_ks_those_that_fit_are_reported():
    """Eight classes of two pictures trained to the end, and then failed at Recall@8."""
    assert evaluate(POINTS, LABELS).ks == (1, 2, 4)  # six images: a query finds five
    assert evaluate(POINTS[:2], [0, 1], gallery=POINTS[:3], gallery_labels=[0, 1, 1]).ks == (1, 2)
    twice = np.concatenate([POINTS, POINTS])
    assert evaluate(twice, np.tile(LABELS, 2)).ks == (1, 2, 4, 8)


def test_what_labels_allow_is_known_without_embeddings():
    ks, num_relevant = check_labels(np.array([0, 0, 1, 1, 1]))
    assert ks == (1, 2, 4) and num_relevant.tolist() == [1, 1, 2, 2, 2]
    ks, num_relevant = check_labels(np.array([0, 5]), np.array([0, 0, 1]), ks=[3])
    assert ks == (3,) and num_relevant.tolist() == [2, 0]


@pytest.mark.parametrize("available, arguments", [(5, {}), (6, {"gallery": POINTS})])
def test_as_many_neighbors_as_there_are_and_no_more(available, arguments):
    assert nearest_neighbors(POINTS, available, **arguments)[1].shape == (6, available)
    for wrong, message in [(available + 1, f"can find {available} images"), (0, r"\[0\]: give")]:
        with pytest.raises(ValueError, match=message):
            nearest_neighbors(POINTS, wrong, **arguments)


def test_interval_of_a_k_that_was_not_computed():
    result = evaluate(POINTS, LABELS, ks=(1, 2))
    with pytest.raises(ValueError, match=r"Recall@4 was not computed: choose one of \[1, 2\]"):
        result.interval(4)
