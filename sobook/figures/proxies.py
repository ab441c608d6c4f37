"""Figures of proxies: their cosines, angles and spectrum, and how these relate to classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.special import beta

from sobook import geometry, statistics
from sobook.errors import SobookError
from sobook.figures import style
from sobook.figures.style import INK, Figure, as_array, finish, method_color, panels, use_style

_MAX_CELLS = 400  # in a row of a heatmap


def class_order(proxies) -> np.ndarray:
    """Order (C,) in which similar proxies (C, D) stand together: average linkage by cosine."""
    unit = geometry.unit_rows(proxies, "proxies")
    return leaves_list(linkage(unit, "average", "cosine", optimal_ordering=len(unit) <= 500))


@use_style()
def proxy_heatmaps(
    proxies: Mapping[str, object],
    *,
    order=None,
    groups: Sequence | None = None,
    difference: bool = False,
) -> Figure:
    """Cosines between all proxies, side by side: one class order, one scale centered on zero.

    Args:
        proxies: name → (C, D), the same classes in each.
        order: (C,) class order; by default similar proxies of the first set stand together, and
            with `groups` those within each group.
        groups: (C,) a genus (or other group) per class, drawn as a bar at the side; groups whose
            classes stand together are outlined.
        difference: adds a panel second − first of two sets, on the same scale.
    """
    sets, classes, _ = _proxy_sets(proxies)
    first, caption = next(iter(sets)), f"{classes} classes"
    if groups is not None and len(groups) != classes:
        raise SobookError(f"groups names {len(groups)} classes, the proxies have {classes}")
    if order is None:
        order, caption = class_order(sets[first]), f"{caption}, clustered by {first}"
        if groups is not None:  # each group stands where its first class stood
            codes = pd.factorize(np.asarray(groups)[order])[0]
            order = order[np.argsort(codes, kind="stable")]
            caption = f"{classes} classes by group, within it clustered by {first}"
    shown = {name: _cosine_cells(p[order]) for name, p in sets.items()}
    numbers = {name: cosine_summary(geometry.describe(p)) for name, p in sets.items()}
    if difference:
        first, second = sets
        shown[f"{second} − {first}"] = shown[second] - shown[first]
    size = 4.2 * len(shown) + 1.2, 5.2 + 0.3 * (groups is not None)
    figure, axes = panels(*size, 1, len(shown))
    largest = max(np.nanmax(np.abs(cells), initial=0.0) for cells in shown.values())
    limit = max(0.1, math.ceil(largest * 10 - 1e-6) / 10)
    cmap = mpl.colormaps["RdBu_r"].with_extremes(bad="#E4E4E4")
    look = {"cmap": cmap, "vmin": -limit, "vmax": limit, "interpolation": "nearest"}
    extent = (-0.5, classes - 0.5, classes - 0.5, -0.5)
    for axis, (name, cells) in zip(axes, shown.items(), strict=True):
        mesh = axis.imshow(cells, extent=extent, **look)
        axis.spines[:].set_visible(False)
        axis.set(xticks=[], yticks=[])
        axis.set_title(name, loc="left", weight="bold", color=style.COLORS.get(name, INK))
        axis.set_xlabel(numbers.get(name, ""), fontsize=11)
    bar = figure.colorbar(mesh, ax=axes, shrink=0.8, pad=0.02, aspect=26)
    bar.set_label(f"cosine (all panels ±{limit:g}; diagonal left out)", fontsize=12)
    if groups is not None:
        _draw_groups(figure, axes, np.asarray(groups)[order])
    block = classes / len(shown[first])
    if block > 1:
        caption += f"; each cell is the mean of about {block**2:.0f} cosines"
    figure.supxlabel(caption, fontsize=12)
    alt = [f"{name}: {text}" for name, text in numbers.items()]
    return finish(figure, f"Heatmaps of the cosines of {classes} proxies", alt)


@use_style()
def angle_histogram(proxies: Mapping[str, object]) -> Figure:
    """The distribution of the angles between proxies, against that of random directions.

    The gray curve is exact: the angle θ between random directions in D dimensions has a density
    proportional to sin^(D−2) θ. Marked are 90°, the angles of cosine ±1/√D and, when C > D, the
    Welch bound: the smallest angle of any set of C directions cannot exceed it.

    Args:
        proxies: name → (C, D), the same C and D in each.
    """
    sets, classes, dim = _proxy_sets(proxies)
    angles = {
        name: np.degrees(np.arccos(geometry.off_diagonal(geometry.describe(p).cosines)))
        for name, p in sets.items()
    }
    chance, every = math.degrees(math.asin(1 / math.sqrt(dim))), np.concatenate([*angles.values()])
    low, high = min(90 - 3.5 * chance, every.min()), max(90 + 3.5 * chance, every.max())
    bins = np.linspace(max(low, 0), min(high, 180), 51)
    theta = np.linspace(bins[0], bins[-1], 800)
    density = random_angle_density(theta, dim)
    (figure, (axis,)), alt = panels(9.5, 5.6), []
    axis.fill_between(theta, density, color=style.QUIET, alpha=0.45, lw=0)
    label = f"random directions, {dim}-D"
    axis.plot(theta, density, color=style.COLORS["chance"], lw=1.6, label=label)
    for name, look in style.line_looks(angles).items():
        values = angles[name]
        alt.append(f"{name}: mean {values.mean():.1f}°, smallest {values.min():.1f}°")
        heights = np.histogram(values, bins, density=True)[0]
        axis.stairs(heights, bins, label=alt[-1], lw=2.6, **look)
    axis.axvline(90, color=INK, lw=1.2, label="90°: orthogonal")
    label = f"cosine ±1/√{dim} (90° ± {chance:.1f}°)"
    axis.axvline(90 - chance, color=INK, lw=1.4, ls=":", label=label)
    axis.axvline(90 + chance, color=INK, lw=1.4, ls=":")
    if classes > dim:
        bound = math.degrees(math.acos(geometry.welch_bound(classes, dim)))
        label = f"Welch bound {bound:.1f}°"
        axis.axvline(bound, color=style.COLORS["bound"], lw=1.8, ls="-.", label=label)
    axis.set(xlim=(bins[0], bins[-1]), ylim=(0, None))
    axis.set(xlabel="angle between two proxies (degrees)", ylabel="fraction of pairs per degree")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    figure.legend(loc="outside upper center", ncols=2)
    what = f"Histogram of the angles between {classes} proxies in {dim} dimensions"
    return finish(figure, what, alt)


@use_style()
def spectra(proxies: Mapping[str, object]) -> Figure:
    """Singular values of the row-normalized proxies against the flat spectrum.

    Flat is what proxies reach when they use all directions equally: √(C / min(C, D)).

    Args:
        proxies: name → (C, D), the same C and D in each.
    """
    sets, classes, dim = _proxy_sets(proxies)
    (figure, (axis,)), size, ranks = panels(8, 4.8), min(classes, dim), []
    label = f"flat spectrum: rank {size}"
    axis.axhline(math.sqrt(classes / size), label=label, **style.CHANCE_LINE)
    for name, look in style.line_looks(sets).items():
        shape = geometry.describe(sets[name])
        label = f"{name}: effective rank {shape.effective_rank:.1f}"
        axis.plot(np.arange(1, size + 1), shape.spectrum, label=label, **look)
        ranks.append(f"{name} {shape.effective_rank:.1f}")
    axis.set(xlim=(1, size), ylim=(0, None))
    axis.set(xlabel="direction, strongest first", ylabel="singular value")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend()
    alt = "Singular values of the proxies; effective rank of"
    return finish(figure, f"{alt} {size}: {'; '.join(ranks)}.")


@use_style()
def proxy_ribbons(
    movements: Mapping[str, geometry.Movement],
    recalls: Mapping[str, Sequence[float | None]],
    *,
    dim: int,
) -> Figure:
    """Cosines of all pairs (median, middle 90 %), SO and Recall@1 over epochs.

    Args:
        movements: name → `geometry.movement` of the proxies from epoch 0 on.
        recalls: name → (E,) Recall@1 on held-out classes; None where it was not measured.
        dim: draws what random directions have: RMS cosine ±1/√dim, SO 1/dim.
    """
    rows: dict[str, Any] = {"sharex": True, "height_ratios": (1.5, 1, 1)}
    (figure, (cosine, so, recall)), at_end = panels(9.5, 8, 3, 1, **rows), []
    for name, look in style.line_looks(movements).items():
        moved = movements[name]
        low, middle, high = moved.cosine_band.T
        epochs = np.arange(len(middle))
        cosine.fill_between(epochs, low, high, color=look["color"], alpha=0.22, lw=0)
        cosine.plot(epochs, middle, label=name, **look)
        squares = moved.rms_cosine**2
        so.plot(epochs, squares, **look)
        known = [(e, r) for e, r in enumerate(recalls[name]) if r is not None]
        if known:
            recall.plot(*zip(*known, strict=True), marker="o", ms=4, **look)
        at_end.append(f"{name}: {low[-1]:+.2f} to {high[-1]:+.2f}, SO {squares[-1]:.4f}")
    chance = 1 / math.sqrt(dim)
    cosine.axhline(chance, label=f"random directions, {dim}-D", **style.CHANCE_LINE)
    cosine.axhline(-chance, **style.CHANCE_LINE)
    so.axhline(1 / dim, **style.CHANCE_LINE)
    if not recall.lines:
        style.write_inside(recall, "not measured")
    cosine.set(ylabel="cosine of a pair\n(median, 5–95 %)")
    so.set(ylabel="SO (mean\nsquared cosine)", ylim=(0, None))
    recall.set(xlabel="epoch (0: before training)", ylabel="Recall@1,\nheld-out classes")
    recall.xaxis.set_major_locator(MaxNLocator(integer=True))
    recall.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    figure.legend(*cosine.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    what = "Middle 90 % of the proxy cosines, SO and Recall@1 over epochs"
    return finish(figure, f"{what}; at the end {'; '.join(at_end)}.")


@use_style()
def confusion_vs_cosine(cosines: Mapping[str, object], confusions: Mapping[str, object]) -> Figure:
    """Confusion of two classes against the cosine of their proxies: one dot per pair of classes.

    Args:
        cosines: name → (C, C) cosines of the proxies.
        confusions: name → (C, C) rate at which queries of the row's class retrieve the column's.
    """
    width, number, alt = 5.2 * len(cosines) + 1, len(cosines), []
    figure, axes = panels(width, 4.6, 1, number, sharex=True, sharey=True)
    for axis, (name, matrix) in zip(axes, cosines.items(), strict=True):
        matrix, mixed = as_array(matrix), as_array(confusions[name])
        mixed = (mixed + mixed.T) / 2
        rho, low, high = statistics.rank_correlation(matrix, mixed)
        x, y = geometry.off_diagonal(matrix), geometry.off_diagonal(mixed)
        size, shade = float(np.clip(20_000 / len(x), 5, 40)), method_color(name)
        axis.scatter(x, y, s=size, color=shade, alpha=0.35, lw=0, label="a pair of classes")
        tenths = np.array_split(np.argsort(x), 10)
        means = [x[tenth].mean() for tenth in tenths], [y[tenth].mean() for tenth in tenths]
        axis.plot(*means, "o-", color=INK, ms=7, label="mean of each tenth")
        axis.set_xlabel("cosine of the two proxies")
        alt.append(f"{name}: ρ = {rho:+.2f} [{low:+.2f}, {high:+.2f}], {len(x):,} pairs")
        axis.set_title(alt[-1], color=shade, fontsize=12)
    axes[0].set_ylabel("confusion (mean of both ways)")
    axes[0].legend(loc="upper left", markerscale=1.5)
    what = "Confusion of two classes against the cosine of their proxies, Spearman's ρ"
    return finish(figure, what, alt)


@use_style()
def attribute_lens(proxies: Mapping[str, object], shared, *, what: str) -> Figure:
    """Cosine of two proxies against the number of attributes that their classes share.

    Band: the middle 90 % of the pairs with this many; line: their mean. The interval of
    Spearman's ρ is over classes, since pairs that share a class are not independent.

    Args:
        proxies: name → (C, D), the same classes in each.
        shared: (C, C) number of attributes that two classes share.
        what: name of the horizontal axis.
    """
    sets, shared = _proxy_sets(proxies)[0], as_array(shared)
    number = geometry.off_diagonal(shared)
    levels = [level for level in np.unique(number) if (number == level).sum() >= 5]
    figure, axes = panels(5.2 * len(sets) + 0.8, 4.8, 1, len(sets), sharey=True)
    jitter, alt = np.random.default_rng(0).uniform(-0.2, 0.2, len(number)), []
    for axis, (name, p) in zip(axes, sets.items(), strict=True):
        shade, matrix = method_color(name), geometry.describe(p).cosines
        cosines = geometry.off_diagonal(matrix)
        rho, low, high = statistics.rank_correlation(matrix, shared)
        axis.scatter(number + jitter, cosines, s=9, color=style.QUIET, lw=0, alpha=0.6)
        groups = [cosines[number == level] for level in levels]
        band = np.transpose([np.quantile(group, [0.05, 0.95]) for group in groups])
        axis.fill_between(levels, *band, color=shade, alpha=0.2, lw=0)
        axis.plot(levels, [group.mean() for group in groups], "o-", color=shade, ms=6)
        axis.axhline(0, **style.CHANCE_LINE)
        alt.append(f"{name}: ρ = {rho:+.2f} [{low:+.2f}, {high:+.2f}]")
        axis.set_title(alt[-1], color=shade)
        axis.set_xlabel(what)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("cosine of the two proxies")
    return finish(figure, f"Proxy cosine against {what} of two classes", alt)


def random_angle_density(theta: np.ndarray, dim: int) -> np.ndarray:
    """Density, per degree, of the angle between two random directions in `dim` ≥ 2 dimensions."""
    sine = np.sin(np.radians(theta))
    return np.radians(sine ** (dim - 2) / beta((dim - 1) / 2, 1 / 2))


def cosine_summary(shape: geometry.ProxyGeometry) -> str:
    """One-line summary of a set of proxies, for a title."""
    return f"RMS cosine {shape.rms_cosine:.2f}, coherence {shape.coherence:.2f}"


def _proxy_sets(proxies: Mapping[str, object]) -> tuple[dict[str, np.ndarray], int, int]:
    """Unit rows (C, D) of each set, and the C and D that all must have."""
    sets = {name: geometry.unit_rows(p, f"proxies of {name}") for name, p in proxies.items()}
    shapes = {p.shape for p in sets.values()}
    if len(shapes) != 1:
        raise SobookError(f"the proxies differ in shape: {shapes}")
    return sets, *shapes.pop()


def _cosine_cells(unit: np.ndarray) -> np.ndarray:
    """Cosines without the diagonal; of many classes, means over blocks of classes."""
    cells = len(unit) if len(unit) <= _MAX_CELLS else _MAX_CELLS // 2
    starts = np.linspace(0, len(unit), cells, endpoint=False).astype(int)
    sizes = np.diff(np.append(starts, len(unit)))
    sums = np.add.reduceat(unit, starts)  # (cells, D): a block's mean cosine needs only these
    pairs = np.outer(sizes, sizes) - np.diag(sizes)
    with np.errstate(invalid="ignore"):
        return (sums @ sums.T - np.diag(sizes)) / np.where(pairs, pairs, np.nan)


def _draw_groups(figure: Figure, axes: Sequence[Axes], groups: np.ndarray) -> None:
    """Groups of the classes, (C,): a colored strip left of each heatmap, and outlines within it."""
    names, codes = np.unique(groups, return_inverse=True)
    colors = np.array([mpl.colors.to_rgb(shade) for shade in style.PALETTE])
    bounds = np.flatnonzero(np.diff(codes, prepend=-1, append=-1))
    end = len(codes) - 0.5  # the heatmap extends from −0.5 to here
    left, right = -0.5 - 0.05 * end, -0.5 - 0.015 * end
    strip = colors[codes % len(colors)][:, None]
    for axis in axes:
        axis.imshow(strip, extent=(left, right, end, -0.5), interpolation="nearest")
        axis.set(xlim=(left, end), ylim=(end, -0.5))
        for first, size in zip(bounds, np.diff(bounds), strict=False):
            if size > 1:
                corner = (first - 0.5, first - 0.5)
                axis.add_patch(Rectangle(corner, size, size, fill=False, ec=INK, lw=1.1))
    if len(names) <= len(colors):
        handles = [Rectangle((0, 0), 1, 1, color=shade) for shade in colors[: len(names)]]
        look = {"fontsize": 11, "ncols": min(3 * len(axes), 6), "handlelength": 1}
        figure.legend(handles, [str(n) for n in names], loc="outside upper center", **look)
