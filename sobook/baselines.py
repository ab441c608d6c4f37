"""What the studies compare with: other losses, and other regularizers of Proxy Anchor's proxies.

The losses are those of pytorch-metric-learning, which is imported only when one is asked for.
Notation: B batch, C classes, D embedding dimension, P (C, D) proxies, p̂ a proxy of unit length.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sobook.errors import SobookError, check_choice, first_line

LOSSES = (
    *("contrastive", "triplet", "multi_similarity", "sup_con"),  # images with images
    *("normalized_softmax", "arcface", "proxy_nca", "soft_triple"),  # images with class vectors
)


def make(name: str, num_classes: int, dim: int, **options: Any) -> nn.Module:
    """A baseline with the interface of our losses: (embeddings (B, D), labels (B,)) → scalar.

    Pair losses come with the miner they were published with.

    Args:
        name: one of `LOSSES`.
        num_classes: C, for losses that learn class vectors.
        dim: D, for the same.
        **options: of the loss in pytorch-metric-learning, e.g. ``scale=16`` for ArcFace.

    Raises:
        SobookError: an unknown name or option, or pytorch-metric-learning is not installed.

    Source: Hadsell et al., CVPR 2006 (contrastive, there with squared hinges); Schroff et al.,
    CVPR 2015 (semi-hard triplets); Wang et al., CVPR 2019 (multi-similarity); Khosla et al.,
    NeurIPS 2020 (supervised contrastive); Wang et al., ACM MM 2017 (normalized softmax: NormFace);
    Deng et al., CVPR 2019 (ArcFace); Movshovitz-Attias et al., ICCV 2017 (Proxy-NCA; with the own
    proxy in the denominator, as in Proxy-NCA++); Qian et al., ICCV 2019 (SoftTriple).
    """
    check_choice("loss", name, LOSSES)
    try:
        from pytorch_metric_learning import losses, miners
    except ImportError:
        raise SobookError(
            f"the loss {name!r} needs pytorch-metric-learning: pip install pytorch-metric-learning"
        ) from None
    try:
        if name == "multi_similarity":
            return MinedLoss(losses.MultiSimilarityLoss(**options), miners.MultiSimilarityMiner())
        if name == "triplet":
            loss = losses.TripletMarginLoss(**options)
            miner = miners.TripletMarginMiner(margin=loss.margin, type_of_triplets="semihard")
            return MinedLoss(loss, miner)
        if name in ("contrastive", "sup_con"):
            pairs = {"contrastive": losses.ContrastiveLoss, "sup_con": losses.SupConLoss}
            return pairs[name](**options)
        classes = {
            "normalized_softmax": losses.NormalizedSoftmaxLoss,
            "arcface": losses.ArcFaceLoss,
            "proxy_nca": losses.ProxyNCALoss,
            "soft_triple": losses.SoftTripleLoss,
        }
        return classes[name](num_classes, dim, **options)
    except (TypeError, ValueError) as error:
        raise SobookError(
            f"the loss {name!r} does not take {options} ({first_line(error)}): see its class in "
            "pytorch-metric-learning."
        ) from None


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
    """(‖PPᵀ−I‖² + ‖PᵀP−I‖²) / C(C−1) of proxies as they are, not scaled to unit length.

    With unit rows the two terms differ only by the constant D − C, and double SO would be SO with
    twice the weight; so lengths count here, as in its source. Source: Bansal et al., NeurIPS 2018.
    """
    count, dim = proxies.shape
    rows = proxies @ proxies.T - torch.eye(count, device=proxies.device)
    columns = proxies.T @ proxies - torch.eye(dim, device=proxies.device)
    return (rows.square().sum() + columns.square().sum()) / (count * (count - 1))


def mutual_coherence(proxies: Tensor) -> Tensor:
    """max |p̂ᵢ·p̂ⱼ| over pairs i ≠ j. Source: Bansal et al., NeurIPS 2018."""
    return _cosines(proxies, diagonal=0.0).abs().max()


def regular_face(proxies: Tensor) -> Tensor:
    """Mean over i of max p̂ᵢ·p̂ⱼ over j ≠ i. Source: Zhao et al., CVPR 2019."""
    return _cosines(proxies, diagonal=-2.0).max(dim=1).values.mean()


def uniformity(proxies: Tensor) -> Tensor:
    """log mean exp(−2‖p̂ᵢ − p̂ⱼ‖²) over pairs i < j. Source: Wang and Isola, ICML 2020."""
    cosines = _cosines(proxies, diagonal=0.0)
    pairs = torch.ones_like(cosines, dtype=torch.bool).triu(1)
    return (-4 * (1 - cosines[pairs])).exp().mean().log()


REGULARIZERS = {
    "double_so": double_soft_orthogonality,
    "coherence": mutual_coherence,
    "regular_face": regular_face,
    "uniformity": uniformity,
}


def _cosines(proxies: Tensor, *, diagonal: float) -> Tensor:
    """(C, C) cosines, with the given value on the diagonal."""
    unit = F.normalize(proxies, dim=1)
    return (unit @ unit.T).fill_diagonal_(diagonal)
