"""What a set of proxies looks like, in numbers.

Letters: C classes (proxies), D embedding dimension; P̂ are the proxies scaled to unit length.
Everything is computed in float64 on the CPU, so that what is shown does not depend on a device.
"""

import math
from dataclasses import dataclass, field, fields

import numpy as np


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
        orthogonality_floor: max(0, C²/D − C), the smallest value that sum can have.
        welch_bound: √((C−D)/(D(C−1))) for C > D, else 0: the coherence no C unit vectors can beat
            (Welch, IEEE Trans. Inf. Theory 1974).
        chance_cosine: 1/√D, the RMS cosine of random directions.
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
    welch_bound: float
    chance_cosine: float

    def summary(self) -> dict[str, float]:
        """The single numbers, rounded for a table or a JSON file."""
        arrays = ("cosines", "spectrum")
        return {
            item.name: round(getattr(self, item.name), 6)
            for item in fields(self)
            if item.name not in arrays
        }


def describe(proxies) -> ProxyGeometry:
    """Describe a set of proxies.

    Args:
        proxies: (C, D) tensor or array, C ≥ 2, rows of any length but zero.

    Returns:
        A `ProxyGeometry`.

    Raises:
        ValueError: wrong shape, one class only, NaN, or a proxy of zero length.

    >>> geometry = describe([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    >>> geometry.coherence, geometry.mean_angle, geometry.orthogonality_floor
    (0.0, 90.0, 0.0)
    """
    unit = unit_rows(proxies, "proxies")  # (C, D)
    num_classes, dim = unit.shape
    if num_classes < 2:
        raise ValueError("one proxy alone has no angles: give at least two classes.")
    cosines = np.clip(unit @ unit.T, -1.0, 1.0)  # (C, C)
    np.fill_diagonal(cosines, 1.0)
    pairs = off_diagonal(cosines)  # (C(C−1)/2,)
    spectrum = np.linalg.svd(unit, compute_uv=False)  # (min(C, D),)
    mean_square = float(np.mean(np.square(pairs)))
    return ProxyGeometry(
        num_classes=num_classes,
        dim=dim,
        cosines=cosines,
        coherence=float(np.abs(pairs).max()),
        rms_cosine=math.sqrt(mean_square),
        mean_cosine=float(pairs.mean()),
        mean_angle=float(np.degrees(np.arccos(pairs)).mean()),
        spectrum=spectrum,
        effective_rank=effective_rank(spectrum),
        orthogonality=mean_square * num_classes * (num_classes - 1),
        orthogonality_floor=orthogonality_floor(num_classes, dim),
        welch_bound=welch_bound(num_classes, dim),
        chance_cosine=1 / math.sqrt(dim),
    )


def unit_rows(rows, name: str = "rows") -> np.ndarray:
    """Rows scaled to unit length in float64; a tensor on any device or an array of shape (C, D)."""
    if hasattr(rows, "detach"):
        rows = rows.detach().cpu().double().numpy()
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or rows.size == 0:
        raise ValueError(f"{name} have shape {rows.shape}, expected (C, D): one row a class.")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
    if len(bad):
        raise ValueError(
            f"row {bad[0]} of the {name} has zero length, NaN or infinite values, so it has no "
            f"direction ({len(bad)} such rows): leave it out, or look at the training that made it."
        )
    return rows / lengths


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """Entries above the diagonal of a (C, C) matrix: every pair of classes once."""
    return matrix[np.triu_indices(len(matrix), k=1)]


def effective_rank(spectrum: np.ndarray) -> float:
    """exp(entropy) of the singular values divided by their sum (Roy and Vetterli, 2007).

    >>> round(effective_rank(np.ones(7)), 6)
    7.0
    """
    shares = np.asarray(spectrum, dtype=np.float64) / np.sum(spectrum)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def orthogonality_floor(num_classes: int, dim: int) -> float:
    """Least possible ‖P̂P̂ᵀ − I‖²_F of C unit vectors in D dimensions: max(0, C²/D − C).

    From ‖P̂P̂ᵀ‖²_F = Σσ⁴ ≥ (Σσ²)²/D = C²/D, with equality when all D singular values are equal.

    >>> orthogonality_floor(100, 384), orthogonality_floor(4, 2)
    (0.0, 4.0)
    """
    return max(0.0, num_classes**2 / dim - num_classes)


def welch_bound(num_classes: int, dim: int) -> float:
    """Least possible coherence of C unit vectors in D dimensions (0 when C ≤ D)."""
    if num_classes <= dim:
        return 0.0
    return math.sqrt((num_classes - dim) / (dim * (num_classes - 1)))


def common_mode(proxies) -> dict[str, float]:
    """How much of the proxies' correlation is one direction that all of them share.

    The mean unit proxy m is that direction. Its share is measured twice: what subtracting m from
    every proxy removes of the mean squared cosine (lengths made 1 again), and the square of the
    mean cosine in the mean square, which is a lower bound when all lean on m alike.

    Args:
        proxies: (C, D), rows of any length but zero.

    Returns:
        "mean_proxy_length": ‖m‖, 0 for proxies that cancel, 1 for proxies that are all the same;
        "common_share": 1 − (mean squared cosine after centring) / (before), NaN where the proxies
        are orthogonal already; "mean_share": (mean cosine)² / mean squared cosine;
        "rms_cosine_centred": RMS cosine after centring, never below 1/(C−1).

    >>> shared = common_mode([[1.0, 0.1, 0.0], [1.0, 0.0, 0.1], [1.0, -0.1, -0.1]])
    >>> shared["common_share"] > 0.5, round(shared["mean_share"], 3)
    (True, 1.0)
    """
    unit = unit_rows(proxies, "proxies")
    mean = unit.mean(0)
    pairs = off_diagonal(unit @ unit.T)
    before = float(np.mean(pairs**2))
    lengths = np.linalg.norm(unit - mean, axis=1, keepdims=True)
    if lengths.min() < 1e-12:  # a proxy that is the mean itself has no direction left
        after = math.nan
    else:
        centred = (unit - mean) / lengths
        after = float(np.mean(off_diagonal(centred @ centred.T) ** 2))
    orthogonal = before < 1e-24
    return {
        "mean_proxy_length": float(np.linalg.norm(mean)),
        "common_share": math.nan if orthogonal else 1 - after / before,
        "mean_share": math.nan if orthogonal else float(pairs.mean() ** 2 / before),
        "rms_cosine_centred": math.sqrt(after),
    }
