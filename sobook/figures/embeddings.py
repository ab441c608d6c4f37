"""Maps of embeddings in the plane, how far each can be trusted, and spheres for three dimensions.

Notation: N points, D dimensions. Neighbors are those by cosine: up to 10,000 points the exact ones,
which UMAP is given ready-made; beyond that, UMAP's own approximate ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from sobook import geometry
from sobook.errors import SobookError, check_choice, plain
from sobook.figures import style
from sobook.figures.proxies import cosine_summary
from sobook.figures.style import INK, Figure, as_array, finish, method_color, new_figure, use_style
from sobook.retrieval import nearest_neighbors

_EXACT_UP_TO = 10_000  # points; larger maps take about half of UMAP's usual time, see `project`
_QUALITY_SAMPLE = 2000  # points
_MIN_POINTS = 4
_VIEW = (22.0, 38.0)  # elevation and azimuth of spheres, in degrees


@dataclass(frozen=True)
class MapQuality:
    """How much of the space a map keeps; made by `quality`.

    Attributes:
        trustworthiness: 1 when all neighbors on the map are neighbors in the space (Venna and
            Kaski, ICANN 2001). Lenient: a false neighbor that is nearly one costs little.
        overlap: mean fraction of a point's nearest neighbors in the space that are among its
            nearest neighbors on the map. Strict.
        n_neighbors: the number of neighbors compared.
    """

    trustworthiness: float
    overlap: float
    n_neighbors: int

    def __str__(self) -> str:
        return (
            f"trustworthiness {self.trustworthiness:.2f}, "
            f"{self.overlap:.0%} of {self.n_neighbors} neighbors kept"
        )


def project(
    embeddings, *, method: str = "umap", seed: int = 0, n_neighbors: int = 15
) -> np.ndarray:
    """Lay embeddings out in the plane, by cosine neighborhood ("umap") or linearly ("pca").

    To compare sets of one space (images and proxies, training and test), concatenate them: one
    fit on the union is the only way to give them one map.

    Args:
        embeddings: (N, D).
        method: "umap" or "pca".
        seed: seed of UMAP.
        n_neighbors: neighbors of a point in UMAP, including itself, at least 2; fewer where there
            are fewer points, see `neighbors_used`.

    Returns:
        (N, 2)

    Raises:
        SobookError: fewer than 4 points or 2 dimensions, or an option that makes no sense.
    """
    check_choice("method", method, ("umap", "pca"))
    points = _unit_points(embeddings)
    if (n_neighbors := neighbors_used(n_neighbors, len(points))) < 2:
        raise SobookError(f"n_neighbors is {n_neighbors}: it must be at least 2.")
    if method == "pca":
        from sklearn.decomposition import PCA

        return PCA(2, svd_solver="full").fit_transform(points)
    import umap  # here, because its import takes seconds

    points = points.astype(np.float32)
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


def neighbors_used(n_neighbors: int, points: int) -> int:
    """The number of neighbors that UMAP can use with this many points."""
    return min(plain("n_neighbors", n_neighbors, int), points - 1)


def _unit_points(embeddings) -> np.ndarray:
    """(N, D) of unit length, enough of them for a map."""
    points = geometry.unit_rows(embeddings, "embeddings")
    if len(points) < _MIN_POINTS or points.shape[1] < 2:
        raise SobookError(
            f"{len(points)} points in {points.shape[1]} dimension(s) make no map: it takes at "
            f"least {_MIN_POINTS} in 2."
        )
    return points


def quality(embeddings, plane, *, n_neighbors: int = 15, seed: int = 0) -> MapQuality:
    """Trustworthiness and neighborhood overlap of a map.

    Args:
        embeddings: (N, D).
        plane: (N, 2).
        n_neighbors: the number of neighbors compared.
        seed: seed of the random sample that stands for more than 2,000 points.
    """
    from sklearn.manifold import trustworthiness
    from sklearn.neighbors import NearestNeighbors

    plane = np.asarray(plane)
    if len(plane) != len(embeddings):
        raise SobookError(f"{len(embeddings)} embeddings but {len(plane)} places on the map")
    sample = np.random.default_rng(seed).permutation(len(plane))[:_QUALITY_SAMPLE]
    unit, plane = _unit_points(embeddings)[sample], plane[sample]
    k = max(1, min(plain("n_neighbors", n_neighbors, int), (len(sample) - 1) // 2))
    in_space = nearest_neighbors(unit, k)[1]
    on_map = NearestNeighbors(n_neighbors=k).fit(plane).kneighbors(return_distance=False)
    kept = [np.isin(a, b) for a, b in zip(in_space, on_map, strict=True)]
    trust = trustworthiness(unit, plane, n_neighbors=k, metric="cosine")
    return MapQuality(float(trust), float(np.mean(kept)), k)


def place(points, others, plane) -> np.ndarray:
    """Places of new points on a map: the weighted mean of the places of their neighbors.

    Weights fall off as e^((s − s₁)/τ) with the cosine s, s₁ that of the nearest and τ the mean
    distance of the cosines from it: a rough form of UMAP's own transform.

    Args:
        points: (M, D) to be placed.
        others: (N, D) on the map.
        plane: (N, 2) their places.

    Returns:
        (M, 2)
    """
    similarities, indices = nearest_neighbors(points, min(15, len(others)), gallery=others)
    tau = similarities[:, :1] - similarities.mean(axis=1, keepdims=True)
    weights = np.exp((similarities - similarities[:, :1]) / np.maximum(tau, 1e-6))
    weights /= weights.sum(axis=1, keepdims=True)
    return (weights[:, :, None] * np.asarray(plane)[indices]).sum(axis=1)


def align(plane, onto, points=None) -> np.ndarray:
    """A map turned, mirrored, shifted and scaled to lie as near as possible to another map of the
    same points (Procrustes); nothing within the map changes.

    Args:
        plane, onto: (N, 2) each.
        points: (M, 2) of the first map, to be moved the same way instead of `plane`.
    """
    plane, onto = np.asarray(plane, float), np.asarray(onto, float)
    points = plane if points is None else np.asarray(points, float)
    middle, target = plane.mean(axis=0), onto.mean(axis=0)
    left, size, right = np.linalg.svd((plane - middle).T @ (onto - target))
    scale = size.sum() / np.square(plane - middle).sum()
    return scale * (points - middle) @ left @ right + target


@use_style()
def embedding_maps(
    embeddings: Mapping[str, object],
    labels,
    *,
    proxies: Mapping[str, object] | None = None,
    proxy_labels=None,
    class_names: Sequence[str] | None = None,
    method: str = "umap",
    seed: int = 0,
    n_neighbors: int = 15,
    inset: tuple[int, Any, str] | None = None,
) -> Figure:
    """Maps of the same images under several models, side by side, each fitted on its own.

    Images and proxies of one model share one fit. How far to trust each map is printed below it,
    see `quality`. With `proxy_labels`, images of other classes are drawn hollow.

    Args:
        embeddings: name → (N, D).
        labels: (N,) classes.
        proxies: name → (C, D), drawn as stars.
        proxy_labels: (C,) their classes; 0..C−1 by default.
        class_names: class → name.
        method, seed, n_neighbors: as in `project`.
        inset: a class, finer labels, (N,), such as the species where classes are genera, and a
            title: below each map, the frame around that class is drawn again, larger and with
            colors and shapes for these labels.
    """
    labels, proxies = as_array(labels).astype(int), proxies or {}
    if not embeddings or set(proxies) - set(embeddings):
        raise SobookError(
            f"embeddings of {sorted(embeddings)}, proxies of {sorted(proxies)}: give at least one "
            "model, and both the same names."
        )
    styles, total = class_styles(labels), len(np.unique(labels))
    hollow = np.zeros(len(labels), bool)
    if proxy_labels is not None:
        hollow = ~np.isin(labels, as_array(proxy_labels))
    heights = [1.0] if inset is None else [1.0, 0.45]
    figure = new_figure(6.2 * len(embeddings) + 2.4, 6.2 * sum(heights))
    panels = figure.subplots(len(heights), len(embeddings), squeeze=False, height_ratios=heights)
    alt = []
    for column, (name, points) in zip(panels.T, embeddings.items(), strict=True):
        axis, points = column[0], _labeled(points, labels)
        stars = as_array(proxies[name]) if name in proxies else points[:0]
        union = np.concatenate([points, stars])
        plane = project(union, method=method, seed=seed, n_neighbors=n_neighbors)
        places, star_places = np.split(plane, [len(points)])
        _draw_points(axis, places, labels, styles, hollow)
        if len(stars):
            classes = np.arange(len(stars)) if proxy_labels is None else as_array(proxy_labels)
            _draw_stars(axis, star_places, classes, styles)
        if inset is not None:
            _draw_inset(axis, column[1], places, labels, *inset)
        trust = quality(points, places, n_neighbors=n_neighbors)
        axis.set_title(name, color=style.COLORS.get(name, INK), weight="bold")
        used = neighbors_used(n_neighbors, len(union))
        note = f"UMAP, {used} neighbors, seed {seed}" if method == "umap" else method.upper()
        axis.set_xlabel(f"{note}\n{trust}", fontsize=12)
        alt.append(f"{name}: {trust}")
    _draw_legend(figure, styles, class_names, total, stars=bool(proxies), hollow=hollow.any())
    if len(embeddings) > 1:
        figure.supxlabel("each map is fitted on its own: compare shapes, not places", fontsize=12)
    alt_start = f"{method.upper()} of {len(labels)} embeddings of {total} classes"
    return finish(figure, f"{alt_start}; {'; '.join(alt)}.")


@use_style()
def map_panel(
    embeddings,
    labels,
    *,
    n_neighbors: Sequence[int] = (5, 15, 50),
    seeds: Sequence[int] = (0, 1),
    class_names: Sequence[str] | None = None,
) -> Figure:
    """The same points on many maps: UMAP by setting (rows) and seed (columns), PCA at the right.

    What all of them share may be believed; the rest belongs to the single map.

    Args:
        embeddings: (N, D).
        labels: (N,) classes.
        n_neighbors: settings of UMAP, one per row.
        seeds: one per column.
        class_names: class → name.
    """
    labels = as_array(labels).astype(int)
    points, styles = _labeled(embeddings, labels), class_styles(labels)
    figure = new_figure(4.0 * (len(seeds) + 1) + 2.4, 4.1 * len(n_neighbors))
    axes = figure.subplots(len(n_neighbors), len(seeds) + 1, squeeze=False)
    panels = [(axes[0, -1], "PCA", project(points, method="pca"))]
    for row, k in zip(axes, n_neighbors, strict=True):
        row[-1].set_axis_off()  # PCA has neither seed nor setting
        for axis, seed in zip(row, seeds, strict=False):
            title = f"{neighbors_used(k, len(points))} neighbors, seed {seed}"
            panels.append((axis, title, project(points, seed=seed, n_neighbors=k)))
    axes[0, -1].set_axis_on()
    alt = []
    for axis, title, plane in panels:
        trust = quality(points, plane)
        _draw_points(axis, plane, labels, styles)
        axis.set_title(title)
        axis.set_xlabel(str(trust).replace(", ", "\n"), fontsize=11)
        alt.append(f"{title}: {trust}")
    _draw_legend(figure, styles, class_names, len(np.unique(labels)))
    return finish(figure, f"{len(labels)} embeddings on several maps; {'; '.join(alt)}.")


@use_style()
def spheres(models: Mapping[str, tuple], labels) -> Figure:
    """Embeddings in three dimensions on unit spheres, side by side; the far side is paler.

    Args:
        models: name → (embeddings (N, 3), proxies (C, 3)); proxies are arrows that end in stars.
        labels: (N,) classes 0..C−1.
    """
    labels = as_array(labels).astype(int)
    styles, alt = class_styles(labels), []
    figure = new_figure(5.4 * len(models) + 1.6, 5.4)
    for column, (name, (embeddings, proxies)) in enumerate(models.items()):
        points = geometry.unit_rows(embeddings, "embeddings")
        stars = geometry.unit_rows(proxies, "proxies")
        if points.shape[1] != 3 or stars.shape[1] != 3:
            raise SobookError(f"a sphere shows 3 dimensions, not {points.shape[1]}")
        axis = figure.add_subplot(1, len(models), column + 1, projection="3d")
        _draw_sphere(axis, points, labels, stars, styles)
        alt.append(f"{name}: {cosine_summary(geometry.describe(stars))}")
        axis.set_title(alt[-1], color=method_color(name), fontsize=13)
    _draw_legend(figure, styles, None, len(styles), stars=True)
    alt_start = f"{len(labels)} embeddings of {len(styles)} classes and their proxies on the sphere"
    return finish(figure, f"{alt_start}; {'; '.join(alt)}.")


def class_styles(labels: np.ndarray) -> dict[int, tuple[str, str]]:
    """Color and marker of up to 20 classes; of 12, evenly chosen, where there are more."""
    classes = np.unique(labels)
    if len(classes) > 20:
        classes = style.evenly(classes, 12)
    return {int(c): (style.PALETTE[i % 10], "o^"[i // 10]) for i, c in enumerate(classes)}


def _labeled(embeddings, labels: np.ndarray) -> np.ndarray:
    points = as_array(embeddings)
    if len(points) != len(labels):
        raise SobookError(f"{len(points)} embeddings but {len(labels)} labels")
    return points


def _draw_points(axis: Axes, plane, labels: np.ndarray, styles, hollow=None) -> None:
    """Points by class, gray without a style; rings where `hollow`, (N,) bool, is true."""
    axis.set(xticks=[], yticks=[])  # a map's coordinates mean nothing
    axis.spines[:].set(visible=True, color=style.QUIET)
    size = float(np.clip(20_000 / len(plane), 4, 34))
    hollow = np.zeros(len(labels), bool) if hollow is None else hollow
    groups = [(~np.isin(labels, list(styles)), style.QUIET, "o", 0.6 * size)]
    groups += [(labels == label, *look, size) for label, look in styles.items()]
    for members, shade, marker, area in groups:
        edge = to_rgba(shade, 0.8)
        face = np.where(hollow[members, None], to_rgba("none"), edge)
        look: dict[str, Any] = {"fc": face, "ec": edge, "lw": np.where(hollow[members], 0.9, 0.0)}
        x, y = plane[members].T
        axis.scatter(x, y, s=area, marker=marker, **look)


def _draw_inset(
    axis: Axes, box: Axes, plane: np.ndarray, labels: np.ndarray, group: int, finer, title: str
) -> None:
    """The main part of a class once more, in a separate box, by finer labels."""
    members, finer = labels == group, as_array(finer)
    if not members.any():
        raise SobookError(f"the inset is of class {group}, which no image has.")
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
    look: dict[str, Any] = {"facecolors": shades, "linewidths": np.where(styled, 1.0, 0.5)}
    size = np.where(styled, 260 if len(plane) <= 12 else 120, 70)
    x, y = plane.T
    axis.scatter(x, y, s=size, marker="*", zorder=5, edgecolors=INK, **look)


def _draw_legend(figure: Figure, styles, names, total: int, *, stars=False, hollow=False) -> None:
    """Names of the colored classes and of the other marks, at the right."""
    marks: list[dict[str, Any]] = [
        {"label": f"class {c}" if names is None else str(names[c]), "color": shade, "marker": m}
        for c, (shade, m) in styles.items()
    ]
    if total > len(styles):
        label = f"{total - len(styles)} other classes"
        marks.append({"label": label, "color": style.QUIET, "marker": "o", "ms": 6})
    if stars:
        marks.append({"label": "proxy", "color": "white", "marker": "*", "ms": 15, "mec": INK})
    if hollow:
        look = {"color": "#555555", "marker": "o", "ms": 7, "mfc": "none"}
        marks.append({"label": "test class: no proxy", **look})
    handles = [Line2D([], [], ls="", **{"ms": 8, **mark}) for mark in marks]
    figure.legend(handles=handles, loc="outside right center", fontsize=11, handletextpad=0.3)


def _draw_sphere(axis, points, labels, stars, styles) -> None:
    """A globe with points and proxies; those that face away from the reader are paler."""
    axis.view_init(*_VIEW)
    theta, phi = np.linspace(0, np.pi, 13)[:, None], np.linspace(0, 2 * np.pi, 25)
    globe = np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta) + 0 * phi
    axis.plot_wireframe(*globe, color=style.QUIET, lw=0.5, alpha=0.6)
    axis.set_box_aspect((1, 1, 1), zoom=1.5)
    axis.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
    axis.set_axis_off()
    elevation, azimuth = np.radians(_VIEW)
    flat = np.cos(elevation)
    eye = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])
    for label, (shade, marker) in styles.items():
        members = points[labels == label]
        for side, alpha in ((members @ eye > 0, 0.85), (members @ eye <= 0, 0.18)):
            look = {"color": shade, "marker": marker, "s": 22, "lw": 0, "depthshade": False}
            axis.scatter(*members[side].T, alpha=alpha, **look)
    for label, star in enumerate(stars):
        shade, alpha = styles.get(label, (style.QUIET,))[0], 1.0 if star @ eye > 0 else 0.45
        axis.plot(*np.stack([np.zeros(3), star]).T, color=shade, lw=2.6, alpha=alpha)
        axis.plot(*star[:, None], "*", color=shade, ms=20, mec=INK, alpha=alpha, zorder=10)
