"""Proxy geometry: against slow loops, SciPy and sets of vectors whose numbers are known.

Notation: C classes, D embedding dimension.
"""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import ortho_group

from sobook import geometry as module
from sobook.errors import SobookError
from sobook.geometry import (
    class_means,
    collapse,
    describe,
    movement,
    off_diagonal,
    orthogonality_floor,
    unit_rows,
    welch_bound,
    without_common_mode,
)
from sobook.losses import soft_orthogonality

SIZES = [(2, 1), (3, 7), (5, 5), (12, 4), (40, 64)]  # C, D


def draw(seed: int, classes: int, dim: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(classes, dim))


def simplex(classes: int) -> np.ndarray:
    """C directions in C dimensions, all at the same angle to each other, summing to zero."""
    return np.eye(classes) - 1 / classes


@pytest.mark.parametrize("classes, dim", SIZES)
def test_numbers_of_pairs_equal_slow_loops(classes, dim):
    proxies = draw(0, classes, dim)
    geometry, unit = describe(proxies), [p / math.hypot(*p) for p in proxies]
    pairs = [sum(p * q) for p, q in itertools.combinations(unit, 2)]
    np.testing.assert_allclose(off_diagonal(geometry.cosines), pairs, atol=1e-12)
    angles = [math.degrees(math.acos(max(-1, min(1, cosine)))) for cosine in pairs]
    squares, mean = sum(cosine**2 for cosine in pairs), sum(pairs) / len(pairs)
    assert geometry.coherence == pytest.approx(max(map(abs, pairs)), rel=1e-12)
    assert geometry.mean_cosine == pytest.approx(mean, abs=1e-12)
    assert geometry.rms_cosine == pytest.approx(math.sqrt(squares / len(pairs)), rel=1e-12)
    assert geometry.mean_angle == pytest.approx(sum(angles) / len(angles), abs=1e-5)
    assert geometry.orthogonality == pytest.approx(2 * squares, rel=1e-12)
    share = max(0, mean) ** 2 / (squares / len(pairs))
    assert geometry.common_mode_share == pytest.approx(share, abs=1e-12)
    assert (geometry.num_classes, geometry.dim) == (classes, dim)


@pytest.mark.parametrize("classes, dim", SIZES)
def test_numbers_equal_scipy_and_the_loss(classes, dim):
    proxies = draw(1, classes, dim) + 0.1
    geometry = describe(proxies)
    # Squared singular values of P̂ are the eigenvalues of its Gram matrix.
    eigenvalues = np.linalg.eigvalsh(geometry.cosines)[::-1][: min(classes, dim)]
    np.testing.assert_allclose(geometry.spectrum**2, eigenvalues, atol=1e-10)
    fractions = geometry.spectrum / geometry.spectrum.sum()
    entropy = -(fractions * np.log(fractions)).sum()
    assert geometry.effective_rank == pytest.approx(np.exp(entropy))
    total = soft_orthogonality(torch.from_numpy(proxies), reduction="sum").item()
    assert geometry.orthogonality == pytest.approx(total, rel=1e-10)
    if dim > 1:
        unit = unit_rows(proxies)
        centered = 1 - pdist(unit - unit.mean(axis=0), "cosine")
        rms = np.sqrt(np.square(centered).mean())
        assert geometry.rms_cosine_centered == pytest.approx(rms)
        tilted = off_diagonal(describe(without_common_mode(proxies)).cosines)
        np.testing.assert_allclose(tilted, centered, atol=1e-12)


# --- Sets of vectors whose numbers are known -----------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_simplex(classes):
    geometry = describe(simplex(classes))
    cosine = -1 / (classes - 1)
    assert (geometry.coherence, geometry.rms_cosine) == pytest.approx((-cosine, -cosine))
    assert (geometry.mean_cosine, geometry.simplex_cosine) == pytest.approx((cosine, cosine))
    assert geometry.mean_angle == pytest.approx(math.degrees(math.acos(cosine)))
    assert geometry.effective_rank == pytest.approx(classes - 1)
    assert geometry.common_mode_share == 0  # the mean is zero
    # In the C − 1 dimensions it fills, it meets both bounds.
    assert geometry.coherence == pytest.approx(welch_bound(classes, classes - 1))
    assert geometry.orthogonality == pytest.approx(orthogonality_floor(classes, classes - 1))


def test_a_tight_frame_may_meet_the_floor_and_not_the_welch_bound():
    frame = np.concatenate([np.eye(4), ortho_group.rvs(4, random_state=0)])  # two bases: C = 2D
    geometry = describe(frame)
    assert (geometry.orthogonality, geometry.orthogonality_floor) == pytest.approx((8, 8))
    assert (geometry.rms_cosine, geometry.rms_floor) == pytest.approx(2 * (math.sqrt(8 / 56),))
    assert geometry.effective_rank == pytest.approx(4)
    assert geometry.coherence > geometry.welch_bound + 0.1


def test_orthonormal_proxies_and_a_shared_direction():
    geometry = describe(3 * ortho_group.rvs(6, random_state=0))
    assert geometry.coherence == pytest.approx(0, abs=1e-12)
    assert geometry.mean_angle == pytest.approx(90)
    assert geometry.orthogonality_floor == geometry.rms_floor == geometry.welch_bound == 0
    assert geometry.rms_cosine_centered == pytest.approx(1 / 5)  # centered: a simplex
    shared = describe(np.eye(6) + 2.0)  # every pair has the same positive cosine
    assert shared.common_mode_share == pytest.approx(1)
    assert shared.rms_cosine_centered == pytest.approx(1 / 5)


def test_random_directions_have_the_cosine_of_chance_until_they_share_one():
    random = draw(3, 400, 64)
    geometry = describe(random)
    assert geometry.chance_cosine == 1 / 8
    assert geometry.rms_cosine == pytest.approx(1 / 8, rel=0.02)
    shares = [describe(random + push * np.eye(64)[0]).common_mode_share for push in (0, 4, 16)]
    assert shares == sorted(shares) and shares[0] < 0.02 and shares[-1] > 0.9


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 12), dim=st.integers(1, 12))
def test_bounds_and_invariances_hold(seed, classes, dim):
    proxies, rng, slack = draw(seed, classes, dim), np.random.default_rng(seed), 1e-9
    geometry = describe(proxies)
    assert geometry.welch_bound - slack <= geometry.coherence <= 1 + slack
    assert geometry.orthogonality >= geometry.orthogonality_floor - slack
    assert geometry.rms_floor - slack <= geometry.rms_cosine <= geometry.coherence + slack
    assert 1 - slack <= geometry.effective_rank <= min(classes, dim) + slack
    assert (geometry.spectrum**2).sum() == pytest.approx(classes)
    turn = np.linalg.qr(rng.normal(size=(dim, dim))).Q
    lengths = 10 ** rng.uniform(-6, 6, (classes, 1))
    for same in (proxies * lengths, proxies @ turn, rng.permutation(proxies)):
        assert describe(same).summary() == pytest.approx(geometry.summary(), abs=1e-5)


# --- Input and output ----------------------------------------------------------------------------


def test_summary_holds_the_scalars_for_json():
    geometry = describe(draw(0, 5, 3))
    summary = json.loads(json.dumps(geometry.summary()))
    assert not {"cosines", "spectrum"} & set(summary)
    for name, value in summary.items():
        assert value == pytest.approx(getattr(geometry, name), abs=5e-7)
    assert "[" not in repr(geometry)  # no arrays in what a notebook prints


def test_single_precision_changes_nothing_but_the_last_digits(monkeypatch):
    proxies = draw(6, 50, 9)
    expected = describe(proxies)
    monkeypatch.setattr(module, "_FLOAT64_CLASSES", 10)
    narrow = describe(proxies)
    assert narrow.cosines.dtype == np.float32 and expected.cosines.dtype == np.float64
    assert narrow.summary() == pytest.approx(expected.summary(), rel=1e-6, abs=2e-6)


@pytest.mark.parametrize(
    "proxies, word",
    [
        (np.ones(3), r"\(3,\)"),
        (np.ones((0, 3)), r"\(0, 3\)"),
        (np.ones((1, 3)), "two classes"),
        ([[1.0, 2.0], [math.nan, 1.0]], "row 1 .*NaN"),
        ([[1.0, 2.0], [0.0, 0.0]], "row 1 .*zero"),
        (torch.tensor([[1.0, math.inf], [0.0, 1.0]]), "row 0 .*infinite"),
    ],
)
def test_bad_proxies(proxies, word):
    with pytest.raises(SobookError, match=word):
        describe(proxies)


# --- Class means, neural collapse, movement ------------------------------------------------------


def clouds(seed, classes=5, dim=7, each=9, noise=0.3):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), each))
    centers = rng.normal(size=(classes, dim))
    return centers[labels] + noise * rng.normal(size=(len(labels), dim)), labels, centers


def test_class_means_and_collapse_equal_slow_loops():
    points, labels, proxies = clouds(0)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    means = np.array([unit[labels == c].mean(axis=0) for c in range(5)])
    np.testing.assert_allclose(class_means(points, torch.tensor(labels), 5), means)
    overall, result = means.mean(axis=0), collapse(points, labels, proxies)
    within = sum(np.outer(x - means[c], x - means[c]) for x, c in zip(unit, labels, strict=True))
    between = sum(np.outer(m - overall, m - overall) for m in means)
    nc1 = np.trace(within / len(unit) @ np.linalg.pinv(between / 5, rcond=1e-10)) / 5
    assert result.nc1 == pytest.approx(nc1)
    p = proxies / np.linalg.norm(proxies, axis=1, keepdims=True)
    cosines = [m @ q / np.linalg.norm(m) for m, q in zip(means, p, strict=True)]
    np.testing.assert_allclose(result.angle, np.degrees(np.arccos(cosines)))
    lengths = [np.linalg.norm(m - overall) for m in means]
    assert result.nc2_norms == pytest.approx(np.std(lengths) / np.mean(lengths))
    cosines = 1 - pdist(means - overall, "cosine")
    assert result.nc2_angles == pytest.approx(np.abs(cosines + 1 / 4).mean())
    m, q = means - overall, p - p.mean(axis=0)
    gap = m / np.sqrt((m**2).sum()) - q / np.sqrt((q**2).sum())
    assert result.nc3 == pytest.approx((gap**2).sum())
    differ = [np.argmax(p @ x) != np.argmin(np.linalg.norm(means - x, axis=1)) for x in unit]
    assert result.nc4 == pytest.approx(np.mean(differ))


def test_collapse_is_zero_where_all_has_collapsed_and_grows_with_noise():
    labels = np.repeat(np.arange(4), 6)
    done = collapse(simplex(4)[labels], labels, 3 * simplex(4))
    for value in (done.nc1, done.nc2_norms, done.nc2_angles, done.nc3, *done.angle):
        assert value == pytest.approx(0, abs=1e-5)
    assert collapse(simplex(4)[labels], labels, -simplex(4)).nc3 == pytest.approx(4)  # the largest
    spread = [collapse(*clouds(1, noise=noise)).nc1 for noise in (0.05, 0.2, 0.8)]
    assert spread == sorted(spread)


def test_class_means_check_their_labels():
    points, labels, _ = clouds(2)
    for wrong, count in ((labels, 6), (labels, 4), (labels[:-1], 5)):
        with pytest.raises(SobookError, match=rf"0\.\.{count - 1}"):
            class_means(points, wrong, count)


def test_movement_follows_a_rotation():
    turn = np.radians(10)
    epochs = [[[math.cos(turn * e), math.sin(turn * e)], [0.0, 1.0]] for e in range(4)]
    moved = movement(epochs)
    np.testing.assert_allclose(moved.from_start[:, 0], [0, 10, 20, 30], atol=1e-9)
    np.testing.assert_allclose(moved.step[:, 0], [0, 10, 10, 10], atol=1e-9)
    np.testing.assert_allclose(moved.rms_cosine, np.sin(turn * np.arange(4)), atol=1e-9)
