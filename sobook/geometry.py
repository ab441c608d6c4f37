"""What a set of proxies looks like, in numbers.

Start with `describe`. Nothing here knows how proxies were trained.

Notation: C classes (proxies), D embedding dimension; P̂ are the proxies scaled to unit length.
Everything is computed in float64 on the CPU, so that no number depends on a device. Only the matrix
of cosines is kept in float32 where there are more than 4,000 classes: for the 11,318 of Stanford
Online Products that is half a gigabyte.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from sobook.errors import SobookError

# A centered unit proxy shorter than this is rounding error: the proxy is the mean of all.
_NOTHING_LEFT = 1e-9


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
        simplex_cosine: −1/(C−1), the cosine of every pair in a regular simplex: the lowest mean
            cosine C directions can have.
        nearest_angle: (C,) angle from each proxy to the nearest other one, degrees.
        common_mode_share: fraction of SO that the shared mean direction (common mode) accounts
            for, mean²/RMS² of the cosines; 0 where the mean is not positive.
        common_direction_share: fraction of ‖P̂‖²_F along the direction of the mean proxy; by chance
            about 1/C + 1/D.
        rms_cosine_centred: RMS cosine after subtracting the mean proxy from every proxy
            (`without_common_mode`); 0 if nothing is left of a proxy.
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
    simplex_cosine: float
    nearest_angle: np.ndarray = field(repr=False)
    common_mode_share: float
    common_direction_share: float
    rms_cosine_centred: float

    def summary(self) -> dict[str, float]:
        """The scalar fields, rounded for a table or a JSON file."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {k: round(v, 6) for k, v in values.items() if not isinstance(v, np.ndarray)}


def describe(proxies: Any) -> ProxyGeometry:
    """Describe a set of proxies.

    Args:
        proxies: (C, D) tensor or array, C ≥ 2, rows of any length but zero.

    Returns:
        A `ProxyGeometry`.

    Raises:
        SobookError: wrong shape, one class only, NaN, or a proxy of zero length.

    >>> geometry = describe([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    >>> geometry.coherence, geometry.mean_angle, geometry.orthogonality_floor
    (0.0, 90.0, 0.0)
    """
    unit = unit_rows(proxies, "proxies")  # (C, D)
    num_classes, dim = unit.shape
    if num_classes < 2:
        raise SobookError("one proxy alone has no angles: give at least two classes.")
    pairs = _pairs(unit)
    mean, mean_square = pairs["mean_cosine"], pairs.pop("mean_square")
    spectrum = np.linalg.svd(unit, compute_uv=False)  # (min(C, D),)
    return ProxyGeometry(
        num_classes=num_classes,
        dim=dim,
        **pairs,
        rms_cosine=math.sqrt(mean_square),
        spectrum=spectrum,
        effective_rank=effective_rank(spectrum),
        orthogonality=mean_square * num_classes * (num_classes - 1),
        orthogonality_floor=orthogonality_floor(num_classes, dim),
        welch_bound=welch_bound(num_classes, dim),
        chance_cosine=1 / math.sqrt(dim),
        simplex_cosine=-1 / (num_classes - 1),
        common_mode_share=mean**2 / mean_square if mean > 1e-12 else 0.0,  # below: rounding
        common_direction_share=_share_along_mean(unit),
        rms_cosine_centred=_rms_centered(unit),
    )


def _pairs(unit: np.ndarray, block: int = 512, most: int = 4000) -> dict[str, Any]:
    """The fields that need all C(C−1)/2 cosines, a block of rows at a time, and "mean_square".

    Beyond `most` classes the matrix is kept in float32; the sums are in float64 all the same.
    """
    classes = len(unit)
    cosines = np.empty((classes, classes), np.float64 if classes <= most else np.float32)
    nearest, largest = np.full(classes, -1.0), 0.0
    total = squares = angles = 0.0
    for start in range(0, classes, block):
        stop = min(start + block, classes)
        part = np.clip(unit[start:stop] @ unit[start:].T, -1.0, 1.0)  # on and above the diagonal
        cosines[start:stop, start:], cosines[start:, start:stop] = part, part.T
        above = np.triu(np.ones((stop - start, stop - start), bool), k=1)
        for values in (part[:, : stop - start][above], part[:, stop - start :]):
            if values.size:
                total, squares = total + values.sum(), squares + np.square(values).sum()
                angles += np.arccos(values).sum()
                largest = max(largest, values.max(), -values.min())
        np.fill_diagonal(part, -1.0)
        nearest[start:stop] = np.maximum(nearest[start:stop], part.max(axis=1))
        nearest[start:] = np.maximum(nearest[start:], part.max(axis=0))
    np.fill_diagonal(cosines, 1.0)
    number = classes * (classes - 1) / 2
    return {
        "cosines": cosines,
        "coherence": float(largest),
        "mean_cosine": float(total / number),
        "mean_square": float(squares / number),
        "mean_angle": float(np.degrees(angles / number)),
        "nearest_angle": np.degrees(np.arccos(nearest)),
    }


def common_mode(geometry: ProxyGeometry) -> dict[str, float]:
    """How much of the proxies' correlation is one direction that all of them share.

    Returns:
        "mean_proxy_length": length of the mean unit proxy, 0 for proxies that cancel, 1 for proxies
        that are all the same; "common_share": 1 − (mean squared cosine after centering) / (before);
        "mean_share": (mean cosine)² / mean squared cosine, a lower bound of it where every proxy
        has the same cosine with the mean. The shares are NaN where proxies are orthogonal.

    >>> shared = common_mode(describe([[1.0, 0.1, 0.0], [1.0, 0.0, 0.1], [1.0, -0.1, -0.1]]))
    >>> shared["common_share"] > 0.5, round(shared["mean_share"], 3)
    (True, 1.0)
    """
    classes, mean, rms = geometry.num_classes, geometry.mean_cosine, geometry.rms_cosine
    orthogonal = rms < 1e-12
    return {
        # ‖Σp̂/C‖² is the mean of all C² cosines, of which C are ones.
        "mean_proxy_length": math.sqrt(max(0.0, (1 + (classes - 1) * mean) / classes)),
        "common_share": math.nan if orthogonal else 1 - (geometry.rms_cosine_centred / rms) ** 2,
        "mean_share": math.nan if orthogonal else (mean / rms) ** 2,
    }


def without_common_mode(proxies: Any) -> np.ndarray:
    """Unit proxies minus their mean, scaled to unit length again.

    Args:
        proxies: (C, D) rows of any length but zero.

    Returns:
        (C, D) float64.

    Raises:
        SobookError: a proxy equals the mean, so nothing is left of it.

    >>> round(describe(without_common_mode(np.eye(3) + 5)).mean_cosine, 6)  # simplex: −1/(C − 1)
    -0.5
    """
    centered = _centered(unit_rows(proxies, "proxies"))
    if centered is None:
        raise SobookError("a proxy equals the mean of all: nothing is left of it without the mean.")
    return centered


def _centered(unit: np.ndarray) -> np.ndarray | None:
    """Unit rows minus their mean, at unit length; None where a row is the mean itself."""
    rest = unit - unit.mean(axis=0)
    lengths = np.linalg.norm(rest, axis=1, keepdims=True)
    return None if lengths.min() < _NOTHING_LEFT else rest / lengths


def _rms_centered(unit: np.ndarray) -> float:
    """RMS cosine without the common mode, from the smaller of the two Gram matrices."""
    rest = _centered(unit)
    if rest is None:
        return 0.0
    classes = len(rest)
    gram = rest @ rest.T if classes <= rest.shape[1] else rest.T @ rest
    squares = np.square(gram).sum() - np.square(np.square(rest).sum(axis=1)).sum()
    return math.sqrt(max(0.0, float(squares)) / (classes * (classes - 1)))


def _share_along_mean(unit: np.ndarray) -> float:
    mean = unit.mean(axis=0)
    length = np.linalg.norm(mean)
    return float(np.square(unit @ (mean / length)).mean()) if length > 1e-12 else 0.0


@dataclass(frozen=True)
class Collapse:
    """Class means against their proxies, and the metrics of neural collapse; see `collapse`.

    Notation: μ_c the mean embedding of class c, μ their mean, C classes.

    Attributes:
        angle: (C,) angle between a class mean and its proxy, degrees.
        nc1: tr(Σ_W Σ_B⁺)/C, spread within classes against that between them; 0 when every
            embedding is its class mean.
        nc2_norms: standard deviation of ‖μ_c − μ‖ over its mean; 0 when all are equally long.
        nc2_angles: mean |cos + 1/(C−1)| over pairs of centered class means; 0 for a simplex.
        nc3: ‖M/‖M‖_F − P/‖P‖_F‖²_F for centered class means M and centered unit proxies P; 0 when
            they are the same up to scale, at most 4.
    """

    angle: np.ndarray = field(repr=False)
    nc1: float
    nc2_norms: float
    nc2_angles: float
    nc3: float


def collapse(embeddings: Any, labels: Any, proxies: Any) -> Collapse:
    """How far embeddings, their class means and the proxies have collapsed onto each other.

    Proxies are scaled to unit length and centered before NC3, as class means are: no
    nearest-neighbor decision depends on the direction they share, and the metrics of Papyan et al.
    describe what is left.

    Args:
        embeddings: (N, D), scaled to unit length here.
        labels: (N,) classes 0..C−1, each with at least one image.
        proxies: (C, D).

    Raises:
        SobookError: shapes that do not fit, or a class without images.

    Source: Papyan, Han and Donoho, "Prevalence of neural collapse during the terminal phase of
    deep learning training", PNAS 2020: NC1 to NC3, with proxies in place of the classifier.

    >>> simplex = np.eye(3) - 1 / 3
    >>> result = collapse(np.repeat(simplex, 5, axis=0), np.repeat(np.arange(3), 5), simplex)
    >>> [abs(round(value, 6)) for value in (result.nc1, result.nc2_angles, result.nc3)]
    [0.0, 0.0, 0.0]
    """
    unit, rows = unit_rows(proxies, "proxies"), unit_rows(embeddings, "embeddings")
    means = class_means(rows, labels, len(unit))  # (C, D)
    if means.shape[1] != unit.shape[1]:
        raise SobookError(
            f"embeddings have {means.shape[1]} dimensions and proxies {unit.shape[1]}: they must "
            "come from one model."
        )
    cosines = (unit_rows(means, "class means") * unit).sum(axis=1)
    within, centered = rows - means[_labels(labels)], means - means.mean(axis=0)
    between = centered.T @ centered / len(means)  # (D, D)
    lengths = np.linalg.norm(centered, axis=1)
    cosines_of_means = off_diagonal(_pairs(unit_rows(centered, "centered class means"))["cosines"])
    centered_proxies = unit - unit.mean(axis=0)
    gap = centered / np.linalg.norm(centered) - centered_proxies / np.linalg.norm(centered_proxies)
    spread = within.T @ within / len(rows)
    return Collapse(
        angle=np.degrees(np.arccos(np.clip(cosines, -1, 1))),
        nc1=float(np.trace(spread @ np.linalg.pinv(between, rcond=1e-10, hermitian=True)))
        / len(means),
        nc2_norms=float(lengths.std() / lengths.mean()),
        nc2_angles=float(np.abs(cosines_of_means + 1 / (len(means) - 1)).mean()),
        nc3=float(np.square(gap).sum()),
    )


def class_means(embeddings: Any, labels: Any, num_classes: int) -> np.ndarray:
    """Mean of the unit-length embeddings of each class.

    Args:
        embeddings: (N, D).
        labels: (N,) classes 0..C−1.
        num_classes: C.

    Returns:
        (C, D) float64, not scaled to unit length: the shorter a mean, the wider its class.

    Raises:
        SobookError: labels that do not fit, or a class without images.
    """
    rows, labels = unit_rows(embeddings, "embeddings"), _labels(labels)
    if labels.shape != (len(rows),):
        raise SobookError(f"labels have shape {labels.shape}, expected ({len(rows)},).")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise SobookError(
            f"labels run from {labels.min()} to {labels.max()}, but there are {num_classes} "
            "proxies: give the training images, numbered as the proxies are."
        )
    counts = np.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise SobookError(
            f"class {np.flatnonzero(counts == 0)[0]} has no image, so it has no mean."
        )
    order = np.argsort(labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.add.reduceat(rows[order], starts) / counts[:, None]


def _labels(labels: Any) -> np.ndarray:
    return np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels).astype(int)


@dataclass(frozen=True)
class Movement:
    """Proxies over epochs: E epochs, C classes; made by `movement`.

    Attributes:
        numbers: one dict per epoch, `ProxyGeometry.summary` of each.
        cosine_band: (E, 3) 5 %, 50 % and 95 % quantile of the cosines.
        from_start: (E, C) angle of each proxy with itself at the first epoch, degrees.
        step: (E, C) angle with itself one epoch earlier, degrees; 0 at the first.
    """

    numbers: list[dict[str, float]] = field(repr=False)
    cosine_band: np.ndarray
    from_start: np.ndarray = field(repr=False)
    step: np.ndarray = field(repr=False)

    def series(self, name: str) -> np.ndarray:
        """(E,) one number of `ProxyGeometry.summary` over the epochs."""
        return np.array([numbers[name] for numbers in self.numbers])


def movement(epochs: Sequence) -> Movement:
    """How a set of proxies moves over epochs.

    Args:
        epochs: E arrays or tensors (C, D), in chronological order, such as
            ``[run.proxies(epoch) for epoch in range(run.config.epochs + 1)]``.

    Raises:
        SobookError: no epochs, or shapes that change.
    """
    if not len(epochs):
        raise SobookError("movement got no epochs: give the proxies of at least one.")
    units = [unit_rows(proxies, "proxies") for proxies in epochs]
    if len({unit.shape for unit in units}) > 1:
        raise SobookError(f"proxies change their shape: {sorted({unit.shape for unit in units})}.")
    numbers, cosine_band = [], []
    for unit in units:
        shape = describe(unit)
        numbers.append(shape.summary())
        cosine_band.append(np.quantile(off_diagonal(shape.cosines), [0.05, 0.5, 0.95]))
    before = [units[0], *units[:-1]]
    return Movement(
        numbers=numbers,
        cosine_band=np.array(cosine_band),
        from_start=np.array([_angles_between(unit, units[0]) for unit in units]),
        step=np.array([_angles_between(*pair) for pair in zip(units, before, strict=True)]),
    )


def _angles_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle of each row of a with the same row of b, degrees; exact even for tiny angles."""
    half = np.linalg.norm(a - b, axis=1), np.linalg.norm(a + b, axis=1)
    return np.degrees(2 * np.arctan2(*half))


def unit_rows(rows: Any, name: str = "rows") -> np.ndarray:
    """Rows scaled to unit length, in float64.

    Args:
        rows: (C, D) array, nested list, or tensor on any device.
        name: what they are, for the error.

    Raises:
        SobookError: another shape, or a row of zero length, NaN or infinite values.
    """
    if hasattr(rows, "detach"):
        rows = rows.detach().cpu().double().numpy()
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or rows.size == 0:
        raise SobookError(f"{name} have shape {rows.shape}, expected (C, D): one row per class.")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
    if len(bad):
        raise SobookError(
            f"row {bad[0]} of the {name} has zero length, NaN or infinite values, so it has no "
            f"direction ({len(bad)} such rows): leave it out, or look at the training that made it."
        )
    return rows / lengths


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """Entries above the diagonal of a (C, C) matrix: every pair of classes once."""
    matrix = np.asarray(matrix)
    rows = [row[i + 1 :] for i, row in enumerate(matrix)]  # no index arrays: they are the largest
    return np.concatenate(rows) if rows else matrix.ravel()


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
