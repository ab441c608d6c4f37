"""Training a head alone, on frozen features that were computed once: seconds a run, not minutes.

What learns is what `sobook.training` learns beside the backbone: the head (LayerNorm and Linear)
and the proxies. Images are seen once, by the evaluation transform, so there is no augmentation.
Good for searching widely; what matters has to be confirmed by fine-tuning.
"""

import dataclasses
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sobook import geometry
from sobook.data import image_sets
from sobook.encoder import Encoder, _make_head, embed
from sobook.errors import SobookError
from sobook.losses import SoftOrthogonalProxyAnchor
from sobook.retrieval import evaluate
from sobook.studies import baselines
from sobook.training.config import TrainConfig
from sobook.training.trainer import learning_rate_factor


@dataclass(frozen=True)
class HeadConfig:
    """One run of a head. Fields of the same name mean what they mean in `TrainConfig`."""

    dataset: str = "aviary"
    root: str | None = None
    options: dict[str, int] = field(default_factory=dict)
    allow_partial: bool = False
    encoder: str = TrainConfig.encoder
    weights: str | None = "pretrained"
    image_size: int | None = None
    token: str | None = None
    dim: int = 128

    loss: str = "proxy_anchor"
    """proxy_anchor, or a baseline of pytorch-metric-learning, see `baselines.LOSSES`."""
    loss_options: dict[str, float] = field(default_factory=dict)
    """Keyword arguments of a baseline's loss."""
    margin: float = 0.1
    scale: float = 32.0
    so_weight: float = 0.0
    so_reduction: str = "mean"
    regularizer: str = "none"
    """Added to Proxy Anchor, on its proxies: none or one of `baselines.REGULARIZERS`."""
    regularizer_weight: float = 0.0
    """Its weight."""
    center: bool = False
    """Subtract the mean proxy from all proxies, inside the loss."""

    noise: float = 0.0
    """Share of the training images whose label is replaced by another training class."""
    images_kept: int | None = None
    """Images of each training class that are used; None: all."""

    epochs: int = 20
    batch_size: int = 100
    images_per_class: int = 0
    head_lr: float = 5e-3
    proxy_lr: float = 1e-1
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    clip_norm: float = 10.0
    validation_fraction: float = 0.2
    """Share of the training classes held out to choose settings on; 0: none."""
    seed: int = 0

    def __post_init__(self):
        if self.loss not in ("proxy_anchor", *baselines.LOSSES):
            raise SobookError(
                f"unknown loss {self.loss!r}: choose proxy_anchor or one of "
                f"{', '.join(baselines.LOSSES)}."
            )
        if self.regularizer not in ("none", *baselines.REGULARIZERS):
            raise SobookError(
                f"unknown regularizer {self.regularizer!r}: choose none or one of "
                f"{', '.join(baselines.REGULARIZERS)}."
            )
        if not 0 <= self.noise < 1 or not 0 <= self.validation_fraction < 1:
            raise SobookError("noise and validation_fraction are shares: give numbers in [0, 1).")
        if self.epochs < 1 or self.batch_size < 2:
            raise SobookError("epochs must be at least 1 and batch_size at least 2.")

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def fit_head(config: HeadConfig) -> dict[str, float]:
    """Train a head and measure it.

    Returns:
        recall_at_K, map_at_r and r_precision on the test classes, validation_recall_at_1 on
        held-out training classes, recall_without_common (Recall@1 with the mean proxy's direction
        taken out of the embeddings), the frozen encoder's Recall@1, and the proxies' geometry.
    """
    rng = np.random.default_rng([config.seed, 7])
    train, test = (_features(_source(config), split) for split in ("train", "test"))
    train, validation = _hold_out(*train, config.validation_fraction, config.seed)
    features, labels = _spoil(*train, config, rng)
    classes = int(labels.max()) + 1
    torch.manual_seed(config.seed)  # only now: loading features for the first time draws too
    head = _make_head(features.shape[1], config.dim)
    loss = _make_loss(config, classes)
    _train(config, head, loss, features, labels, rng)
    with torch.inference_mode():
        found = {
            "test": F.normalize(head(test[0]), dim=1),
            "train": F.normalize(head(features), dim=1),
        }
        if validation is not None:
            found["validation"] = F.normalize(head(validation[0]), dim=1)
        proxies = baselines.class_vectors(loss)
    ks = (1, 2, 4, 8)
    result = evaluate(found["test"], test[1], ks=ks)
    measured = {f"recall_at_{k}": result.recall[k] for k in ks}
    measured |= {"map_at_r": result.map_at_r, "r_precision": result.r_precision}
    if validation is not None:
        chosen = evaluate(found["validation"], validation[1], ks=(1,))
        measured["validation_recall_at_1"] = chosen.recall[1]
    measured["frozen_recall_at_1"] = _frozen_recall(_source(config))
    measured["train_classes"] = classes
    if proxies is not None:
        measured |= _geometry(proxies, found, test[1])
    return {name: round(float(value), 6) for name, value in measured.items()}


def _geometry(proxies: Tensor, found: dict[str, Tensor], test_labels) -> dict[str, float]:
    common = F.normalize(F.normalize(proxies, dim=1).mean(0), dim=0)  # (D,)
    test = found["test"]
    without = test - (test @ common)[:, None] * common
    mean = found["train"].mean(0)
    return {
        **geometry_columns(proxies),
        "recall_without_common": evaluate(without, test_labels, ks=(1,)).recall[1],
        "embedding_mean_length": mean.norm(),
        "cosine_of_mean_proxy_and_mean_embedding": F.normalize(mean, dim=0) @ common,
    }


def geometry_columns(proxies) -> dict[str, float]:
    """What a results table says of a set of proxies (C, D)."""
    shape = geometry.describe(proxies)
    pairs = shape.num_classes * (shape.num_classes - 1)
    return {
        "rms_cosine": shape.rms_cosine,
        "mean_cosine": shape.mean_cosine,
        "coherence": shape.coherence,
        "effective_rank": shape.effective_rank,
        "rms_floor": (shape.orthogonality_floor / pairs) ** 0.5,
        "welch_bound": shape.welch_bound,
        "rms_cosine_centred": shape.rms_cosine_centred,
        **geometry.common_mode(shape),
    }


def _train(config: HeadConfig, head, loss, features: Tensor, labels: Tensor, rng) -> None:
    groups = [
        {"params": list(head.parameters()), "rate": config.head_lr},
        {"params": list(loss.parameters()), "rate": config.proxy_lr},
    ]
    groups = [{**group, "lr": group["rate"]} for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    parameters = [p for group in groups for p in group["params"]]
    plans = [_plan(rng, labels.numpy(), config) for _ in range(config.epochs)]
    batches = [rows for plan in plans for rows in plan]
    for step, rows in enumerate(batches):
        factor = learning_rate_factor(step, len(batches), config.schedule)
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * factor
        value = loss(F.normalize(head(features[rows]), dim=1), labels[rows])
        if not torch.isfinite(value):
            raise SobookError(f"the loss became {value.item()} at step {step}: lower the rates.")
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()


def _plan(rng, labels: np.ndarray, config: HeadConfig) -> list[np.ndarray]:
    """Rows of each batch of an epoch: drawn at random, or m images each of B / m classes."""
    size, m = min(config.batch_size, len(labels)), config.images_per_class
    order = rng.permutation(len(labels))
    if not m:
        return [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    groups = []  # m images of one class each
    for label in np.unique(labels):
        own = order[labels[order] == label]
        groups += [own[i : i + m] for i in range(0, len(own) - m + 1, m)]
    shuffled = [groups[i] for i in rng.permutation(len(groups))]
    per_batch = max(size // m, 1)
    return [
        np.concatenate(shuffled[i : i + per_batch])
        for i in range(0, max(len(shuffled) - per_batch, 0) + 1, per_batch)
    ]


class _Center(nn.Module):
    """Unit proxies less their mean: no direction is left that all of them share."""

    def forward(self, proxies: Tensor) -> Tensor:
        unit = F.normalize(proxies, dim=1)
        return unit - unit.mean(0)


def _make_loss(config: HeadConfig, classes: int) -> nn.Module:
    if config.loss != "proxy_anchor":
        return baselines.make(config.loss, classes, config.dim, **config.loss_options)
    loss = SoftOrthogonalProxyAnchor(
        classes,
        config.dim,
        margin=config.margin,
        scale=config.scale,
        so_weight=config.so_weight,
        so_reduction=config.so_reduction,
    )
    if config.center:
        parametrize.register_parametrization(loss, "proxies", _Center())
    if config.regularizer != "none":
        return baselines.RegularizedProxyAnchor(loss, config.regularizer, config.regularizer_weight)
    return loss


def _spoil(features: Tensor, labels: Tensor, config: HeadConfig, rng) -> tuple[Tensor, Tensor]:
    """Fewer images a class, and wrong labels, where the settings ask for them."""
    order = rng.permutation(len(labels))
    if config.images_kept is not None:
        rank = np.zeros(len(labels), int)  # how many of its class come before it in the order
        for label in range(int(labels.max()) + 1):
            own = order[labels.numpy()[order] == label]
            rank[own] = np.arange(len(own))
        order = order[rank[order] < config.images_kept]
    features, labels = features[order], labels[order].clone()
    wrong = torch.from_numpy(rng.permutation(len(labels))[: round(config.noise * len(labels))])
    classes = int(labels.max()) + 1
    shift = torch.from_numpy(rng.integers(1, classes, len(wrong)))
    labels[wrong] = (labels[wrong] + shift) % classes  # never its own class
    return features, labels


def _hold_out(features: Tensor, labels: Tensor, share: float, seed: int):
    """Whole classes held out as `datasets.hold_out` does; labels become 0..C−1 again."""
    if share == 0:
        return (features, labels), None
    classes = int(labels.max()) + 1
    held = image_sets.validation_classes(classes, share, seed, at_least=2)
    mask = torch.from_numpy(np.isin(labels.numpy(), held))
    parts = []
    for chosen in (~mask, mask):
        parts.append((features[chosen], labels[chosen].unique(return_inverse=True)[1]))
    return parts


def _source(config: HeadConfig) -> tuple:
    """What the frozen features depend on, hashable."""
    return (
        config.dataset,
        config.root,
        tuple(sorted(config.options.items())),
        config.allow_partial,
        config.encoder,
        config.weights,
        config.image_size,
        config.token,
    )


@lru_cache(maxsize=8)
def _features(source: tuple, split: str) -> tuple[Tensor, Tensor]:
    """(N, F) frozen features of a split and their labels."""
    dataset, root, options, allow_partial, name, weights, image_size, token = source
    image_set = image_sets.load(dataset, split, root, allow_partial=allow_partial, **dict(options))
    encoder = Encoder.create(name, weights=weights, image_size=image_size, token=token)
    features = embed(encoder, image_set, progress=False)
    return torch.from_numpy(features), torch.from_numpy(image_set.labels)


@lru_cache(maxsize=8)
def _frozen_recall(source: tuple) -> float:
    features, labels = _features(source, "test")
    return evaluate(features, labels, ks=(1,)).recall[1]
