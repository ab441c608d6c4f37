"""Intervals, paired tests, corrections and verdicts: against SciPy, slow twins, and coverage.

Notation: C classes, S seeds.
"""

import math
import re

import numpy as np
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


def results(hits, labels) -> Retrieval:
    """A result with these hits at K = 1."""
    hits = np.asarray(hits, bool).reshape(-1, 1)
    return Retrieval(
        recall={1: float(hits.mean())},
        map_at_r=0.0,
        r_precision=0.0,
        nmi=None,
        hits=hits,
        matched=np.ones(len(hits), bool),
        labels=np.asarray(labels),
        ks=(1,),
    )


def draw_hits(rng, classes: int, per_class: int):
    """Hits of classes that are easy or hard as a whole; the true recall is 2/3."""
    labels = np.repeat(np.arange(classes), per_class)
    return rng.random(len(labels)) < rng.beta(2, 1, classes)[labels], labels


def scipy_bootstrap(successes, queries, level: float):
    return stats.bootstrap(
        (successes, queries),
        lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval


# --- Intervals over classes ----------------------------------------------------------------------


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
    queries = np.bincount(labels, minlength=30)
    successes = np.bincount(labels, weights=hits, minlength=30)
    expected = tuple(scipy_bootstrap(successes, queries, level))
    assert class_interval(successes, queries, level) == pytest.approx(expected, abs=0.004)
    assert results(hits, labels).interval(1, level) == pytest.approx(expected, abs=0.004)


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


def test_interval_of_a_perfect_result_is_a_point():
    assert results(np.ones(20), np.repeat([0, 1], 10)).interval(1) == (1.0, 1.0)


@pytest.mark.parametrize("level", [0, 1, 95, math.nan])
def test_interval_of_an_impossible_level(level):
    message = re.escape(f"level is {level}: it must lie between 0 and 1, e.g. 0.95")
    for interval in (
        lambda: class_interval(np.ones(3), np.ones(3), level),
        lambda: t_interval([1, 2, 3], level),
    ):
        with pytest.raises(ValueError, match=message):
            interval()


# --- Differences over classes --------------------------------------------------------------------


def test_comparison_of_classes_equals_scipy(rng):
    before, labels = draw_hits(rng, 30, 10)
    after = before | (rng.random(300) < 0.1) & (rng.random(30) < 0.4)[labels]
    found = compare_classes(results(before, labels), results(after, labels))
    change = np.bincount(labels, weights=after.astype(float) - before)
    low, high = scipy_bootstrap(change, np.bincount(labels), 0.95)
    assert found.difference == pytest.approx(after.mean() - before.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.003)
    assert (found.n, found.over) == (30, "classes")
    test = stats.permutation_test(
        (change,), np.sum, permutation_type="samples", n_resamples=20_000, rng=0
    )
    assert 0 < found.p_value < 1
    assert found.p_value == pytest.approx(test.pvalue, abs=0.02)


def test_comparison_of_classes_is_paired_and_signed(rng):
    before, labels = draw_hits(rng, 30, 10)
    after = before | (rng.random(300) < 0.2)
    first, second = results(before, labels), results(after, labels)
    same = compare_classes(first, first)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    there, back = compare_classes(first, second), compare_classes(second, first)
    assert back.difference == -there.difference and back.p_value == there.p_value
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=1e-12)
    alone = [one.interval(1)[1] - one.interval(1)[0] for one in (first, second)]
    assert there.high - there.low < 0.8 * max(alone)  # what makes a class hard cancels


POINTS = np.random.default_rng(0).normal(size=(6, 3))


def test_comparison_of_classes_takes_a_k():
    labels = [0, 0, 1, 1, 2, 2]
    first, second = evaluate(POINTS, labels, ks=(1, 2)), evaluate(-(POINTS**2), labels, ks=(1, 2))
    found = compare_classes(first, second, k=2)
    assert found.difference == pytest.approx(second.recall[2] - first.recall[2])
    assert found.low <= found.difference <= found.high
    with pytest.raises(ValueError, match=r"Recall@4 was not computed: choose one of \[1, 2\]"):
        compare_classes(first, second, k=4)


def test_comparison_of_results_on_other_queries():
    alone = [0, 0, 1, 1, 2, 3]  # the last two have no match
    first = evaluate(POINTS, alone, ks=(1,))
    for other in (
        evaluate(POINTS[:5], alone[:5], ks=(1,)),
        evaluate(POINTS, alone, ks=(1,), unmatched="miss"),
    ):
        with pytest.raises(ValueError, match="not on the same queries: evaluate both alike"):
            compare_classes(first, other)


def test_comparison_of_results_in_which_other_queries_count():
    # The galleries hold different classes, so the means are over different queries.
    options = {"gallery": POINTS, "ks": (1,)}
    labels = [0, 0, 1, 1, 2, 2]
    first = evaluate(POINTS, labels, gallery_labels=[1, 1, 1, 2, 2, 2], **options)
    second = evaluate(POINTS, labels, gallery_labels=[0, 0, 0, 2, 2, 2], **options)
    with pytest.raises(ValueError, match="not on the same queries"):
        compare_classes(first, second)


# --- Differences over seeds ----------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [2, 5, 20])
def test_comparison_of_seeds_equals_scipy(rng, seeds):
    first = rng.normal(0.6, 0.02, seeds)
    second = first + rng.normal(0.01, 0.02, seeds)
    found = compare_seeds(first, second)
    test = stats.ttest_rel(second, first)
    ends = test.confidence_interval()
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert found.p_value == pytest.approx(test.pvalue)
    assert (found.n, found.over) == (seeds, "seeds")
    back = compare_seeds(second, first)
    assert (back.difference, back.p_value) == pytest.approx((-found.difference, found.p_value))


def test_comparison_of_seeds_errs_as_often_as_it_says(rng):
    """Of unrelated numbers, one in twenty comparisons has p below .05."""
    pairs = rng.normal(size=(2000, 2, 6))
    below = np.mean([compare_seeds(*pair).p_value < 0.05 for pair in pairs])
    assert below == pytest.approx(0.05, abs=0.015)


def test_comparison_of_seeds_that_all_say_the_same():
    found = compare_seeds([0.5, 0.25], [0.75, 0.5])
    assert (found.difference, found.low, found.high) == (0.25, 0.25, 0.25)
    assert math.isnan(found.p_value)


def test_comparison_of_seeds_refuses_what_is_no_pair():
    with pytest.raises(ValueError, match=r"equal length, one number per seed"):
        compare_seeds([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="at least two seeds"):
        compare_seeds([1], [2])
    with pytest.raises(ValueError, match="NaN"):
        compare_seeds([1, 2], [1, float("nan")])


def test_t_interval_equals_scipy_and_is_unknown_for_one_value(rng):
    for size, level in ((2, 0.95), (5, 0.8), (30, 0.99)):
        values = rng.normal(size=size)
        ends = stats.ttest_1samp(values, 0).confidence_interval(level)
        assert t_interval(values, level) == pytest.approx((ends.low, ends.high))
    assert all(map(math.isnan, t_interval([0.5])))
    assert t_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


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
@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_equals_the_slow_version(p_values):
    np.testing.assert_allclose(holm(p_values), slow_holm(p_values))


def test_holm_leaves_nan_out_of_the_family():
    np.testing.assert_allclose(holm([0.04, np.nan, 0.01]), [0.04, np.nan, 0.02])
    assert holm([]).shape == (0,)


def seeds_compared(difference, p_value):
    return Comparison(difference, difference - 0.01, difference + 0.01, p_value, 5, "seeds")


@pytest.mark.parametrize(
    "difference, p_value, others, expected",
    [
        (0.02, 0.04, [], "higher"),
        (-0.02, 0.04, [], "lower"),
        (0.02, 0.06, [], "no difference shown"),
        (0.02, 0.02, [0.5], "higher"),
        (0.02, 0.03, [0.5], "no difference shown"),
        (0.02, 0.04, [0.01], "higher"),  # Holm: the largest p of a family is not raised
        (0.02, 0.03, [math.nan, math.nan], "higher"),
        (0.02, math.nan, [], "no difference shown"),
    ],
)
def test_verdict(difference, p_value, others, expected):
    found = seeds_compared(difference, p_value)
    family = [seeds_compared(0.5, p) for p in others] + [found]
    assert verdict(found, family) == expected


def test_a_verdict_needs_its_family():
    with pytest.raises(SobookError, match="family"):
        verdict(seeds_compared(0.02, 0.04), [seeds_compared(0.02, 0.03)])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_a_larger_family_shows_no_more(p_values):
    family = [seeds_compared(0.02, p) for p in p_values]
    shown = [verdict(member, family) for member in family]
    alone = [verdict(member, [member]) for member in family]
    assert all(a == b or b == "no difference shown" for a, b in zip(alone, shown, strict=True))


def test_comparison_reads_as_a_line():
    text = str(Comparison(0.0123, -0.001, 0.0256, 0.0712, 5, "seeds"))
    assert text == "+0.0123 [-0.0010, +0.0256] over 5 seeds, p = 0.071"


# --- Rank correlation over pairs of classes ------------------------------------------------------


def symmetric(seed, classes=12):
    matrix = np.random.default_rng(seed).normal(size=(classes, classes))
    return matrix + matrix.T


def test_rank_correlation_equals_scipy_with_an_interval_around_it():
    a, b = symmetric(0), symmetric(1)
    mixed = a + b
    rho, low, high = rank_correlation(a, mixed)
    assert rho == pytest.approx(stats.spearmanr(off_diagonal(a), off_diagonal(mixed)).statistic)
    assert -1 <= low < rho < high <= 1
    assert rank_correlation(a, -np.exp(-a)) == pytest.approx((1, 1, 1))
    assert rank_correlation(a, mixed) == rank_correlation(a, mixed)


def test_interval_over_classes_covers_zero_for_unrelated_numbers():
    covered = 0
    for seed in range(24):
        _, low, high = rank_correlation(symmetric(2 * seed), symmetric(2 * seed + 1), resamples=100)
        covered += low <= 0 <= high
    assert covered >= 20  # about 23 expected


def test_rank_correlation_of_what_does_not_vary_is_unknown():
    assert all(map(math.isnan, rank_correlation(symmetric(0), np.ones((12, 12)), resamples=10)))
    with pytest.raises(ValueError, match="at least 3"):
        rank_correlation(np.eye(2), np.eye(2))
