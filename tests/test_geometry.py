"""Proxy geometry: against slow loops, SciPy and sets of vectors whose numbers are known.

Notation: C classes, D embedding dimension.
"""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.spatial.distance import pdist, squareform
from scipy.stats import ortho_group

from sobook import geometry as module
from sobook.errors import SobookError
from sobook.geometry import (
    ProxyGeometry,
    class_means,
    collapse,
    common_mode,
    describe,
    movement,
    off_diagonal,
    orthogonality_floor,
    unit_rows,
    welch_bound,
    without_common_mode,
)
from sobook.losses import soft_orthogonality

quick = settings(max_examples=30, deadline=None)
sets = {
    "seed": st.integers(0, 2**32 - 1),
    "classes": st.integers(2, 12),
    "dim": st.integers(1, 12),
}
SIZES = [(2, 1), (3, 7), (5, 5), (12, 4), (40, 64)]  # C, D


def draw(seed: int, classes: int, dim: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(classes, dim))


def simplex(classes: int) -> np.ndarray:
    """C directions in C dimensions, all at the same angle to each other, summing to zero."""
    return np.eye(classes) - 1 / classes


# --- Against slow loops and SciPy ----------------------------------------------------------------


@pytest.mark.parametrize("classes, dim", SIZES)
def test_numbers_of_pairs_equal_slow_loops(classes, dim):
    proxies = draw(0, classes, dim)
    geometry = describe(proxies)
    pairs = []
    for i, p in enumerate(proxies.tolist()):
        for j, q in enumerate(proxies.tolist()):
            cosine = sum(a * b for a, b in zip(p, q, strict=True)) / math.hypot(*p) / math.hypot(*q)
            assert geometry.cosines[i, j] == pytest.approx(cosine, abs=1e-12)
            if i < j:
                pairs.append(cosine)
    angles = [math.degrees(math.acos(max(-1, min(1, cosine)))) for cosine in pairs]
    squares = sum(cosine**2 for cosine in pairs)
    assert geometry.coherence == pytest.approx(max(map(abs, pairs)), rel=1e-12)
    assert geometry.mean_cosine == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert geometry.rms_cosine == pytest.approx(math.sqrt(squares / len(pairs)), rel=1e-12)
    assert geometry.mean_angle == pytest.approx(sum(angles) / len(angles), abs=1e-5)
    assert geometry.orthogonality == pytest.approx(2 * squares, rel=1e-12)
    assert (geometry.num_classes, geometry.dim) == (classes, dim)


@pytest.mark.parametrize("classes, dim", SIZES)
def test_numbers_equal_scipy(classes, dim):
    proxies = draw(1, classes, dim)
    geometry = describe(proxies)
    cosines = 1 - pdist(proxies, "cosine")
    np.testing.assert_allclose(off_diagonal(geometry.cosines), cosines, atol=1e-12)
    assert geometry.coherence == pytest.approx(np.abs(cosines).max())
    assert geometry.rms_cosine == pytest.approx(np.sqrt(np.mean(cosines**2)))
    # Squared singular values of P̂ are the eigenvalues of its Gram matrix.
    eigenvalues = np.linalg.eigvalsh(geometry.cosines)[::-1][: min(classes, dim)]
    np.testing.assert_allclose(geometry.spectrum**2, eigenvalues, atol=1e-10)
    shares = geometry.spectrum / geometry.spectrum.sum()
    assert geometry.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize("classes, dim", SIZES)
def test_orthogonality_is_what_the_loss_computes(classes, dim):
    proxies = torch.from_numpy(draw(2, classes, dim))
    geometry = describe(proxies)
    total = soft_orthogonality(proxies, reduction="sum").item()
    assert geometry.orthogonality == pytest.approx(total, rel=1e-10)
    assert geometry.rms_cosine == pytest.approx(math.sqrt(soft_orthogonality(proxies)), rel=1e-10)


# --- Sets of vectors whose numbers are known -----------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_simplex(classes):
    geometry = describe(simplex(classes))
    cosine = -1 / (classes - 1)
    assert geometry.coherence == pytest.approx(-cosine)
    assert geometry.mean_cosine == pytest.approx(cosine)
    assert geometry.rms_cosine == pytest.approx(-cosine)
    assert geometry.mean_angle == pytest.approx(math.degrees(math.acos(cosine)))
    assert geometry.spectrum[-1] == pytest.approx(0, abs=1e-12)  # C vectors in C − 1 dimensions
    assert geometry.effective_rank == pytest.approx(classes - 1)
    # In the C − 1 dimensions it fills, it meets both bounds.
    assert geometry.coherence == pytest.approx(welch_bound(classes, classes - 1))
    assert geometry.orthogonality == pytest.approx(orthogonality_floor(classes, classes - 1))


def test_a_tight_frame_may_meet_the_floor_and_not_the_welch_bound():
    frame = np.concatenate([np.eye(4), ortho_group.rvs(4, random_state=0)])  # two bases: C = 2D
    geometry = describe(frame)
    assert geometry.orthogonality_floor == 8
    assert geometry.orthogonality == pytest.approx(8)
    assert geometry.effective_rank == pytest.approx(4)
    assert geometry.coherence > geometry.welch_bound + 0.1


@pytest.mark.parametrize("classes, dim", [(2, 2), (4, 4), (3, 9)])
def test_orthonormal_proxies(classes, dim):
    geometry = describe(3 * ortho_group.rvs(dim, random_state=0)[:classes])
    assert geometry.coherence == pytest.approx(0, abs=1e-12)
    assert geometry.orthogonality == pytest.approx(0, abs=1e-12)
    assert geometry.mean_angle == pytest.approx(90)
    assert geometry.effective_rank == pytest.approx(classes)
    assert geometry.orthogonality_floor == geometry.welch_bound == 0
    np.testing.assert_allclose(geometry.spectrum, 1)


def test_proxies_on_one_line():
    geometry = describe([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [-1.0, -2.0, -3.0]])
    assert geometry.coherence == pytest.approx(1)
    assert geometry.rms_cosine == pytest.approx(1)
    assert geometry.mean_cosine == pytest.approx(-1 / 3)
    assert geometry.mean_angle == pytest.approx(120, abs=1e-4)  # 0, 180, 180
    assert geometry.effective_rank == pytest.approx(1, abs=1e-6)
    assert geometry.orthogonality == pytest.approx(6)


def test_rounding_takes_no_cosine_beyond_one(rng):
    lengths, direction = rng.uniform(0.1, 10, (50, 1)), rng.normal(size=7)
    geometry = describe(lengths * direction)  # here some products come out as 1 + 2e-16
    assert np.abs(geometry.cosines).max() == geometry.coherence == 1
    assert geometry.mean_angle == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("dim", [16, 128])
def test_random_directions_have_the_cosine_of_chance(dim):
    geometry = describe(draw(3, 400, dim))
    assert geometry.chance_cosine == pytest.approx(1 / math.sqrt(dim))
    assert geometry.rms_cosine == pytest.approx(geometry.chance_cosine, rel=0.02)
    assert geometry.mean_cosine == pytest.approx(0, abs=0.1 * geometry.chance_cosine)
    assert geometry.mean_angle == pytest.approx(90, abs=0.5)


def test_bounds_by_hand():
    assert orthogonality_floor(11318, 512) == pytest.approx(238_872, abs=1)
    assert orthogonality_floor(98, 384) == orthogonality_floor(512, 512) == 0
    assert welch_bound(5, 4) == pytest.approx(1 / 4)
    assert welch_bound(4, 4) == welch_bound(3, 9) == 0
    assert welch_bound(7, 1) == 1  # on a line there are only two directions


# --- What must hold for any proxies --------------------------------------------------------------


@quick
@given(**sets)
def test_bounds_hold(seed, classes, dim):
    geometry = describe(draw(seed, classes, dim))
    slack = 1e-9
    assert geometry.welch_bound - slack <= geometry.coherence <= 1 + slack
    assert geometry.orthogonality >= geometry.orthogonality_floor - slack
    assert abs(geometry.mean_cosine) - slack <= geometry.rms_cosine <= geometry.coherence + slack
    assert 1 - slack <= geometry.effective_rank <= min(classes, dim) + slack
    assert geometry.spectrum.shape == (min(classes, dim),)
    assert (np.diff(geometry.spectrum) <= 0).all()
    assert (geometry.spectrum**2).sum() == pytest.approx(classes)
    assert np.abs(geometry.cosines).max() <= 1
    assert (geometry.cosines.diagonal() == 1).all()
    np.testing.assert_allclose(geometry.cosines, geometry.cosines.T, atol=1e-15)


@quick
@given(**sets)
def test_lengths_turns_and_order_do_not_matter(seed, classes, dim):
    proxies = draw(seed, classes, dim)
    rng = np.random.default_rng(seed)
    expected = describe(proxies).summary()
    turn = np.linalg.qr(rng.normal(size=(dim, dim))).Q
    for same in (
        proxies * 10 ** rng.uniform(-6, 6, (classes, 1)),
        proxies @ turn,
        rng.permutation(proxies),
    ):
        assert describe(same).summary() == pytest.approx(expected, abs=1e-5)
    signs = rng.choice([-1, 1], (classes, 1))
    flipped = describe(proxies * signs)
    np.testing.assert_allclose(flipped.cosines, describe(proxies).cosines * signs * signs.T)
    assert flipped.orthogonality == pytest.approx(describe(proxies).orthogonality)


@quick
@given(**sets)
def test_unit_rows_keep_their_direction(seed, classes, dim):
    rows = draw(seed, classes, dim)
    before = rows.copy()
    unit = unit_rows(rows)
    assert unit.dtype == np.float64
    np.testing.assert_allclose((unit**2).sum(1), 1)
    np.testing.assert_allclose(unit * np.linalg.norm(rows, axis=1, keepdims=True), rows)
    np.testing.assert_array_equal(rows, before)  # the caller's array is left alone


def test_off_diagonal_has_every_pair_once():
    matrix = np.array([[0, 1, 2], [9, 0, 3], [9, 9, 0]])
    assert off_diagonal(matrix).tolist() == [1, 2, 3]


# --- What may be given, what comes out -----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_tensors_lists_and_arrays_give_the_same(dtype):
    tensor = torch.nn.Parameter(torch.randn(4, 3, dtype=dtype))
    expected = describe(tensor.tolist())
    for same in (tensor, tensor.detach().double().numpy(), tensor.T.contiguous().T):
        geometry = describe(same)
        np.testing.assert_allclose(geometry.cosines, expected.cosines, atol=1e-15)
        assert geometry.summary() == expected.summary()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_proxies_on_a_gpu():
    proxies = torch.randn(6, 4)
    assert describe(proxies.cuda()).summary() == describe(proxies).summary()


def test_summary_holds_the_single_numbers_for_json():
    geometry = describe(draw(0, 5, 3))
    summary = json.loads(json.dumps(geometry.summary()))
    arrays = {"cosines", "spectrum", "nearest_angle"}
    assert set(summary) == set(ProxyGeometry.__dataclass_fields__) - arrays
    for name, value in summary.items():
        assert value == pytest.approx(getattr(geometry, name), abs=5e-7)
    assert "[" not in repr(geometry)  # no arrays in what a notebook prints


GOOD = np.ones((4, 3))


def with_row(row: int, value: float) -> np.ndarray:
    rows = GOOD.copy()
    rows[row] = value
    return rows


@pytest.mark.parametrize(
    "proxies, message",
    [
        (np.ones(3), r"proxies have shape \(3,\), expected \(C, D\): one row per class"),
        (np.ones((0, 3)), r"proxies have shape \(0, 3\), expected \(C, D\)"),
        (np.ones((1, 3)), r"one proxy alone has no angles: give at least two classes"),
        (with_row(2, math.nan), r"row 2 of the proxies is .*NaN.* \(1 such rows\): leave it"),
        (with_row(1, 0.0), r"row 1 of the proxies is zero"),
        (torch.from_numpy(with_row(3, math.inf)), r"row 3 of the proxies is .*infinite"),
    ],
)
def test_bad_proxies(proxies, message):
    with pytest.raises(ValueError, match=message):
        describe(proxies)


# --- Common mode, nearest proxy, many classes -----------------------------------------------------


def orthonormal(classes: int) -> np.ndarray:
    return ortho_group.rvs(classes, random_state=0)


def tight_frame(classes: int, dim: int) -> np.ndarray:
    """Rows of unit length with PᵀP = (C/D) I: the harmonic frame, real and imaginary parts."""
    turns = 2 * np.pi * np.outer(np.arange(classes), np.arange(1, dim // 2 + 1)) / classes
    return np.hstack([np.cos(turns), np.sin(turns)]) / math.sqrt(dim / 2)


def test_a_tight_frame_meets_the_floor_with_a_flat_spectrum():
    geometry = describe(tight_frame(11, 6))
    assert geometry.orthogonality == pytest.approx(orthogonality_floor(11, 6))
    np.testing.assert_allclose(geometry.spectrum, math.sqrt(11 / 6))
    assert geometry.effective_rank == pytest.approx(6)
    assert geometry.common_direction_share == pytest.approx(0, abs=1e-12)  # the rows sum to zero


def test_common_mode_of_sets_that_are_known():
    classes = 6
    plain = describe(orthonormal(classes))
    assert plain.common_mode_share == pytest.approx(0, abs=1e-12)
    assert plain.rms_cosine_centered == pytest.approx(1 / (classes - 1))  # centered: a simplex
    assert plain.common_direction_share == pytest.approx(1 / classes)
    shared = describe(np.eye(classes) + 2.0)  # every pair has the same positive cosine
    assert shared.common_mode_share == pytest.approx(1)
    assert shared.rms_cosine_centered == pytest.approx(-shared.simplex_cosine)
    assert describe(simplex(classes)).common_mode_share == 0  # the mean is zero
    assert describe(simplex(classes)).simplex_cosine == pytest.approx(-1 / (classes - 1))


def test_common_mode_of_random_directions_is_small_until_they_share_one():
    random = draw(3, 200, 64)
    assert describe(random).common_mode_share < 0.02
    assert describe(random).rms_cosine_centered == pytest.approx(1 / 8, rel=0.03)
    share = [describe(random + push * np.eye(64)[0]).common_mode_share for push in (0, 4, 16)]
    assert share == sorted(share) and share[-1] > 0.9


@pytest.mark.parametrize("classes, dim", SIZES[1:])
def test_common_mode_equals_slow_loops(classes, dim):
    proxies = draw(4, classes, dim)
    unit = [p / math.hypot(*p) for p in proxies]
    mean = sum(unit) / classes
    rest = np.array([(u - mean) / np.linalg.norm(u - mean) for u in unit])
    cosines = [float(a @ b) for i, a in enumerate(rest) for b in rest[i + 1 :]]
    geometry = describe(proxies)
    assert geometry.rms_cosine_centered == pytest.approx(np.sqrt(np.mean(np.square(cosines))))
    np.testing.assert_allclose(without_common_mode(proxies), rest)
    along = [float(u @ mean) ** 2 / float(mean @ mean) for u in unit]
    assert geometry.common_direction_share == pytest.approx(np.mean(along))


@pytest.mark.parametrize("classes, dim", SIZES[1:])
def test_common_mode_in_three_numbers_equals_the_definitions(classes, dim):
    proxies = draw(7, classes, dim) + 0.3
    unit = unit_rows(proxies)
    shared = common_mode(describe(proxies))
    assert shared["mean_proxy_length"] == pytest.approx(np.linalg.norm(unit.mean(axis=0)))
    before = np.mean((1 - pdist(unit, "cosine")) ** 2)
    after = np.mean((1 - pdist(unit - unit.mean(axis=0), "cosine")) ** 2)
    assert shared["common_share"] == pytest.approx(1 - after / before)
    assert shared["mean_share"] == pytest.approx(np.mean(1 - pdist(unit, "cosine")) ** 2 / before)


def test_common_mode_of_a_simplex_with_a_shared_direction_and_of_none():
    shared = common_mode(describe(np.eye(6) + 1))
    cosine = describe(np.eye(6) + 1).mean_cosine
    assert shared["mean_share"] == pytest.approx(1)
    assert shared["common_share"] == pytest.approx(1 - (1 / 5) ** 2 / cosine**2)
    assert np.isnan(common_mode(describe(np.eye(3)))["common_share"])
    assert common_mode(describe([[1.0, 0], [-1.0, 0]]))["mean_proxy_length"] == 0


@pytest.mark.parametrize("classes, dim", SIZES)
def test_nearest_angle_equals_scipy(classes, dim):
    proxies = draw(5, classes, dim)
    distance = squareform(pdist(proxies, "cosine"))
    np.fill_diagonal(distance, np.inf)
    expected = np.degrees(np.arccos(np.clip(1 - distance.min(axis=1), -1, 1)))
    np.testing.assert_allclose(describe(proxies).nearest_angle, expected, atol=2e-5)


def test_single_precision_changes_nothing_but_the_last_digits(monkeypatch):
    proxies = draw(6, 50, 9)
    expected = describe(proxies)
    monkeypatch.setattr(module, "_FLOAT64_CLASSES", 10)
    narrow = describe(proxies)
    assert narrow.cosines.dtype == np.float32 and expected.cosines.dtype == np.float64
    np.testing.assert_allclose(narrow.cosines, expected.cosines, atol=1e-6)
    np.testing.assert_allclose(narrow.nearest_angle, expected.nearest_angle, atol=1e-4)
    assert narrow.summary() == pytest.approx(expected.summary(), rel=1e-6, abs=2e-6)


def test_without_common_mode_refuses_what_has_nothing_left():
    with pytest.raises(ValueError, match="nothing is left"):
        without_common_mode(np.ones((3, 2)))


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
    assert collapse(points, labels, -proxies).nc4 > 0.9


def test_collapse_is_zero_where_all_has_collapsed_and_grows_with_spread():
    labels = np.repeat(np.arange(4), 6)
    done = collapse(simplex(4)[labels], labels, 3 * simplex(4))
    for value in (done.nc1, done.nc2_norms, done.nc2_angles, done.nc3):
        assert value == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(done.angle, 0, atol=1e-5)
    opposite = collapse(simplex(4)[labels], labels, -simplex(4))
    assert opposite.nc3 == pytest.approx(4)  # the largest it can be
    spread = [collapse(*clouds(1, noise=noise)).nc1 for noise in (0.05, 0.2, 0.8)]
    assert spread == sorted(spread)


def test_collapse_checks_its_labels():
    points, labels, proxies = clouds(2)
    for wrong, count in ((labels, 6), (labels, 4), (labels[:-1], 5)):
        with pytest.raises(ValueError, match=rf"expected \(45,\) with each of 0\.\.{count - 1}"):
            collapse(points, wrong, np.resize(proxies, (count, 7)))
    with pytest.raises(SobookError, match="7 dimensions, proxies 6"):
        collapse(points, labels, proxies[:, :6])


def test_movement_follows_a_rotation():
    turn = np.radians(10)
    epochs = [[[math.cos(turn * e), math.sin(turn * e)], [0.0, 1.0]] for e in range(4)]
    moved = movement(epochs)
    np.testing.assert_allclose(moved.from_start[:, 0], [0, 10, 20, 30], atol=1e-9)
    np.testing.assert_allclose(moved.step[:, 0], [0, 10, 10, 10], atol=1e-9)
    np.testing.assert_allclose(moved.step[:, 1], 0, atol=1e-9)
    np.testing.assert_allclose(moved.rms_cosine, np.sin(turn * np.arange(4)), atol=1e-9)


def test_movement_has_the_quantiles_of_each_epoch():
    epochs = [draw(seed, 30, 8) for seed in range(3)]
    moved = movement([torch.tensor(p) for p in epochs])
    for row, proxies in zip(moved.cosine_band, epochs, strict=True):
        np.testing.assert_allclose(
            row, np.quantile(1 - pdist(proxies, "cosine"), [0.05, 0.5, 0.95])
        )
    assert moved.from_start.shape == (3, 30)
    for wrong in ([np.eye(2), np.eye(3)], []):
        with pytest.raises(SobookError, match="one shape, of at least one epoch"):
            movement(wrong)
