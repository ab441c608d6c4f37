"""Proxy Anchor, soft orthogonality, and their sum.

Start with `ProxyAnchor._loss` and `soft_orthogonality`; the rest checks what comes in. These losses
know nothing of encoders, data or training.

Notation: B batch, C classes, D embedding dimension. X is a batch of embeddings, P the proxies;
a hat means that rows have unit length.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sobook.errors import SobookError, check_choice

REDUCTIONS = ("mean", "sum")
SO_WEIGHT = 100.0  # default λ, for reduction "mean"; our choice, not the paper's
# Marks what a log-sum-exp leaves out: exp(−10⁴) is exactly 0 in any precision, and unlike −inf it
# leaves no 0·inf in the gradient of a sum that is empty.
_LEFT_OUT = -1e4


class ProxyAnchor(nn.Module):
    r"""Proxy Anchor loss: every class has a learned proxy which acts as the anchor.

    With s(x, p) the cosine of embedding and proxy, α the scale, δ the margin and b the threshold,

    .. math::
        \frac{1}{|P^+|}\sum_{p\in P^+}\log\Big(1+\sum_{x\in X_p^+}e^{-\alpha(s(x,p)-b-\delta)}\Big)
        +\frac{1}{|P|}\sum_{p\in P}\log\Big(1+\sum_{x\in X_p^-}e^{\alpha(s(x,p)-b+\delta)}\Big),

    where P⁺ are the proxies whose class occurs in the batch. Exponents reach α(1 + δ) = 35.2, too
    much for half precision, hence everything after the embeddings is computed in float32 (float64
    stays float64), whatever autocast says.

    Args:
        num_classes: C, at least 2.
        dim: D, the embedding dimension.
        margin: δ, in units of cosine.
        scale: α, which sets how strongly the hardest examples dominate.
        threshold: b, the cosine that separates positives (pulled above b + δ) from negatives
            (pushed below b − δ). The paper has none, which is b = 0; the term is ours.

    Attributes:
        proxies: (C, D) parameter, initialized as in the official code (Kaiming normal, fan out).

    Raises:
        SobookError: on construction if an argument makes no sense; on call if shapes, types or
            labels do not fit. On a GPU the label range and finiteness are not checked, since
            that would stall the device; the training loop checks the loss instead.

    Source: Kim, Kim, Cho and Kwak, "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020, eq. 4.

    >>> _ = torch.manual_seed(0)
    >>> loss = ProxyAnchor(num_classes=3, dim=4)
    >>> embeddings, labels = torch.randn(5, 4), torch.tensor([0, 0, 1, 2, 2])
    >>> loss(embeddings, labels).shape
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
    ):
        super().__init__()
        if num_classes < 2:
            raise SobookError(
                f"num_classes is {num_classes}: with fewer than two classes there is nothing to "
                "push apart; give at least 2."
            )
        if dim < 1:
            raise SobookError(f"dim is {dim}: the embedding dimension must be at least 1.")
        if not scale > 0:
            raise SobookError(f"scale is {scale}: it must be positive (the usual value is 32).")
        if not math.isfinite(threshold):
            raise SobookError(f"threshold is {threshold}: give a cosine, usually 0.")
        self.margin, self.scale, self.threshold = float(margin), float(scale), float(threshold)
        self.proxies = nn.Parameter(torch.empty(num_classes, dim))  # (C, D)
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of a batch.

        Args:
            embeddings: (B, D) floating point, any length (normalized here).
            labels: (B,) int64 in 0..C−1.

        Returns:
            A scalar in float32 (float64 for float64 input).
        """
        self._check(embeddings, labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            return self._loss(_at_least_float32(embeddings), labels)

    def _loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        proxies = self.proxies.to(torch.promote_types(self.proxies.dtype, embeddings.dtype))
        embeddings = embeddings.to(proxies.dtype)
        unit = embeddings / _lengths(embeddings, "embedding")  # (B, D)
        # Proxies are divided by their lengths after the product: a unit copy of 11,318 of them,
        # and its gradient, would be most of the memory.
        products = (self.scale * unit) @ proxies.T  # (B, C)
        logits = products / _lengths(proxies, "proxy").T  # (B, C): α·s(x, p)

        # Pull: an embedding is a positive of one proxy, so only classes in the batch take part.
        present = labels.unique()  # (C⁺,)
        own = logits.gather(1, labels[:, None])  # (B, 1)
        pull = torch.where(labels[:, None] == present, -own, _LEFT_OUT)  # (B, C⁺)

        # Push: every class has negatives; each embedding is left out of its own class's sum.
        push = logits.scatter(1, labels[:, None], _LEFT_OUT)  # (B, C)

        # Margin and threshold are the same in every exponent, e^(z + a) = e^z · eᵃ: added to the
        # logarithm of the sum.
        pull = _log_one_plus_sum_exp(pull, self.scale * (self.margin + self.threshold))  # (C⁺,)
        push = _log_one_plus_sum_exp(push, self.scale * (self.margin - self.threshold))  # (C,)
        return pull.mean() + push.mean()

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        num_classes, dim = self.proxies.shape
        if embeddings.ndim != 2 or embeddings.shape[1] != dim:
            raise SobookError(
                f"embeddings have shape {tuple(embeddings.shape)}, expected (B, {dim}): one row "
                "per image, as many columns as the proxies."
            )
        if not embeddings.is_floating_point():
            raise SobookError(f"embeddings are {embeddings.dtype}: give floating point numbers.")
        if len(embeddings) == 0:
            raise SobookError("the batch is empty: give at least one embedding.")
        if labels.shape != embeddings.shape[:1]:
            raise SobookError(
                f"labels have shape {tuple(labels.shape)}, expected ({len(embeddings)},): one "
                "label per embedding."
            )
        if labels.dtype != torch.int64:
            raise SobookError(f"labels are {labels.dtype}: convert them with labels.long().")
        if embeddings.device.type == "cpu":
            lowest, highest = map(int, labels.aminmax())
            if not 0 <= lowest <= highest < num_classes:
                raise SobookError(
                    f"labels run from {lowest} to {highest}, but there are {num_classes} proxies: "
                    f"labels must lie in 0..{num_classes - 1}."
                )


class SoftOrthogonalProxyAnchor(ProxyAnchor):
    """Proxy Anchor plus a soft orthogonality term that keeps the proxies from crowding together.

    loss = ProxyAnchor + so_weight · soft_orthogonality(proxies, reduction=so_reduction)

    The idea is that of "Deep Metric Learning with Soft Orthogonal Proxies" (arXiv 2306.13055).
    Its value of λ is not known to us; averaging SO over class pairs, so that one λ means the same
    for 100 and for 11,318 classes, and the default `so_weight` are our choices.

    Args:
        num_classes, dim, margin, scale, threshold: as for `ProxyAnchor`.
        so_weight: λ ≥ 0. At 0, `parts` still reports the term, but it does not count.
        so_reduction: "mean" or "sum", see `soft_orthogonality`.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        margin: float = 0.1,
        scale: float = 32.0,
        threshold: float = 0.0,
        so_weight: float = SO_WEIGHT,
        so_reduction: str = "mean",
    ):
        super().__init__(num_classes, dim, margin=margin, scale=scale, threshold=threshold)
        if not so_weight >= 0:
            raise SobookError(f"so_weight is {so_weight}: it must be zero or positive.")
        check_choice("so_reduction", so_reduction, REDUCTIONS)
        self.so_weight, self.so_reduction = float(so_weight), so_reduction

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The summed loss of a batch, arguments as for `ProxyAnchor`."""
        return self.parts(embeddings, labels)["loss"]

    def parts(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Both terms and their weighted sum: "proxy_anchor", "soft_orthogonality", "loss"."""
        proxy_anchor = super().forward(embeddings, labels)
        orthogonality = soft_orthogonality(self.proxies, reduction=self.so_reduction)
        return {
            "proxy_anchor": proxy_anchor,
            "soft_orthogonality": orthogonality,
            "loss": proxy_anchor + self.so_weight * orthogonality,
        }


def soft_orthogonality(proxies: Tensor, *, reduction: str = "mean") -> Tensor:
    r"""How far unit-length proxies are from being mutually orthogonal: ‖P̂P̂ᵀ − I‖²_F.

    The diagonal of P̂P̂ᵀ is 1, so this is the sum of squared cosines between different proxies.
    Only a Gram matrix of the smaller side is formed, since ‖P̂P̂ᵀ‖_F = ‖P̂ᵀP̂‖_F: for 11,318
    proxies in 512 dimensions that is 1 MB instead of 512 MB, with the same gradient.

    Args:
        proxies: (C, D) floating point, rows of any length but zero (they are normalized here).
        reduction: "sum": the squared Frobenius norm. "mean": that divided by C(C−1), the mean
            squared cosine of two different proxies, which means the same for any number of classes.

    Returns:
        A scalar ≥ 0 in float32 (float64 for float64 input); 0 exactly when the rows are
        orthonormal to rounding. With C > D it cannot go below C²/D − C ("sum").

    Raises:
        SobookError: fewer than two proxies, wrong shape or type, unknown reduction.

    Source: the penalty ‖WᵀW − I‖² of Bansal, Chen and Wang, NeurIPS 2018 (arXiv 1810.09102), put
    on proxies as in arXiv 2306.13055; unit rows are our choice.

    >>> soft_orthogonality(torch.eye(3)).item()
    0.0
    >>> at_45_degrees = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> round(soft_orthogonality(at_45_degrees, reduction="sum").item(), 4)
    1.0
    """
    check_choice("reduction", reduction, REDUCTIONS)
    if proxies.ndim != 2 or len(proxies) < 2:
        raise SobookError(
            f"proxies have shape {tuple(proxies.shape)}, expected (C, D) with at least two rows."
        )
    if not proxies.is_floating_point():
        raise SobookError(f"proxies are {proxies.dtype}: give floating point numbers.")
    with torch.autocast(proxies.device.type, enabled=False):
        proxies = _at_least_float32(proxies)
        # As F.normalize, but multiplied: a division's gradient holds two more copies of the rows,
        # which would be 5.6 % instead of 3.4 % of the memory of the C×C form, and slower.
        total = _squared_off_diagonal(proxies * _lengths(proxies, "proxy").reciprocal())
    num_classes = len(proxies)
    return total / (num_classes * (num_classes - 1)) if reduction == "mean" else total


def _squared_off_diagonal(unit: Tensor) -> Tensor:
    """Sum of squared off-diagonal entries of P̂P̂ᵀ, by the smaller of the two Gram matrices."""
    num_classes, dim = unit.shape
    if num_classes <= dim:
        identity = torch.eye(num_classes, dtype=unit.dtype, device=unit.device)
        return torch.addmm(identity, unit, unit.T, beta=-1).square().sum()  # (C, C) inside
    # ‖P̂P̂ᵀ‖² = ‖P̂ᵀP̂‖², of which the diagonal of P̂P̂ᵀ, all ones, is C. It is computed from the
    # rows, so that rounding cancels, and detached, since it does not change with the proxies.
    gram = unit.T @ unit  # (D, D)
    diagonal = torch.linalg.vector_norm(unit.detach(), dim=1).square()  # (C,)
    return (gram.square().sum() - diagonal.square().sum()).clamp_min(0)


def _log_one_plus_sum_exp(exponents: Tensor, offset: float) -> Tensor:
    """log(1 + Σ_b exp(z_bc + offset)) for every column c, without overflow: (B, C) → (C,)."""
    # softplus(z) = log(1 + eᶻ); above its threshold torch returns z itself, exact to 10⁻¹⁷ at 40.
    return F.softplus(exponents.logsumexp(dim=0) + offset, threshold=40)


def _lengths(rows: Tensor, what: str) -> Tensor:
    """(N, 1) lengths of rows, never 0; on the CPU, rows that have no direction are refused."""
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    tiny = torch.finfo(rows.dtype).tiny
    if rows.device.type == "cpu":
        shortest, longest = map(float, lengths.detach().aminmax())  # NaN, if there is one
        if not (shortest > tiny and longest < math.inf):
            bad = (~(lengths.isfinite() & (lengths > tiny))).flatten().nonzero()
            row = int(bad[0])
            kind = "zero length" if lengths[row] <= tiny else "NaN or infinite values"
            raise SobookError(
                f"{what} {row} has {kind}, so it has no direction ({len(bad)} such rows): look at "
                "what produced it, often a learning rate that is too high or an empty image."
            )
    return lengths.clamp_min(tiny)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
