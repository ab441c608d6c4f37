"""Uncertainty of a number or a difference: intervals, paired tests, corrections, verdicts.

Start with `Comparison`. Two questions are kept apart: would other test classes say the same
(`compare_classes`), and would another training run (`compare_seeds`)? Comparisons have 95 %
intervals. Notation: C classes, S seeds, U unique profiles (classes with the same counts).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from sobook.errors import SobookError

RESAMPLES = 10_000  # draws of a bootstrap or a permutation test
LEVEL = 0.95  # coverage of the interval of a comparison
FEWEST = 4  # classes for an interval; of fewer, no interval that we tried covers .93 to .97
FEWEST_TO_DRAW = 20  # classes for a bootstrap, which covers too little of fewer
_ROUNDING = 1e-9  # differences that vary by less do not vary; more where floats are coarser


@dataclass(frozen=True)
class Comparison:
    """A paired difference, second minus first. Made by `compare_classes` and `compare_seeds`.

    Attributes:
        difference: the mean difference.
        low, high: ends of its 95 % interval.
        p_value: two-sided; of a paired t test over seeds, over classes of a permutation test: how
            often random signs of the pairs give a difference at least as large.
        n: how many classes or seeds.
        over: "classes" or "seeds".
    """

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    over: str

    def __str__(self) -> str:
        interval = f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"
        constant = "constant " if self.over == "seeds" and self.low == self.high else ""
        p_value = f"= {self.p_value:.3f}" if self.p_value >= 0.0005 else "< .001"
        return f"{interval} {constant}over {self.n} {self.over}, p {p_value}"


def compare_classes(first: Any, second: Any, k: int = 1) -> Comparison:
    """Recall@K of two results on the same queries, paired by class.

    Queries of one class succeed and fail together, so classes are what the bootstrap interval draws
    and what the permutation test exchanges. Both results get the same classes in each draw: what
    makes a class hard cancels.

    Args:
        first, second: each a `sobook.retrieval.Retrieval`.
        k: one of their Ks.

    Raises:
        SobookError: the two are not on the same queries.
    """
    aligned = [(first.labels, second.labels), (first.counted, second.counted)]
    if not all(np.array_equal(*pair) for pair in aligned):
        raise SobookError("the two results are not on the same queries: evaluate both alike.")
    queries, before = first.by_class(k)
    change = second.by_class(k)[1] - before
    interval = class_interval if len(queries) >= FEWEST_TO_DRAW else _ratio_interval
    low, high = interval(change, queries)
    sizes, counts = np.unique(np.abs(change), return_counts=True)
    # Of n classes whose change has the same size, Binomial(n, ½) keep their sign.
    kept = np.random.default_rng(0).binomial(counts, 0.5, (RESAMPLES, len(counts)))
    extreme = np.abs((2 * kept - counts) @ sizes) >= abs(change.sum()) - 1e-9
    p_value = float((extreme.sum() + 1) / (RESAMPLES + 1))
    difference = float(change.sum() / queries.sum())
    return Comparison(difference, low, high, p_value, len(queries), "classes")


def compare_seeds(first: ArrayLike, second: ArrayLike) -> Comparison:
    """A metric of two methods over the same seeds: t interval, paired t test.

    A difference that is the same at every seed, up to rounding, has no spread to hold it against:
    its p value is that of the exact sign-flip test, 2^(1−S).

    Args:
        first, second: (S,) numbers, the metric at each seed, S ≥ 2, in the same order.

    Raises:
        SobookError: not two rows of the same length, or values that are not finite.

    >>> print(compare_seeds([0.50, 0.52, 0.51], [0.53, 0.54, 0.53]))
    +0.0233 [+0.0090, +0.0377] over 3 seeds, p = 0.020
    """
    pair: list[Any] = [first, second]
    if all(hasattr(x, "iloc") for x in pair) and not pair[0].index.equals(pair[1].index):  # pandas
        raise SobookError("the two metrics have different indexes: give both for the same seeds.")
    given = as_array(first), as_array(second)
    before, after = (values.astype(float) for values in given)
    if before.shape != after.shape or before.ndim != 1 or len(before) < 2:
        shapes = f"{before.shape} and {after.shape}"
        raise SobookError(f"the metrics have shapes {shapes}: give (S,) twice, at least two seeds.")
    if not np.isfinite([before, after]).all():
        raise SobookError("a metric is NaN or infinite: leave that seed out of both methods.")
    change, n = after - before, len(before)
    mean = float(change.mean())
    precision = max(np.finfo(v.dtype).eps if v.dtype.kind == "f" else 0.0 for v in given)
    rounding = max(_ROUNDING, 4 * precision * np.abs([before, after]).max())
    if np.ptp(change) < rounding:
        p_value = 2.0 ** (1 - n) if abs(mean) >= rounding else 1.0
        return Comparison(mean, mean, mean, p_value, n, "seeds")
    p_value = float(stats.ttest_1samp(change, 0).pvalue)
    return Comparison(mean, *t_interval(change), p_value, n, "seeds")


def missing(n: int) -> Comparison:
    """A comparison that was declared and could not be made, of n seeds: it counts with p = 1."""
    return Comparison(math.nan, math.nan, math.nan, 1.0, n, "seeds")


def as_array(values: Any, dtype: Any = None) -> np.ndarray:
    """Values as an array. A masked one is refused, since NumPy would silently drop the mask."""
    if np.ma.isMaskedArray(values) and np.ma.getmaskarray(values).any():
        raise SobookError("the array has masked values: take them out of it, e.g. rows[~mask].")
    return np.asarray(values, dtype=dtype)


def verdict(comparison: Comparison, family: Sequence[Comparison]) -> str:
    """Verdict on the second result of a comparison: "higher", "lower" or "no difference shown".

    Args:
        comparison: one of the family.
        family: all comparisons that were made to answer the same question, decided on before
            looking. Their p values are corrected together (`holm`); [comparison] where there is
            only one.

    Raises:
        SobookError: the family does not hold the comparison.

    >>> sure, alone = (Comparison(0.02, 0.01, 0.03, p, 58, "classes") for p in (0.002, 0.04))
    >>> verdict(alone, [alone]), verdict(alone, [sure, alone]), verdict(alone, [sure, alone, alone])
    ('higher', 'higher', 'no difference shown')
    """
    if comparison not in family:
        raise SobookError("a verdict needs the family that the comparison belongs to.")
    p_values = [member.p_value for member in family]
    if not holm(p_values)[list(family).index(comparison)] <= 1 - LEVEL:  # NaN: not shown
        return "no difference shown"
    return "higher" if comparison.difference > 0 else "lower"


def t_interval(values: ArrayLike) -> tuple[float, float]:
    """Two-sided 95 % t interval of the mean of a few independent values; NaN for fewer than two.

    >>> t_interval([0.0, 1.0, 2.0])
    (-1.484..., 3.484...)
    """
    values = as_array(values, float)
    if len(values) < 2:
        return math.nan, math.nan
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values)
    return float(values.mean() - half), float(values.mean() + half)


def class_interval(successes: np.ndarray, queries: np.ndarray) -> tuple[float, float]:
    """95 % interval of successes per query, over classes.

    A percentile bootstrap that draws whole classes; below twenty classes, where that covers too
    little (at four .81 to .86 of the time), the t interval of the ratio on the logit scale, which
    covers .95 to .97 (tests/benchmarks/coverage.py).

    Args:
        successes: (C,) successes of each class.
        queries: (C,) queries of each class.

    Returns:
        Its two ends; NaN for fewer than four classes, which say too little of others.
    """
    successes, queries = as_array(successes, float), as_array(queries, float)
    if len(queries) < FEWEST_TO_DRAW:
        return _logit_interval(successes, queries)
    # Classes with equal counts are interchangeable, so unique profiles are drawn instead: the same
    # bootstrap with fewer numbers (the 11,316 test classes of SOP have about 80 profiles).
    profiles = np.stack([queries, successes], axis=1)
    profiles, counts = np.unique(profiles, axis=0, return_counts=True)  # (U, 2), (U,)
    rng, classes = np.random.default_rng(0), len(queries)
    sums = rng.multinomial(classes, counts / classes, RESAMPLES) @ profiles  # (RESAMPLES, 2)
    return _percentiles(sums[:, 1] / sums[:, 0])


def _ratio_interval(successes: np.ndarray, queries: np.ndarray) -> tuple[float, float]:
    """t interval of Σ successes / Σ queries over classes (linearized); also for differences."""
    classes, total = len(queries), queries.sum()
    if classes < FEWEST:
        return math.nan, math.nan
    ratio = successes.sum() / total
    variance = classes / (classes - 1) * np.square(successes - ratio * queries).sum() / total**2
    half = stats.t.ppf((1 + LEVEL) / 2, classes - 1) * math.sqrt(variance)
    return float(ratio - half), float(ratio + half)


def _logit_interval(successes: np.ndarray, queries: np.ndarray) -> tuple[float, float]:
    """`_ratio_interval` on the logit scale, never shorter than single queries would make it."""
    total = queries.sum()
    ratio = (successes.sum() + 0.5) / (total + 1)  # so that none is 0 or 1
    low, high = _ratio_interval(successes, queries)
    least = stats.norm.ppf((1 + LEVEL) / 2) * math.sqrt(ratio * (1 - ratio) / total)
    half = np.maximum((high - low) / 2, least) / (ratio * (1 - ratio))
    low, high = special.expit(special.logit(ratio) + np.array([-half, half]))
    return float(low), float(high)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Correct the p values of a family of comparisons by Holm's step-down method.

    NaN, where a comparison is missing, stays NaN and counts with p = 1: the family keeps its size.

    Source: Holm, Scandinavian Journal of Statistics 1979.

    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p_values = as_array(p_values, float)
    if np.any((p_values < 0) | (p_values > 1)):
        raise SobookError(f"p values lie between 0 and 1, but got {p_values.tolist()}.")
    corrected = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: np.isfinite(p_values).sum()]  # NaN is sorted last
    factors = np.arange(len(p_values), len(p_values) - len(order), -1)
    corrected[order] = np.maximum.accumulate(np.minimum(1, factors * p_values[order]))
    return corrected


def rank_correlation(a: ArrayLike, b: ArrayLike) -> tuple[float, float, float]:
    """Spearman's ρ of two numbers known for every pair of classes, with an interval over classes.

    The C(C−1)/2 pairs are not independent: each class is in C − 1 of them. So the bootstrap draws
    classes, and a pair counts as often as its two classes were drawn together. Ranks stay those of
    the whole set. With more than 300 classes the interval (not ρ) is over 300 random ones: wider.

    Args:
        a, b: (C, C) symmetric; the diagonal does not matter.

    Returns:
        ρ and the two ends of its 95 % interval; NaN where one of the two does not vary.
    """
    a, b = as_array(a, float), as_array(b, float)
    if a.ndim != 2 or a.shape != b.shape or a.shape[0] != a.shape[1] or len(a) < 3:
        raise SobookError(f"a {a.shape} and b {b.shape} must both be (C, C) with C of at least 3.")
    off_diagonal = ~np.eye(len(a), dtype=bool)
    if not np.isfinite([a[off_diagonal], b[off_diagonal]]).all():
        raise SobookError("a pair of classes is NaN or infinite: leave its classes out of both.")
    ranks = _ranks(a), _ranks(b)
    rho = _correlation(*ranks, np.ones(len(ranks[0])))
    if math.isnan(rho):
        return math.nan, math.nan, math.nan
    rng = np.random.default_rng(0)
    if len(a) > 300:
        some = np.sort(rng.permutation(len(a))[:300])
        a, b = a[np.ix_(some, some)], b[np.ix_(some, some)]
        ranks = _ranks(a), _ranks(b)
    first, second = np.triu_indices(len(a), k=1)
    values = []
    for _ in range(1000):
        drawn = np.bincount(rng.integers(0, len(a), len(a)), minlength=len(a))
        values.append(_correlation(*ranks, drawn[first] * drawn[second]))
    return rho, *_percentiles(np.array(values)[np.isfinite(values)])


def _ranks(matrix: np.ndarray) -> np.ndarray:
    pairs = matrix[~np.tri(len(matrix), dtype=bool)]  # above the diagonal, row by row
    return stats.rankdata(np.round(pairs, 12))  # rounding errors must not break ties


def _correlation(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    if not weight.any():  # all draws of classes gave the same one
        return math.nan
    (xx, xy), (_, yy) = np.cov(x, y, aweights=weight, ddof=0)
    return float(xy / math.sqrt(xx * yy)) if xx * yy > 1e-12 else math.nan


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
