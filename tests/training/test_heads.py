"""Heads on frozen features: the trainer of fine-tuning, with features in place of images."""

import numpy as np
import pytest
import torch

from sobook import baselines
from sobook.data import loader
from sobook.errors import SobookError
from sobook.training import heads
from sobook.training.config import TrainConfig
from sobook.training.heads import HeadConfig, fit_head
from sobook.training.loop import prepare
from sobook.training.processes import Processes
from sobook.training.run import Run
from sobook.training.trainer import Trainer


@pytest.fixture
def config(tiny_aviary, tiny_options):
    """Four training species with 6 images each, two of them held out."""
    return HeadConfig(
        root=str(tiny_aviary),
        options=tiny_options,
        epochs=2,
        batch_size=8,
        dim=8,
        validation_fraction=0.5,
        device="cpu",
    )


@pytest.mark.parametrize("loss", ["proxy_anchor", *baselines.LOSSES])
def test_every_loss_trains_a_head(loss, config):
    if loss != "proxy_anchor":
        pytest.importorskip("pytorch_metric_learning")
    config = config.replace(loss=loss, images_per_class=4)
    measured = fit_head(config)
    assert measured == fit_head(config)  # nothing but the seed decides
    assert 0 <= measured["recall_at_1"] <= measured["recall_at_8"] <= 1
    if loss == "proxy_anchor":
        assert measured["rms_cosine"] != fit_head(config.replace(seed=1))["rms_cosine"]


def test_what_spreads_the_proxies_and_what_removes_their_common_mode(config):
    config = config.replace(epochs=30, dim=16, validation_fraction=0)
    plain = fit_head(config)
    regularized = fit_head(config.replace(regularizer="double_so", regularizer_weight=10))
    orthogonal = fit_head(config.replace(so_weight=100))
    centered = fit_head(config.replace(center=True))
    assert regularized["rms_cosine"] < plain["rms_cosine"]
    assert orthogonal["rms_cosine"] < 0.5 * plain["rms_cosine"]
    assert centered["mean_proxy_length"] < 0.5 * plain["mean_proxy_length"]
    assert "validation_recall_at_1" not in plain


def test_batches_are_those_of_images(config, monkeypatch):
    """The rows of every batch, and the hold-out, are what fine-tuning would draw."""
    drawn, batch_plan = [], heads.batch_plan

    def plan(rng, labels, *rest):
        drawn.append(batch_plan(rng, np.sort(labels), *rest))
        return drawn[-1]

    monkeypatch.setattr(heads, "batch_plan", plan)
    fit_head(config)
    shared = {name: getattr(config, name) for name in ("root", "options", "validation_fraction")}
    fine = TrainConfig(**shared, batch_size=8, dim=8, device="cpu", epochs=2)
    data, trainer = prepare(Run.open(fine), Processes(torch.device("cpu")))
    assert trainer.steps == sum(map(len, drawn)) == 2
    for epoch, rows in enumerate(drawn, start=1):
        labels = np.sort(data.train.labels)
        batches = loader.TrainingBatches(None, labels, image_size=8, batch_size=8, epoch=epoch)
        np.testing.assert_array_equal(batches.plan, rows)


def test_few_images_per_class(config, monkeypatch):
    """So many of each class are trained on; the others are those that treated pairs look at."""
    seen, batch_plan = [], heads.batch_plan
    monkeypatch.setattr(
        heads,
        "batch_plan",
        lambda rng, labels, *b: seen.append(labels) or batch_plan(rng, labels, *b),
    )
    fit_head(config.replace(validation_fraction=0, max_images_per_class=4))
    assert np.bincount(seen[0]).tolist() == [4, 4, 4, 4]


def test_a_head_takes_the_chosen_device(config, monkeypatch):
    used, step = [], Trainer.step
    chosen = torch.device("cpu:0")  # which is not equal to "cpu"
    monkeypatch.setattr(heads, "choose_device", {None: chosen}.__getitem__)
    monkeypatch.setattr(
        Trainer, "step", lambda self, *batch: used.append(self.device) or step(self, *batch)
    )
    fit_head(config.replace(device=None))
    assert set(used) == {chosen}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_head_on_a_gpu(config):
    on_gpu = fit_head(config.replace(device=None))
    assert torch.cuda.max_memory_allocated() > 0
    assert on_gpu["rms_cosine"] == pytest.approx(fit_head(config)["rms_cosine"], rel=0.05)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"loss": "arcfac"}, "Did you mean 'arcface'"),
        ({"regularizer": "coherenc"}, "Did you mean 'coherence'"),
        ({"label_noise": 0.1}, "label_noise"),
        ({"so_pairs_fraction": 0.0}, "so_pairs_fraction"),
        ({"max_images_per_class": 0}, "max_images_per_class"),
        ({"loss_options": {"scale": 1}}, "loss_options"),
        ({"batch_size": 1}, "batch_size"),
    ],
)
def test_bad_settings(changes, word):
    with pytest.raises(SobookError, match=word):
        HeadConfig().replace(**changes)


def test_what_would_stop_a_run_is_said_before(config):
    heads.check(config)
    too_large = {"images_per_class": 3, "batch_size": 500}
    for changes in (too_large, {"weights": "gone.pth"}, {"device": "cdua"}):
        with pytest.raises(SobookError):
            heads.check(config.replace(**changes))
    assert heads.notes(config) == []


def test_a_learned_threshold_moves_and_a_fixed_one_does_not(config):
    config = config.replace(epochs=10, threshold=0.1)
    assert fit_head(config)["threshold_at_end"] == pytest.approx(0.1)
    learned = fit_head(config.replace(threshold_lr=0.01))["threshold_at_end"]
    assert learned != pytest.approx(0.1, abs=1e-3)


def test_soft_orthogonality_spreads_the_treated_pairs_only(config):
    config = config.replace(
        epochs=40, dim=16, validation_fraction=0, max_images_per_class=3, so_pairs_fraction=0.5
    )
    treated = fit_head(config.replace(so_weight=100))
    assert treated["treated_rms_cosine"] < 0.5 * treated["untreated_rms_cosine"]
    placebo = fit_head(config)
    everyone = fit_head(config.replace(so_pairs_fraction=1))
    assert placebo["recall_at_1"] == everyone["recall_at_1"]  # the draw itself changes nothing
    assert "treated_rms_cosine" not in everyone


def test_treated_pairs_against_slow_loops():
    generator = torch.Generator().manual_seed(3)
    proxies, embeddings = torch.randn(4, 5, generator=generator), torch.randn(12, 5)
    embeddings /= embeddings.norm(dim=1, keepdim=True)
    labels = torch.arange(12) % 4
    pairs = torch.zeros(4, 4, dtype=torch.bool)
    pairs[0, 1] = pairs[1, 0] = pairs[2, 3] = pairs[3, 2] = True
    measured = heads.treated_pairs(proxies, pairs, embeddings, labels)

    squares: dict[bool, list[float]] = {True: [], False: []}
    for i in range(4):
        for j in range(i):
            cosine = proxies[i] @ proxies[j] / (proxies[i].norm() * proxies[j].norm())
            squares[bool(pairs[i, j])].append(float(cosine) ** 2)
    confused = {True: 0, False: 0}
    for i in range(12):
        nearest = max((j for j in range(12) if j != i), key=lambda j: embeddings[i] @ embeddings[j])
        if labels[i] != labels[nearest]:
            confused[bool(pairs[labels[i], labels[nearest]])] += 1
    for name, which in (("treated", True), ("untreated", False)):
        rms = np.mean(squares[which]) ** 0.5
        assert measured[f"{name}_rms_cosine"] == pytest.approx(rms, rel=1e-5)
        expected = confused[which] / 12 / (len(squares[which]) / 6)
        assert measured[f"{name}_confusion"] == pytest.approx(expected)
