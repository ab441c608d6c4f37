"""Proxy Anchor and soft orthogonality: against slow loops, another library, and what must hold.

Notation: B batch, C classes, D embedding dimension.
"""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from pytorch_metric_learning.losses import ProxyAnchorLoss
from scipy.spatial.distance import pdist
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sobook.errors import SobookError
from sobook.losses import SO_WEIGHT, ProxyAnchor, SoftOrthogonalProxyAnchor, soft_orthogonality

EXACT = {"rtol": 1e-9, "atol": 1e-9}  # float64 against float64
quick = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**32 - 1)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def draw(seed: int, size: int, classes: int, dim: int, dtype=torch.float64):
    """Embeddings (B, D), proxies (C, D) and labels (B,), all random."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(size, dim, generator=generator, dtype=torch.float64)
    proxies = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (size,), generator=generator)
    return embeddings.to(dtype), proxies.to(dtype), labels


def proxy_anchor(embeddings, proxies, labels, **options):
    """The loss as a function of its proxies too."""
    module = ProxyAnchor(*proxies.shape, **options)
    return functional_call(module, {"proxies": proxies}, (embeddings, labels))


def slow_proxy_anchor(embeddings, proxies, labels, margin=0.1, scale=32.0, threshold=0.0):
    """The formula, class by class and image by image."""

    def cosine(x, p):
        return x @ p / (x.norm() * p.norm())

    pull, push, present = 0.0, 0.0, 0
    for c, proxy in enumerate(proxies):
        near, far = [], []
        for x, label in zip(embeddings, labels, strict=True):
            if label == c:
                near.append(torch.exp(-scale * (cosine(x, proxy) - threshold - margin)))
            else:
                far.append(torch.exp(scale * (cosine(x, proxy) - threshold + margin)))
        if near:
            present += 1
            pull = pull + torch.log(1 + sum(near))
        if far:
            push = push + torch.log(1 + sum(far))
    return pull / present + push / len(proxies)


def chosen_pairs(seed: int, classes: int):
    """(C, C) bool, symmetric, with at least the pair of classes 0 and 1."""
    pairs = torch.rand(classes, classes, generator=torch.Generator().manual_seed(seed)) < 0.3
    pairs[0, 1] = True
    return pairs | pairs.T


def slow_soft_orthogonality(proxies) -> float:
    """The sum of squared cosines over all ordered pairs of different rows."""
    rows, total = proxies.tolist(), 0.0
    for i, p in enumerate(rows):
        for j, q in enumerate(rows):
            if i != j:
                dot = sum(a * b for a, b in zip(p, q, strict=True))
                total += dot**2 / (sum(a * a for a in p) * sum(b * b for b in q))
    return total


def full_soft_orthogonality(proxies):
    """‖P̂P̂ᵀ − I‖² by the definition, through the (C, C) matrix."""
    unit = proxies / proxies.norm(dim=1, keepdim=True)
    return (unit @ unit.T - torch.eye(len(unit), dtype=unit.dtype)).square().sum()


def gradients(function, *tensors):
    """Value of a function and its gradients by each of the tensors."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    return value.detach(), torch.autograd.grad(value, leaves)


def assert_near(actual, expected, tolerance):
    """Equal up to a share of the largest entry."""
    size = float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * size)


def rotation(seed: int, dim: int):
    square = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed)).double()
    return torch.linalg.qr(square).Q


# --- Proxy Anchor against slow loops and pytorch-metric-learning ---------------------------------

SHAPES = [(1, 2, 1), (6, 4, 3), (9, 3, 8), (12, 7, 5), (4, 30, 6)]  # B, C, D


@pytest.mark.parametrize("size, classes, dim", SHAPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"margin": 0.3, "scale": 5.0},
        {"margin": 0, "scale": 64},
        {"threshold": 0.4},
        {"threshold": -0.2, "scale": 5.0},
    ],
)
def test_proxy_anchor_equals_the_slow_loops(size, classes, dim, options):
    embeddings, proxies, labels = draw(size, size, classes, dim)
    value, slopes = gradients(
        lambda x, p: proxy_anchor(x, p, labels, **options), embeddings, proxies
    )
    slow_value, slow_slopes = gradients(
        lambda x, p: slow_proxy_anchor(x, p, labels, **options), embeddings, proxies
    )
    torch.testing.assert_close(value, slow_value, **EXACT)
    torch.testing.assert_close(slopes, slow_slopes, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size, classes, dim", [(5, 2, 3), (32, 10, 16), (90, 98, 64), (8, 300, 4)])
def test_proxy_anchor_equals_pytorch_metric_learning(size, classes, dim, dtype):
    embeddings, proxies, labels = draw(0, size, classes, dim, dtype)
    wide = torch.promote_types(dtype, torch.float32)  # their loss does not survive half precision
    theirs = ProxyAnchorLoss(classes, dim, margin=0.1, alpha=32)
    theirs.cast_types = lambda *_: None  # of version 2: it would write into .data of the leaf

    def library(x, p):
        return functional_call(theirs, {"proxies": p}, (x.to(wide), labels))

    value, (by_x, by_p) = gradients(
        lambda x, p: proxy_anchor(x, p, labels), embeddings, proxies.to(wide)
    )
    their_value, (their_x, their_p) = gradients(library, embeddings, proxies.to(wide))

    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(value, their_value, rtol=tolerance, atol=tolerance)
    assert_near(by_p, their_p, tolerance)
    assert_near(by_x, their_x, max(tolerance, torch.finfo(dtype).eps))  # rounded to the embeddings


def test_proxies_start_as_in_the_official_code():
    torch.manual_seed(7)
    ours = ProxyAnchor(12, 5)
    torch.manual_seed(7)
    theirs = ProxyAnchorLoss(12, 5)
    assert torch.equal(ours.proxies, theirs.proxies)
    assert [name for name, _ in ours.named_parameters()] == ["proxies"]


# --- Proxy Anchor: closed forms and what must hold -----------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param([0, 0, 1, 2, 2, 2, 3], id="every class"),
        pytest.param([0, 0, 2], id="classes 1 and 3 absent"),
        pytest.param([1, 1, 1, 1, 1], id="one class only"),
        pytest.param([3], id="one image"),
    ],
)
@pytest.mark.parametrize("margin, scale", [(0.1, 32.0), (0.25, 4.0)])
def test_proxy_anchor_closed_form_for_orthonormal_proxies(labels, margin, scale):
    proxies = torch.eye(4, 6, dtype=torch.float64)
    labels = torch.tensor(labels)
    counts = torch.bincount(labels, minlength=4).tolist()
    # Each embedding lies on its proxy: cosine 1 with it, 0 with all others.
    pull = [math.log1p(n * math.exp(-scale * (1 - margin))) for n in counts if n]
    push = [math.log1p((len(labels) - n) * math.exp(scale * margin)) for n in counts]
    value = proxy_anchor(proxies[labels], proxies, labels, margin=margin, scale=scale)
    assert value.item() == pytest.approx(sum(pull) / len(pull) + sum(push) / 4, rel=1e-12)


def test_proxy_anchor_keeps_tiny_terms_in_float32():
    # On its proxy, opposite the other: pull and push are log(1 + e^-28.8) = 3e-13 each, which
    # float32 would round to zero if one were added first.
    loss = proxy_anchor(torch.eye(1, 2), torch.tensor([[1.0, 0], [-1, 0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(1.5 * math.exp(-28.8), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_proxy_anchor_does_not_overflow_where_exponents_are_largest(dtype):
    assert torch.tensor(35.2, dtype=torch.float16).exp().isinf()  # so this can go wrong
    embeddings = torch.ones(6, 4, dtype=dtype)  # all on all proxies, none with its own class only
    proxies, labels = torch.ones(3, 4), torch.tensor([0, 0, 0, 1, 1, 2])
    value, slopes = gradients(lambda x, p: proxy_anchor(x, p, labels), embeddings, proxies)
    pull = sum(math.log1p(n * math.exp(-28.8)) for n in (3, 2, 1)) / 3
    push = sum(math.log1p((6 - n) * math.exp(35.2)) for n in (3, 2, 1)) / 3
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(pull + push, rel=1e-6)
    assert all(slope.isfinite().all() for slope in slopes)


def test_proxy_anchor_of_far_larger_scales_stays_finite():
    embeddings, proxies, labels = draw(0, 8, 5, 4, torch.float32)
    value, slopes = gradients(
        lambda x, p: proxy_anchor(x, p, labels, scale=5000.0), embeddings, proxies
    )
    # So large a scale leaves the hardest image of each class alone, and log(1 + e^z) = max(z, 0).
    cosines = torch.cosine_similarity(embeddings[:, None], proxies, dim=2)  # (B, C)
    own = torch.nn.functional.one_hot(labels, 5).bool()
    pull = (5000 * (0.1 - cosines)).where(own, -torch.inf).amax(0)[labels.unique()].relu()
    push = (5000 * (0.1 + cosines)).where(~own, -torch.inf).amax(0).relu()
    torch.testing.assert_close(value, pull.mean() + push.mean(), rtol=1e-3, atol=0)
    assert value.isfinite() and all(slope.isfinite().all() for slope in slopes)


@quick
@given(seed=seeds, size=st.integers(1, 9), classes=st.integers(2, 6), dim=st.integers(1, 6))
def test_proxy_anchor_does_not_care_about_order_names_and_lengths(seed, size, classes, dim):
    embeddings, proxies, labels = draw(seed, size, classes, dim)
    expected = proxy_anchor(embeddings, proxies, labels)
    rng = np.random.default_rng(seed)

    order = torch.from_numpy(rng.permutation(size))
    torch.testing.assert_close(
        proxy_anchor(embeddings[order], proxies, labels[order]), expected, **EXACT
    )
    renamed = torch.from_numpy(rng.permutation(classes))  # class c is now called renamed[c]
    torch.testing.assert_close(
        proxy_anchor(embeddings, proxies[renamed.argsort()], renamed[labels]), expected, **EXACT
    )
    lengths = torch.from_numpy(10 ** rng.uniform(-4, 4, (size + classes, 1)))
    torch.testing.assert_close(
        proxy_anchor(embeddings * lengths[:size], proxies * lengths[size:], labels),
        expected,
        **EXACT,
    )
    turn = rotation(seed, dim)
    torch.testing.assert_close(
        proxy_anchor(embeddings @ turn, proxies @ turn, labels), expected, **EXACT
    )


@quick
@given(seed=seeds, size=st.integers(1, 9), classes=st.integers(2, 6), dim=st.integers(2, 6))
def test_proxy_anchor_slopes_are_orthogonal_to_the_rows(seed, size, classes, dim):
    embeddings, proxies, labels = draw(seed, size, classes, dim)
    _, slopes = gradients(lambda x, p: proxy_anchor(x, p, labels), embeddings, proxies)
    for rows, slope in zip((embeddings, proxies), slopes, strict=True):
        assert slope.abs().max() > 0
        torch.testing.assert_close((rows * slope).sum(1), torch.zeros(len(rows)).double(), **EXACT)


@quick
@given(seed=seeds, threshold=st.floats(-1, 1), shift=st.floats(-1, 1))
def test_a_threshold_shifts_all_cosines(seed, threshold, shift):
    """b acts as if every cosine were lower by b: exact where one more dimension adds a constant.

    Unit rows (√r·x̂, √(1−r)·e) have cosines r·s + (1 − r)⟨e, e'⟩, here r·s ± (1 − r).
    """
    embeddings, proxies, labels = draw(seed, 6, 4, 3)
    r, sign = 1 / (1 + abs(shift)), 1.0 if shift >= 0 else -1.0
    unit = [torch.nn.functional.normalize(rows) for rows in (embeddings, proxies)]
    longer = [
        torch.cat([r**0.5 * rows, torch.full((len(rows), 1), (1 - r) ** 0.5 * side)], dim=1)
        for rows, side in zip(unit, (1.0, sign), strict=True)
    ]
    shifted = proxy_anchor(
        *longer, labels, threshold=r * threshold + sign * (1 - r), margin=r * 0.1
    )
    plain = proxy_anchor(*unit, labels, threshold=threshold, margin=0.1, scale=32.0 * r)
    torch.testing.assert_close(shifted, plain, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_a_learned_threshold_starts_as_the_fixed_one_and_has_its_derivative(threshold):
    embeddings, proxies, labels = draw(4, 6, 4, 3, torch.float32)
    fixed, learned = (
        ProxyAnchor(4, 3, threshold=threshold, learn_threshold=learn) for learn in (False, True)
    )
    assert list(fixed.state_dict()) == ["proxies"]
    assert dict(learned.named_parameters()).keys() == {"proxies", "threshold"}
    fixed.load_state_dict({"proxies": proxies})
    learned.load_state_dict({"proxies": proxies, "threshold": torch.tensor(threshold)})
    assert torch.equal(fixed(embeddings, labels), learned(embeddings, labels))

    def loss(b):
        inputs = {"proxies": proxies.double(), "threshold": b}
        return torch.func.functional_call(learned, inputs, (embeddings.double(), labels))

    b = torch.tensor(threshold, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, b) and torch.autograd.gradgradcheck(loss, b)


def test_an_absent_class_only_pushes():
    embeddings, proxies, _ = draw(3, 5, 3, 4)
    labels = torch.tensor([0, 0, 0, 1, 1])
    _, (_, slope) = gradients(lambda x, p: proxy_anchor(x, p, labels), embeddings, proxies)
    moved = proxies.clone()
    moved[2] -= 1e-3 * slope[2]  # descent takes the absent proxy away from every image
    closer = torch.cosine_similarity(embeddings, moved[2], dim=1).max()
    assert closer < torch.cosine_similarity(embeddings, proxies[2], dim=1).max()
    assert proxy_anchor(embeddings, moved, labels) < proxy_anchor(embeddings, proxies, labels)


@pytest.mark.parametrize("labels, threshold", [([0, 1, 1, 2], 0.0), ([2, 2, 2, 2], 0.3)])
def test_proxy_anchor_first_and_second_derivatives(labels, threshold):
    embeddings, proxies, _ = draw(5, 4, 4, 3)
    labels = torch.tensor(labels)
    inputs = (embeddings.requires_grad_(), proxies.requires_grad_())

    def loss(x, p):
        return proxy_anchor(x, p, labels, scale=4.0, threshold=threshold)

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


# --- The transforms of torch.func, as people use them on any loss --------------------------------


@pytest.mark.parametrize("loss", [ProxyAnchor, SoftOrthogonalProxyAnchor])
def test_func_grad_and_hessian_equal_autograd(loss):
    embeddings, proxies, labels = draw(1, 6, 4, 3)
    module = loss(4, 3, scale=4.0)

    def value(p):
        return functional_call(module, {"proxies": p}, (embeddings, labels))

    _, (slope,) = gradients(value, proxies)
    torch.testing.assert_close(torch.func.grad(value)(proxies), slope, **EXACT)
    curvature = torch.autograd.functional.hessian(value, proxies)
    torch.testing.assert_close(torch.func.hessian(value)(proxies), curvature, **EXACT)
    _, along = torch.func.jvp(value, (proxies,), (slope,))
    torch.testing.assert_close(along, slope.square().sum(), **EXACT)


@pytest.mark.parametrize("mapped", [(0, 0, 0), (None, 0, None), (0, None, None)])
@pytest.mark.parametrize("loss", [ProxyAnchor, SoftOrthogonalProxyAnchor])
def test_vmap_equals_a_loop(loss, mapped):
    """Over batches, over models, and over both."""
    cases = [draw(seed, 7, 4, 3) for seed in range(3)]
    inputs = [torch.stack([case[i] for case in cases]) for i in range(3)]  # x (3, B, D), p, y
    inputs = [rows if axis == 0 else rows[0] for rows, axis in zip(inputs, mapped, strict=True)]
    module = loss(4, 3)

    def value(x, p, y):
        return functional_call(module, {"proxies": p}, (x, y))

    both = torch.func.grad_and_value(value, argnums=(0, 1))
    found = torch.func.vmap(both, mapped)(*inputs)
    for i in range(3):
        pick = [(rows[i] if axis == 0 else rows) for rows, axis in zip(inputs, mapped, strict=True)]
        one = both(*pick)
        torch.testing.assert_close([leaf[i] for leaf in tree_leaves(found)], tree_leaves(one))


def test_vmap_gives_a_gradient_per_image():
    embeddings, proxies, labels = draw(2, 5, 4, 3)
    module = ProxyAnchor(4, 3)

    def of_one(p, x, y):
        inputs = (x[None], y[None])
        return torch.func.grad(lambda p: functional_call(module, {"proxies": p}, inputs))(p)

    slopes = torch.func.vmap(of_one, (None, 0, 0))(proxies, embeddings, labels)
    for image in range(5):
        torch.testing.assert_close(slopes[image], of_one(proxies, embeddings[image], labels[image]))


@pytest.mark.parametrize("classes, dim", [(3, 5), (6, 3)])
def test_vmap_over_soft_orthogonality(classes, dim):
    many = torch.stack([draw(seed, 1, classes, dim)[1] for seed in range(3)])
    pairs = chosen_pairs(0, classes)
    for options in ({}, {"reduction": "sum"}, {"pairs": pairs}):
        of_one = torch.func.grad_and_value(functools.partial(soft_orthogonality, **options))
        slopes, values = torch.func.vmap(of_one)(many)
        for i, proxies in enumerate(many):
            torch.testing.assert_close((slopes[i], values[i]), of_one(proxies))


@pytest.mark.slow  # a compiler at work
def test_compiled_gives_the_same():
    embeddings, proxies, labels = draw(4, 8, 5, 3, torch.float32)
    plain = gradients(lambda x, p: proxy_anchor(x, p, labels), embeddings, proxies)
    compiled = torch.compile(lambda x, p: proxy_anchor(x, p, labels))
    torch.testing.assert_close(gradients(compiled, embeddings, proxies), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    embeddings, proxies, labels = draw(6, 16, 10, 8, torch.float32)
    results = []
    for enabled in (False, True):
        x, p = embeddings.to(dtype).requires_grad_(), proxies.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            assert (p @ p.T).dtype == (torch.bfloat16 if enabled else torch.float32)
            loss = proxy_anchor(x, p, labels) + 100 * soft_orthogonality(p)
        assert loss.dtype == torch.float32
        results.append([loss, *torch.autograd.grad(loss, (x, p))])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("proxy_dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_float64_of_either_side_gives_float64_and_all_else_float32(dtype, proxy_dtype):
    embeddings, proxies, labels = draw(7, 12, 5, 4, dtype)
    proxies = proxies.to(proxy_dtype)
    wide = torch.float64 if torch.float64 in (dtype, proxy_dtype) else torch.float32
    value, (by_x, by_p) = gradients(lambda x, p: proxy_anchor(x, p, labels), embeddings, proxies)
    slow = slow_proxy_anchor(embeddings.double(), proxies.double(), labels)
    tolerance = 1e-10 if wide == torch.float64 else 1e-5
    assert (value.dtype, by_x.dtype, by_p.dtype) == (wide, dtype, proxy_dtype)
    assert value.item() == pytest.approx(slow.item(), rel=tolerance)


@pytest.mark.parametrize("which", ["proxy_anchor", "soft_orthogonality"])
def test_rows_may_be_very_short(which):
    embeddings, proxies, labels = draw(8, 6, 3, 4, torch.float32)
    loss = {
        "proxy_anchor": lambda x, p: proxy_anchor(x, p, labels),
        "soft_orthogonality": lambda x, p: soft_orthogonality(p),
    }[which]
    short = loss(embeddings * 1e-15, proxies * 1e-15)
    torch.testing.assert_close(short, loss(embeddings, proxies), rtol=1e-4, atol=1e-4)


# --- Soft orthogonality --------------------------------------------------------------------------

SIDES = [(2, 1), (3, 7), (5, 5), (6, 5), (11, 3)]  # C below, at and above D


@pytest.mark.parametrize("classes, dim", SIDES)
def test_soft_orthogonality_equals_its_definition(classes, dim):
    _, proxies, _ = draw(classes, 1, classes, dim)
    value, (slope,) = gradients(lambda p: soft_orthogonality(p, reduction="sum"), proxies)
    full, (full_slope,) = gradients(full_soft_orthogonality, proxies)
    cosines = 1 - pdist(proxies.numpy(), "cosine")
    assert value.item() == pytest.approx(slow_soft_orthogonality(proxies), rel=1e-12)
    assert value.item() == pytest.approx(2 * np.square(cosines).sum(), rel=1e-12)
    assert value.item() == pytest.approx(full.item(), rel=1e-12)
    torch.testing.assert_close(slope, full_slope, **EXACT)
    mean = soft_orthogonality(proxies)
    assert mean.item() == pytest.approx(np.square(cosines).mean(), rel=1e-12)
    assert mean.item() * classes * (classes - 1) == pytest.approx(value.item(), rel=1e-12)


@pytest.mark.parametrize("classes, dim", [(50, 64), (65, 64), (2000, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_soft_orthogonality_of_narrow_types_is_computed_in_float32(classes, dim, dtype):
    proxies = draw(0, 1, classes, dim, dtype)[1]
    value, (slope,) = gradients(lambda p: soft_orthogonality(p, reduction="sum"), proxies)
    full, (full_slope,) = gradients(full_soft_orthogonality, proxies.double())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(full.item(), rel=1e-5)
    assert_near(slope.double(), full_slope, max(1e-5, torch.finfo(dtype).eps))


@pytest.mark.parametrize("classes, dim", [(2, 2), (4, 4), (3, 9)])
def test_soft_orthogonality_is_exactly_zero_for_orthonormal_rows(classes, dim):
    lengths = torch.tensor([[1.0], [-2.0], [0.25], [-1.0]])[:classes]
    rows = torch.eye(dim)[torch.randperm(dim)[:classes]] * lengths
    value, (slope,) = gradients(lambda p: soft_orthogonality(p, reduction="sum"), rows)
    assert value.item() == 0.0
    assert torch.equal(slope, torch.zeros_like(slope))
    turned = rotation(1, dim)[:classes]
    assert soft_orthogonality(turned, reduction="sum").item() == pytest.approx(0, abs=1e-28)
    assert soft_orthogonality(turned.float(), reduction="sum").item() == pytest.approx(0, abs=1e-12)


@quick
@given(seed=seeds, classes=st.integers(2, 14), dim=st.integers(1, 14))
def test_soft_orthogonality_does_not_care_about_lengths_signs_order_and_turns(seed, classes, dim):
    proxies = draw(seed, 1, classes, dim)[1]
    expected = soft_orthogonality(proxies)
    rng = np.random.default_rng(seed)
    lengths = 10 ** rng.uniform(-4, 4, (classes, 1)) * rng.choice([-1, 1], (classes, 1))
    for same in (
        proxies * torch.from_numpy(lengths),
        proxies[torch.from_numpy(rng.permutation(classes))],
        proxies @ rotation(seed, dim),
    ):
        torch.testing.assert_close(soft_orthogonality(same), expected, **EXACT)


@quick
@given(seed=seeds, classes=st.integers(2, 14), dim=st.integers(1, 14))
def test_soft_orthogonality_stays_between_floor_and_ceiling(seed, classes, dim):
    proxies = draw(seed, 1, classes, dim, torch.float32)[1]
    value = soft_orthogonality(proxies, reduction="sum").item()
    floor = max(0.0, classes**2 / dim - classes)
    assert value >= floor * (1 - 1e-5)
    assert value <= classes * (classes - 1) * (1 + 1e-5)
    alike = proxies[:1].expand(classes, dim)
    assert soft_orthogonality(alike).item() == pytest.approx(1, rel=1e-5)


@quick
@given(seed=seeds, classes=st.integers(2, 14), dim=st.integers(2, 14))
def test_soft_orthogonality_slope_is_known_and_orthogonal_to_the_rows(seed, classes, dim):
    proxies = draw(seed, 1, classes, dim)[1]
    _, (slope,) = gradients(lambda p: soft_orthogonality(p, reduction="sum"), proxies)
    lengths = proxies.norm(dim=1, keepdim=True)
    unit = proxies / lengths
    outward = 4 * (unit @ unit.T - torch.eye(classes)) @ unit
    along = (outward * unit).sum(1, keepdim=True) * unit
    torch.testing.assert_close(slope, (outward - along) / lengths, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close((proxies * slope).sum(1), torch.zeros(classes).double(), **EXACT)


@pytest.mark.parametrize("classes, dim", [(3, 5), (6, 3)])
def test_soft_orthogonality_first_and_second_derivatives(classes, dim):
    proxies = draw(0, 1, classes, dim)[1].requires_grad_()
    assert torch.autograd.gradcheck(soft_orthogonality, (proxies,))
    assert torch.autograd.gradgradcheck(soft_orthogonality, (proxies,))


@quick
@given(seed=seeds, classes=st.integers(2, 9), dim=st.integers(1, 5))
def test_soft_orthogonality_of_chosen_pairs(seed, classes, dim):
    _, proxies, _ = draw(seed, 1, classes, dim)
    pairs = chosen_pairs(seed, classes)
    cosines = torch.nn.functional.cosine_similarity(proxies[:, None], proxies[None], dim=2)
    squares = [
        cosines[i, j] ** 2 for i in range(classes) for j in range(classes) if i != j and pairs[i, j]
    ]
    total, slope = gradients(lambda p: soft_orthogonality(p, reduction="sum", pairs=pairs), proxies)
    mean = soft_orthogonality(proxies, pairs=pairs)
    torch.testing.assert_close(total, sum(squares), **EXACT)
    torch.testing.assert_close(mean, sum(squares) / len(squares), **EXACT)
    untouched = ~(pairs & ~torch.eye(classes, dtype=torch.bool)).any(1)
    assert not slope[0][untouched].any()  # classes in no pair feel nothing
    everything = torch.ones(classes, classes, dtype=torch.bool)
    for reduction in ("mean", "sum"):
        of_all = soft_orthogonality(proxies, reduction=reduction, pairs=everything)
        torch.testing.assert_close(of_all, soft_orthogonality(proxies, reduction=reduction))
    assert torch.autograd.gradcheck(
        lambda p: soft_orthogonality(p, pairs=pairs), proxies.requires_grad_()
    )


def test_chosen_pairs_that_make_no_sense():
    proxies = torch.eye(3)
    lopsided = torch.tensor([[False, True, False]] + [[False] * 3] * 2)
    for pairs, message in [
        (torch.ones(3, 3), "torch.float32"),
        (torch.ones(2, 2, dtype=torch.bool), r"\(2, 2\), expected torch.bool \(3, 3\)"),
        (lopsided, "symmetric"),
        (torch.eye(3, dtype=torch.bool), "at least one pair"),
    ]:
        with pytest.raises(SobookError, match=message):
            soft_orthogonality(proxies, pairs=pairs)


@pytest.mark.parametrize("classes, dim", [(4, 6), (3, 2), (7, 3)])
def test_descent_on_soft_orthogonality_reaches_the_floor(classes, dim):
    proxies = draw(2, 1, classes, dim)[1].requires_grad_()
    optimizer = torch.optim.LBFGS([proxies], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = soft_orthogonality(proxies, reduction="sum")
        loss.backward()
        return loss

    assert closure().item() > max(0, classes**2 / dim - classes) + 0.1
    optimizer.step(closure)
    assert closure().item() == pytest.approx(max(0, classes**2 / dim - classes), abs=1e-6)


class LargestTensor(TorchDispatchMode):
    """Notes the number of entries of the largest tensor made inside."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.entries = max([self.entries, *sizes])
        return result


@pytest.mark.parametrize("classes, dim", [(300, 4), (4, 300)])
def test_soft_orthogonality_forms_the_smaller_gram_matrix_only(classes, dim):
    proxies = torch.randn(classes, dim, requires_grad=True)
    with LargestTensor() as largest:
        soft_orthogonality(proxies).backward()
    assert largest.entries == classes * dim  # that of the proxies; the larger Gram has 90,000


def test_proxy_anchor_forms_nothing_larger_than_the_cosines():
    loss, embeddings = ProxyAnchor(300, 4), torch.randn(20, 4, requires_grad=True)
    with LargestTensor() as largest:
        loss(embeddings, torch.arange(20)).backward()
    assert largest.entries == 20 * 300


# --- The sum -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weight", [0.0, 0.7, 250.0])
def test_sum_is_proxy_anchor_plus_weight_times_soft_orthogonality(weight, reduction):
    embeddings, proxies, labels = draw(9, 10, 6, 4, torch.float32)
    options = {"margin": 0.2, "scale": 16.0, "threshold": 0.1}
    module = SoftOrthogonalProxyAnchor(6, 4, so_weight=weight, so_reduction=reduction, **options)
    module.load_state_dict({"proxies": proxies})

    def by_hand(p):
        so = soft_orthogonality(p, reduction=reduction)
        return proxy_anchor(embeddings, p, labels, **options) + weight * so

    value, (slope,) = gradients(by_hand, proxies)
    parts = module.parts(embeddings, labels)
    parts["loss"].backward()
    torch.testing.assert_close(module.proxies.grad, slope)
    expected = proxy_anchor(embeddings, proxies, labels, **options)
    assert torch.equal(parts["proxy_anchor"], expected)
    expected = soft_orthogonality(proxies, reduction=reduction)
    assert torch.equal(parts["soft_orthogonality"], expected)
    assert torch.equal(parts["loss"], value) and torch.equal(module(embeddings, labels), value)


def test_chosen_pairs_reach_soft_orthogonality():
    embeddings, proxies, labels = draw(9, 10, 6, 4, torch.float32)
    pairs = chosen_pairs(0, 6)
    module = SoftOrthogonalProxyAnchor(6, 4, so_pairs=pairs)
    module.load_state_dict({"proxies": proxies})  # the mask is a setting, not something learned
    expected = soft_orthogonality(proxies, pairs=pairs)
    assert torch.equal(module.parts(embeddings, labels)["soft_orthogonality"], expected)


def test_sum_has_the_documented_defaults():
    module = SoftOrthogonalProxyAnchor(5, 3)
    assert isinstance(module, ProxyAnchor)
    assert (module.margin, module.scale, module.threshold) == (0.1, 32.0, 0.0)
    assert (module.so_weight, module.so_reduction) == (SO_WEIGHT, "mean")
    assert list(module.state_dict()) == ["proxies"]


def test_a_few_steps_separate_the_classes_and_weight_spreads_the_proxies():
    _, _, labels = draw(0, 24, 6, 16)
    cosine = {}
    for weight in (0.0, 100.0):
        torch.manual_seed(0)
        module = SoftOrthogonalProxyAnchor(6, 16, so_weight=weight)
        embeddings = torch.nn.Parameter(torch.randn(24, 16) + 2)  # a direction shared by all
        module.proxies.data += 2
        optimizer = torch.optim.SGD([embeddings, module.proxies], lr=0.05)
        before = module.parts(embeddings, labels)["proxy_anchor"].item()
        for _ in range(20):
            optimizer.zero_grad()
            module(embeddings, labels).backward()
            optimizer.step()
        parts = module.parts(embeddings, labels)
        assert parts["proxy_anchor"].item() < before
        cosine[weight] = parts["soft_orthogonality"].item()
    assert cosine[100.0] < cosine[0.0]


# --- Bad input -----------------------------------------------------------------------------------

GOOD = torch.ones(4, 3)


def with_row(row: int, value: float):
    rows = GOOD.clone()
    rows[row] = value
    return rows


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_classes": 1}, r"num_classes is 1, dim 4: give at least 2 and 1"),
        ({"dim": 0}, r"num_classes is 3, dim 0: give at least 2 and 1"),
        ({"scale": 0}, r"scale is 0: it must be positive \(the usual value is 32\)"),
        ({"scale": math.nan}, r"scale is nan: it must be a finite number"),
        ({"so_weight": -1}, r"so_weight is -1: it must be zero or positive"),
        ({"so_weight": math.nan}, r"so_weight is nan: it must be a finite number"),
        ({"so_reduction": "men"}, r"so_reduction 'men': .*Did you mean 'mean'\?"),
    ],
)
def test_settings_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        SoftOrthogonalProxyAnchor(**{"num_classes": 3, "dim": 4, **arguments})


@pytest.mark.parametrize(
    "embeddings, labels, message",
    [
        (torch.ones(4, 5), [0, 1, 2, 0], r"float32 \(4, 5\), expected floating point \(B, 3\)"),
        (torch.ones(3), [0, 1, 2], r"float32 \(3,\), expected floating point \(B, 3\)"),
        (torch.ones(2, 3).int(), [0, 1], r"torch.int32 \(2, 3\), expected floating point"),
        (torch.ones(0, 3), [], r"float32 \(0, 3\), expected floating point \(B, 3\)"),
        (GOOD, [0, 1, 2], r"int64 \(3,\), expected torch.int64 \(4,\): one label per embedding"),
        (GOOD, [[0], [1], [2], [0]], r"int64 \(4, 1\), expected torch.int64 \(4,\)"),
        (GOOD, torch.zeros(4), r"labels are torch.float32 \(4,\), expected torch.int64"),
        (GOOD, [0, 1, 2, 3], r"labels run from 0 to 3, but the 3 proxies have 0\.\.2"),
        (GOOD, [-1, 1, 2, 0], r"labels run from -1 to 2"),
        (with_row(2, math.nan), [0, 1, 2, 0], r"embedding 2 is .*NaN.*\(1 such .*learning rate"),
        (with_row(3, -math.inf), [0, 1, 2, 0], r"embedding 3 is zero, NaN or infinite"),
        (with_row(1, 0.0), [0, 1, 2, 0], r"embedding 1 is zero, NaN or infinite"),
    ],
)
def test_batches_that_do_not_fit(embeddings, labels, message):
    if isinstance(labels, list):
        labels = torch.tensor(labels, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        ProxyAnchor(3, 3)(embeddings, labels)


@pytest.mark.parametrize(
    "proxies, reduction, message",
    [
        (torch.ones(1, 3), "mean", r"\(1, 3\), expected floating point .* at least two rows"),
        (torch.ones(2, 3, 4), "sum", r"float32 \(2, 3, 4\), expected floating point \(C, D\)"),
        (torch.ones(2, 3).long(), "mean", r"proxies are torch.int64 .*expected floating point"),
        (with_row(1, 0.0), "mean", r"proxy 1 is zero, .* \(1 such"),
        (with_row(0, math.nan), "sum", r"proxy 0 is zero, NaN or infinite"),
        (GOOD, "summ", r"unknown reduction 'summ': choose mean or sum\. Did you mean 'sum'\?"),
    ],
)
def test_proxies_that_have_no_orthogonality(proxies, reduction, message):
    with pytest.raises(ValueError, match=message):
        soft_orthogonality(proxies, reduction=reduction)


# --- On a GPU ------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_gives_the_numbers_of_the_cpu(dtype):
    embeddings, proxies, labels = draw(0, 60, 100, 32, dtype)
    proxies = proxies.float()

    def both(x, p):
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return proxy_anchor(x, p, labels.to(x.device)) + 100 * soft_orthogonality(p)

    value, slopes = gradients(both, embeddings, proxies)
    gpu_value, gpu_slopes = gradients(both, embeddings.cuda(), proxies.cuda())
    torch.testing.assert_close(gpu_value.cpu(), value, rtol=1e-4, atol=1e-4)
    for ours, gpu in zip(slopes, gpu_slopes, strict=True):
        assert_near(gpu.cpu(), ours, max(1e-4, 2 * torch.finfo(dtype).eps))


@needs_gpu
def test_gpu_does_not_stop_to_look_for_nan():
    embeddings = torch.full((4, 3), math.nan, device="cuda")
    loss = ProxyAnchor(3, 3).cuda()(embeddings, torch.zeros(4, dtype=torch.int64, device="cuda"))
    assert loss.isnan().item()  # for the training loop to find


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": "4"}, "num_classes is '4': it must be a whole number"),
        ({"dim": 2.5}, "dim is 2.5: it must be a whole number"),
        ({"margin": "0.1"}, "margin is '0.1': it must be a finite number"),
        ({"margin": math.nan}, "margin is nan"),
        ({"scale": None}, "scale is None"),
        ({"threshold": "learned"}, "threshold is 'learned'"),
        ({"so_weight": math.inf}, "so_weight is inf"),
    ],
)
def test_settings_of_the_wrong_type_are_refused(settings, message):
    with pytest.raises(SobookError, match=message):
        SoftOrthogonalProxyAnchor(**{"num_classes": 4, "dim": 3, **settings})


def test_settings_may_come_from_numpy():
    loss = SoftOrthogonalProxyAnchor(np.int64(4), np.int32(3), margin=np.float32(0.1), scale=16)
    assert loss.proxies.shape == (4, 3) and (loss.margin, loss.scale) == (0.1, 16.0)
