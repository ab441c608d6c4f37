"""Intervals, paired tests, corrections and verdicts: against SciPy, slow twins, and coverage.

Notation: C classes, S seeds.
"""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from sobook.errors import SobookError
from sobook.geometry import off_diagonal
from sobook.retrieval import Retrieval, evaluate
from sobook.statistics import (
    Comparison,
    class_interval,
    compare_classes,
    compare_seeds,
    holm,
    rank_correlation,
    t_interval,
    verdict,
)

p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def results(hits, labels) -> Retrieval:
    """A result with these hits at K = 1."""
    hits, counted = np.asarray(hits, bool).reshape(-1, 1), np.ones(len(hits), bool)
    return Retrieval({1: float(hits.mean())}, 0.0, 0.0, hits, counted, np.asarray(labels), (1,))


def draw_hits(rng, classes: int, per_class: int):
    """Hits of classes that are easy or hard as a whole; the true recall is 2/3."""
    labels = np.repeat(np.arange(classes), per_class)
    return rng.random(len(labels)) < rng.beta(2, 1, classes)[labels], labels


def scipy_bootstrap(successes, queries):
    return stats.bootstrap(
        (successes, queries),
        lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval


# --- Over classes --------------------------------------------------------------------------------


def test_interval_equals_scipy(rng):
    hits, labels = draw_hits(rng, 30, 10)
    keep = rng.random(300) < 0.6  # classes of different sizes
    hits, labels = hits[keep], labels[keep]
    queries = np.bincount(labels, minlength=30)
    successes = np.bincount(labels, weights=hits, minlength=30)
    expected = pytest.approx(tuple(scipy_bootstrap(successes, queries)), abs=0.004)
    assert class_interval(successes, queries) == expected == results(hits, labels).interval(1)


@pytest.mark.parametrize("mean", [0.5, 0.9])
@pytest.mark.parametrize("classes", [4, 10])
def test_interval_over_few_classes_covers(mean, classes):
    from tests.benchmarks.coverage import coverage  # which takes `results` from here

    held, held_difference = coverage(mean, classes, draws=400)
    assert 0.92 <= held <= 0.99 and held_difference >= 0.92


def test_interval_over_few_classes_is_never_a_point():
    all_right = results(np.ones(50), np.repeat(np.arange(5), 10))
    low, high = all_right.interval(1)
    assert 0.8 < low < 0.95 and 0.99 < high < 1
    assert all(map(math.isnan, results(np.ones(30), np.repeat(np.arange(3), 10)).interval(1)))
    assert all_right.summary()["recall_at_1_interval"] == pytest.approx([low, high], abs=1e-6)
    alone = results([1, 1, 0], [0, 0, 0]).summary()
    assert alone["recall_at_1_interval"] is None


def test_interval_of_a_ratio_equals_that_of_a_regression_through_the_origin():
    """statsmodels would call it a survey ratio; here SciPy's t interval of equal classes."""
    change = np.array([3.0, -1, 0, 2, 1])
    ends = stats.t.interval(0.95, 4, (change / 10).mean(), stats.sem(change / 10))
    before, labels = np.tile(np.arange(10) < 4, 5), np.repeat(np.arange(5), 10)
    after = np.concatenate([np.arange(10) < 4 + c for c in change])
    compared = compare_classes(results(before, labels), results(after, labels))
    assert (compared.low, compared.high) == pytest.approx(ends)


def test_interval_over_classes_holds_the_truth_where_one_over_queries_does_not(rng):
    by_class = by_query = 0
    for _ in range(200):
        hits, labels = draw_hits(rng, 40, 10)
        low, high = results(hits, labels).interval(1)
        by_class += low <= 2 / 3 <= high
        low, high = results(hits, np.arange(400)).interval(1)  # every query a class
        by_query += low <= 2 / 3 <= high
    assert 0.88 <= by_class / 200 <= 0.99
    assert by_query / 200 < 0.85


def test_comparison_of_classes_equals_scipy(rng):
    before, labels = draw_hits(rng, 30, 10)
    after = before | (rng.random(300) < 0.1) & (rng.random(30) < 0.4)[labels]
    compared = compare_classes(results(before, labels), results(after, labels))
    change = np.bincount(labels, weights=after.astype(float) - before)
    ends = tuple(scipy_bootstrap(change, np.bincount(labels)))
    assert compared.difference == pytest.approx(after.mean() - before.mean())
    assert (compared.low, compared.high) == pytest.approx(ends, abs=0.003)
    assert (compared.n, compared.over) == (30, "classes")
    test = stats.permutation_test(
        (change,), np.sum, permutation_type="samples", n_resamples=20_000, rng=0
    )
    assert 0 < compared.p_value < 1
    assert compared.p_value == pytest.approx(test.pvalue, abs=0.02)


def test_comparison_of_classes_is_paired_and_signed(rng):
    before, labels = draw_hits(rng, 30, 10)
    first, second = results(before, labels), results(before | (rng.random(300) < 0.2), labels)
    same = compare_classes(first, first)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    forth, back = compare_classes(first, second), compare_classes(second, first)
    assert back.difference == -forth.difference and back.p_value == forth.p_value
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low), abs=1e-12)
    low, high = first.interval(1)
    assert forth.high - forth.low < 0.8 * (high - low)  # what makes a class hard cancels


def test_comparison_of_classes_takes_a_k_and_needs_the_same_queries(rng):
    points, labels = rng.normal(size=(6, 3)), [0, 0, 1, 1, 2, 2]
    first, second = evaluate(points, labels, ks=(1, 2)), evaluate(-(points**2), labels, ks=(1, 2))
    compared = compare_classes(first, second, k=2)
    assert compared.difference == pytest.approx(second.recall[2] - first.recall[2])
    with pytest.raises(SobookError, match="Recall@4"):
        compare_classes(first, second, k=4)
    galleries = [[1, 1, 1, 2, 2, 2], [0, 0, 0, 2, 2, 2]]  # so other queries count
    a, b = (evaluate(points, labels, gallery=points, gallery_labels=g, ks=(1,)) for g in galleries)
    for pair in ((a, b), (first, evaluate(points[:5], labels[:5], ks=(1,)))):
        with pytest.raises(SobookError, match="same queries"):
            compare_classes(*pair)


# --- Over seeds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [2, 5, 20])
def test_comparison_of_seeds_equals_scipy(rng, seeds):
    first = rng.normal(0.6, 0.02, seeds)
    second = first + rng.normal(0.01, 0.02, seeds)
    compared, test = compare_seeds(first, second), stats.ttest_rel(second, first)
    ends = test.confidence_interval()
    assert (compared.low, compared.high) == pytest.approx((ends.low, ends.high))
    assert t_interval(second - first) == (compared.low, compared.high)
    assert compared.p_value == pytest.approx(test.pvalue)
    assert (compared.n, compared.over) == (seeds, "seeds")


def test_comparison_of_seeds_errs_as_often_as_it_says(rng):
    """Of unrelated numbers, one in twenty comparisons has p below .05."""
    pairs = rng.normal(size=(2000, 2, 6))
    below = np.mean([compare_seeds(*pair).p_value < 0.05 for pair in pairs])
    assert below == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("first", [[0.5, 0.56], [0.62, 0.63], [0.1, 0.2, 0.3, 0.7, 0.9]])
def test_a_constant_difference_is_not_decided_by_rounding(first):
    """The last bit of a float made it certain, or nothing at all."""
    second = np.array(first) + 0.01
    compared = compare_seeds(first, second)
    assert compared.p_value == 2.0 ** (1 - len(first)) and compared.low == compared.high
    assert f"constant over {len(first)} seeds" in str(compared)
    signs = stats.permutation_test(
        (np.full(len(first), 0.01),), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert compared.p_value == pytest.approx(signs.pvalue)
    assert compare_seeds(first, np.array(first) + 1e-12).p_value == 1
    assert all(map(math.isnan, t_interval([0.5])))


@pytest.mark.parametrize("kind, size", [(np.float32, 1.0), (float, 1e9)])
def test_rounding_is_that_of_the_numbers_given(kind, size):
    first = (size * np.array([0.5, 0.56, 0.61])).astype(kind)
    compared = compare_seeds(first, (first + kind(0.01 * size)).astype(kind))
    assert compared.p_value == 0.25 and compared.low == compared.high


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(SobookError, match="index"):
        compare_seeds(pd.Series([0.5, 0.6], [0, 1]), pd.Series([0.6, 0.7], [1, 2]))
    for p_values in ([-0.1, 0.5], [0.5, 1.5]):
        with pytest.raises(SobookError, match="between 0 and 1"):
            holm(p_values)
    infinite = symmetric(0)
    infinite[0, 1] = infinite[1, 0] = np.inf
    with pytest.raises(SobookError, match="infinite"):
        rank_correlation(infinite, symmetric(1))


def test_masked_values_are_refused():
    masked = np.ma.masked_array([0.5, 0.6, 0.7], mask=[False, True, False])
    rows = np.ma.masked_array(np.eye(4), mask=np.eye(4, k=1))
    labels = np.ma.masked_array([0, 0, 1, 1], mask=[0, 0, 0, 1])
    for call in (
        lambda: compare_seeds(masked, [1, 2, 3]),
        lambda: t_interval(masked),
        lambda: holm(masked),
        lambda: class_interval(masked, np.ones(3)),
        lambda: rank_correlation(rows, np.eye(4)),
        lambda: evaluate(rows, [0, 0, 1, 1]),
        lambda: evaluate(np.eye(4), labels),
    ):
        with pytest.raises(SobookError, match="masked"):
            call()
    unmasked = np.ma.masked_array([0.5, 0.6], mask=False)
    assert compare_seeds(unmasked, [0.6, 0.8]).n == 2


@pytest.mark.parametrize(
    "first, second, word",
    [([1, 2, 3], [1, 2], r"\(3,\)"), ([1], [2], "two seeds"), ([1, 2], [1, math.nan], "NaN")],
)
def test_comparison_of_seeds_refuses_what_is_no_pair(first, second, word):
    with pytest.raises(SobookError, match=word):
        compare_seeds(first, second)


# --- Families and verdicts -----------------------------------------------------------------------


def slow_holm(p_values) -> list[float]:
    """Each p times how many of the family are at least as large, never below a smaller one's."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


@settings(max_examples=50, deadline=None)
@given(p_lists)
def test_holm_equals_the_slow_version_and_a_larger_family_shows_no_more(p_values):
    np.testing.assert_allclose(holm(p_values), slow_holm(p_values))
    family = [seeds_compared(0.02, p) for p in p_values]
    for member in family:
        assert verdict(member, family) in (verdict(member, [member]), "no difference shown")


def seeds_compared(difference, p_value):
    return Comparison(difference, difference - 0.01, difference + 0.01, p_value, 5, "seeds")


@pytest.mark.parametrize(
    "difference, p_value, others, expected",
    [
        (0.02, 0.04, [], "higher"),
        (-0.02, 0.04, [], "lower"),
        (0.02, 0.06, [], "no difference shown"),
        (0.02, 0.03, [0.5], "no difference shown"),
        (0.02, 0.04, [0.01], "higher"),  # Holm: the largest p of a family is not raised
        (0.02, 0.03, [math.nan], "no difference shown"),  # a missing one counts with p = 1
        (0.02, 0.02, [math.nan], "higher"),
        (0.02, math.nan, [], "no difference shown"),
    ],
)
def test_verdict(difference, p_value, others, expected):
    compared = seeds_compared(difference, p_value)
    assert verdict(compared, [seeds_compared(0.5, p) for p in others] + [compared]) == expected
    with pytest.raises(SobookError, match="family"):
        verdict(compared, [seeds_compared(0.1, 0.5)])


# --- Rank correlation over pairs of classes ------------------------------------------------------


def symmetric(seed, classes=12):
    matrix = np.random.default_rng(seed).normal(size=(classes, classes))
    return matrix + matrix.T


def test_rank_correlation_equals_scipy_with_an_interval_around_it():
    a, b = symmetric(0), symmetric(0) + symmetric(1)
    rho, low, high = rank_correlation(a, b)
    assert rho == pytest.approx(stats.spearmanr(off_diagonal(a), off_diagonal(b)).statistic)
    assert -1 <= low < rho < high <= 1
    assert rank_correlation(a, -np.exp(-a)) == pytest.approx((1, 1, 1))
    assert all(map(math.isnan, rank_correlation(a, np.ones((12, 12)))))
    with pytest.raises(SobookError, match="at least 3"):
        rank_correlation(np.eye(2), np.eye(2))


def test_interval_over_classes_covers_zero_for_unrelated_numbers():
    covered = 0
    for seed in range(16):
        _, low, high = rank_correlation(symmetric(2 * seed), symmetric(2 * seed + 1))
        covered += low <= 0 <= high
    assert covered >= 13  # about 15 expected
