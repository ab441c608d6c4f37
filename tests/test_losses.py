"""Proxy Anchor and soft orthogonality: against slow loops, another library, and what must hold.

Notation: B batch, C classes, D embedding dimension.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from pytorch_metric_learning.losses import ProxyAnchorLoss
from scipy.spatial.distance import pdist
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from sobook.errors import SobookError
from sobook.losses import (
    SO_WEIGHT,
    ProxyAnchor,
    SoftOrthogonalityOnPairs,
    SoftOrthogonalProxyAnchor,
    soft_orthogonality,
)

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
    pull, push, present = 0.0, 0.0, 0
    for c, p in enumerate(proxies):
        near, far = [], []
        for x, label in zip(embeddings, labels, strict=True):
            cosine = x @ p / (x.norm() * p.norm())
            if label == c:
                near.append(torch.exp(-scale * (cosine - threshold - margin)))
            else:
                far.append(torch.exp(scale * (cosine - threshold + margin)))
        present += bool(near)
        pull = pull + torch.log(1 + torch.as_tensor(sum(near)))
        push = push + torch.log(1 + torch.as_tensor(sum(far)))
    return pull / present + push / len(proxies)


def full_soft_orthogonality(proxies):
    """‖P̂P̂ᵀ − I‖² by the definition, through the (C, C) matrix."""
    unit = proxies / proxies.norm(dim=1, keepdim=True)
    return (unit @ unit.T - torch.eye(len(unit), dtype=unit.dtype)).square().sum()


def total(proxies):
    return soft_orthogonality(proxies, reduction="sum")


def gradients(function, *tensors):
    """Value of a function and its gradients by each of the tensors."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    return value.detach(), torch.autograd.grad(value, leaves)


def assert_twins(ours, slow, *inputs):
    """Both functions have the same value and the same gradients."""
    torch.testing.assert_close(gradients(ours, *inputs), gradients(slow, *inputs), **EXACT)


def assert_near(actual, expected, tolerance):
    """Equal up to a fraction of the largest entry."""
    size = float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * size)


def rotation(seed: int, dim: int):
    square = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed)).double()
    return torch.linalg.qr(square).Q


# --- Proxy Anchor against slow loops and pytorch-metric-learning ---------------------------------


@pytest.mark.parametrize(
    "size, classes, dim", [(1, 2, 1), (6, 4, 3), (9, 3, 8), (12, 7, 5), (4, 30, 6)]
)
@pytest.mark.parametrize(
    "options", [{}, {"margin": 0, "scale": 64}, {"threshold": -0.2, "margin": 0.3, "scale": 5.0}]
)
def test_proxy_anchor_equals_the_slow_loops(size, classes, dim, options):
    embeddings, proxies, labels = draw(size, size, classes, dim)
    assert_twins(
        lambda x, p: proxy_anchor(x, p, labels, **options),
        lambda x, p: slow_proxy_anchor(x, p, labels, **options),
        embeddings,
        proxies,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size, classes, dim", [(5, 2, 3), (90, 98, 64), (8, 300, 4)])
def test_proxy_anchor_equals_pytorch_metric_learning(size, classes, dim, dtype):
    embeddings, proxies, labels = draw(0, size, classes, dim, dtype)
    wide = torch.promote_types(dtype, torch.float32)  # their loss does not survive half precision
    theirs = ProxyAnchorLoss(classes, dim, margin=0.1, alpha=32)
    theirs.cast_types = lambda *_: None  # version 2 would write into .data of the leaf

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


def test_proxies_start_as_in_pytorch_metric_learning():
    torch.manual_seed(7)
    ours = ProxyAnchor(12, 5)
    torch.manual_seed(7)
    assert torch.equal(ours.proxies, ProxyAnchorLoss(12, 5).proxies)
    assert list(ours.state_dict()) == ["proxies"]


# --- Proxy Anchor: closed forms and properties ---------------------------------------------------


def test_proxy_anchor_keeps_tiny_terms_in_float32():
    # On its proxy, opposite the other: pull and push are log(1 + e^-28.8) = 3e-13 each, which
    # float32 would round to zero if one were added first.
    loss = proxy_anchor(torch.eye(1, 2), torch.tensor([[1.0, 0], [-1, 0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(1.5 * math.exp(-28.8), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_proxy_anchor_does_not_overflow_where_exponents_are_largest(dtype):
    embeddings = torch.ones(6, 4, dtype=dtype)  # on all proxies: exponents reach 35.2
    proxies, labels = torch.ones(3, 4), torch.tensor([0, 0, 0, 1, 1, 2])
    value, slopes = gradients(lambda x, p: proxy_anchor(x, p, labels), embeddings, proxies)
    pull = sum(math.log1p(n * math.exp(-28.8)) for n in (3, 2, 1)) / 3
    push = sum(math.log1p((6 - n) * math.exp(35.2)) for n in (3, 2, 1)) / 3
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(pull + push, rel=1e-6)
    assert all(slope.isfinite().all() for slope in slopes)


@quick
@given(seed=seeds, size=st.integers(1, 9), classes=st.integers(2, 6), dim=st.integers(1, 6))
def test_proxy_anchor_ignores_order_names_lengths_and_rotation(seed, size, classes, dim):
    embeddings, proxies, labels = draw(seed, size, classes, dim)
    rng, turn = np.random.default_rng(seed), rotation(seed, dim)
    order, renamed = (torch.from_numpy(rng.permutation(n)) for n in (size, classes))
    lengths = torch.from_numpy(10 ** rng.uniform(-4, 4, (size + classes, 1)))
    expected = proxy_anchor(embeddings, proxies, labels)
    for same in (
        (embeddings[order], proxies, labels[order]),
        (embeddings, proxies[renamed.argsort()], renamed[labels]),  # class c is called renamed[c]
        (embeddings * lengths[:size], proxies * lengths[size:], labels),
        (embeddings @ turn, proxies @ turn, labels),
    ):
        torch.testing.assert_close(proxy_anchor(*same), expected, **EXACT)


def test_a_learned_threshold_starts_as_the_fixed_one_and_has_its_derivative():
    embeddings, proxies, labels = draw(4, 6, 4, 3)
    fixed = proxy_anchor(embeddings, proxies, labels, threshold=0.3)
    learned = ProxyAnchor(4, 3, threshold=0.3, learn_threshold=True)
    assert dict(learned.named_parameters()).keys() == {"proxies", "threshold"}
    assert learned.threshold.item() == pytest.approx(0.3)

    def loss(b):
        return functional_call(learned, {"proxies": proxies, "threshold": b}, (embeddings, labels))

    b = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(loss(b), fixed, **EXACT)
    assert torch.autograd.gradcheck(loss, b)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, p: proxy_anchor(x, p, torch.tensor([0, 1, 1, 2]), scale=4.0),
        lambda x, p: proxy_anchor(x, p, torch.tensor([2, 2, 2, 2]), scale=4.0, threshold=0.3),
        lambda x, p: soft_orthogonality(p) + soft_orthogonality(x.T),  # C > D, and C < D
    ],
)
def test_first_and_second_derivatives(loss):
    embeddings, proxies, _ = draw(5, 4, 4, 3)
    inputs = embeddings.requires_grad_(), proxies.requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, inputs)


# --- Transforms, autocast and types --------------------------------------------------------------


@pytest.mark.parametrize("mapped", [(0, 0, 0), (None, 0, None), (0, None, None)])
@pytest.mark.parametrize("loss", [ProxyAnchor, SoftOrthogonalProxyAnchor])
def test_func_grad_and_vmap_equal_autograd_in_a_loop(loss, mapped):
    """Over batches and models, over models alone, over embeddings alone."""
    cases = [draw(seed, 7, 4, 3) for seed in range(3)]
    inputs = [torch.stack([case[i] for case in cases]) for i in range(3)]  # x (3, B, D), p, y
    inputs = [rows if axis == 0 else rows[0] for rows, axis in zip(inputs, mapped, strict=True)]
    module = loss(4, 3)

    def value(x, p, y):
        return functional_call(module, {"proxies": p}, (x, y))

    both = torch.func.grad_and_value(value, argnums=(0, 1))
    together = tree_leaves(torch.func.vmap(both, mapped)(*inputs))
    for i in range(3):
        x, p, y = (
            rows[i] if axis == 0 else rows for rows, axis in zip(inputs, mapped, strict=True)
        )
        expected, slopes = gradients(lambda x, p, y=y: value(x, p, y), x, p)
        torch.testing.assert_close([leaf[i] for leaf in together], [*slopes, expected])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    embeddings, proxies, labels = draw(6, 16, 10, 8, torch.float32)

    def loss(x, p, enabled=False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            return proxy_anchor(x, p, labels) + 100 * soft_orthogonality(p)

    plain, plain_slopes = gradients(loss, embeddings.to(dtype), proxies)
    value, slopes = gradients(lambda x, p: loss(x, p, True), embeddings.to(dtype), proxies)
    assert value.dtype == torch.float32 and torch.equal(value, plain)
    assert all(map(torch.equal, slopes, plain_slopes))


# --- Soft orthogonality --------------------------------------------------------------------------


@pytest.mark.parametrize("classes, dim", [(2, 1), (3, 7), (5, 5), (6, 5), (11, 3)])
def test_soft_orthogonality_equals_its_definition(classes, dim):
    _, proxies, _ = draw(classes, 1, classes, dim)
    assert_twins(total, full_soft_orthogonality, proxies)
    cosines = 1 - pdist(proxies.numpy(), "cosine")
    assert total(proxies).item() == pytest.approx(2 * np.square(cosines).sum(), rel=1e-12)
    assert soft_orthogonality(proxies).item() == pytest.approx(np.square(cosines).mean(), rel=1e-12)


@quick
@given(seed=seeds, classes=st.integers(2, 14), dim=st.integers(1, 14))
def test_soft_orthogonality_properties(seed, classes, dim):
    """Lengths, signs, order and rotation do not matter; floor, ceiling, slopes across the rows."""
    proxies = draw(seed, 1, classes, dim)[1]
    rng = np.random.default_rng(seed)
    lengths = 10 ** rng.uniform(-4, 4, (classes, 1)) * rng.choice([-1, 1], (classes, 1))
    value, (slope,) = gradients(total, proxies)
    order = torch.from_numpy(rng.permutation(classes))
    same = (proxies * torch.from_numpy(lengths), proxies[order], proxies @ rotation(seed, dim))
    for other in same:
        torch.testing.assert_close(total(other), value, **EXACT)
    floor, ceiling = max(0.0, classes**2 / dim - classes), classes * (classes - 1)
    assert floor - 1e-9 <= value.item() <= ceiling + 1e-9
    torch.testing.assert_close((proxies * slope).sum(1), torch.zeros(classes).double(), **EXACT)


# --- The sum -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sum_is_proxy_anchor_plus_weight_times_soft_orthogonality(reduction):
    embeddings, proxies, labels = draw(9, 10, 6, 4, torch.float32)
    options = {"margin": 0.2, "scale": 16.0, "threshold": 0.1}
    module = SoftOrthogonalProxyAnchor(6, 4, so_weight=7.5, so_reduction=reduction, **options)
    module.load_state_dict({"proxies": proxies})
    parts = module.parts(embeddings, labels)
    so = soft_orthogonality(proxies, reduction=reduction)
    assert torch.equal(parts["proxy_anchor"], proxy_anchor(embeddings, proxies, labels, **options))
    assert torch.equal(parts["soft_orthogonality"], so)
    assert torch.equal(parts["loss"], parts["proxy_anchor"] + 7.5 * so)
    assert torch.equal(module(embeddings, labels), parts["loss"])
    assert SoftOrthogonalProxyAnchor(6, 4).so_weight == SO_WEIGHT


def test_soft_orthogonality_on_chosen_pairs():
    embeddings, proxies, labels = draw(9, 10, 6, 4)
    pairs = torch.zeros(6, 6, dtype=torch.bool)
    pairs[0, 1] = pairs[0, 4] = pairs[2, 4] = True
    module = SoftOrthogonalityOnPairs(6, 4).double()
    module.load_state_dict({"proxies": proxies})
    module.so_pairs = pairs | pairs.T
    cosines = 1 - pdist(proxies, "cosine")[[0, 3, 10]]  # 01, 04, 24
    value = module.parts(embeddings, labels)["soft_orthogonality"]
    assert value.item() == pytest.approx(np.square(cosines).mean(), rel=1e-12)
    (slope,) = torch.autograd.grad(value, module.proxies)
    assert slope.any(1).tolist() == [True, True, True, False, True, False]
    module.so_pairs = ~torch.eye(6, dtype=torch.bool)
    value = module.parts(embeddings, labels)["soft_orthogonality"]
    torch.testing.assert_close(value, soft_orthogonality(proxies), **EXACT)


# --- Bad input -----------------------------------------------------------------------------------


WRONG = {"num_classes": [1, "4"], "dim": [0, 2.5], "margin": [math.nan], "scale": [0, None]}
WRONG |= {"threshold": ["learned"], "so_weight": [-1, math.inf]}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_make_no_sense(name):
    for value in WRONG[name]:
        with pytest.raises(SobookError, match=name):
            SoftOrthogonalProxyAnchor(**{"num_classes": 4, "dim": 3, name: value})


def with_row(row: int, value: float):
    rows = torch.ones(4, 3)
    rows[row] = value
    return rows


@pytest.mark.parametrize(
    "embeddings, labels, word",
    [
        (torch.ones(4, 5), [0, 1, 2, 0], r"\(4, 5\)"),
        (torch.ones(3), [0, 1, 2], r"\(3,\)"),
        (torch.ones(2, 3).int(), [0, 1], "torch.int32"),
        (torch.ones(0, 3), [], r"\(0, 3\)"),
        (torch.ones(4, 3), [0, 1, 2], r"\(3,\)"),
        (torch.ones(4, 3), [[0], [1], [2], [0]], r"\(4, 1\)"),
        (torch.ones(4, 3), [0.0] * 4, "torch.float32"),
        (torch.ones(4, 3), [0, 1, 2, 3], r"0\.\.2"),
        (torch.ones(4, 3), [-1, 1, 2, 0], r"0\.\.2"),
        (with_row(2, math.nan), [0, 1, 2, 0], "NaN"),
        (with_row(3, -math.inf), [0, 1, 2, 0], "infinite"),
        (with_row(1, 0.0), [0, 1, 2, 0], "embedding is zero"),
    ],
)
def test_batches_that_do_not_fit(embeddings, labels, word):
    labels = torch.tensor(labels) if labels else torch.zeros(0, dtype=torch.int64)
    with pytest.raises(SobookError, match=word):
        ProxyAnchor(3, 3)(embeddings, labels)


@pytest.mark.parametrize(
    "proxies, reduction, word",
    [
        (torch.ones(1, 3), "mean", r"\(1, 3\)"),
        (torch.ones(2, 3, 4), "sum", r"\(2, 3, 4\)"),
        (torch.ones(2, 3).long(), "mean", "float"),
        (with_row(1, 0.0), "mean", "proxy is zero"),
        (with_row(0, math.nan), "sum", "NaN"),
        (torch.ones(4, 3), "summ", "'sum'"),
    ],
)
def test_proxies_that_have_no_orthogonality(proxies, reduction, word):
    with pytest.raises(SobookError, match=word):
        soft_orthogonality(proxies, reduction=reduction)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_gives_the_numbers_of_the_cpu_and_does_not_look_for_nan(dtype):
    embeddings, proxies, labels = draw(0, 60, 100, 32, dtype)

    def both(x, p):
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return proxy_anchor(x, p, labels.to(x.device)) + 100 * soft_orthogonality(p)

    value, slopes = gradients(both, embeddings, proxies.float())
    gpu_value, gpu_slopes = gradients(both, embeddings.cuda(), proxies.float().cuda())
    torch.testing.assert_close(gpu_value.cpu(), value, rtol=1e-4, atol=1e-4)
    for ours, gpu in zip(slopes, gpu_slopes, strict=True):
        assert_near(gpu.cpu(), ours, max(1e-4, 2 * torch.finfo(dtype).eps))
    assert both(embeddings.cuda() * math.nan, proxies.cuda()).isnan()  # the training loop finds it
