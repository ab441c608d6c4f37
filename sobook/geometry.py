"""What a set of proxies looks like, in numbers.

Notation: C classes (proxies), D embedding dimension; P̂ are the proxies scaled to unit length.
Everything is computed in float64 on the CPU, so that what is shown does not depend on a device.
Only the matrix of cosines is kept in float32 where there are more than 4,000 classes: for the
11,318 of Stanford Online Products that is half a gigabyte.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from scipy.stats import rankdata

from sobook.errors import SobookError


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
        common_mode_share: share of SO that a lean common to all proxies accounts for,
            mean²/RMS² of the cosines; 0 where the mean is not positive.
        common_direction_share: share of ‖P̂‖²_F along the direction of the mean proxy; by chance
            about 1/C + 1/D.
        rms_cosine_centred: RMS cosine once the mean proxy is taken away from every proxy
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
        """The single numbers, rounded for a table or a JSON file."""
        arrays = ("cosines", "spectrum", "nearest_angle")
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
    mean_square = pairs["square"]
    spectrum = np.linalg.svd(unit, compute_uv=False)  # (min(C, D),)
    mean = pairs["mean"]
    return ProxyGeometry(
        num_classes=num_classes,
        dim=dim,
        cosines=pairs["cosines"],
        coherence=pairs["coherence"],
        rms_cosine=math.sqrt(mean_square),
        mean_cosine=mean,
        mean_angle=pairs["angle"],
        spectrum=spectrum,
        effective_rank=effective_rank(spectrum),
        orthogonality=mean_square * num_classes * (num_classes - 1),
        orthogonality_floor=orthogonality_floor(num_classes, dim),
        welch_bound=welch_bound(num_classes, dim),
        chance_cosine=1 / math.sqrt(dim),
        simplex_cosine=-1 / (num_classes - 1),
        nearest_angle=pairs["nearest"],
        common_mode_share=mean**2 / mean_square if mean > 1e-12 else 0.0,  # below: rounding
        common_direction_share=_share_along_mean(unit),
        rms_cosine_centred=_rms_centered(unit),
    )


def _pairs(unit: np.ndarray, block: int = 512, most: int = 4000) -> dict:
    """Everything that needs all C(C−1)/2 cosines, a block of rows at a time.

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
        "mean": float(total / number),
        "square": float(squares / number),
        "angle": float(np.degrees(angles / number)),
        "nearest": np.degrees(np.arccos(nearest)),
    }


def without_common_mode(proxies) -> np.ndarray:
    """Unit proxies with their mean taken away, scaled to unit length again.

    Args:
        proxies: (C, D) rows of any length but zero.

    Returns:
        (C, D) float64.

    Raises:
        SobookError: a proxy equals the mean, so nothing is left of it.

    >>> round(describe(without_common_mode(np.eye(3) + 5)).mean_cosine, 6)  # simplex: −1/(C − 1)
    -0.5
    """
    unit = unit_rows(proxies, "proxies")
    rest = unit - unit.mean(axis=0)
    if (np.linalg.norm(rest, axis=1) < 1e-9).any():
        raise SobookError(
            "a proxy equals the mean of all: without it, nothing is left of that one."
        )
    return unit_rows(rest, "centered proxies")


def _rms_centered(unit: np.ndarray) -> float:
    """RMS cosine without the common mode, from the smaller of the two Gram matrices."""
    try:
        rest = without_common_mode(unit)
    except ValueError:
        return 0.0
    classes = len(rest)
    gram = rest @ rest.T if classes <= rest.shape[1] else rest.T @ rest
    squares = np.square(gram).sum() - np.square(np.square(rest).sum(axis=1)).sum()
    return math.sqrt(max(0.0, float(squares)) / (classes * (classes - 1)))


def _share_along_mean(unit: np.ndarray) -> float:
    mean = unit.mean(axis=0)
    length = np.linalg.norm(mean)
    if length < 1e-12:
        return 0.0
    return float(np.square(unit @ (mean / length)).mean())


@dataclass(frozen=True)
class Collapse:
    """Class means against their proxies, and the measures of neural collapse; see `collapse`.

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

    def summary(self) -> dict[str, float]:
        """The single numbers, with the mean angle, rounded for a table."""
        numbers = {item.name: getattr(self, item.name) for item in fields(self)}
        numbers["angle"] = float(self.angle.mean())
        return {name: round(value, 6) for name, value in numbers.items()}


def collapse(embeddings, labels, proxies) -> Collapse:
    """How far embeddings, their class means and the proxies have collapsed onto each other.

    Proxies have unit length and are centered before NC3, as class means are: proxies share a
    direction that no nearest-neighbor decision depends on, and the measures of Papyan et al. are
    about what is left.

    Args:
        embeddings: (N, D), scaled to unit length here.
        labels: (N,) classes 0..C−1, each with an image or more.
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
    pairs = _pairs(unit_rows(centered, "centered class means"))["cosines"]
    centered_proxies = unit - unit.mean(axis=0)
    gap = centered / np.linalg.norm(centered) - centered_proxies / np.linalg.norm(centered_proxies)
    spread = within.T @ within / len(rows)
    return Collapse(
        angle=np.degrees(np.arccos(np.clip(cosines, -1, 1))),
        nc1=float(np.trace(spread @ np.linalg.pinv(between, rcond=1e-10, hermitian=True)))
        / len(means),
        nc2_norms=float(lengths.std() / lengths.mean()),
        nc2_angles=float(np.abs(off_diagonal(pairs) + 1 / (len(means) - 1)).mean()),
        nc3=float(np.square(gap).sum()),
    )


def class_means(embeddings, labels, num_classes: int) -> np.ndarray:
    """Mean of the unit-length embeddings of each class.

    Args:
        embeddings: (N, D).
        labels: (N,) classes 0..C−1.
        num_classes: C.

    Returns:
        (C, D) float64, not scaled: the shorter a mean, the wider its class.

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


def _labels(labels) -> np.ndarray:
    return np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels).astype(int)


@dataclass(frozen=True)
class Movement:
    """Proxies over epochs: E epochs, C classes; made by `movement`.

    Attributes:
        numbers: one dict an epoch, `ProxyGeometry.summary` of each.
        cosine_band: (E, 3) 5 %, 50 % and 95 % quantile of the cosines.
        nearest_band: (E, 3) the same of the angles to the nearest proxy, degrees.
        from_start: (E, C) angle of each proxy with itself at the first epoch, degrees.
        step: (E, C) angle with itself one epoch before, degrees; 0 at the first.
    """

    numbers: list[dict[str, float]] = field(repr=False)
    cosine_band: np.ndarray
    nearest_band: np.ndarray
    from_start: np.ndarray = field(repr=False)
    step: np.ndarray = field(repr=False)

    def series(self, name: str) -> np.ndarray:
        """(E,) one number of `ProxyGeometry.summary` over the epochs."""
        return np.array([numbers[name] for numbers in self.numbers])


def movement(epochs: Sequence) -> Movement:
    """How a set of proxies moves over epochs.

    Args:
        epochs: E arrays or tensors (C, D), in the order of time, such as
            ``[run.proxies(epoch) for epoch in range(run.config.epochs + 1)]``.

    Raises:
        SobookError: no epochs, or shapes that change.
    """
    if not len(epochs):
        raise SobookError("movement got no epochs: give the proxies of at least one.")
    units = [unit_rows(proxies, "proxies") for proxies in epochs]
    if len({unit.shape for unit in units}) > 1:
        raise SobookError(f"proxies change their shape: {sorted({unit.shape for unit in units})}.")
    numbers, cosine_band, nearest_band, levels = [], [], [], [0.05, 0.5, 0.95]
    for unit in units:
        shape = describe(unit)
        numbers.append(shape.summary())
        cosine_band.append(np.quantile(off_diagonal(shape.cosines), levels))
        nearest_band.append(np.quantile(shape.nearest_angle, levels))
    before = [units[0], *units[:-1]]
    return Movement(
        numbers=numbers,
        cosine_band=np.array(cosine_band),
        nearest_band=np.array(nearest_band),
        from_start=np.array([_angles_between(unit, units[0]) for unit in units]),
        step=np.array([_angles_between(*pair) for pair in zip(units, before, strict=True)]),
    )


def rank_correlation(
    a, b, *, resamples: int = 1000, level: float = 0.95, seed: int = 0, most: int = 300
) -> tuple[float, float, float]:
    """Spearman's ρ of two numbers known for every pair of classes, with an interval over classes.

    C(C−1)/2 pairs are not so many independent things: each class is in C − 1 of them. So classes
    are drawn with replacement, and a pair counts as often as its two classes were drawn together.
    Ranks stay those of the whole set.

    Args:
        a, b: (C, C) symmetric; the diagonal does not matter.
        resamples: bootstrap samples.
        level: of the interval.
        seed: of the draws.
        most: the interval (not ρ) is computed from this many classes at most, chosen at random;
            it is then wider than that of all classes.

    Returns:
        ρ and the two ends of the interval; NaN where one of the two does not vary.

    >>> cosines = np.array([[1, 0.1, 0.2], [0.1, 1, 0.3], [0.2, 0.3, 1]])
    >>> round(rank_correlation(cosines, 2 * cosines)[0], 6)
    1.0
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.ndim != 2 or a.shape != b.shape or a.shape[0] != a.shape[1] or len(a) < 3:
        raise SobookError(f"a {a.shape} and b {b.shape} must both be (C, C) with C of at least 3.")
    rho = _weighted_correlation(*(_ranks(m) for m in (a, b)), 1.0)
    rng = np.random.default_rng(seed)
    if len(a) > most:
        some = np.sort(rng.permutation(len(a))[:most])
        a, b = a[np.ix_(some, some)], b[np.ix_(some, some)]
    ranks = [_ranks(matrix) for matrix in (a, b)]
    first, second = np.triu_indices(len(a), k=1)
    values = []
    for _ in range(resamples):
        drawn = np.bincount(rng.integers(0, len(a), len(a)), minlength=len(a))
        values.append(_weighted_correlation(*ranks, drawn[first] * drawn[second]))
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail]) if math.isfinite(rho) else (math.nan,) * 2
    return rho, float(low), float(high)


def _ranks(matrix: np.ndarray) -> np.ndarray:
    return rankdata(np.round(off_diagonal(matrix), 12))  # rounding errors must not break ties


def _weighted_correlation(x: np.ndarray, y: np.ndarray, weight) -> float:
    weight = np.broadcast_to(weight, x.shape)
    if not weight.any():
        return math.nan
    x, y = (v - np.average(v, weights=weight) for v in (x, y))
    size = math.sqrt(float((weight * x * x).sum() * (weight * y * y).sum()))
    return float((weight * x * y).sum()) / size if size > 1e-12 else math.nan


def _angles_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle of each row of a with the same row of b, degrees; exact also where it is tiny."""
    half = np.linalg.norm(a - b, axis=1), np.linalg.norm(a + b, axis=1)
    return np.degrees(2 * np.arctan2(*half))


def unit_rows(rows, name: str = "rows") -> np.ndarray:
    """Rows scaled to unit length in float64; a tensor on any device or an array of shape (C, D)."""
    if hasattr(rows, "detach"):
        rows = rows.detach().cpu().double().numpy()
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or rows.size == 0:
        raise SobookError(f"{name} have shape {rows.shape}, expected (C, D): one row a class.")
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


def common_mode(proxies) -> dict[str, float]:
    """How much of the proxies' correlation is one direction that all of them share.

    The mean unit proxy m is that direction. Its share is measured twice: what subtracting m from
    every proxy removes of the mean squared cosine (lengths made 1 again), and the square of the
    mean cosine in the mean square, which is a lower bound when all lean on m alike.

    Args:
        proxies: (C, D), rows of any length but zero.

    Returns:
        "mean_proxy_length": ‖m‖, 0 for proxies that cancel, 1 for proxies that are all the same;
        "common_share": 1 − (mean squared cosine after centering) / (before), NaN where the proxies
        are orthogonal already; "mean_share": (mean cosine)² / mean squared cosine;
        "rms_cosine_centred": RMS cosine after centering, never below 1/(C−1).

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
        centered = (unit - mean) / lengths
        after = float(np.mean(off_diagonal(centered @ centered.T) ** 2))
    orthogonal = before < 1e-24
    return {
        "mean_proxy_length": float(np.linalg.norm(mean)),
        "common_share": math.nan if orthogonal else 1 - after / before,
        "mean_share": math.nan if orthogonal else float(pairs.mean() ** 2 / before),
        "rms_cosine_centred": math.sqrt(after),
    }
