"""Retrieval: against brute force, pytorch-metric-learning, scikit-learn and SciPy.

Notation: N queries, M gallery images, D embedding dimension, R right images of a query.
"""

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from scipy import stats
from sklearn.metrics import normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

from sobook import retrieval
from sobook.retrieval import (
    Retrieval,
    compare_classes,
    compare_seeds,
    difference,
    evaluate,
    nearest_neighbors,
)

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


# --- The slow, obvious version -------------------------------------------------------------------


def brute_ranking(queries, gallery=None) -> list[list[int]]:
    """All images a query can find: by falling cosine, then by index. Itself is left out."""
    found = queries if gallery is None else gallery
    units = [np.asarray(row, float) / np.linalg.norm(row) for row in found]
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
    found_labels = labels if gallery is None else gallery_labels
    hits, at_r, shares = [], [], []
    for label, ranked in zip(labels, brute_ranking(queries, gallery), strict=True):
        right = [found_labels[j] == label for j in ranked]
        relevant = sum(right)
        if relevant == 0:
            if unmatched == "exclude":
                continue
            hits.append([False] * len(ks))
            at_r.append(0.0)
            shares.append(0.0)
            continue
        hits.append([any(right[:k]) for k in ks])
        precisions = [sum(right[:r]) / r for r in range(1, relevant + 1) if right[r - 1]]
        at_r.append(sum(precisions) / relevant)
        shares.append(sum(right[:relevant]) / relevant)
    recall = {k: float(np.mean([row[i] for row in hits])) for i, k in enumerate(ks)}
    return recall, float(np.mean(at_r)), float(np.mean(shares))


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


@pytest.mark.parametrize("unmatched", ["exclude", "miss"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_measures_equal_brute_force(case, seed, unmatched):
    make, size, classes = CASES[case]
    embeddings, labels = make(seed, size, classes)
    for ks in ((1,), (1, 2, 4, 8), (3, 39)):
        result = evaluate(embeddings, labels, ks=ks, unmatched=unmatched)
        assert_same(result, brute_evaluate(embeddings, labels, ks=ks, unmatched=unmatched))


@pytest.mark.parametrize("unmatched", ["exclude", "miss"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_measures_with_a_gallery_equal_brute_force(case, seed, unmatched):
    make, size, classes = CASES[case]
    embeddings, labels = make(seed, size, classes)
    first, second = slice(None, len(labels) // 3), slice(len(labels) // 3, None)
    arguments = (embeddings[first], labels[first], embeddings[second], labels[second])
    result = evaluate(
        *arguments[:2], gallery=arguments[2], gallery_labels=arguments[3], unmatched=unmatched
    )
    assert_same(result, brute_evaluate(*arguments, ks=(1, 2, 4, 8), unmatched=unmatched))


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
    calculator = AccuracyCalculator(include=names, device=torch.device("cpu"))
    if split is None:
        theirs = calculator.get_accuracy(embeddings, labels)
        result = evaluate(embeddings, labels)
    else:
        theirs = calculator.get_accuracy(
            embeddings[:split], labels[:split], embeddings[split:], labels[split:]
        )
        result = evaluate(
            embeddings[:split],
            labels[:split],
            gallery=embeddings[split:],
            gallery_labels=labels[split:],
        )
    assert classes == 4 or not result.matched.all()  # queries without a match take part
    ours = (result.recall[1], result.map_at_r, result.r_precision)
    assert ours == pytest.approx(tuple(theirs[name] for name in names), abs=1e-7)


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


def test_a_gallery_may_hold_the_query_itself():
    embeddings, labels = cloud(0, 30, 5)
    result = evaluate(embeddings, labels, gallery=embeddings, gallery_labels=labels, ks=(1,))
    assert result.recall == {1: 1.0}


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


@pytest.mark.parametrize("chunk", [1, 7, 50])
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


@pytest.mark.parametrize("k", [1, 5, 40])
def test_neighbors_in_a_gallery_equal_scikit_learn(k):
    embeddings, _ = cloud(6, 60, 6)
    queries, gallery = embeddings[:20], embeddings[20:]
    nearest = NearestNeighbors(n_neighbors=k, metric="cosine").fit(gallery)
    distances, indices = nearest.kneighbors(queries)
    similarities, ours = nearest_neighbors(queries, k, gallery=gallery)
    np.testing.assert_array_equal(ours, indices)
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-5)


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


def test_measures_do_not_depend_on_the_largest_k_asked_for():
    points, labels = corners(0, 15, 3)
    values = [evaluate(points, labels, ks=(1, k)).map_at_r for k in (2, 8, 14)]
    assert values == [values[0]] * 3


def test_copies_are_found_and_equal_similarities_come_by_index():
    points, _ = cloud(7, 2000, 2, dim=37)
    similarities, indices = nearest_neighbors(np.tile(points, (3, 1)), 4)
    assert (np.sort(indices[:, :2] % 2000, axis=1) == np.arange(6000)[:, None] % 2000).all()
    np.testing.assert_allclose(similarities[:, :2], 1, atol=1e-5)
    steps, tied = np.diff(similarities), np.diff(similarities) == 0
    assert (steps <= 0).all() and tied.any()
    assert (np.diff(indices)[tied] > 0).all()


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
    calculator = AccuracyCalculator(include=("NMI",), device=torch.device("cpu"))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert nmi == pytest.approx(calculator.get_accuracy(unit, labels)["NMI"], abs=1e-9)
    assert (nmi > 0.999) == (wrong == 0)


def test_nmi_is_seeded_and_only_computed_on_request():
    embeddings, labels = cloud(8, 200, 12)
    assert evaluate(embeddings, labels).nmi is None
    values = [evaluate(embeddings, labels, clusters=True, seed=s).nmi for s in (0, 0, 1, 2, 3)]
    assert values[0] == values[1]
    assert len(set(values)) > 1
    assert all(0 <= value <= 1 for value in values)


# --- Intervals -----------------------------------------------------------------------------------


def results(hits, labels, **changes) -> Retrieval:
    """A result with these hits at K = 1."""
    hits = np.asarray(hits, bool).reshape(-1, 1)
    defaults = {
        "recall": {1: float(hits.mean())},
        "map_at_r": 0.0,
        "precision_at_1": 0.0,
        "r_precision": 0.0,
        "nmi": None,
        "hits": hits,
        "matched": np.ones(len(hits), bool),
        "labels": np.asarray(labels),
        "ks": (1,),
    }
    return Retrieval(**{**defaults, **changes})


def draw_hits(rng, classes: int, per_class: int):
    """Hits of classes that are easy or hard as a whole; the true recall is 2/3."""
    labels = np.repeat(np.arange(classes), per_class)
    return rng.random(len(labels)) < rng.beta(2, 1, classes)[labels], labels


def test_interval_holds_the_truth_as_often_as_it_says(rng):
    by_class = by_query = 0
    for trial in range(200):
        hits, labels = draw_hits(rng, 40, 10)
        low, high = results(hits, labels).interval(1, resamples=300, seed=trial)
        by_class += low <= 2 / 3 <= high
        every_query_a_class = results(hits, np.arange(400))
        low, high = every_query_a_class.interval(1, resamples=300, seed=trial)
        by_query += low <= 2 / 3 <= high
    assert 0.88 <= by_class / 200 <= 0.99
    assert by_query / 200 < 0.85  # what resampling queries would have given


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_equals_scipy(level, rng):
    hits, labels = draw_hits(rng, 30, 10)
    keep = rng.random(300) < 0.6  # classes of different sizes
    hits, labels = hits[keep], labels[keep]
    counts = np.bincount(labels, minlength=30)
    sums = np.bincount(labels, weights=hits, minlength=30)
    expected = stats.bootstrap(
        (sums, counts),
        lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    assert results(hits, labels).interval(1, level) == pytest.approx(tuple(expected), abs=0.004)


def test_interval_is_seeded_nested_and_around_the_value(rng):
    hits, labels = draw_hits(rng, 30, 10)
    result = results(hits, labels)
    wide, narrow = result.interval(1, 0.95), result.interval(1, 0.5)
    assert result.interval(1, 0.95) == wide
    assert len({result.interval(1, 0.95, seed=seed) for seed in range(8)}) > 1
    assert wide[0] < narrow[0] < hits.mean() < narrow[1] < wide[1]


def test_interval_narrows_with_the_root_of_the_number_of_classes(rng):
    widths = []
    for classes in (25, 400):
        low, high = results(*draw_hits(rng, classes, 10)).interval(1)
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.3)


def test_interval_leaves_out_the_queries_the_recall_leaves_out():
    embeddings, labels = cloud(9, 60, 25)
    for unmatched in ("exclude", "miss"):
        result = evaluate(embeddings, labels, ks=(1, 2), unmatched=unmatched)
        counted = result.matched if unmatched == "exclude" else np.ones(60, bool)
        assert not result.matched.all()
        alone = results(result.hits[counted, 1], labels[counted])
        assert result.interval(2) == alone.interval(1)
        assert result.interval(2)[0] < result.recall[2] < result.interval(2)[1]


def test_interval_of_a_perfect_result_is_a_point():
    assert results(np.ones(20), np.repeat([0, 1], 10)).interval(1) == (1.0, 1.0)


# --- Differences ---------------------------------------------------------------------------------


def test_difference_equals_scipy(rng):
    before, labels = draw_hits(rng, 30, 10)
    after = before | (rng.random(300) < 0.2)
    value, low, high = difference(results(before, labels), results(after, labels))
    counts = np.bincount(labels)
    sums = np.bincount(labels, weights=after.astype(float) - before)
    expected = stats.bootstrap(
        (sums, counts),
        lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    assert value == pytest.approx(after.mean() - before.mean())
    assert (low, high) == pytest.approx(tuple(expected), abs=0.003)
    assert 0 < low < value < high


def test_difference_is_paired_and_signed(rng):
    before, labels = draw_hits(rng, 30, 10)
    after = before | (rng.random(300) < 0.2)
    first, second = results(before, labels), results(after, labels)
    assert difference(first, first) == (0, 0, 0)
    value, low, high = difference(first, second)
    assert difference(second, first) == pytest.approx((-value, -high, -low), abs=1e-12)
    alone = [one.interval(1)[1] - one.interval(1)[0] for one in (first, second)]
    assert high - low < 0.8 * max(alone)  # what makes a class hard cancels


def test_difference_of_two_evaluations():
    embeddings, labels = cloud(10, 80, 8)
    blurred = embeddings + np.random.default_rng(0).normal(size=embeddings.shape)
    first, second = evaluate(embeddings, labels), evaluate(blurred, labels)
    value, low, high = difference(first, second, k=2, level=0.9)
    assert value == pytest.approx(second.recall[2] - first.recall[2])
    assert low <= value <= high


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
        ({"embeddings": with_row(4, math.nan)}, r"row 4 of the embeddings has NaN .* leave it out"),
        ({"embeddings": with_row(1, math.inf)}, r"row 1 of the embeddings has NaN or infinite"),
        ({"embeddings": with_row(2, 0)}, r"row 2 of the embeddings has zero length \(1 such rows"),
        ({"labels": LABELS[:4]}, r"labels have shape \(4,\), expected \(6,\)"),
        ({"labels": [[c] for c in LABELS]}, r"labels have shape \(6, 1\), expected \(6,\)"),
        ({"labels": [0.0, 0, 1, 1, 2, 2]}, r"labels are float64: give whole numbers"),
        ({"labels": list("aabbcc")}, r"labels are <U1: give whole numbers"),
        ({"labels": [3] * 6}, r"all labels are the same: with one class only every answer"),
        ({"labels": range(6)}, r"no query has an image of its class .*: check the labels"),
        ({"ks": ()}, r"ks are \[\]: give whole numbers from 1 upwards"),
        ({"ks": (0, 1)}, r"ks are \[0, 1\]: give whole numbers from 1 upwards"),
        ({"ks": (1.5,)}, r"1\.5.*: give whole numbers from 1 upwards"),
        ({"ks": (1, 6)}, r"K = 6 is larger than the gallery: a query can find 5 images; ask for"),
        ({"unmatched": "exlude"}, r"unmatched='exlude': choose .*Did you mean 'exclude'\?"),
        ({"unmatched": None}, r"unmatched=None: choose 'exclude' or 'miss'\.$"),
        ({"gallery": POINTS}, r"give gallery and gallery_labels together, or neither"),
        ({"gallery_labels": LABELS}, r"give gallery and gallery_labels together, or neither"),
        (
            {"gallery": POINTS[:3], "gallery_labels": [0, 1, 2], "ks": (4,)},
            r"K = 4 is larger than the gallery: a query can find 3 images",
        ),
        (
            {"gallery": with_row(5, math.nan), "gallery_labels": LABELS},
            r"row 5 of the gallery has NaN",
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


@pytest.mark.parametrize("available, arguments", [(5, {}), (6, {"gallery": POINTS})])
def test_as_many_neighbors_as_there_are_and_no_more(available, arguments):
    assert nearest_neighbors(POINTS, available, **arguments)[1].shape == (6, available)
    for wrong, message in [(available + 1, f"can find {available} images"), (0, r"\[0\]: give")]:
        with pytest.raises(ValueError, match=message):
            nearest_neighbors(POINTS, wrong, **arguments)


def test_neighbors_in_a_gallery_of_another_dimension():
    with pytest.raises(ValueError, match="gallery"):
        nearest_neighbors(POINTS, 1, gallery=POINTS[:, :2])


@pytest.mark.parametrize("level", [0, 1, 95, -0.5, math.nan])
def test_interval_of_an_impossible_level(level):
    message = re.escape(f"level is {level}: it must lie between 0 and 1, e.g. 0.95")
    with pytest.raises(ValueError, match=message):
        evaluate(POINTS, LABELS, ks=(1,)).interval(1, level)


def test_interval_of_a_k_that_was_not_computed():
    result = evaluate(POINTS, LABELS, ks=(1, 2))
    with pytest.raises(ValueError, match=r"Recall@4 was not computed: choose one of \[1, 2\]"):
        result.interval(4)
    with pytest.raises(ValueError, match=r"Recall@2 was not computed: choose one of \[1\]"):
        difference(result, evaluate(POINTS, LABELS, ks=(1,)), k=2)


def test_difference_of_results_on_other_queries():
    alone = [0, 0, 1, 1, 2, 3]  # the last two have no match
    first = evaluate(POINTS, alone, ks=(1,))
    for other in (
        evaluate(POINTS, alone[::-1], ks=(1,)),
        evaluate(POINTS[:5], alone[:5], ks=(1,)),
        evaluate(POINTS, alone, ks=(1,), unmatched="miss"),
    ):
        with pytest.raises(ValueError, match="not on the same queries: evaluate both alike"):
            difference(first, other)


@pytest.mark.parametrize("found", [[0, 0, 0, 1, 1, 1], [0, 0, 0, 2, 2, 2]])
def test_difference_of_results_in_which_other_queries_count(found):
    # The galleries hold different classes, so the means are over different queries.
    gallery = {"gallery": POINTS, "ks": (1,)}
    first = evaluate(POINTS, LABELS, gallery_labels=[1, 1, 1, 2, 2, 2], **gallery)
    second = evaluate(POINTS, LABELS, gallery_labels=found, **gallery)
    with pytest.raises(ValueError, match="not on the same queries"):
        difference(first, second)


# ---- torch and approximate search, paired comparisons ----


def _tied(rng, count=300, dim=3):
    """Coarse points: many exact duplicates and ties."""
    points = rng.integers(-1, 2, (count, dim)).astype(np.float32)
    points[~points.any(1)] = 1
    return points, rng.integers(0, 9, count)


@pytest.mark.parametrize("kind", ["random", "tied"])
def test_torch_search_equals_faiss(rng, kind):
    points, labels = (rng.normal(size=(300, 8)), rng.integers(0, 9, 300))
    if kind == "tied":
        points, labels = _tied(rng)
    ours = evaluate(points, labels, ks=(1, 5, 50))
    torchs = evaluate(torch.tensor(points), labels, ks=(1, 5, 50), backend="torch")
    if kind == "random":
        np.testing.assert_array_equal(ours.hits, torchs.hits)
        assert ours.map_at_r == pytest.approx(torchs.map_at_r)
    else:  # ties "as computed": the two may round differently, each by its own rule
        cosines = points / np.linalg.norm(points, axis=1, keepdims=True)
        similarities, indices = next(
            (s, i)
            for _, s, i in retrieval._search_torch(
                torch.tensor(cosines), torch.tensor(cosines), 20, True
            )
        )
        assert not (indices == np.arange(300)[:, None]).any()
        same = similarities[:, 1:] == similarities[:, :-1]
        assert same.any() and (np.diff(indices, axis=1)[same] > 0).all()


def test_torch_search_keeps_chunks_small(rng, monkeypatch):
    monkeypatch.setattr(retrieval, "_CHUNK", 37)
    points, labels = torch.tensor(rng.normal(size=(200, 8))), rng.integers(0, 9, 200)
    by_chunks = evaluate(points, labels, backend="torch")
    monkeypatch.undo()
    np.testing.assert_array_equal(by_chunks.hits, evaluate(points, labels).hits)


def test_torch_refuses_what_faiss_refuses():
    for bad in (float("nan"), 0.0):
        points = torch.tensor([[1.0, 0.0], [bad, 0.0 if bad == 0 else 1.0], [0.0, 1.0]])
        with pytest.raises(ValueError, match="row 1 of the embeddings"):
            evaluate(points, [0, 0, 1], backend="torch")


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'torch'"):
        evaluate(np.eye(3), [0, 0, 1], ks=(1,), backend="torhc")


def test_approximate_search_reports_what_it_finds(rng):
    centers = rng.normal(size=(60, 16))
    labels = np.repeat(np.arange(60), 50)
    points = centers[labels] + 0.6 * rng.normal(size=(3000, 16))
    exact = evaluate(points, labels)
    near = evaluate(points, labels, approximate=True)
    assert exact.neighbors_found is None and "neighbors_found" not in exact.summary()
    assert 0.9 < near.neighbors_found <= 1 and near.summary()["neighbors_found"] > 0.9
    assert near.recall[1] == pytest.approx(exact.recall[1], abs=0.02)
    assert near.map_at_r <= exact.map_at_r + 0.01


def test_approximate_search_with_a_gallery_and_unfilled_lists(rng):
    points, labels = rng.normal(size=(400, 4)), np.arange(400) % 20
    near = evaluate(
        points[:100], labels[:100], gallery=points[100:], gallery_labels=labels[100:],
        ks=(1, 300), approximate=True,
    )  # fmt: skip
    assert 0 < near.neighbors_found <= 1
    assert near.recall[300] <= 1


def test_precision_at_1_is_recall_at_1(rng):
    points, labels = rng.normal(size=(200, 8)), rng.integers(0, 9, 200)
    result = evaluate(points, labels, ks=(1, 4))
    assert result.precision_at_1 == result.recall[1] == result.summary()["precision_at_1"]


def test_interval_of_kinds_equals_that_of_classes(rng):
    points, labels = rng.normal(size=(400, 4)), rng.integers(0, 80, 400)
    result = evaluate(points, labels)
    queries, successes = result._by_class(1)
    draws = rng.integers(0, len(queries), (10_000, len(queries)))  # class by class
    slow = np.quantile(successes[draws].sum(1) / queries[draws].sum(1), [0.025, 0.975])
    np.testing.assert_allclose(result.interval(1), slow, atol=0.004)


def test_permutation_over_classes_against_scipy(rng):
    labels = np.repeat(np.arange(25), 8)
    points = np.eye(25)[labels] + 0.5 * rng.normal(size=(200, 25))
    first = evaluate(points, labels)
    second = evaluate(points + 0.25 * rng.normal(size=(200, 25)), labels)
    found = compare_classes(first, second)
    queries, before, after = retrieval._paired_by_class(first, second, 1)
    theirs = stats.permutation_test(
        (after - before, np.zeros_like(before)), lambda a, b, axis=-1: (a - b).sum(axis),
        permutation_type="samples", n_resamples=20_000, rng=0, vectorized=True,
    )  # fmt: skip
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.02)
    assert (found.difference, found.low, found.high) == difference(first, second)
    same = compare_classes(first, first)
    assert same.difference == 0 and same.p_value == 1 and same.over == "classes"


@pytest.mark.parametrize("seeds", [2, 5, 14, 20])
def test_comparison_of_seeds_against_scipy(rng, seeds):
    first = rng.normal(0.6, 0.02, seeds)
    second = first + rng.normal(0.01, 0.02, seeds)
    found = compare_seeds(first, second)
    test = stats.ttest_rel(second, first)
    ends = test.confidence_interval()
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    theirs = stats.permutation_test(
        (second, first), lambda a, b: np.mean(a - b), permutation_type="samples",
        n_resamples=9999 if seeds > 14 else np.inf, vectorized=False, rng=0,
    )  # fmt: skip
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.02 if seeds > 14 else 1e-9)


def test_comparison_of_seeds_refuses_what_is_no_pair():
    with pytest.raises(ValueError, match="equal length"):
        compare_seeds([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="NaN"):
        compare_seeds([1, 2], [1, float("nan")])
