"""Retrieval: against brute force, pytorch-metric-learning and scikit-learn.

Notation: N queries, M gallery images, D embedding dimension, R relevant images of a query.
"""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.neighbors import NearestNeighbors

from sobook import retrieval
from sobook.errors import SobookError
from sobook.retrieval import check_labels, evaluate, nearest_neighbors

try:  # pytorch-metric-learning 3
    from pytorch_metric_learning.evaluation import AccuracyCalculator
except ImportError:  # 2
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

seeds = st.integers(0, 2**32 - 1)


def brute_ranking(queries, gallery=None) -> list[list[int]]:
    """All images a query can find, by falling cosine. Itself is left out."""
    searched = queries if gallery is None else gallery
    units = [np.asarray(row, float) / np.linalg.norm(row) for row in searched]
    ranking = []
    for i, query in enumerate(queries):
        cosines = {j: float(query @ other) for j, other in enumerate(units)}
        if gallery is None:
            del cosines[i]
        ranking.append(sorted(cosines, key=lambda j, cosines=cosines: -cosines[j]))
    return ranking


def brute_evaluate(queries, labels, gallery=None, gallery_labels=None, *, ks):
    """Recall@K, MAP@R and R-precision, query by query, rank by rank."""
    image_labels = labels if gallery is None else gallery_labels
    hits, at_r, r_precisions = [], [], []
    for label, ranked in zip(labels, brute_ranking(queries, gallery), strict=True):
        relevant = [image_labels[j] == label for j in ranked]
        number = sum(relevant)
        if number == 0:
            continue
        hits.append([any(relevant[:k]) for k in ks])
        precisions = [sum(relevant[:r]) / r for r in range(1, number + 1) if relevant[r - 1]]
        at_r.append(sum(precisions) / number)
        r_precisions.append(sum(relevant[:number]) / number)
    return [*np.mean(hits, axis=0), np.mean(at_r), np.mean(r_precisions)]


def numbers(result) -> list[float]:
    return [*result.recall.values(), result.map_at_r, result.r_precision]


def cloud(seed: int, size: int, classes: int, dim: int = 8):
    """Embeddings near their class' center, and labels, some classes having one image only."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size)
    labels[:3] = 0, 1, 1
    embeddings = rng.normal(size=(classes, dim))[labels] + rng.normal(size=(size, dim))
    return embeddings.astype(np.float32), labels


# --- Metrics -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=seeds, size=st.integers(6, 30), classes=st.integers(2, 12), copies=st.integers(1, 3))
def test_metrics_equal_brute_force(seed, size, classes, copies):
    embeddings, labels = cloud(seed, size, classes)
    # Copies of an image have its class, so their order does not matter.
    embeddings, labels = np.tile(embeddings, (copies, 1)), np.tile(labels, copies)
    ks = (1, 3, size - 1)
    result = evaluate(embeddings, labels, ks=ks)
    assert numbers(result) == pytest.approx(brute_evaluate(embeddings, labels, ks=ks))
    assert 0 <= result.map_at_r <= result.r_precision <= 1
    third = size // 3
    split = embeddings[:third], labels[:third], embeddings[third:], labels[third:]
    if not np.isin(split[1], split[3]).any():
        return
    result = evaluate(*split[:2], gallery=split[2], gallery_labels=split[3], ks=(1, 3))
    assert numbers(result) == pytest.approx(brute_evaluate(*split, ks=(1, 3)))


@pytest.mark.parametrize("classes", [4, 40])
@pytest.mark.parametrize("split", [None, 60])
def test_metrics_equal_pytorch_metric_learning(classes, split):
    embeddings, labels = cloud(1, 150, classes, dim=16)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)  # they go by distance
    names = ("precision_at_1", "mean_average_precision_at_r", "r_precision")
    rows, labels = torch.from_numpy(embeddings), torch.from_numpy(labels)
    given = [rows[:split], labels[:split]]
    if split is not None:
        given += [rows[split:], labels[split:]]
    theirs = AccuracyCalculator(include=names).get_accuracy(*given)
    gallery = dict(zip(("gallery", "gallery_labels"), given[2:], strict=False))
    result = evaluate(*given[:2], **gallery)
    assert classes == 4 or not result.counted.all()  # queries without a relevant image take part
    ours = (result.recall[1], result.map_at_r, result.r_precision)
    assert ours == pytest.approx(tuple(float(theirs[name]) for name in names), abs=1e-7)


def test_metrics_by_hand():
    # On a half circle from left to right: a b a a b; c stands alone at the end.
    turns = np.radians([0, 10, 21, 33, 46, 90])
    embeddings = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    result = evaluate(embeddings, [5, 9, 5, 5, 9, 7], ks=(2, 1))
    # Neighbors: 0: b a a b c | 1: a a a b c | 2: b a a b c | 3: a b b a c | 4: a a b a c
    assert result.ks == (1, 2)
    assert result.hits[:, 0].tolist() == [False, False, False, True, False, False]
    assert result.hits[:, 1].tolist() == [True, False, True, True, False, False]
    assert result.counted.tolist() == [True] * 5 + [False]
    assert result.recall == {1: 1 / 5, 2: 3 / 5}
    assert result.r_precision == pytest.approx((1 / 2 + 0 + 1 / 2 + 1 / 2 + 0) / 5)
    assert result.map_at_r == pytest.approx((1 / 4 + 0 + 1 / 4 + 1 / 2 + 0) / 5)


def test_the_query_is_left_out_by_index_not_by_position():
    # Two images that are the same file under two labels: each one's nearest is the other.
    # Dropping the first neighbor instead would, for one of them, find the image itself.
    embeddings = [[1, 0], [1, 0], [1, 0.1], [1, 0.2]]
    assert nearest_neighbors(embeddings, 1)[1][:2, 0].tolist() == [1, 0]
    assert evaluate(embeddings, [0, 1, 0, 1], ks=(1,)).hits[:2, 0].tolist() == [False, False]
    for copies in (3, 30, 200):
        _, indices = nearest_neighbors(np.ones((copies, 5)), 2)
        assert (indices != np.arange(copies)[:, None]).all()
        assert (indices[:, 0] != indices[:, 1]).all()


def test_order_names_lengths_and_chunks_do_not_matter(rng, monkeypatch):
    embeddings, labels = cloud(2, 50, 8)
    expected, order = evaluate(embeddings, labels), rng.permutation(50)
    names = rng.permutation([-3, 0, 7, 10**12, 44, 45, 2, 1])
    monkeypatch.setattr(retrieval, "_CHUNK", 7)
    lengths = 10 ** rng.uniform(-6, 6, (50, 1))
    same = evaluate((embeddings * lengths)[order], names[labels][order])
    np.testing.assert_array_equal(same.hits, expected.hits[order])
    assert same.map_at_r == pytest.approx(expected.map_at_r)


# --- Neighbors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, 40])
def test_neighbors_equal_scikit_learn(k):
    embeddings, _ = cloud(5, 80, 6)
    exact = NearestNeighbors(n_neighbors=k, metric="cosine")
    distances, indices = exact.fit(embeddings).kneighbors()
    similarities, ours = nearest_neighbors(embeddings, k)
    np.testing.assert_array_equal(ours, indices)
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-5)
    assert similarities.dtype == np.float32 and ours.dtype == np.int64
    queries, gallery = embeddings[:20], embeddings[20:]
    _, ours = nearest_neighbors(queries, k, gallery=gallery)
    np.testing.assert_array_equal(ours, exact.fit(gallery).kneighbors(queries)[1])


@pytest.mark.parametrize("available, arguments", [(5, {}), (6, {"gallery": np.eye(6)})])
def test_as_many_neighbors_as_there_are_and_no_more(available, arguments):
    assert nearest_neighbors(np.eye(6), available, **arguments)[1].shape == (6, available)
    for wrong in (available + 1, 0):
        with pytest.raises(SobookError, match=f"1 to {available}"):
            nearest_neighbors(np.eye(6), wrong, **arguments)


# --- Reports, labels and bad input ---------------------------------------------------------------


def test_interval_summary_and_text():
    embeddings, labels = cloud(9, 60, 25)
    result = evaluate(embeddings, labels, ks=(2, 4))
    queries, hits = result.by_class(2)
    assert queries.sum() == result.counted.sum() < 60
    assert hits.sum() / queries.sum() == pytest.approx(result.recall[2])
    low, high = result.interval(2)
    assert low < result.recall[2] < high
    summary = json.loads(json.dumps(result.summary()))
    assert summary["queries"] == 60 and summary["unmatched"] == (~result.counted).sum()
    assert summary["recall"] == {str(k): round(v, 6) for k, v in result.recall.items()}
    assert summary["recall_at_2_interval"] == pytest.approx((low, high), abs=1e-6)
    assert summary["map_at_r"] == pytest.approx(result.map_at_r, abs=1e-6)
    assert str(result).startswith(f"R@2 {result.recall[2]:.3f}  R@4 ")
    assert "array" not in repr(result)
    with pytest.raises(SobookError, match=r"Recall@8 .*\[2, 4\]"):
        result.interval(8)


def test_labels_decide_the_ks_and_the_number_of_relevant_images():
    ks, num_relevant = check_labels(np.array([0, 0, 1, 1, 1]))
    assert ks == (1, 2, 4) and num_relevant.tolist() == [1, 1, 2, 2, 2]
    ks, num_relevant = check_labels(np.array([0, 5]), np.array([0, 0, 1]), ks=[np.int64(3)])
    assert ks == (3,) and type(ks[0]) is int and num_relevant.tolist() == [2, 0]


POINTS, LABELS = cloud(0, 6, 2, dim=3)[0], [0, 0, 1, 1, 2, 2]


def with_row(row: int, value: float) -> np.ndarray:
    rows = POINTS.copy()
    rows[row] = value
    return rows


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"embeddings": np.ones(6)}, r"\(6,\)"),
        ({"embeddings": with_row(4, math.nan)}, "row 4 .*NaN"),
        ({"embeddings": with_row(1, math.inf)}, "row 1 .*infinite"),
        ({"embeddings": with_row(2, 0)}, "row 2 .*zero"),
        ({"embeddings": [["a", "b"]] * 6}, "numbers"),
        ({"embeddings": POINTS + 1j}, "complex64"),
        ({"labels": LABELS[:4]}, r"\(4,\)"),
        ({"labels": [[c] for c in LABELS]}, r"\(6, 1\)"),
        ({"labels": list("aabbcc")}, "integers"),
        ({"labels": [3] * 6}, "one class only"),
        ({"labels": range(6)}, "no query"),
        ({"ks": ()}, "K is"),
        ({"ks": (0, 1)}, "from 1"),
        ({"ks": (1.5,)}, "whole number"),
        ({"ks": (1, 6)}, "1 to 5"),
        ({"gallery": POINTS}, "together"),
        ({"gallery_labels": LABELS}, "together"),
        ({"gallery": POINTS[:3], "gallery_labels": [0, 1, 2], "ks": (4,)}, "1 to 3"),
        ({"gallery": with_row(5, math.nan), "gallery_labels": LABELS}, "row 5 of the gallery"),
        ({"gallery": POINTS, "gallery_labels": [7, 7, 7, 8, 8, 8]}, "no query"),
        ({"gallery": POINTS[:, :2], "gallery_labels": LABELS}, "dimensions differ"),
    ],
)
def test_bad_input(changes, word):
    with pytest.raises(SobookError, match=word):
        evaluate(**{"embeddings": POINTS, "labels": LABELS, "ks": (1,), **changes})
