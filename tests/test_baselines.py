"""Other losses and other regularizers, against their definitions."""

import itertools
import sys

import numpy as np
import pytest
import torch

from sobook import baselines
from sobook.errors import SobookError
from sobook.losses import ProxyAnchor, soft_orthogonality
from sobook.training.heads import HeadConfig


def test_regularizers_against_their_definitions(rng):
    proxies = torch.tensor(rng.normal(size=(7, 4)))
    unit = proxies / proxies.norm(dim=1, keepdim=True)
    pairs = list(itertools.combinations(range(7), 2))
    cosines = {(i, j): float(unit[i] @ unit[j]) for i, j in pairs}
    largest = max(abs(value) for value in cosines.values())
    assert float(baselines.mutual_coherence(proxies)) == pytest.approx(largest)
    nearest = [max(cosines[tuple(sorted((i, j)))] for j in range(7) if j != i) for i in range(7)]
    assert float(baselines.regular_face(proxies)) == pytest.approx(np.mean(nearest))
    apart = [np.exp(-2 * float((unit[i] - unit[j]).square().sum())) for i, j in pairs]
    assert float(baselines.uniformity(proxies)) == pytest.approx(np.log(np.mean(apart)))
    # With unit rows, double SO is twice SO and a constant, (D − C) / C(C−1).
    double = float(baselines.double_soft_orthogonality(unit))
    assert double == pytest.approx(2 * float(soft_orthogonality(unit)) + (4 - 7) / 42)


def test_regular_face_against_pytorch_metric_learning(rng):
    regularizers = pytest.importorskip("pytorch_metric_learning.regularizers")
    proxies = torch.tensor(rng.normal(size=(9, 5)), dtype=torch.float32)
    theirs = float(regularizers.RegularFaceRegularizer()(proxies))
    assert float(baselines.regular_face(proxies)) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("name", baselines.REGULARIZERS)
def test_a_regularizer_is_added_to_proxy_anchor(name, rng):
    torch.manual_seed(0)
    plain = ProxyAnchor(4, 3)
    embeddings, labels = torch.randn(8, 3), torch.arange(8) % 4
    both = baselines.RegularizedProxyAnchor(plain, name, 0.5)
    penalty = baselines.REGULARIZERS[name](plain.proxies)
    expected = plain(embeddings, labels) + 0.5 * penalty
    torch.testing.assert_close(both(embeddings, labels), expected)
    assert baselines.class_vectors(both).shape == (4, 3)


@pytest.mark.parametrize("name", baselines.LOSSES)
def test_every_loss_has_a_gradient(name):
    pytest.importorskip("pytorch_metric_learning")
    torch.manual_seed(0)
    embeddings = torch.randn(12, 5, requires_grad=True)
    loss = baselines.make(name, 4, 5)
    loss(torch.nn.functional.normalize(embeddings, dim=1), torch.arange(12) % 4).backward()
    assert embeddings.grad.isfinite().all() and embeddings.grad.any()
    vectors = baselines.class_vectors(loss)
    assert vectors is None or vectors.shape == (4, 5)


def test_unknown_names_have_a_near_match():
    with pytest.raises(SobookError, match="Did you mean 'arcface'"):
        baselines.make("arc_face", 3, 4)
    with pytest.raises(SobookError, match="Did you mean 'coherence'"):
        HeadConfig(regularizer="coherance")


def test_a_baseline_without_its_package_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(SobookError, match="pip install pytorch-metric-learning"):
        baselines.make("arcface", 3, 4)
