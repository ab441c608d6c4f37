"""Proxy Anchor, soft orthogonality, and their sum: start with `ProxyAnchor.forward`.

Notation: B batch, C classes, D embedding dimension, P (C, D) proxies, P̂ with rows of unit length.
"""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sobook.errors import SobookError, check_choice, plain

SO_WEIGHT = 100.0  # default λ, for reduction "mean"; our choice, not the paper's
# Exponent of terms left out of a sum: exp(−10⁴) is 0, and unlike −inf it makes no NaN in gradients.
_LEFT_OUT = -1e4


class ProxyAnchor(nn.Module):
    r"""Proxy Anchor loss: each class has a learned proxy, a row of `proxies` (C, D), as its anchor.

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

    Source: Kim, Kim, Cho and Kwak, "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020, eq. 4.
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
        self.margin, self.scale = plain("margin", margin, float), plain("scale", scale, float)
        if num_classes < 2 or dim < 1 or self.scale <= 0:
            raise SobookError("num_classes must be at least 2, dim at least 1, scale above 0.")
        b = plain("threshold", threshold, float)
        self.threshold: float | Tensor = nn.Parameter(torch.tensor(b)) if learn_threshold else b
        self.proxies = nn.Parameter(torch.empty(num_classes, dim))  # (C, D)
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")  # as in the official code

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of a batch, a scalar in float32 (float64 for float64 proxies).

        Args:
            embeddings: (B, D) floating point, any length (normalized here).
            labels: (B,) int64 in 0..C−1.

        Raises:
            SobookError: input does not fit; on the CPU also a wrong label, a zero or NaN row.
        """
        self._check(embeddings, labels)
        alpha, delta, b = self.scale, self.margin, self.threshold
        # Exponents reach α(1 + δ) = 35.2, too much for half precision: float32, even in autocast.
        with torch.autocast(embeddings.device.type, enabled=False):
            x, p = _unit(embeddings, "an embedding"), _unit(self.proxies, "a proxy")
            cosines = x.to(p.dtype) @ p.T  # (B, C): s(x, p)
            is_positive = labels[:, None] == torch.arange(len(p), device=labels.device)  # (B, C)

            positives = torch.where(is_positive, -alpha * (cosines - (b + delta)), _LEFT_OUT)
            negatives = torch.where(is_positive, _LEFT_OUT, alpha * (cosines - (b - delta)))

            num_positive_proxies = is_positive.any(dim=0).sum()  # |P⁺|; others add log(1 + 0)
            pull = _log_one_plus_sum_exp(positives).sum() / num_positive_proxies
            push = _log_one_plus_sum_exp(negatives).mean()
            return pull + push

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        num_classes, dim = self.proxies.shape
        fit = labels.ndim == 1 and embeddings.shape == (len(labels), dim) and len(labels) > 0
        if not (fit and embeddings.is_floating_point() and labels.dtype == torch.int64):
            given = [(rows.dtype, tuple(rows.shape)) for rows in (embeddings, labels)]
            raise SobookError(f"expected float (B, {dim}) and int64 labels (B,), but got {given}.")
        in_range = ((labels >= 0) & (labels < num_classes)).all()
        _require(in_range, f"labels must lie in 0..{num_classes - 1}: there is a proxy per class.")


class SoftOrthogonalProxyAnchor(ProxyAnchor):
    """ProxyAnchor + so_weight · soft_orthogonality, which keeps the proxies from crowding together.

    The idea is that of "Deep Metric Learning with Soft Orthogonal Proxies" (arXiv 2306.13055).
    Its λ is not known to us; the mean over pairs and the default `so_weight` are our choices.

    Args:
        num_classes, dim, settings: as for `ProxyAnchor`.
        so_weight: λ ≥ 0.
        so_reduction: "mean" or "sum", see `soft_orthogonality`.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        so_weight: float = SO_WEIGHT,
        so_reduction: str = "mean",
        **settings: Any,
    ):
        super().__init__(num_classes, dim, **settings)
        self.so_weight, self.so_reduction = plain("so_weight", so_weight, float), so_reduction
        if self.so_weight < 0:
            raise SobookError(f"so_weight is {so_weight}: it must be zero or positive.")

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The summed loss of a batch, arguments as for `ProxyAnchor`."""
        return self.parts(embeddings, labels)["loss"]

    def parts(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Both terms and their weighted sum: "proxy_anchor", "soft_orthogonality", "loss"."""
        pa, so = super().forward(embeddings, labels), self.orthogonality()
        return {"proxy_anchor": pa, "soft_orthogonality": so, "loss": pa + self.so_weight * so}

    def orthogonality(self) -> Tensor:
        return soft_orthogonality(self.proxies, reduction=self.so_reduction)


class SoftOrthogonalityOnPairs(SoftOrthogonalProxyAnchor):
    """With SO of the pairs in `so_pairs` only, (C, C) bool, symmetric, False on the diagonal."""

    so_pairs: Tensor

    def orthogonality(self) -> Tensor:
        unit = _unit(self.proxies, "a proxy")
        return (unit @ unit.T).square()[self.so_pairs].mean()


def soft_orthogonality(proxies: Tensor, *, reduction: str = "mean") -> Tensor:
    r"""Distance of unit-length proxies from mutual orthogonality: ‖P̂P̂ᵀ − I‖²_F.

    The diagonal of P̂P̂ᵀ is 1, so this is the sum of squared cosines between different proxies.

    Args:
        proxies: (C, D) floating point, C ≥ 2, rows of any length but zero (normalized here).
        reduction: "sum": the squared Frobenius norm. "mean": that divided by C(C−1), the mean
            squared cosine of two different proxies, so one λ means the same for any C.

    Returns:
        A scalar ≥ 0 in float32 (float64 for float64 input). With C > D, "sum" is ≥ C²/D − C.

    Raises:
        SobookError: wrong shape, type or reduction; on the CPU also a zero or NaN row.

    Source: the penalty ‖WᵀW − I‖² of Bansal, Chen and Wang, NeurIPS 2018 (arXiv 1810.09102), put
    on proxies as in arXiv 2306.13055; unit rows are our choice.

    >>> at_45_degrees = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> round(soft_orthogonality(at_45_degrees, reduction="sum").item(), 4)
    1.0
    """
    check_choice("reduction", reduction, ("mean", "sum"))
    if proxies.ndim != 2 or len(proxies) < 2 or not proxies.is_floating_point():
        raise SobookError(f"expected float proxies (C, D), C ≥ 2, but got {tuple(proxies.shape)}.")
    num_classes, dim = proxies.shape
    with torch.autocast(proxies.device.type, enabled=False):
        unit = _unit(proxies, "a proxy")  # (C, D)
        if num_classes <= dim:
            total = (unit @ unit.T - torch.eye(num_classes, device=unit.device)).square().sum()
        else:
            # ‖P̂P̂ᵀ‖² = ‖P̂ᵀP̂‖²: for 11,318 proxies in 512 dimensions 1 MB instead of 512 MB. The
            # diagonal of P̂P̂ᵀ, all ones, is computed so that rounding cancels, and is constant.
            gram = unit.T @ unit  # (D, D)
            diagonal = torch.linalg.vector_norm(unit.detach(), dim=1).square()  # (C,)
            total = (gram.square().sum() - diagonal.square().sum()).clamp_min(0)
    return total / (num_classes * (num_classes - 1)) if reduction == "mean" else total


def _unit(rows: Tensor, name: str) -> Tensor:
    """Rows (N, D) scaled to unit length, in float32 or float64."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    # Multiplied, because the gradient of a division holds two more copies of the rows.
    inverse = torch.linalg.vector_norm(rows, dim=1, keepdim=True).reciprocal()  # (N, 1)
    fine = (inverse.isfinite() & (inverse > 0)).all()
    _require(fine, f"{name} is zero, NaN or infinite: often the learning rate is too high.")
    return rows * inverse


def _log_one_plus_sum_exp(exponents: Tensor) -> Tensor:
    """log(1 + Σ_b exp(z_bc)) for every column c, without overflow: (B, C) → (C,)."""
    # softplus(z) = log(1 + eᶻ); above its threshold torch returns z itself, exact to 10⁻¹⁷ at 40.
    return F.softplus(exponents.logsumexp(dim=0), threshold=40)


def _require(condition: Tensor, message: str) -> None:
    """Raise where a condition on values does not hold."""
    if condition.device.type == "cpu":  # looking at a value would stall a GPU
        with contextlib.suppress(RuntimeError):  # torch.func.vmap hides values
            if not condition:
                raise SobookError(message)
