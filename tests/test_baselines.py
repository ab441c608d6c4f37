"""Other losses and other regularizers, against their definitions."""

import itertools

import numpy as np
import pytest
import torch
from pytorch_metric_learning.regularizers import RegularFaceRegularizer

from sobook import baselines
from sobook.errors import SobookError
from sobook.losses import ProxyAnchor, soft_orthogonality


def test_regularizers_equal_their_definitions(rng):
    proxies = torch.tensor(rng.normal(size=(7, 4)))
    unit = proxies / proxies.norm(dim=1, keepdim=True)
    pairs = list(itertools.combinations(range(7), 2))
    cosines = {pair: float(unit[pair[0]] @ unit[pair[1]]) for pair in pairs}
    apart = [np.exp(-2 * float((unit[i] - unit[j]).square().sum())) for i, j in pairs]
    expected = {
        "coherence": max(abs(value) for value in cosines.values()),
        "regular_face": float(RegularFaceRegularizer()(proxies)),
        "uniformity": np.log(np.mean(apart)),
    }
    for name, value in expected.items():
        assert float(baselines.REGULARIZERS[name](proxies)) == pytest.approx(value)
    # With unit rows, double SO is twice SO and a constant, (D − C) / C(C−1).
    double = float(baselines.REGULARIZERS["double_so"](unit))
    assert double == pytest.approx(2 * float(soft_orthogonality(unit)) + (4 - 7) / 42)


@pytest.mark.parametrize("name", baselines.REGULARIZERS)
def test_a_regularizer_is_added_to_proxy_anchor(name):
    plain = ProxyAnchor(4, 3)
    embeddings, labels = torch.randn(8, 3), torch.arange(8) % 4
    both = baselines.RegularizedProxyAnchor(plain, name, 0.5)
    expected = plain(embeddings, labels) + 0.5 * baselines.REGULARIZERS[name](plain.proxies)
    torch.testing.assert_close(both(embeddings, labels), expected)
    assert baselines.class_vectors(both).shape == (4, 3)


@pytest.mark.parametrize("name", baselines.LOSSES)
def test_every_loss_has_a_gradient(name):
    embeddings = torch.randn(12, 5, requires_grad=True)
    loss = baselines.make(name, 4, 5)
    loss(torch.nn.functional.normalize(embeddings, dim=1), torch.arange(12) % 4).backward()
    assert embeddings.grad.isfinite().all() and embeddings.grad.any()
    vectors = baselines.class_vectors(loss)
    assert vectors is None or vectors.shape == (4, 5)


def test_unknown_names_and_options():
    with pytest.raises(SobookError, match="'arcface'"):
        baselines.make("arc_face", 3, 4)
    with pytest.raises(SobookError, match="scales"):
        baselines.make("arcface", 3, 4, scales=2)
