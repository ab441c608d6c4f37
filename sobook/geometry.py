"""Geometry of a set of proxies in numbers: start with `describe`.

Notation: C classes (proxies), D embedding dimension; P̂ are the proxies scaled to unit length.
All in float64 on the CPU, so that no number depends on a device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from scipy.stats import entropy

from sobook.errors import SobookError

# Above so many classes cosines are float32: for the 11,318 of Stanford Online Products half a GB.
_FLOAT64_CLASSES = 4000
_ROUNDING = 1e-12  # a mean below this is zero


@dataclass(frozen=True)
class ProxyGeometry:
    """Numbers that describe C proxies in D dimensions; made by `describe`.

    Attributes:
        num_classes, dim: C and D.
        cosines: (C, C) cosines of all pairs, ones on the diagonal.
        coherence: largest |cosine| of two different proxies (mutual coherence).
        rms_cosine: root mean square cosine of two different proxies, √(SO "mean").
        mean_cosine: their mean cosine, with sign.
        mean_angle: mean angle between two different proxies, degrees.
        spectrum: (min(C, D),) singular values of P̂, descending; their squares sum to C.
        effective_rank: exp of the entropy of the singular values divided by their sum
            (Roy and Vetterli, EUSIPCO 2007); between 1 and min(C, D).
        orthogonality: ‖P̂P̂ᵀ − I‖²_F, the sum of squared off-diagonal cosines.
        orthogonality_floor, rms_floor, welch_bound: least orthogonality, rms_cosine, coherence.
        chance_cosine: 1/√D, the RMS cosine of random directions.
        simplex_cosine: −1/(C−1), every cosine in a regular simplex: the lowest mean there is.
        common_mode_share: fraction of SO due to the common mode, mean²/RMS²; 0 for a mean ≤ 0.
        rms_cosine_centered: RMS cosine `without_common_mode`; 0 if nothing is left of a proxy.
    """

    num_classes: int
    dim: int
    cosines: np.ndarray = field(repr=False)
    coherence: float
    rms_cosine: float
    mean_cosine: float
    mean_angle: float
    spectrum: np.ndarray = field(repr=False)
    effective_rank: float
    orthogonality: float
    orthogonality_floor: float
    rms_floor: float
    welch_bound: float
    chance_cosine: float
    simplex_cosine: float
    common_mode_share: float
    rms_cosine_centered: float

    def summary(self) -> dict[str, float]:
        """The scalar fields, rounded for a table or a JSON file."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {k: round(v, 6) for k, v in values.items() if not isinstance(v, np.ndarray)}


def describe(proxies: Any) -> ProxyGeometry:
    """Describe proxies: a tensor or array (C, D), C ≥ 2, with rows of any length but zero.

    Raises:
        SobookError: wrong shape, one class only, NaN, or a proxy of zero length.

    >>> describe([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]).mean_angle
    90.0
    """
    unit = unit_rows(proxies, "proxies")  # (C, D)
    num_classes, dim = unit.shape
    if num_classes < 2:
        raise SobookError("one proxy alone has no angles: give at least two classes.")
    rows = unit if num_classes <= _FLOAT64_CLASSES else unit.astype(np.float32)
    cosines = np.clip(rows @ rows.T, -1, 1)
    np.fill_diagonal(cosines, 1)
    pairs = off_diagonal(cosines)
    mean = float(pairs.mean(dtype=np.float64))
    mean_square = float(np.square(pairs).mean(dtype=np.float64))
    spectrum = np.linalg.svd(unit, compute_uv=False)  # (min(C, D),)
    ordered_pairs, floor = num_classes * (num_classes - 1), orthogonality_floor(num_classes, dim)
    return ProxyGeometry(
        num_classes=num_classes,
        dim=dim,
        cosines=cosines,
        coherence=float(np.abs(pairs).max()),
        rms_cosine=math.sqrt(mean_square),
        mean_cosine=mean,
        mean_angle=float(np.degrees(np.arccos(pairs).mean(dtype=np.float64))),
        spectrum=spectrum,
        effective_rank=float(np.exp(entropy(spectrum))),
        orthogonality=mean_square * ordered_pairs,
        orthogonality_floor=floor,
        rms_floor=math.sqrt(floor / ordered_pairs),
        welch_bound=welch_bound(num_classes, dim),
        chance_cosine=1 / math.sqrt(dim),
        simplex_cosine=-1 / (num_classes - 1),
        common_mode_share=mean**2 / mean_square if mean > _ROUNDING else 0.0,
        rms_cosine_centered=_rms_centered(unit),
    )


def _rms_centered(unit: np.ndarray) -> float:
    """RMS cosine without the common mode, from the smaller of the two Gram matrices."""
    try:
        rest = without_common_mode(unit)
    except SobookError:
        return 0.0
    gram = rest.T @ rest if len(rest) > rest.shape[1] else rest @ rest.T
    return math.sqrt(max(0.0, np.square(gram).sum() / len(rest) - 1) / (len(rest) - 1))


def without_common_mode(proxies: Any) -> np.ndarray:
    """Unit proxies (C, D) minus their mean, scaled to unit length again.

    Raises:
        SobookError: a proxy equals the mean, so nothing is left of it.

    >>> round(describe(without_common_mode(np.eye(3) + 5)).mean_cosine, 6)  # simplex: −1/(C − 1)
    -0.5
    """
    unit = unit_rows(proxies, "proxies")
    rest = unit - unit.mean(axis=0)
    lengths = np.linalg.norm(rest, axis=1, keepdims=True)
    if lengths.min() < 1e-9:
        raise SobookError("a proxy equals the mean of all: nothing is left of it without the mean.")
    return rest / lengths


@dataclass(frozen=True)
class Collapse:
    """Class means against their proxies, and the metrics of neural collapse; see `collapse`.

    Attributes, with μ_c the mean embedding of class c and μ their mean:
        angle: (C,) angle between a class mean and its proxy, degrees.
        nc1: tr(Σ_W Σ_B⁺)/C, spread within classes against that between them; at least 0.
        nc2_norms: standard deviation of ‖μ_c − μ‖ over its mean; 0 when all are equally long.
        nc2_angles: mean |cos + 1/(C−1)| over pairs of centered class means; 0 for a simplex.
        nc3: ‖M/‖M‖_F − P/‖P‖_F‖²_F of centered class means M and centered unit proxies P; 0 to 4.
        nc4: fraction of the embeddings whose nearest proxy (by cosine) and nearest class mean (by
            distance) are of different classes.
    """

    angle: np.ndarray = field(repr=False)
    nc1: float
    nc2_norms: float
    nc2_angles: float
    nc3: float
    nc4: float


def collapse(embeddings: Any, labels: Any, proxies: Any) -> Collapse:
    """Neural collapse: how close embeddings, their class means and the proxies are to each other.

    NC3 centers proxies as class means: no nearest-neighbor decision depends on a shared direction.

    Args:
        embeddings, labels: (N, D), and (N,) classes 0..C−1, each with at least one image.
        proxies: (C, D).

    Source: Papyan, Han and Donoho, PNAS 2020: NC1 to NC4, with proxies for the classifier.
    """
    unit, rows = unit_rows(proxies, "proxies"), unit_rows(embeddings, "embeddings")
    num_classes = len(unit)
    means = class_means(rows, labels, num_classes)  # (C, D)
    cosines = (unit_rows(means, "class means") * unit).sum(axis=1)
    within, centered = rows - means[np.asarray(labels)], means - means.mean(axis=0)
    sigma_w, sigma_b = within.T @ within / len(rows), centered.T @ centered / num_classes  # (D, D)
    lengths = np.linalg.norm(centered, axis=1, keepdims=True)
    directions = unit_rows(centered, "centered class means")
    centered_proxies = unit - unit.mean(axis=0)
    gap = centered / np.linalg.norm(centered) - centered_proxies / np.linalg.norm(centered_proxies)
    nc1 = np.trace(sigma_w @ np.linalg.pinv(sigma_b, rcond=1e-10, hermitian=True)) / num_classes
    # ‖x − μ‖² without ‖x‖², which is the same for all means.
    nearest_mean = (np.square(means).sum(axis=1) - 2 * rows @ means.T).argmin(axis=1)
    from_simplex = off_diagonal(directions @ directions.T) + 1 / (num_classes - 1)
    return Collapse(
        angle=np.degrees(np.arccos(np.clip(cosines, -1, 1))),
        nc1=float(nc1),
        nc2_norms=float(lengths.std() / lengths.mean()),
        nc2_angles=float(np.abs(from_simplex).mean()),
        nc3=float(np.square(gap).sum()),
        nc4=float(np.mean((rows @ unit.T).argmax(axis=1) != nearest_mean)),
    )


def class_means(embeddings: Any, labels: Any, num_classes: int) -> np.ndarray:
    """Means (C, D) by labels (N,), 0..C−1, of unit-length embeddings (N, D); short if spread out.

    Raises:
        SobookError: labels that do not fit, or a class without images.
    """
    rows, labels = unit_rows(embeddings, "embeddings"), np.asarray(labels)
    if len(labels) != len(rows) or not np.array_equal(np.unique(labels), np.arange(num_classes)):
        raise SobookError(
            f"{len(labels)} labels for {len(rows)} training images: give one each, and every class "
            f"of 0..{num_classes - 1}, numbered as the proxies."
        )
    return np.stack([rows[labels == c].mean(axis=0) for c in range(num_classes)])


@dataclass(frozen=True)
class Movement:
    """Proxies over epochs: E epochs, C classes; made by `movement`.

    Attributes:
        rms_cosine: (E,) RMS cosine of two different proxies.
        cosine_band: (E, 3) 5 %, 50 % and 95 % quantile of the cosines.
        from_start: (E, C) angle of each proxy with itself at the first epoch, degrees.
        step: (E, C) angle with itself one epoch earlier, degrees; 0 at the first.
    """

    rms_cosine: np.ndarray
    cosine_band: np.ndarray
    from_start: np.ndarray = field(repr=False)
    step: np.ndarray = field(repr=False)


def movement(epochs: Sequence) -> Movement:
    """Movement of a set of proxies over epochs: E arrays or tensors (C, D), in order.

    Raises:
        SobookError: no epochs, or proxies that change their shape.
    """
    units = [unit_rows(proxies, "proxies") for proxies in epochs]
    if len({unit.shape for unit in units}) != 1:
        raise SobookError("movement needs proxies of one shape, of at least one epoch.")
    rms_cosine, cosine_band = [], []
    for unit in units:  # one at a time: the pairs of 11,318 classes take half a gigabyte
        cosines = off_diagonal(unit @ unit.T)
        rms_cosine.append(math.sqrt(np.square(cosines).mean()))
        cosine_band.append(np.quantile(cosines, [0.05, 0.5, 0.95]))
    path = np.stack(units)  # (E, C, D)
    before = np.concatenate([path[:1], path[:-1]])
    angles = _angles_between(path, path[0]), _angles_between(path, before)
    return Movement(np.array(rms_cosine), np.array(cosine_band), *angles)


def _angles_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle of each row of a with the same row of b, degrees; exact even for tiny angles."""
    half = np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)
    return np.degrees(2 * np.arctan2(*half))


def unit_rows(rows: Any, name: str = "rows") -> np.ndarray:
    """Rows (C, D) of an array, list or tensor scaled to unit length, in float64.

    Raises:
        SobookError: another shape, or a row of zero length, NaN or infinite values.
    """
    rows = np.asarray(rows.detach().cpu().double() if hasattr(rows, "detach") else rows, float)
    if rows.ndim != 2 or rows.size == 0:
        raise SobookError(f"{name} have shape {rows.shape}, expected (C, D): one row per class.")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(bad):
        raise SobookError(f"row {bad[0]} of the {name} is zero, NaN or infinite: leave it out.")
    return rows / lengths


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """Entries above the diagonal of a (C, C) matrix, row by row: every pair of classes once."""
    return np.asarray(matrix)[~np.tri(len(matrix), dtype=bool)]  # indices would be larger


def orthogonality_floor(num_classes: int, dim: int) -> float:
    """Least possible ‖P̂P̂ᵀ − I‖²_F of C unit vectors in D dimensions: max(0, C²/D − C).

    From ‖P̂P̂ᵀ‖²_F = Σσ⁴ ≥ (Σσ²)²/D = C²/D, with equality when all D singular values are equal.

    >>> orthogonality_floor(100, 384), orthogonality_floor(4, 2)
    (0.0, 4.0)
    """
    return max(0.0, num_classes**2 / dim - num_classes)


def welch_bound(num_classes: int, dim: int) -> float:
    """Least possible coherence of C unit vectors in D dimensions, √((C−D)/(D(C−1))); 0 for C ≤ D.

    Source: Welch, IEEE Transactions on Information Theory 1974.
    """
    return math.sqrt(max(0, num_classes - dim) / (dim * (num_classes - 1)))
