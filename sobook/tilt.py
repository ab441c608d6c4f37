"""How far Proxy Anchor tilts proxies and images apart: measured, and predicted from the loss.

With a = |mean unit proxy|² and e = |mean embedding|², proxies and embeddings are two cones around
opposite axes, and the cosine of an image and a proxy is s = −τ + κr. τ = √(ae) is the *tilt*,
κ = √((1−a)(1−e)), and r the cosine of what is left of both without their means. `measure` takes
these numbers from a trained head, `predict` finds the a and e at which the loss is least.
Notation: N images, C classes, D embedding dimension, M batches of B images.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special


@dataclass(frozen=True)
class Loss:
    """Settings of Proxy Anchor and soft orthogonality: α, δ, b and λ (of the mean over pairs)."""

    scale: float = 32.0
    margin: float = 0.1
    threshold: float = 0.0
    so_weight: float = 0.0


@dataclass(frozen=True)
class Tilt:
    """Two cones in numbers, and the balance of forces between them.

    Attributes:
        tau: τ = −⟨mean embedding, mean proxy⟩, which is √(ae) where the two are opposite.
        proxy_cone, image_cone: a and e.
        own_residual, own_spread: mean and standard deviation of the residual cosines r of images
            and the proxies of their own class.
        foreign_residual, foreign_spread: the same with the proxies of all other classes.
        pull, push: w₊ and w₋, what the loss weighs cosines with own proxies, summed per class and
            averaged over the classes in a batch, and with foreign ones, averaged over all C.
        pulled_residual, pushed_residual: r₊ and r₋, averaged with these weights.
    """

    tau: float
    proxy_cone: float
    image_cone: float
    own_residual: float
    own_spread: float
    foreign_residual: float
    foreign_spread: float
    pull: float
    push: float
    pulled_residual: float
    pushed_residual: float


def measure(
    proxies: ArrayLike, embeddings: ArrayLike, labels: ArrayLike, batches: np.ndarray, loss: Loss
) -> Tilt:
    """The tilt of a trained head.

    At rest w₊ (1 + r₊) = w₋ (1 + r₋): tilting lowers an own cosine by 1 + r₊ and a foreign one by
    1 + r₋.

    Args:
        proxies: (C, D) of any length.
        embeddings: (N, D) of unit length, of the training images.
        labels: (N,) whole numbers in 0..C−1.
        batches: (M, B) rows of the embeddings, over which the weights are averaged.
        loss: settings of the training.
    """
    unit, images = np.asarray(proxies, dtype=float), np.asarray(embeddings, dtype=float)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    mean_proxy, mean_image = unit.mean(0), images.mean(0)
    a, e = mean_proxy @ mean_proxy, mean_image @ mean_image
    residual = (images - mean_image) @ (unit - mean_proxy).T / np.sqrt((1 - a) * (1 - e))  # (N, C)
    is_own = np.asarray(labels)[:, None] == np.arange(len(unit))  # (N, C)
    cosines = images @ unit.T
    pull, push = _weights(cosines[batches], is_own[batches], loss)  # (M, B, C) each
    return Tilt(
        tau=float(-mean_image @ mean_proxy),
        proxy_cone=float(a),
        image_cone=float(e),
        own_residual=float(residual[is_own].mean()),
        own_spread=float(residual[is_own].std()),
        foreign_residual=float(residual[~is_own].mean()),
        foreign_spread=float(residual[~is_own].std()),
        pull=float(pull.sum() / len(batches)),
        push=float(push.sum() / len(batches)),
        pulled_residual=float((pull * residual[batches]).sum() / pull.sum()),
        pushed_residual=float((push * residual[batches]).sum() / push.sum()),
    )


def predict(
    seen: Tilt, labels: np.ndarray, num_classes: int, loss: Loss, *, learn_threshold: bool = False
) -> tuple[float, float, float]:
    """The a, e and b of least loss, where residual cosines are as in another run.

    They are drawn from two normal distributions with the means and spreads of that run. Given τ, κ
    is largest for a = e; soft orthogonality adds λ times the squared mean proxy cosine,
    a − (1 − a)/(C − 1), which acts on the proxies alone.

    Args:
        seen: of one run with this α; its residual cosines are used, its tilt is not.
        labels: (M, B) whole numbers, the classes in the batches.
        num_classes: C.
        loss: settings for which to predict.
        learn_threshold: b is learned as well.

    Returns:
        a, e and b; the predicted tilt is √(ae).
    """
    rng = np.random.default_rng(0)
    is_own = labels[:, :, None] == np.arange(num_classes)  # (M, B, C)
    mean = np.where(is_own, seen.own_residual, seen.foreign_residual)
    spread = np.where(is_own, seen.own_spread, seen.foreign_spread)
    residual = mean + spread * rng.standard_normal(is_own.shape)

    def value(roots: np.ndarray) -> float:
        (a, e), b = roots[:2] ** 2, roots[2]
        cosines = -np.sqrt(a * e) + np.sqrt((1 - a) * (1 - e)) * residual
        pull, push = _log_sums(cosines, is_own, loss, b)  # (M, C) each
        present = is_own.any(1).sum(1)  # (M,): |P⁺|
        mean_cosine = a - (1 - a) / (num_classes - 1)
        anchor = (pull.sum(1) / present + push.mean(1)).mean()
        return float(anchor + loss.so_weight * mean_cosine**2)

    b = loss.threshold
    bounds = [(0, 0.999), (0, 0.999), (-1, 1) if learn_threshold else (b, b)]
    starts = [np.array([root, root, b]) for root in (0.1, 0.5, 0.8)]
    ends = [optimize.minimize(value, start, method="L-BFGS-B", bounds=bounds) for start in starts]
    best = min(ends, key=lambda end: end.fun).x
    return float(best[0] ** 2), float(best[1] ** 2), float(best[2])


def _exponents(cosines: np.ndarray, is_own: np.ndarray, loss: Loss, b: float) -> list[np.ndarray]:
    """Exponents of the pull and of the push, −∞ where a cosine is not in the sum."""
    pull = np.where(is_own, -loss.scale * (cosines - b - loss.margin), -np.inf)
    return [pull, np.where(is_own, -np.inf, loss.scale * (cosines - b + loss.margin))]


def _log_sums(cosines: np.ndarray, is_own: np.ndarray, loss: Loss, b: float) -> list[np.ndarray]:
    """log(1 + Σ exp) of pull and push of every class in every batch, (M, C) each."""
    return [
        np.logaddexp(0, special.logsumexp(part, axis=1))
        for part in _exponents(cosines, is_own, loss, b)
    ]


def _weights(cosines: np.ndarray, is_own: np.ndarray, loss: Loss) -> list[np.ndarray]:
    """What a batch's loss weighs every cosine, (M, B, C): its gradient divided by α."""
    b = loss.threshold
    sums = _log_sums(cosines, is_own, loss, b)
    pull, push = (
        np.exp(part - total[:, None])
        for part, total in zip(_exponents(cosines, is_own, loss, b), sums, strict=True)
    )
    present = is_own.any(1).sum(1)[:, None, None]
    return [pull / present, push / is_own.shape[2]]
