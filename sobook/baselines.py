"""Baselines of the studies: losses of pytorch-metric-learning, and regularizers of proxies.

Notation: B batch, C classes, D embedding dimension, P (C, D) proxies, p̂ a proxy of unit length.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sobook.errors import SobookError, check_choice

_CLASSES = {  # in pytorch-metric-learning
    "contrastive": "ContrastiveLoss",  # Hadsell et al., CVPR 2006, there with squared hinges
    "triplet": "TripletMarginLoss",  # Schroff et al., CVPR 2015, semi-hard
    "multi_similarity": "MultiSimilarityLoss",  # Wang et al., CVPR 2019
    "sup_con": "SupConLoss",  # Khosla et al., NeurIPS 2020
    "normalized_softmax": "NormalizedSoftmaxLoss",  # Wang et al., ACM MM 2017: NormFace
    "arcface": "ArcFaceLoss",  # Deng et al., CVPR 2019
    "proxy_nca": "ProxyNCALoss",  # Movshovitz-Attias et al., ICCV 2017; as in Proxy-NCA++
    "soft_triple": "SoftTripleLoss",  # Qian et al., ICCV 2019
}
LOSSES = tuple(_CLASSES)
_CLASS_VECTORS = ("normalized_softmax", "arcface", "proxy_nca", "soft_triple")  # which learn some


def make(name: str, num_classes: int, dim: int, **options: Any) -> nn.Module:
    """A baseline with the interface of our losses: (embeddings (B, D), labels (B,)) → scalar.

    Options are those of its class; pair losses come with the miner they were published with.

    Raises:
        SobookError: an unknown name or option.
    """
    check_choice("loss", name, LOSSES)
    from pytorch_metric_learning import losses, miners

    sizes = (num_classes, dim) if name in _CLASS_VECTORS else ()
    try:
        loss = getattr(losses, _CLASSES[name])(*sizes, **options)
    except (TypeError, ValueError) as error:
        raise SobookError(f"the loss {name!r} does not take {options}: {error}") from None
    if name == "triplet":
        return MinedLoss(loss, miners.TripletMarginMiner(loss.margin, "semihard"))
    return MinedLoss(loss, miners.MultiSimilarityMiner()) if name == "multi_similarity" else loss


class MinedLoss(nn.Module):
    """A pair or triplet loss on the pairs that its miner selects."""

    def __init__(self, loss: nn.Module, miner: nn.Module):
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.loss(embeddings, labels, self.miner(embeddings, labels))


class RegularizedProxyAnchor(nn.Module):
    """Proxy Anchor plus `weight` times one of `REGULARIZERS` on its proxies (C, D)."""

    def __init__(self, loss: nn.Module, regularizer: str, weight: float):
        super().__init__()
        self.loss, self.regularizer, self.weight = loss, REGULARIZERS[regularizer], weight

    @property
    def proxies(self) -> Tensor:
        return self.loss.proxies

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.loss(embeddings, labels) + self.weight * self.regularizer(self.proxies)


def class_vectors(loss: nn.Module) -> Tensor | None:
    """(C, D) proxies of a loss; None where it has none, or several per class."""
    if hasattr(loss, "proxies"):
        return loss.proxies.detach()
    return loss.W.detach().T if hasattr(loss, "W") else None  # softmax: (D, C)


def double_soft_orthogonality(proxies: Tensor) -> Tensor:
    """(‖PPᵀ−I‖² + ‖PᵀP−I‖²) / C(C−1), lengths as they are. Source: Bansal et al., NeurIPS 2018."""
    count, dim = proxies.shape
    rows = proxies @ proxies.T - torch.eye(count, device=proxies.device)
    columns = proxies.T @ proxies - torch.eye(dim, device=proxies.device)
    return (rows.square().sum() + columns.square().sum()) / (count * (count - 1))


def _cosines(proxies: Tensor, *, diagonal: float) -> Tensor:
    """(C, C) cosines, with the given value on the diagonal."""
    unit = F.normalize(proxies, dim=1)
    return (unit @ unit.T).fill_diagonal_(diagonal)


def uniformity(proxies: Tensor) -> Tensor:
    """log mean exp(−2‖p̂ᵢ − p̂ⱼ‖²) over pairs i < j. Source: Wang and Isola, ICML 2020."""
    return (-2 * torch.pdist(F.normalize(proxies, dim=1)).square()).exp().mean().log()


REGULARIZERS = {  # proxies (C, D) → scalar
    "double_so": double_soft_orthogonality,
    # max |p̂ᵢ·p̂ⱼ| over i ≠ j: Bansal et al., NeurIPS 2018
    "coherence": lambda proxies: _cosines(proxies, diagonal=0.0).abs().max(),
    # mean over i of max p̂ᵢ·p̂ⱼ over j ≠ i: Zhao et al., CVPR 2019
    "regular_face": lambda proxies: _cosines(proxies, diagonal=-2.0).max(dim=1).values.mean(),
    "uniformity": uniformity,
}
