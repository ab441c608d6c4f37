"""Maps of embeddings in the plane, how far each can be trusted, and spheres for three dimensions.

Notation: N points, D dimensions. Neighbors are those by cosine: up to 10,000 points the exact ones,
which UMAP is given ready-made; beyond that, those that UMAP finds itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sobook import geometry
from sobook.errors import SobookError
from sobook.figures import style
from sobook.figures.proxies import cosine_summary
from sobook.figures.style import Figure, as_array, finish, method_color, new_figure, use_style
from sobook.retrieval import nearest_neighbors

# Larger maps take about half of UMAP's usual time: its own approximate neighbors, a start from the
# first principal components, and half the usual rounds (more of them hardly improve the map).
_EXACT_UP_TO = 10_000  # points
_ROUNDS = 100
_INK = "#222222"


@dataclass(frozen=True)
class MapQuality:
    """What a map keeps of the space; made by `quality`.

    Attributes:
        trustworthiness: 1 when all neighbors on the map are neighbors in the space (Venna and
            Kaski, ICANN 2001). Lenient: a false neighbor that is nearly one costs little.
        overlap: mean fraction of a point's nearest neighbors in the space that are among its
            nearest neighbors on the map. Strict.
        n_neighbors: neighbors looked at.
        points: points looked at.
    """

    trustworthiness: float
    overlap: float
    n_neighbors: int
    points: int

    def __str__(self) -> str:
        return (
            f"trustworthiness {self.trustworthiness:.2f}, "
            f"{self.overlap:.0%} of {self.n_neighbors} neighbors kept"
        )


def project(
    embeddings, *, method: str = "umap", seed: int | None = 0, n_neighbors: int = 15
) -> np.ndarray:
    """Lay embeddings out in the plane, by cosine neighborhood ("umap") or linearly ("pca").

    To compare sets of one space (images and proxies, training and test), concatenate them: one
    fit on the union is the only way to give them one map.

    Args:
        embeddings: (N, D), N ≥ 4.
        method: "umap" or "pca".
        seed: of UMAP; the same seed gives the same map. None: another map each time, faster where
            there are many cores.
        n_neighbors: a point's neighbors in UMAP, itself counted.

    Returns:
        (N, 2)

    Raises:
        SobookError: another method, or too few embeddings.
    """
    points = geometry.unit_rows(embeddings, "embeddings")
    if method not in ("umap", "pca"):
        raise SobookError(f'method must be "umap" or "pca", not {method!r}')
    if len(points) < 4:
        raise SobookError(f"a map needs at least 4 embeddings, not {len(points)}")
    if method == "pca":
        from sklearn.decomposition import PCA

        return PCA(2, svd_solver="full").fit_transform(points)
    return _umap(points.astype(np.float32), seed, min(n_neighbors, len(points) - 1))


def _umap(points: np.ndarray, seed: int | None, n_neighbors: int) -> np.ndarray:
    import umap  # here, not above: its import takes seconds

    if len(points) > _EXACT_UP_TO:
        options: dict[str, Any] = {"init": "pca", "n_epochs": _ROUNDS}
    else:  # small sets ignore given neighbors unless told to approximate
        options = {"force_approximation_algorithm": True}
        options["precomputed_knn"] = _exact_neighbors(points, n_neighbors)
    options |= {"n_neighbors": n_neighbors, "metric": "cosine"}
    layout = umap.UMAP(random_state=seed, n_jobs=1 if seed is not None else -1, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "precomputed_knn", UserWarning)  # nothing is added later
        return layout.fit_transform(points)


def _exact_neighbors(points: np.ndarray, n_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and cosine distances, (N, n_neighbors) each; a point is its own first neighbor."""
    similarities, indices = nearest_neighbors(points, n_neighbors - 1)
    indices = np.hstack([np.arange(len(points))[:, None], indices])
    return indices, np.pad(np.clip(1 - similarities, 0, 2), ((0, 0), (1, 0)))


def quality(
    embeddings, plane, *, n_neighbors: int = 15, max_points: int = 2000, seed: int = 0
) -> MapQuality:
    """Trustworthiness and neighborhood overlap of a map.

    Args:
        embeddings: (N, D).
        plane: (N, 2).
        n_neighbors: neighbors to look at.
        max_points: of more points than this, a random sample is looked at.
        seed: of the sample.
    """
    from sklearn.manifold import trustworthiness
    from sklearn.neighbors import NearestNeighbors

    plane = np.asarray(plane)
    if len(plane) != len(embeddings):
        raise SobookError(f"{len(embeddings)} embeddings but {len(plane)} places on the map")
    chosen = np.random.default_rng(seed).permutation(len(plane))[:max_points]
    unit, plane = geometry.unit_rows(embeddings, "embeddings")[chosen], plane[chosen]
    k = max(1, min(n_neighbors, (len(chosen) - 1) // 2))
    in_space = nearest_neighbors(unit, k)[1]
    on_map = NearestNeighbors(n_neighbors=k).fit(plane).kneighbors(return_distance=False)
    kept = [np.isin(a, b) for a, b in zip(in_space, on_map, strict=True)]
    trust = trustworthiness(unit, plane, n_neighbors=k, metric="cosine")
    return MapQuality(float(trust), float(np.mean(kept)), k, len(chosen))


def place(points, others, plane, *, n_neighbors: int = 15) -> np.ndarray:
    """Where new points would lie on a map: the weighted mean of the places of their neighbors.

    Weights fall off as e^((s − s₁)/τ) with the cosine s, s₁ that of the nearest and τ the mean
    distance of the cosines from it: a rough form of UMAP's own transform, enough to follow a proxy
    over epochs.

    Args:
        points: (M, D) to be placed.
        others: (N, D) on the map.
        plane: (N, 2) their places.
        n_neighbors: neighbors that take part.

    Returns:
        (M, 2)
    """
    similarities, indices = nearest_neighbors(points, min(n_neighbors, len(others)), gallery=others)
    tau = similarities[:, :1] - similarities.mean(axis=1, keepdims=True)
    weights = np.exp((similarities - similarities[:, :1]) / np.maximum(tau, 1e-6))
    weights /= weights.sum(axis=1, keepdims=True)
    return (weights[:, :, None] * np.asarray(plane)[indices]).sum(axis=1)


def align(plane, onto, points=None) -> np.ndarray:
    """A map turned, mirrored, shifted and scaled to lie as near as it can on another of the same
    points; nothing within the map changes.

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


def embedding_map(embeddings, labels, *, proxies=None, title: str = "", **options) -> Figure:
    """One map of embeddings, colored by class, proxies as stars; fitted on both together.

    Args:
        embeddings: (N, D).
        labels: (N,) classes.
        proxies: (C, D), drawn as stars.
        title: above the map; the name of a method gives it a color.
        options: as in `embedding_maps`.
    """
    stars = None if proxies is None else {title: proxies}
    return embedding_maps({title: embeddings}, labels, proxies=stars, **options)


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
    highlight: Sequence[int] | None = None,
) -> Figure:
    """Maps of the same images under several models, side by side, each fitted on its own.

    Images and proxies of one model share one fit. Two models have two spaces, so a point's place
    in one map says nothing about its place in the other. How far to trust each map is printed
    below it, see `quality`. With `proxy_labels`, images of other classes are drawn hollow: they
    have no proxy.

    Args:
        embeddings: name → (N, D).
        labels: (N,) classes.
        proxies: name → (C, D), drawn as stars.
        proxy_labels: (C,) their classes; 0..C−1 by default. Proxies of other classes than those
            shown (training proxies among test images) need it: a class not shown is gray.
        class_names: class → name.
        method, seed, n_neighbors: as in `project`.
        highlight: at most 20 classes to color; by default all, or 12 spread evenly.
    """
    labels, proxies = as_array(labels).astype(int), dict(proxies or {})
    if set(proxies) - set(embeddings):
        raise SobookError(
            f"proxies of {sorted(proxies)}, embeddings of {sorted(embeddings)}: use the same names"
        )
    styles, total = class_styles(labels, highlight), len(np.unique(labels))
    figure = new_figure(6.2 * len(embeddings) + 2.4, 6.2)
    axes = figure.subplots(1, len(embeddings), squeeze=False)[0]
    note = f"UMAP, {n_neighbors} neighbors, seed {seed}" if method == "umap" else method.upper()
    alt = []
    for axis, (name, points) in zip(axes, embeddings.items(), strict=True):
        points = _checked(points, labels, name)
        stars = style.as_matrix(proxies.get(name, points[:0]), f"the proxies of {name}")
        union = np.concatenate([points, stars])
        plane = project(union, method=method, seed=seed, n_neighbors=n_neighbors)
        places, star_places = np.split(plane, [len(points)])
        classes = np.arange(len(stars)) if proxy_labels is None else as_array(proxy_labels)
        seen = None if proxy_labels is None or not len(stars) else classes
        _draw_points(axis, places, labels, styles, seen)
        _draw_stars(axis, star_places, classes, styles)
        trust = quality(points, places, n_neighbors=n_neighbors)
        axis.set_title(name, color=style.COLORS.get(name, _INK), weight="bold")
        axis.set_xlabel(f"{note}\n{trust}", fontsize=12)
        alt.append(f"{name or 'the map'}: {trust}")
    hollow = proxy_labels is not None and bool(set(labels) - set(as_array(proxy_labels)))
    _draw_legend(figure, styles, class_names, total, stars=bool(proxies), hollow=hollow)
    if len(embeddings) > 1:
        figure.supxlabel("each map is fitted on its own: compare shapes, not places", fontsize=12)
    what = f"{method.upper()} of {len(labels)} embeddings of {total} classes"
    return finish(figure, f"{what}; {'; '.join(alt)}.")


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

    What is the same in all of them may be believed; what is not belongs to the map.

    Args:
        embeddings: (N, D).
        labels: (N,) classes.
        n_neighbors: settings of UMAP, one row each.
        seeds: one column each.
        class_names: class → name.
    """
    labels = as_array(labels).astype(int)
    points = _checked(embeddings, labels)
    styles, total = class_styles(labels), len(np.unique(labels))
    figure = new_figure(4.0 * (len(seeds) + 1) + 2.4, 4.1 * len(n_neighbors))
    axes = figure.subplots(len(n_neighbors), len(seeds) + 1, squeeze=False)
    panels = [(axes[0, -1], "PCA", project(points, method="pca"))]
    for row, k in zip(axes, n_neighbors, strict=True):
        for axis, seed in zip(row, seeds, strict=False):
            plane = project(points, seed=seed, n_neighbors=k)
            panels.append((axis, f"{k} neighbors, seed {seed}", plane))
    for axis in axes[1:, -1]:
        axis.set_axis_off()  # PCA has neither seed nor setting
    alt = []
    for axis, title, plane in panels:
        trust = quality(points, plane)
        _draw_points(axis, plane, labels, styles)
        axis.set_title(title)
        axis.set_xlabel(str(trust).replace(", ", "\n"), fontsize=11)
        alt.append(f"{title}: {trust}")
    _draw_legend(figure, styles, class_names, total)
    return finish(figure, f"{len(labels)} embeddings on several maps; {'; '.join(alt)}.")


def sphere(embeddings, labels, proxies, *, title: str = "", **options) -> Figure:
    """Three-dimensional embeddings on the unit sphere; proxies are arrows that end in stars.

    Args:
        embeddings: (N, 3).
        labels: (N,) classes 0..C−1.
        proxies: (C, 3).
        title: above the sphere.
        options: as in `spheres`.
    """
    return spheres({title: (embeddings, proxies)}, labels, **options)


@use_style()
def spheres(
    models: Mapping[str, tuple],
    labels,
    *,
    class_names: Sequence[str] | None = None,
    view: tuple[float, float] = (22.0, 38.0),
) -> Figure:
    """Spheres side by side, seen from the same place; what lies behind is paler.

    Args:
        models: name → (embeddings (N, 3), proxies (C, 3)).
        labels: (N,) classes 0..C−1.
        class_names: class → name.
        view: elevation and azimuth in degrees.
    """
    labels = as_array(labels).astype(int)
    styles = class_styles(labels)
    figure = new_figure(5.4 * len(models) + 1.6, 5.4)
    for column, (name, (embeddings, proxies)) in enumerate(models.items()):
        points = geometry.unit_rows(embeddings, "embeddings")
        stars = geometry.unit_rows(proxies, "proxies")
        if points.shape[1] != 3 or stars.shape[1] != 3:
            raise SobookError(
                "a sphere shows 3-dimensional embeddings and proxies; these have "
                f"{points.shape[1]} and {stars.shape[1]} dimensions"
            )
        axis = figure.add_subplot(1, len(models), column + 1, projection="3d")
        axis.view_init(*view)
        _draw_globe(axis)
        _draw_on_globe(axis, points, labels, stars, styles, view)
        if name:
            title = f"{name}: {cosine_summary(geometry.describe(stars))}"
            axis.set_title(title, color=method_color(name), fontsize=13)
    _draw_legend(figure, styles, class_names, len(styles), stars=True)
    names = ": " + " | ".join(models) if any(models) else ""
    return finish(
        figure,
        f"{len(labels)} embeddings of {len(styles)} classes and their proxies "
        f"on the unit sphere{names}.",
    )


def class_styles(labels: np.ndarray, highlight=None) -> dict[int, tuple[str, str]]:
    """Color and marker of up to 20 classes: ten colors, then the same with another marker."""
    classes = np.unique(labels)
    if highlight is None:
        evenly = np.linspace(0, len(classes) - 1, 12).round().astype(int)
        highlight = classes if len(classes) <= 20 else classes[evenly]
    missing = [int(c) for c in highlight if c not in classes]
    if missing:
        raise SobookError(f"highlight names classes without any image here: {missing}")
    if len(highlight) > 20:
        raise SobookError(f"highlight takes at most 20 classes, not {len(highlight)}")
    return {int(c): (style.PALETTE[i % 10], "o^"[i // 10]) for i, c in enumerate(highlight)}


def _checked(embeddings, labels: np.ndarray, name: str = "") -> np.ndarray:
    points = style.as_matrix(embeddings, f"the embeddings of {name}" if name else "the embeddings")
    if len(points) != len(labels):
        where = f"{name}: " if name else ""
        raise SobookError(f"{where}{len(points)} embeddings but {len(labels)} labels")
    return points


def _draw_points(axis: Axes, plane: np.ndarray, labels: np.ndarray, styles, seen=None) -> None:
    """Points by class; hollow where `seen`, the classes with a proxy, does not name theirs."""
    axis.set(xticks=[], yticks=[])  # a map's coordinates mean nothing
    axis.spines[:].set(visible=True, color=style.QUIET)
    size = float(np.clip(20_000 / len(plane), 4, 34))
    filled = np.ones(len(labels), bool) if seen is None else np.isin(labels, seen)
    hollow: dict[str, Any] = {"facecolors": "none", "lw": 0.9, "alpha": 0.8}
    rest = ~np.isin(labels, list(styles))
    if seen is not None:
        _scatter(axis, plane[rest & ~filled], s=size * 0.6, edgecolors=style.QUIET, **hollow)
    _scatter(axis, plane[rest & filled], s=size * 0.6, color=style.QUIET, lw=0, alpha=0.7)
    for label, (shade, marker) in styles.items():
        mine = labels == label
        full = {"color": shade, "lw": 0, "alpha": 0.8}
        look = full if filled[mine].all() else {"edgecolors": shade, **hollow}
        _scatter(axis, plane[mine], s=size, marker=marker, **look)


def _scatter(axis: Axes, plane: np.ndarray, **look: Any) -> None:
    axis.scatter(plane[:, 0], plane[:, 1], **look)


def _draw_stars(axis: Axes, plane: np.ndarray, classes: np.ndarray, styles) -> None:
    if len(plane) != len(classes):
        raise SobookError(f"{len(plane)} proxies but {len(classes)} proxy labels")
    if not len(plane):
        return
    rest = ~np.isin(classes, list(styles))
    _scatter(axis, plane[rest], s=70, color=style.QUIET, marker="*", zorder=4, ec=_INK, lw=0.5)
    for label, (shade, _) in styles.items():
        mine = plane[classes == label]
        _scatter(axis, mine, s=260, color=shade, marker="*", zorder=5, ec=_INK, lw=1.0)


def _draw_legend(
    figure: Figure, styles, names, total: int, *, stars: bool = False, hollow: bool = False
) -> None:
    """Names of the colored classes, and of what else is drawn, at the right."""
    entries: list[tuple[str, str, str, dict[str, Any]]] = [
        (str(names[c]) if names is not None else f"class {c}", shade, marker, {"ms": 8})
        for c, (shade, marker) in styles.items()
    ]
    if total > len(styles):
        entries.append((f"{total - len(styles)} other classes", style.QUIET, "o", {"ms": 6}))
    if stars:
        entries.append(("proxy", "white", "*", {"ms": 15, "mec": _INK}))
    if hollow:
        entries.append(("test class: no proxy", "#555555", "o", {"ms": 7, "mfc": "none"}))
    handles = [
        Line2D([], [], color=shade, marker=marker, ls="", **look)
        for _, shade, marker, look in entries
    ]
    labels = [label for label, *_ in entries]
    figure.legend(handles, labels, loc="outside right center", fontsize=11, handletextpad=0.3)


def _draw_globe(axis) -> None:
    theta, phi = np.linspace(0, np.pi, 13), np.linspace(0, 2 * np.pi, 25)
    across = np.outer(np.sin(theta), np.cos(phi)), np.outer(np.sin(theta), np.sin(phi))
    up = np.outer(np.cos(theta), np.ones_like(phi))
    axis.plot_wireframe(*across, up, color=style.QUIET, lw=0.5, alpha=0.6)
    axis.set_box_aspect((1, 1, 1), zoom=1.5)
    axis.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
    axis.set_axis_off()


def _draw_on_globe(axis, points, labels, stars, styles, view: tuple[float, float]) -> None:
    """Points and proxies on the sphere; those that face away from the reader are paler."""
    elevation, azimuth = np.radians(view)
    flat = np.cos(elevation)
    eye = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])
    for label, (shade, marker) in styles.items():
        mine = points[labels == label]
        facing = mine @ eye > 0
        look = {"color": shade, "marker": marker, "s": 22, "lw": 0, "depthshade": False}
        axis.scatter(*mine[facing].T, alpha=0.85, **look)
        axis.scatter(*mine[~facing].T, alpha=0.18, **look)
    for label, star in enumerate(stars):
        shade = styles.get(label, (style.QUIET, "o"))[0]
        alpha = 1.0 if star @ eye > 0 else 0.45
        axis.plot(*np.stack([np.zeros(3), star]).T, color=shade, lw=2.6, alpha=alpha)
        axis.plot(*star[:, None], "*", color=shade, ms=20, mec=_INK, alpha=alpha, zorder=10)
