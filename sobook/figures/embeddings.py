"""Maps of embeddings in the plane, how far each can be trusted, and spheres for three dimensions.

Notation: N points, D dimensions. Neighbors are those by cosine.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from scipy.linalg import orthogonal_procrustes
from scipy.special import softmax

from sobook import geometry
from sobook.errors import SobookError, check_choice
from sobook.figures import style
from sobook.figures.proxies import cosine_summary
from sobook.figures.style import INK, Figure, as_array, finish, method_color, panels, use_style
from sobook.retrieval import nearest_neighbors

_EXACT_UP_TO = 10_000  # points; larger maps take about half of UMAP's usual time, see `project`
_QUALITY_SAMPLE = 2000  # points
_VIEW = (22.0, 38.0)  # elevation and azimuth of spheres, in degrees


class MapQuality(NamedTuple):
    """How much of the space a map keeps; 1 is best.

    Trustworthiness (Venna and Kaski, ICANN 2001) is lenient: a false neighbor that is nearly one
    costs little. Overlap is the mean fraction of neighbors in the space that are ones on the map.
    """

    trustworthiness: float
    overlap: float
    n_neighbors: int

    def __str__(self) -> str:
        kept = f"{self.overlap:.0%} of {self.n_neighbors} neighbors kept"
        return f"trustworthiness {self.trustworthiness:.2f}, {kept}"


def project(
    embeddings, *, method: str = "umap", seed: int = 0, n_neighbors: int = 15
) -> np.ndarray:
    """Lay embeddings out in the plane, by cosine neighborhood ("umap") or linearly ("pca").

    To compare sets of one space (images and proxies, training and test), concatenate them: one
    fit on the union is the only way to give them one map.

    Args:
        embeddings: (N, D), at least 4 points.
        method: "umap" or "pca".
        seed: seed of UMAP.
        n_neighbors: neighbors of a point in UMAP, including itself: at least 2, at most N − 1.

    Returns:
        (N, 2)

    Raises:
        SobookError: too few points or neighbors, or another method.
    """
    check_choice("method", method, ("umap", "pca"))
    points = geometry.unit_rows(embeddings, "embeddings")
    if len(points) < 4:
        raise SobookError(f"{len(points)} points make no map: it takes at least 4.")
    if method == "pca":
        from sklearn.decomposition import PCA

        return PCA(2, svd_solver="full").fit_transform(points)
    import umap  # here, because its import takes seconds

    points, n_neighbors = points.astype(np.float32), min(n_neighbors, len(points) - 1)
    options: dict[str, Any] = {"n_neighbors": n_neighbors, "metric": "cosine"}
    if len(points) > _EXACT_UP_TO:
        options |= {"init": "pca", "n_epochs": 100}  # more epochs hardly improve the map
    else:  # UMAP ignores given neighbors of small sets unless it may approximate
        similarities, indices = nearest_neighbors(points, n_neighbors - 1)
        indices = np.hstack([np.arange(len(points))[:, None], indices])  # first, the point itself
        distances = np.pad(np.clip(1 - similarities, 0, 2), ((0, 0), (1, 0)))
        options |= {"precomputed_knn": (indices, distances), "force_approximation_algorithm": True}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "precomputed_knn", UserWarning)  # nothing is added later
        return umap.UMAP(random_state=seed, n_jobs=1, **options).fit_transform(points)


def quality(embeddings, plane, *, n_neighbors: int = 15) -> MapQuality:
    """Trust in a map, (N, 2), of embeddings, (N, D); 2,000 random points stand for more."""
    from sklearn.manifold import trustworthiness
    from sklearn.neighbors import NearestNeighbors

    unit, plane = geometry.unit_rows(embeddings, "embeddings"), np.asarray(plane)
    if len(plane) != len(unit):
        raise SobookError(f"{len(unit)} embeddings but {len(plane)} places on the map")
    sample = np.random.default_rng(0).permutation(len(plane))[:_QUALITY_SAMPLE]
    unit, plane = unit[sample], plane[sample]
    k = max(1, min(n_neighbors, (len(sample) - 1) // 2))
    in_space = nearest_neighbors(unit, k)[1]
    on_map = NearestNeighbors(n_neighbors=k).fit(plane).kneighbors(return_distance=False)
    kept = [np.isin(a, b) for a, b in zip(in_space, on_map, strict=True)]
    trust = trustworthiness(unit, plane, n_neighbors=k, metric="cosine")
    return MapQuality(float(trust), float(np.mean(kept)), k)


def place(points, others, plane) -> np.ndarray:
    """Places (M, 2) of new points on a map: the weighted mean of the places of their neighbors.

    Weights fall off as e^((s − s₁)/τ) with the cosine s, s₁ that of the nearest and τ the mean
    distance of the cosines from it: a rough form of UMAP's own transform.

    Args:
        points: (M, D) to be placed.
        others, plane: (N, D) on the map, and (N, 2) their places.
    """
    similarities, indices = nearest_neighbors(points, min(15, len(others)), gallery=others)
    similarities = similarities - similarities[:, :1]
    tau = np.maximum(-similarities.mean(axis=1, keepdims=True), 1e-6)
    weights = softmax(similarities / tau, axis=1)
    return (weights[:, :, None] * np.asarray(plane)[indices]).sum(axis=1)


def align(plane, onto) -> np.ndarray:
    """Turn (2, 2), perhaps mirrored, that brings ``plane @ turn`` as near as can be to another map.

    Args:
        plane, onto: (N, 2) each, of the same points; where they lie and their scale do not matter.
    """
    plane, onto = np.asarray(plane, float), np.asarray(onto, float)
    return orthogonal_procrustes(plane - plane.mean(axis=0), onto - onto.mean(axis=0))[0]


@use_style()
def embedding_maps(
    embeddings: Mapping[str, object],
    labels,
    *,
    class_names: Sequence[str],
    proxies: Mapping[str, object] | None = None,
    proxy_labels=(),
    method: str = "umap",
    inset: tuple[int, Any, str] | None = None,
) -> Figure:
    """Maps of the same images under several models, side by side, each fitted on its own.

    Images and proxies of one model share one fit. How far to trust each map is printed below it,
    see `quality`. With proxies, images of other classes are drawn hollow.

    Args:
        embeddings: name → (N, D).
        labels: (N,) classes.
        class_names: class → name.
        proxies: name → (C, D) for every model, drawn as stars.
        proxy_labels: (C,) their classes.
        method: as in `project`.
        inset: a class, finer labels, (N,), such as the species where classes are genera, and a
            title: below each map, the frame around that class is drawn again, larger and with
            colors and shapes for these labels.
    """
    labels, styles = as_array(labels).astype(int), class_styles(labels)
    hollow = ~np.isin(labels, as_array(proxy_labels)) & (proxies is not None)
    heights, columns, alt = [1.0] if inset is None else [1.0, 0.45], len(embeddings), []
    size = 6.2 * columns + 2.4, 6.2 * sum(heights)
    figure, axes = panels(*size, len(heights), columns, height_ratios=heights)
    for column, (name, points) in enumerate(embeddings.items()):
        axis, points = axes[column], as_array(points)
        stars = points[:0] if proxies is None else as_array(proxies[name])
        plane = project(np.concatenate([points, stars]), method=method)
        places, star_places = np.split(plane, [len(points)])
        _draw_points(axis, places, labels, styles, hollow)
        _draw_stars(axis, star_places, as_array(proxy_labels), styles)
        if inset is not None:
            _draw_inset(axis, axes[columns + column], places, labels, *inset)
        trust = quality(points, places)
        axis.set_title(name, color=style.COLORS.get(name, INK), weight="bold")
        umap = f"UMAP, {min(15, len(plane) - 1)} neighbors, seed 0"
        axis.set_xlabel(f"{umap if method == 'umap' else 'PCA'}\n{trust}", fontsize=12)
        alt.append(f"{name}: {trust}")
    total = len(np.unique(labels))
    _draw_legend(figure, styles, class_names, total, stars=bool(proxies), hollow=hollow.any())
    if columns > 1:
        figure.supxlabel("each map is fitted on its own: compare shapes, not places", fontsize=12)
    return finish(figure, f"{method.upper()} of {len(labels)} embeddings of {total} classes", alt)


@use_style()
def map_panel(embeddings, labels, *, class_names: Sequence[str]) -> Figure:
    """The same points on many maps: UMAP with 5, 15 and 50 neighbors and two seeds, and PCA.

    Trust only what all of them share; the rest is an artifact of a single map.

    Args:
        embeddings: (N, D).
        labels: (N,) classes.
        class_names: class → name.
    """
    points, labels = as_array(embeddings), as_array(labels).astype(int)
    styles, alt = class_styles(labels), []
    figure, axes = panels(14.4, 12.3, 3, 3)
    shown = [(axes[2], "PCA", project(points, method="pca"))]
    for row, k in enumerate((5, 15, 50)):
        for seed in (0, 1):
            title = f"{min(k, len(points) - 1)} neighbors, seed {seed}"
            plane = project(points, seed=seed, n_neighbors=k)
            shown.append((axes[3 * row + seed], title, plane))
    for axis, title, plane in shown:
        trust = quality(points, plane)
        _draw_points(axis, plane, labels, styles)
        axis.set_title(title)
        axis.set_xlabel(str(trust).replace(", ", "\n"), fontsize=11)
        alt.append(f"{title}: {trust}")
    for axis in (axes[5], axes[8]):
        axis.set_axis_off()  # PCA has neither seed nor setting
    _draw_legend(figure, styles, class_names, len(np.unique(labels)))
    return finish(figure, f"{len(labels)} embeddings on several maps", alt)


@use_style()
def spheres(models: Mapping[str, tuple], labels) -> Figure:
    """Embeddings in three dimensions on unit spheres, side by side; the far side is paler.

    Args:
        models: name → (embeddings (N, 3), proxies (C, 3)); proxies are arrows that end in stars.
        labels: (N,) classes 0..C−1.
    """
    labels = as_array(labels).astype(int)
    styles, alt, size = class_styles(labels), [], (5.4 * len(models) + 1.6, 5.4)
    figure, axes = panels(*size, 1, len(models), subplot_kw={"projection": "3d"})
    for axis, (name, (embeddings, proxies)) in zip(axes, models.items(), strict=True):
        stars = geometry.unit_rows(proxies, "proxies")
        _draw_sphere(axis, geometry.unit_rows(embeddings, "embeddings"), labels, stars, styles)
        alt.append(f"{name}: {cosine_summary(geometry.describe(stars))}")
        axis.set_title(alt[-1], color=method_color(name), fontsize=13)
    names = [f"class {label}" for label in range(max(styles) + 1)]
    _draw_legend(figure, styles, names, len(styles), stars=True)
    what = f"{len(labels)} embeddings of {len(styles)} classes and their proxies on the sphere"
    return finish(figure, what, alt)


def class_styles(labels) -> dict[int, tuple[str, str]]:
    """Color and marker of up to 20 classes; of 12, evenly chosen, where there are more."""
    classes = np.unique(labels)
    if len(classes) > 20:
        classes = style.evenly(classes, 12)
    return {int(c): (style.PALETTE[i % 10], "o^"[i // 10]) for i, c in enumerate(classes)}


def _draw_points(axis: Axes, plane, labels: np.ndarray, styles, hollow: Any = False) -> None:
    """Points by class, gray without a style; rings where `hollow`, (N,) bool, is true."""
    axis.set(xticks=[], yticks=[])  # a map's coordinates mean nothing
    axis.spines[:].set(visible=True, color=style.QUIET)
    size, hollow = float(np.clip(20_000 / len(plane), 4, 34)), np.broadcast_to(hollow, len(plane))
    groups = [(~np.isin(labels, list(styles)), style.QUIET, "o", 0.6 * size)]
    groups += [(labels == label, *look, size) for label, look in styles.items()]
    for members, shade, marker, area in groups:
        edge = to_rgba(shade, 0.8)
        face = np.where(hollow[members, None], to_rgba("none"), edge)
        width = np.where(hollow[members], 0.9, 0.0)
        x, y = plane[members].T
        axis.scatter(x, y, s=area, marker=marker, fc=face, ec=edge, lw=width)


def _draw_inset(
    axis: Axes, box: Axes, plane: np.ndarray, labels: np.ndarray, group: int, finer, title: str
) -> None:
    """The main part of a class once more, in a separate box, by finer labels."""
    members, finer = labels == group, as_array(finer)
    # Around the member nearest to the others: a class may lie in several islands.
    apart = np.linalg.norm(plane[members][:, None] - plane[members], axis=2)
    center = np.median(apart, axis=1).argmin()
    middle, half = plane[members][center], max(np.quantile(apart[center], 0.8), 1e-9)
    spans = np.stack([middle - half, middle + half])
    axis.update_datalim(spans)  # keeps the frame inside the map
    axis.autoscale_view()
    axis.add_patch(Rectangle(spans[0], 2 * half, 2 * half, fc="none", ec=INK, lw=1.2))
    shown = members & (np.abs(plane - middle) <= half).all(axis=1)
    styles = {
        c: (shade, "sv^DPX<>dp"[i % 10])  # shapes that no class on the map has
        for i, (c, (shade, _)) in enumerate(class_styles(finer[members]).items())
    }
    _draw_points(box, plane[shown], finer[shown], styles)
    box.set(xlim=spans[:, 0], ylim=spans[:, 1], aspect="equal")
    box.set_title(f"in the frame: {title}", fontsize=12)


def _draw_stars(axis: Axes, plane: np.ndarray, classes: np.ndarray, styles) -> None:
    styled = np.isin(classes, list(styles))
    shades = [styles.get(c, (style.QUIET,))[0] for c in classes.tolist()]
    size = np.where(styled, 260 if len(plane) <= 12 else 120, 70)
    width = np.where(styled, 1.0, 0.5)
    x, y = plane.T
    axis.scatter(x, y, s=size, marker="*", zorder=5, ec=INK, fc=shades, lw=width)


def _draw_legend(figure: Figure, styles, names, total: int, *, stars=False, hollow=False) -> None:
    """Names of the colored classes and of the other marks, at the right."""

    def mark(label: str, color: str, marker: str, ms: int = 8, **look: Any) -> Line2D:
        return Line2D([], [], ls="", label=label, color=color, marker=marker, ms=ms, **look)

    marks = [mark(str(names[label]), *look) for label, look in styles.items()]
    if total > len(styles):
        marks.append(mark(f"{total - len(styles)} other classes", style.QUIET, "o", 6))
    if stars:
        marks.append(mark("proxy", "white", "*", 15, mec=INK))
    if hollow:
        marks.append(mark("test class: no proxy", "#555555", "o", 7, mfc="none"))
    figure.legend(handles=marks, loc="outside right center", fontsize=11, handletextpad=0.3)


def _draw_sphere(axis, points, labels, stars, styles) -> None:
    """A globe with points and proxies; those that face away from the reader are paler."""
    axis.view_init(*_VIEW)
    theta, phi = np.linspace(0, np.pi, 13)[:, None], np.linspace(0, 2 * np.pi, 25)
    globe = np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta) + 0 * phi
    axis.plot_wireframe(*globe, color=style.QUIET, lw=0.5, alpha=0.6)
    axis.set_box_aspect((1, 1, 1), zoom=1.5)
    axis.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
    axis.set_axis_off()
    up, around = np.radians(_VIEW)
    eye = np.array([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])
    look = {"s": 22, "lw": 0, "depthshade": False}
    for label, (shade, marker) in styles.items():
        members = points[labels == label]
        for side, alpha in ((members @ eye > 0, 0.85), (members @ eye <= 0, 0.18)):
            axis.scatter(*members[side].T, alpha=alpha, color=shade, marker=marker, **look)
    for label, star in enumerate(stars):
        shade, alpha = styles.get(label, (style.QUIET,))[0], 1.0 if star @ eye > 0 else 0.45
        axis.plot(*np.stack([np.zeros(3), star]).T, color=shade, lw=2.6, alpha=alpha)
        axis.plot(*star[:, None], "*", color=shade, ms=20, mec=INK, alpha=alpha, zorder=10)
