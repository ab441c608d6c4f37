"""Training a head alone, on frozen features that were computed once: seconds per run, not minutes.

`Trainer` gets features in place of images; head and proxies learn. There is no augmentation.
Good for searching widely; what matters has to be confirmed by fine-tuning.
Notation: N images, F features of the backbone, D embedding dimension, C classes.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sobook import baselines, geometry, tilt
from sobook.data import image_sets
from sobook.data.image_sets import ImageSet
from sobook.data.loader import batch_plan
from sobook.embedding import embed
from sobook.encoder import Encoder, make_head
from sobook.errors import SobookError, check_choice
from sobook.losses import ProxyAnchor, SoftOrthogonalityOnPairs, SoftOrthogonalProxyAnchor
from sobook.retrieval import evaluate, nearest_neighbors
from sobook.training.config import BaseConfig
from sobook.training.data import Data, notes_on
from sobook.training.processes import Processes, choose_device
from sobook.training.trainer import Trainer


@dataclass(frozen=True)
class HeadConfig(BaseConfig):
    """One run of a head on frozen features."""

    epochs: int = 20
    batch_size: int = 100

    loss: str = "proxy_anchor"
    """proxy_anchor, or a baseline of pytorch-metric-learning, see `baselines.LOSSES`."""
    loss_options: dict[str, int | float] = field(default_factory=dict)
    """Keyword arguments of a baseline's loss."""
    regularizer: str = "none"
    """Added to Proxy Anchor, on its proxies: none or one of `baselines.REGULARIZERS`."""
    regularizer_weight: float = 0.0
    """Its weight."""
    center: bool = False
    """Subtract the mean proxy from all proxies, inside the loss."""
    so_pairs_fraction: float = 1.0
    """Fraction of the class pairs, drawn by the seed, that soft orthogonality acts on."""

    head_bias: bool = True
    """Whether the head's linear layer has a bias, which turns all images one way at once."""
    max_images_per_class: int | None = None
    """Images of each training class that are used; None: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("loss", self.loss, ("proxy_anchor", *baselines.LOSSES))
        check_choice("regularizer", self.regularizer, ("none", *baselines.REGULARIZERS))
        if self.batch_size < 2:
            raise SobookError(f"batch_size is {self.batch_size}: it must be at least 2.")
        if self.loss_options and self.loss == "proxy_anchor":
            raise SobookError(f"loss_options are {self.loss_options}, but no other loss is chosen.")


def check(config: HeadConfig) -> None:
    """Refuse what would stop `fit_head`: device, loss, encoder or data (`SobookError`)."""
    choose_device(config.device)
    _make_loss(config, 2, 2)
    Data.check(config, _sets(_source(config)), hold_out=config.validation_fraction > 0)
    Encoder.create(config.encoder, **config.encoder_options)  # last: it may have to be downloaded


def notes(config: BaseConfig) -> list[str]:
    """Notes on a config's data that every report must repeat."""
    return notes_on(_sets(_source(config)))


def fit_head(config: HeadConfig) -> dict[str, float]:
    """Train a head and measure it.

    Returns:
        recall_at_K, map_at_r and r_precision on the test classes, validation_recall_at_1 on
        held-out training classes, recall_without_common (Recall@1 with the mean proxy's direction
        taken out of the embeddings), the frozen encoder's Recall@1 on both, the threshold, the
        proxies' geometry, the tilt (`sobook.tilt.Tilt`), and, where SO acts on some pairs only,
        `treated_pairs`.
    """
    source, device = _source(config), choose_device(config.device)
    sets = _sets(source)
    data = Data.check(config, sets, hold_out=config.validation_fraction > 0)
    features = _features(source, "train")
    inputs = {"train": features, "test": _features(source, "test")}
    for part in (data.validation, data.train) if data.validation is not None else ():
        assert part is not None and part.origin is not None
        inputs[part.split] = features[part.origin[1]]
    all_labels, test_labels = torch.from_numpy(data.train.labels), sets["test"].labels
    used, unused = _draw_images(data.train.labels, config)
    inputs["unused"], inputs["train"] = inputs["train"][unused], inputs["train"][used]
    labels = all_labels[used]
    if not config.images_per_class:
        config = config.replace(batch_size=min(config.batch_size, len(labels)))
    inputs = {name: part.to(device) for name, part in inputs.items()}

    torch.manual_seed(config.seed)  # only now: embedding for the first time draws too
    model = nn.Sequential(make_head(features.shape[1], config.dim, bias=config.head_bias), _Unit())
    loss: Any = _make_loss(config, data.train.num_classes, config.dim or features.shape[1])
    shape = (config.batch_size, config.images_per_class)
    plans = [  # as for images
        batch_plan(np.random.default_rng([config.seed, epoch]), labels.numpy(), *shape)
        for epoch in range(1, config.epochs + 1)
    ]
    batches = torch.from_numpy(np.concatenate(plans))  # (steps, B) rows
    rates, processes = [(model, config.head_lr)], Processes(device)
    trainer = Trainer(model, loss, rates, config, steps=len(batches), processes=processes)
    labels = labels.to(device)
    for step, rows in enumerate(batches):
        trainer.step(step, inputs["train"][rows], labels[rows])

    with torch.inference_mode():
        embeddings = {name: model(part).cpu() for name, part in inputs.items()}
        proxies = baselines.class_vectors(loss)
    result = evaluate(embeddings["test"], test_labels)
    measured: dict[str, Any] = {f"recall_at_{k}": recall for k, recall in result.recall.items()}
    measured |= {"map_at_r": result.map_at_r, "r_precision": result.r_precision}
    if data.validation is not None:
        for name, rows in (("", embeddings["validation"]), ("frozen_", inputs["validation"].cpu())):
            recall = evaluate(rows, data.validation.labels, ks=(1,)).recall[1]
            measured[f"{name}validation_recall_at_1"] = recall
    measured |= {
        "frozen_recall_at_1": frozen_recall(config),
        "train_classes": data.train.num_classes,
    }
    if proxies is not None:
        proxies = proxies.cpu()
        measured |= proxy_columns(proxies, embeddings["train"])
        common = F.normalize(F.normalize(proxies, dim=1).mean(0), dim=0)  # (D,)
        rest = embeddings["test"] - (embeddings["test"] @ common)[:, None] * common
        measured["recall_without_common"] = evaluate(rest, test_labels).recall[1]
        if isinstance(loss, ProxyAnchor):
            b = measured["threshold_at_end"] = torch.as_tensor(loss.threshold).item()
            settings = tilt.Loss(config.scale, config.margin, b, config.so_weight)
            trained = embeddings["train"].numpy(), labels.cpu().numpy(), plans[0]
            measured |= dataclasses.asdict(tilt.measure(proxies.numpy(), *trained, settings))
        if config.so_pairs_fraction < 1:
            pairs = _draw_pairs(len(proxies), config)
            measured |= treated_pairs(proxies, pairs, embeddings["unused"], all_labels[unused])
    return {name: round(float(value), 6) for name, value in measured.items()}


def proxy_columns(proxies: Tensor, embeddings: Tensor) -> dict[str, float]:
    """Columns of a results table: proxies (C, D), and their tilt with (N, D) training images."""
    shape, mean = geometry.describe(proxies), embeddings.mean(0)
    common = F.normalize(proxies, dim=1).mean(0)
    # ‖Σp̂/C‖² is the mean of all C² cosines, C of which are ones.
    mean_of_all = (1 + (len(proxies) - 1) * shape.mean_cosine) / len(proxies)
    names = "rms_cosine mean_cosine coherence effective_rank rms_floor welch_bound"
    names += " rms_cosine_centered common_mode_share"
    return {
        **{name: getattr(shape, name) for name in names.split()},
        "mean_proxy_length": max(0.0, mean_of_all) ** 0.5,
        "embedding_mean_length": float(mean.norm()),
        "cosine_of_mean_proxy_and_mean_embedding": float(F.cosine_similarity(mean, common, dim=0)),
    }


def treated_pairs(
    proxies: Tensor, pairs: Tensor, embeddings: Tensor, labels: Tensor
) -> dict[str, float]:
    """The pairs of classes that SO acted on, beside the others.

    Args:
        proxies: (C, D).
        pairs: (C, C) bool, symmetric: the treated ones.
        embeddings: (N, D) of images of these classes that were not trained on, at least two each.
        labels: (N,) int64.

    Returns:
        For treated and untreated pairs: rms_cosine and mean_cosine of the proxies; confusion, the
        fraction of images whose nearest neighbor is of another class, with which the pair is such,
        divided by the fraction of pairs that are such; and class_cosine, the mean cosine of the
        two classes' mean embeddings.
    """
    unit = F.normalize(proxies, dim=1)
    means = torch.stack([embeddings[labels == c].mean(0) for c in range(len(proxies))])  # (C, D)
    between = F.normalize(means, dim=1)
    nearest = torch.from_numpy(nearest_neighbors(embeddings.numpy(), 1)[1][:, 0])  # (N,)
    own, other = labels, labels[nearest]
    off_diagonal = ~torch.eye(len(proxies), dtype=torch.bool)
    measured: dict[str, Any] = {}
    for name, chosen in (("treated", pairs), ("untreated", ~pairs & off_diagonal)):
        cosines = (unit @ unit.T)[chosen]
        measured[f"{name}_rms_cosine"] = cosines.square().mean().sqrt()
        measured[f"{name}_mean_cosine"] = cosines.mean()
        measured[f"{name}_class_cosine"] = (between @ between.T)[chosen].mean()
        fraction = chosen.sum() / off_diagonal.sum()
        measured[f"{name}_confusion"] = chosen[own, other].double().mean() / fraction
    return measured


class _Unit(nn.Module):
    """Rows of unit length."""

    def forward(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=1)


class _Center(nn.Module):
    """Unit proxies minus their mean: no direction is left that all of them share."""

    def forward(self, proxies: Tensor) -> Tensor:
        unit = F.normalize(proxies, dim=1)
        return unit - unit.mean(0)


def _make_loss(config: HeadConfig, num_classes: int, dim: int) -> nn.Module:
    if config.loss != "proxy_anchor":
        return baselines.make(config.loss, num_classes, dim, **config.loss_options)
    on_pairs = config.so_pairs_fraction < 1
    make = SoftOrthogonalityOnPairs if on_pairs else SoftOrthogonalProxyAnchor
    loss = make(num_classes, dim, **config.loss_settings)
    if on_pairs:
        loss.register_buffer("so_pairs", _draw_pairs(num_classes, config))
    if config.center:
        parametrize.register_parametrization(loss, "proxies", _Center())
    if config.regularizer != "none":
        return baselines.RegularizedProxyAnchor(loss, config.regularizer, config.regularizer_weight)
    return loss


def _draw_pairs(num_classes: int, config: HeadConfig) -> Tensor:
    """(C, C) bool: a random part of the pairs of classes, the same for every method of a seed."""
    pairs = np.stack(np.triu_indices(num_classes, k=1), axis=1)
    order = np.random.default_rng([config.seed, 11]).permutation(len(pairs))
    rows, columns = pairs[order[: round(config.so_pairs_fraction * len(pairs))]].T
    chosen = torch.zeros(num_classes, num_classes, dtype=torch.bool)
    chosen[rows, columns] = True
    return chosen | chosen.T


def _draw_images(labels: np.ndarray, config: HeadConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the images that are trained on, in another order, and of those left out."""
    order = np.random.default_rng([config.seed, 7]).permutation(len(labels))
    if config.max_images_per_class is not None:
        by_class = pd.Series(order).groupby(labels[order])
        order = np.array(by_class.head(config.max_images_per_class))
    return order, np.setdiff1d(np.arange(len(labels)), order)


def frozen_recall(config: BaseConfig) -> float:
    """Recall@1 of the encoder on the test classes before any training."""
    return _frozen_recall(_source(config))


def _source(config: BaseConfig) -> str:
    """Everything frozen features depend on, and their device, as JSON: the key of the caches."""
    names = ["dataset", "root", "options", "allow_partial", "encoder", "device"]
    values = {name: getattr(config, name) for name in names}
    return json.dumps({**values, **config.encoder_options}, sort_keys=True)


@lru_cache(maxsize=8)
def _sets(source: str) -> dict[str, ImageSet]:
    config = HeadConfig(**json.loads(source))
    return image_sets.load_splits(config.dataset, **config.load_options)


@lru_cache(maxsize=8)
def _features(source: str, split: str) -> Tensor:
    """(N, F) frozen features of a split's images."""
    config = HeadConfig(**json.loads(source))
    encoder = Encoder.create(config.encoder, **config.encoder_options)
    encoder = encoder.to(choose_device(config.device))
    return torch.from_numpy(embed(encoder, _sets(source)[split], progress=False))


@lru_cache(maxsize=8)
def _frozen_recall(source: str) -> float:
    return evaluate(_features(source, "test"), _sets(source)["test"].labels, ks=(1,)).recall[1]
