"""The tilt: measured against loops and the loss's own gradient, predicted against a grid."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sobook import tilt
from sobook.losses import ProxyAnchor

C, D, N, B = 6, 5, 60, 20
LABELS = np.arange(N) % C
BATCHES = np.random.default_rng(0).permutation(N).reshape(-1, B)


def head(shift: float = 0.5, scale: float = 8.0) -> tuple[ProxyAnchor, torch.Tensor]:
    """A loss with proxies shifted one way, and embeddings shifted the other."""
    torch.manual_seed(0)
    loss = ProxyAnchor(C, D, scale=scale, threshold=0.05).double()
    with torch.no_grad():
        loss.proxies.copy_(F.normalize(torch.randn(C, D).double(), dim=1) + shift)
    noise = 0.3 * torch.randn(N, D).double()
    return loss, F.normalize(loss.proxies.detach()[LABELS] + noise - 1.5 * shift, dim=1)


def settings(loss: ProxyAnchor) -> tilt.Loss:
    return tilt.Loss(loss.scale, loss.margin, loss.threshold)


def measured(loss: ProxyAnchor, embeddings: torch.Tensor) -> tilt.Tilt:
    return tilt.measure(
        loss.proxies.detach().numpy(), embeddings.numpy(), LABELS, BATCHES, settings(loss)
    )


def test_measure_as_the_gradient_of_the_loss_says():
    """w₊ − w₋ is the derivative by a shift of all cosines, by torch's own loss."""
    loss, embeddings = head()
    seen = measured(loss, embeddings)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    total = sum(
        shifted_loss(loss, embeddings[rows], torch.from_numpy(LABELS[rows]), shift)
        for rows in BATCHES
    )
    total.backward()
    slope = shift.grad.item() / len(BATCHES) / loss.scale
    assert slope == pytest.approx(seen.pull - seen.push, rel=1e-9)


def shifted_loss(loss, embeddings, labels, shift):
    """Proxy Anchor of cosines − shift, which is that of a threshold raised by the shift."""
    moved = ProxyAnchor(C, D, scale=loss.scale).double()
    moved.proxies.data.copy_(loss.proxies.data)
    moved.threshold = loss.threshold + shift
    return moved(embeddings, labels)


def test_measure_as_a_loop_over_pairs():
    loss, embeddings = head()
    seen = measured(loss, embeddings)
    unit = F.normalize(loss.proxies.detach(), dim=1).numpy()
    x_mean, p_mean = embeddings.numpy().mean(0), unit.mean(0)
    a, e = (p_mean**2).sum(), (x_mean**2).sum()
    own, foreign = [], []
    for x, label in zip(embeddings.numpy(), LABELS, strict=True):
        for c, p in enumerate(unit):
            r = (x - x_mean) @ (p - p_mean) / ((1 - a) * (1 - e)) ** 0.5
            (own if c == label else foreign).append(r)
    assert (seen.proxy_cone, seen.image_cone) == pytest.approx((a, e))
    assert (seen.own_residual, seen.own_spread) == pytest.approx((np.mean(own), np.std(own)))
    assert (seen.foreign_residual, seen.foreign_spread) == pytest.approx(
        (np.mean(foreign), np.std(foreign))
    )
    assert seen.tau == pytest.approx(-x_mean @ p_mean) and seen.tau > 0.1


def test_measure_does_not_depend_on_the_axes_or_on_the_length_of_proxies():
    loss, embeddings = head()
    turned = torch.linalg.qr(torch.randn(D, D).double()).Q
    before = dataclasses.astuple(measured(loss, embeddings))
    loss.proxies.data = 3 * loss.proxies.data @ turned
    after = dataclasses.astuple(measured(loss, embeddings @ turned))
    np.testing.assert_allclose(before, after, atol=1e-12)


@pytest.mark.parametrize("so_weight", [0.0, 30.0])
def test_predict_as_a_grid_of_the_loss_written_in_torch(so_weight):
    """Cosines are built for every a and e, and torch's Proxy Anchor of them is the reference."""
    seen = tilt.Tilt(0, 0, 0, 0.6, 0.1, -0.1, 0.2, 0, 0, 0, 0)
    chosen = tilt.Loss(scale=16.0, so_weight=so_weight)
    labels = LABELS[BATCHES]
    is_own = labels[:, :, None] == np.arange(C)
    mean, spread = np.where(is_own, 0.6, -0.1), np.where(is_own, 0.1, 0.2)
    r = torch.from_numpy(mean + spread * np.random.default_rng(0).standard_normal(is_own.shape))

    def value(a, e):
        cosines = -((a * e) ** 0.5) + ((1 - a) * (1 - e)) ** 0.5 * r
        total = so_weight * (a - (1 - a) / (C - 1)) ** 2
        for s, own in zip(cosines, torch.from_numpy(is_own), strict=True):
            pull = (torch.exp(-16 * (s - 0.1)) * own).sum(0)
            push = (torch.exp(16 * (s + 0.1)) * ~own).sum(0)
            total += (pull.log1p().sum() / own.any(0).sum() + push.log1p().mean()) / len(r)
        return float(total)

    grid = np.arange(0, 0.95, 0.025)
    a, e = min(((a, e) for a in grid for e in grid), key=lambda pair: value(*pair))
    found = tilt.predict(seen, labels, C, chosen)
    assert found[:2] == pytest.approx((a, e), abs=0.02) and found[2] == 0
    assert value(*found[:2]) <= value(a, e)


def test_predict_follows_the_slack():
    """A higher threshold tilts less, SO tilts proxies less than images, a learned b ends it."""
    seen = tilt.Tilt(0, 0, 0, 0.6, 0.05, -0.1, 0.15, 0, 0, 0, 0)
    labels = LABELS[BATCHES]
    tilts = []
    for b in (0.0, 0.15, 0.3):
        a, e, _ = tilt.predict(seen, labels, C, tilt.Loss(threshold=b))
        assert a == pytest.approx(e, abs=1e-3)  # equal cones
        tilts.append((a * e) ** 0.5)
    assert tilts == sorted(tilts, reverse=True) and tilts[0] - tilts[2] > 0.1
    a, e, _ = tilt.predict(seen, labels, C, tilt.Loss(so_weight=100.0))
    assert a < e
    a, e, b = tilt.predict(seen, labels, C, tilt.Loss(), learn_threshold=True)
    assert (a * e) ** 0.5 < 0.01 and b > 0.1
