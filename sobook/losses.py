"""Proxy Anchor, soft orthogonality, and their sum: start with `ProxyAnchor.forward`.

Notation: B batch, C classes, D embedding dimension. X is a batch of embeddings, P the proxies;
a hat means that rows have unit length.
"""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sobook.errors import SobookError, check_choice, plain

SO_WEIGHT = 100.0  # default λ, for reduction "mean"; our choice, not the paper's
# What a log-sum-exp leaves out: exp(−10⁴) is 0 in any precision, and unlike −inf it leaves no 0·inf
# in the gradient of an empty sum.
_LEFT_OUT = -1e4


class ProxyAnchor(nn.Module):
    r"""Proxy Anchor loss: every class has a learned proxy which acts as the anchor.

    With s(x, p) the cosine of embedding and proxy, α the scale, δ the margin and b the threshold,

    .. math::
        \frac{1}{|P^+|}\sum_{p\in P^+}\log\Big(1+\sum_{x\in X_p^+}e^{-\alpha(s(x,p)-b-\delta)}\Big)
        +\frac{1}{|P|}\sum_{p\in P}\log\Big(1+\sum_{x\in X_p^-}e^{\alpha(s(x,p)-b+\delta)}\Big),

    where P⁺ are the proxies whose class occurs in the batch.

    Args:
        num_classes: C, at least 2.
        dim: D, the embedding dimension.
        margin: δ, in units of cosine.
        scale: α, which sets how strongly the hardest examples dominate.
        threshold: b, the cosine that separates positives (pulled above b + δ) from negatives
            (pushed below b − δ). The paper has none, which is b = 0; the term is ours.
        learn_threshold: make b a parameter that starts at `threshold`. Its gradient is as large
            as that of all cosines together, so give it a learning rate of its own.

    Attributes:
        proxies: (C, D) parameter, initialized as in the official code (Kaiming normal, fan out).
        threshold: b, a number, or a scalar parameter where it is learned.

    Source: Kim, Kim, Cho and Kwak, "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020, eq. 4.

    >>> loss = ProxyAnchor(num_classes=3, dim=4)
    >>> loss(torch.randn(5, 4), labels=torch.tensor([0, 0, 1, 2, 2])).shape
    torch.Size([])
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        margin: float = 0.1,
        scale: float = 32.0,
        threshold: float = 0.0,
        learn_threshold: bool = False,
    ):
        super().__init__()
        num_classes, dim = plain("num_classes", num_classes, int), plain("dim", dim, int)
        if num_classes < 2 or dim < 1:
            raise SobookError(f"num_classes is {num_classes}, dim {dim}: give at least 2 and 1.")
        self.margin, self.scale = plain("margin", margin, float), plain("scale", scale, float)
        if not self.scale > 0:
            raise SobookError(f"scale is {scale}: it must be positive (the usual value is 32).")
        threshold = plain("threshold", threshold, float)
        self.threshold: float | nn.Parameter = threshold
        if learn_threshold:
            self.threshold = nn.Parameter(torch.tensor(threshold))
        self.proxies = nn.Parameter(torch.empty(num_classes, dim))  # (C, D)
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of a batch.

        Args:
            embeddings: (B, D) floating point, any length (normalized here).
            labels: (B,) int64 in 0..C−1.

        Returns:
            A scalar in float32 (float64 for float64 input).

        Raises:
            SobookError: shapes, types or labels do not fit, or a row is zero or NaN. On a GPU
                values are not checked, which would stall it; the training loop checks the loss.
        """
        self._check(embeddings, labels)
        # Exponents reach α(1 + δ) = 35.2, too much for half precision: float32, even in autocast.
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings, proxies = _at_least_float32(embeddings, self.proxies)
            unit = embeddings / _lengths(embeddings, "embedding")  # (B, D)
            # Proxies are divided by their lengths after the product: a unit copy of 11,318 of
            # them, and its gradient, would be most of the memory.
            products = (self.scale * unit) @ proxies.T  # (B, C)
            logits = products / _lengths(proxies, "proxy").T  # (B, C): α·s(x, p)

            # Pull: an embedding is a positive of one proxy, so only classes in the batch take part:
            # one column per embedding, and so n equal columns for a class with n of them.
            own = logits.gather(1, labels[:, None])  # (B, 1)
            same = labels[:, None] == labels  # (B, B)
            pull = torch.where(same, -own, _LEFT_OUT)  # (B, B)
            share = 1 / same.sum(dim=0, dtype=logits.dtype)  # (B,): 1/n, summing to |P⁺|

            # Push: every class has negatives; an embedding is left out of its own class's sum.
            push = logits.scatter(1, labels[:, None], _LEFT_OUT)  # (B, C)

            # Margin and threshold are the same in every exponent, e^(z + a) = e^z · eᵃ: added to
            # the logarithm of the sum.
            pull = _log_one_plus_sum_exp(pull, self.scale * (self.margin + self.threshold))
            push = _log_one_plus_sum_exp(push, self.scale * (self.margin - self.threshold))
            return (share * pull).sum() / share.sum() + push.mean()  # means over classes

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        (num_classes, dim), shape = self.proxies.shape, tuple(embeddings.shape)
        if not embeddings.is_floating_point() or shape[1:] != (dim,) or not len(embeddings):
            raise SobookError(
                f"embeddings are {embeddings.dtype} {shape}, expected floating point (B, {dim})."
            )
        if labels.dtype != torch.int64 or labels.shape != shape[:1]:
            raise SobookError(
                f"labels are {labels.dtype} {tuple(labels.shape)}, expected torch.int64 "
                f"({len(embeddings)},): one label per embedding."
            )
        lowest, highest = _extremes(labels) or (0, 0)
        if not 0 <= lowest <= highest < num_classes:
            raise SobookError(
                f"labels run from {lowest} to {highest}, but the {num_classes} proxies have "
                f"0..{num_classes - 1}."
            )


class SoftOrthogonalProxyAnchor(ProxyAnchor):
    """ProxyAnchor + so_weight · soft_orthogonality, which keeps the proxies from crowding together.

    The idea is that of "Deep Metric Learning with Soft Orthogonal Proxies" (arXiv 2306.13055).
    Its value of λ is not known to us; averaging SO over class pairs, so that one λ means the same
    for 100 and for 11,318 classes, and the default `so_weight` are our choices.

    Args:
        num_classes, dim: as for `ProxyAnchor`.
        so_weight: λ ≥ 0.
        so_reduction: "mean" or "sum", see `soft_orthogonality`.
        so_pairs: (C, C) bool, the pairs of classes that SO acts on; None: all.
        settings: margin, scale, threshold and learn_threshold, as for `ProxyAnchor`.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        so_weight: float = SO_WEIGHT,
        so_reduction: str = "mean",
        so_pairs: Tensor | None = None,
        **settings: Any,
    ):
        super().__init__(num_classes, dim, **settings)
        self.so_weight = plain("so_weight", so_weight, float)
        if self.so_weight < 0:
            raise SobookError(f"so_weight is {so_weight}: it must be zero or positive.")
        check_choice("so_reduction", so_reduction, ("mean", "sum"))
        self.so_reduction = so_reduction
        self.so_pairs: Tensor | None
        self.register_buffer("so_pairs", so_pairs, persistent=False)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The summed loss of a batch, arguments as for `ProxyAnchor`."""
        return self.parts(embeddings, labels)["loss"]

    def parts(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Both terms and their weighted sum: "proxy_anchor", "soft_orthogonality", "loss"."""
        proxy_anchor = super().forward(embeddings, labels)
        orthogonality = soft_orthogonality(
            self.proxies, reduction=self.so_reduction, pairs=self.so_pairs
        )
        loss = proxy_anchor + self.so_weight * orthogonality
        return {"proxy_anchor": proxy_anchor, "soft_orthogonality": orthogonality, "loss": loss}


def soft_orthogonality(
    proxies: Tensor, *, reduction: str = "mean", pairs: Tensor | None = None
) -> Tensor:
    r"""How far unit-length proxies are from being mutually orthogonal: ‖P̂P̂ᵀ − I‖²_F.

    The diagonal of P̂P̂ᵀ is 1, so this is the sum of squared cosines between different proxies.

    Args:
        proxies: (C, D) floating point, C ≥ 2, rows of any length but zero (normalized here).
        reduction: "sum": the squared Frobenius norm. "mean": that divided by C(C−1), the mean
            squared cosine of two different proxies, which means the same for any number of classes.
        pairs: (C, C) bool, symmetric: only these pairs count, also in the mean; None: all. The
            diagonal does not matter.

    Returns:
        A scalar ≥ 0 in float32 (float64 for float64 input). With C > D it cannot go below
        C²/D − C ("sum", all pairs).

    Raises:
        SobookError: wrong shape, type or reduction; on the CPU also a row that is zero or NaN.

    Source: the penalty ‖WᵀW − I‖² of Bansal, Chen and Wang, NeurIPS 2018 (arXiv 1810.09102), put
    on proxies as in arXiv 2306.13055; unit rows are our choice.

    >>> at_45_degrees = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> round(soft_orthogonality(at_45_degrees, reduction="sum").item(), 4)
    1.0
    """
    check_choice("reduction", reduction, ("mean", "sum"))
    if proxies.ndim != 2 or len(proxies) < 2 or not proxies.is_floating_point():
        raise SobookError(
            f"proxies are {proxies.dtype} {tuple(proxies.shape)}, expected floating point (C, D) "
            "with at least two rows."
        )
    num_classes, dim = proxies.shape
    with torch.autocast(proxies.device.type, enabled=False):
        (proxies,) = _at_least_float32(proxies)
        # As F.normalize, but multiplied: a division's gradient holds two more copies of the rows.
        unit = proxies * _lengths(proxies, "proxy").reciprocal()  # (C, D)
        if pairs is not None:
            squared = (unit @ unit.T).square()[_off_diagonal(pairs, num_classes)]
            return squared.mean() if reduction == "mean" else squared.sum()
        if num_classes <= dim:
            identity = torch.eye(num_classes, dtype=unit.dtype, device=unit.device)
            total = torch.addmm(identity, unit, unit.T, beta=-1).square().sum()  # (C, C) inside
        else:
            # ‖P̂P̂ᵀ‖² = ‖P̂ᵀP̂‖²: for 11,318 proxies in 512 dimensions 1 MB instead of 512 MB. The
            # diagonal of P̂P̂ᵀ, all ones, is computed so that rounding cancels, and is constant.
            gram = unit.T @ unit  # (D, D)
            diagonal = torch.linalg.vector_norm(unit.detach(), dim=1).square()  # (C,)
            total = (gram.square().sum() - diagonal.square().sum()).clamp_min(0)
    return total / (num_classes * (num_classes - 1)) if reduction == "mean" else total


def _off_diagonal(pairs: Tensor, num_classes: int) -> Tensor:
    """The chosen pairs of different classes, (C, C) bool, checked."""
    if pairs.dtype != torch.bool or pairs.shape != (num_classes, num_classes):
        raise SobookError(
            f"pairs are {pairs.dtype} {tuple(pairs.shape)}, expected torch.bool "
            f"({num_classes}, {num_classes})."
        )
    chosen = pairs & ~torch.eye(num_classes, dtype=torch.bool, device=pairs.device)
    if not torch.equal(chosen, chosen.T) or not chosen.any():
        raise SobookError("pairs must be symmetric, with at least one pair of different classes.")
    return chosen


def _log_one_plus_sum_exp(exponents: Tensor, offset: float | Tensor) -> Tensor:
    """log(1 + Σ_b exp(z_bc + offset)) for every column c, without overflow: (B, C) → (C,)."""
    # softplus(z) = log(1 + eᶻ); above its threshold torch returns z itself, exact to 10⁻¹⁷ at 40.
    return F.softplus(exponents.logsumexp(dim=0) + offset, threshold=40)


def _lengths(rows: Tensor, what: str) -> Tensor:
    """(N, 1) lengths of rows, never 0; on the CPU, rows that have no direction are refused."""
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    tiny = torch.finfo(rows.dtype).tiny
    shortest, longest = _extremes(lengths) or (1, 1)  # NaN, if there is one
    if not tiny < shortest <= longest < math.inf:
        bad = (~((lengths > tiny) & (lengths < math.inf))).nonzero()
        raise SobookError(
            f"{what} {int(bad[0, 0])} is zero, NaN or infinite ({len(bad)} such rows): often "
            "the learning rate is too high, or an image is empty."
        )
    return lengths.clamp_min(tiny)


def _extremes(values: Tensor) -> tuple[float, float] | None:
    """Smallest and largest value; None on a GPU, which it would stall, and inside vmap."""
    if values.device.type != "cpu":
        return None
    lowest, highest = values.detach().aminmax()
    try:
        return lowest.item(), highest.item()
    except RuntimeError:  # torch.func.vmap maps over tensors whose values nobody may look at
        return None


def _at_least_float32(*tensors: Tensor) -> list[Tensor]:
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return [tensor.to(dtype) for tensor in tensors]
