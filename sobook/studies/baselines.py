"""Other losses in the same frame: baselines of pytorch-metric-learning, other ways to spread.

The baselines are not ours: they need ``pip install pytorch-metric-learning``, and are imported only
when asked for.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sobook.errors import SobookError

LOSSES = ("proxy_nca", "soft_triple", "arcface", "multi_similarity", "triplet")


def make(name: str, num_classes: int, dim: int, **options) -> nn.Module:
    """A baseline, called as ours are: (embeddings (B, D), labels (B,)) → scalar.

    Args:
        name: one of `LOSSES`. Pair losses come with the miner they were published with:
            multi-similarity's own, semi-hard triplets for the triplet margin.
        num_classes, dim: C and D, for those that learn class vectors.
        **options: of the loss, e.g. ``scale=32`` for ArcFace.
    """
    try:
        from pytorch_metric_learning import losses, miners
    except ImportError:
        raise SobookError(
            f"the baseline {name!r} comes from pytorch-metric-learning, which is not installed: "
            "pip install pytorch-metric-learning"
        ) from None
    if name == "proxy_nca":
        return losses.ProxyNCALoss(num_classes, dim, **options)
    if name == "soft_triple":
        return losses.SoftTripleLoss(num_classes, dim, **options)
    if name == "arcface":
        return losses.ArcFaceLoss(num_classes, dim, **options)
    if name == "multi_similarity":
        return Mined(losses.MultiSimilarityLoss(**options), miners.MultiSimilarityMiner())
    miner = miners.TripletMarginMiner(
        margin=options.get("margin", 0.05), type_of_triplets="semihard"
    )
    return Mined(losses.TripletMarginLoss(**options), miner)


class Mined(nn.Module):
    """A pair or triplet loss with the miner that chooses its pairs."""

    def __init__(self, loss: nn.Module, miner: nn.Module):
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.loss(embeddings, labels, self.miner(embeddings, labels))


class Spread(nn.Module):
    """Proxy Anchor plus `weight` times one of `SPREADERS` on its proxies."""

    def __init__(self, loss: nn.Module, name: str, weight: float):
        super().__init__()
        self.loss, self.name, self.weight = loss, name, weight

    @property
    def proxies(self) -> Tensor:
        return self.loss.proxies

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.loss(embeddings, labels) + self.weight * SPREADERS[self.name](self.proxies)


def class_vectors(loss: nn.Module) -> Tensor | None:
    """(C, D) proxies of a loss; None where it has none, or several a class."""
    if hasattr(loss, "proxies"):
        return loss.proxies.detach()
    weights = getattr(loss, "W", None)  # ArcFace: (D, C)
    if weights is None or hasattr(loss, "centers_per_class"):
        return None
    return weights.detach().T


def double_soft_orthogonality(proxies: Tensor) -> Tensor:
    """(‖PPᵀ−I‖² + ‖PᵀP−I‖²) / C(C−1) of proxies as they are, not scaled to unit length.

    With unit rows both terms differ by the constant D − C only, and double SO would be SO with
    twice the weight; so, as in its source, lengths count. Source: Bansal et al., NeurIPS 2018.
    """
    count, dim = proxies.shape
    rows = proxies @ proxies.T - torch.eye(count, device=proxies.device)
    columns = proxies.T @ proxies - torch.eye(dim, device=proxies.device)
    return (rows.square().sum() + columns.square().sum()) / (count * (count - 1))


def mutual_coherence(proxies: Tensor) -> Tensor:
    """Largest |cosine| of two proxies. Source: Bansal et al., NeurIPS 2018."""
    return _cosines(proxies, diagonal=0.0).abs().max()


def regular_face(proxies: Tensor) -> Tensor:
    """Mean over proxies of the cosine to the nearest other one. Source: Zhao et al., CVPR 2019."""
    return _cosines(proxies, diagonal=-2.0).max(dim=1).values.mean()


def uniformity(proxies: Tensor, t: float = 2.0) -> Tensor:
    """log mean exp(−t‖p̂ᵢ − p̂ⱼ‖²) over pairs. Source: Wang and Isola, ICML 2020."""
    count = len(proxies)
    upper = torch.triu_indices(count, count, 1, device=proxies.device)
    cosines = _cosines(proxies, diagonal=0.0)[upper[0], upper[1]]
    return (-2 * t * (1 - cosines)).exp().mean().log()


SPREADERS = {
    "double_so": double_soft_orthogonality,
    "coherence": mutual_coherence,
    "regular_face": regular_face,
    "uniformity": uniformity,
}


def _cosines(proxies: Tensor, *, diagonal: float) -> Tensor:
    """(C, C) cosines, with the given value on the diagonal."""
    unit = F.normalize(proxies, dim=1)
    mask = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return (unit @ unit.T).masked_fill(mask, diagonal)
