"""Maps of embeddings in the plane, and how far each can be trusted.

Notation: N points, D dimensions. Neighbors are those by cosine, found by faiss and given to UMAP
ready-made: all of them exactly up to 20,000 points, beyond that nearly all (an inverted file).
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass

import numpy as np

from sobook import geometry
from sobook.errors import SobookError
from sobook.retrieval import nearest_neighbors

_SPECTRAL_UP_TO = 10_000  # points; beyond, the start from eigenvectors takes longer than the rest
_EXACT_UP_TO = 20_000  # points; beyond, exact neighbors take longer than the layout
_ROUNDS = 100  # of the layout of larger sets: 200 of them moved trustworthiness from 0.66 to 0.67


@dataclass(frozen=True)
class MapQuality:
    """What a map keeps of the space; made by `quality`.

    Attributes:
        trustworthiness: 1 when all neighbors on the map are neighbors in the space (Venna and
            Kaski, ICANN 2001). Lenient: a false neighbor that is nearly one costs little.
        overlap: mean share of a point's k nearest in the space that are among its k nearest on
            the map. Strict.
        k: neighbors looked at.
        points: points looked at.
    """

    trustworthiness: float
    overlap: float
    k: int
    points: int

    def __str__(self) -> str:
        return (
            f"trustworthiness {self.trustworthiness:.2f}, "
            f"{self.overlap:.0%} of {self.k} neighbors kept"
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


def _umap(points: np.ndarray, seed: int | None, k: int) -> np.ndarray:
    import umap  # here, not above: its import takes seconds

    _keep_compiled(umap.umap_, umap.layouts)
    # UMAP counts a point among its own neighbors.
    search = nearest_neighbors if len(points) <= _EXACT_UP_TO else _nearly
    similarities, found = search(points, k - 1)
    own = np.arange(len(points))[:, None]
    distances = np.clip(1 - similarities, 0, 2)
    ready = np.hstack([own, found]), np.hstack([np.zeros_like(distances[:, :1]), distances])
    small = len(points) <= _SPECTRAL_UP_TO
    layout = umap.UMAP(
        n_neighbors=k,
        metric="cosine",
        precomputed_knn=ready,
        force_approximation_algorithm=True,  # or small sets ignore the neighbors
        init="spectral" if small else _two_components(points, seed),
        n_epochs=None if small else _ROUNDS,
        random_state=seed,
        n_jobs=1 if seed is not None else -1,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "precomputed_knn", UserWarning)  # nothing is added later
        return layout.fit_transform(points)


def _keep_compiled(*modules) -> None:
    """Let numba keep on disk what it compiles for UMAP: seconds once, not in every process."""
    from numba.core.dispatcher import Dispatcher

    for module in modules:
        for function in vars(module).values():
            if isinstance(function, Dispatcher) and not function.signatures:
                with contextlib.suppress(RuntimeError):  # no place where this user may write
                    function.enable_caching()


def _two_components(points: np.ndarray, seed: int | None) -> np.ndarray:
    """(N, 2) where a large map starts: the first principal components, and a little noise.

    From the (D, D) covariance: `init="pca"` of UMAP decomposes all N rows, which takes far longer.
    """
    centered = points - points.mean(axis=0)
    _, directions = np.linalg.eigh(centered.T @ centered)  # ascending
    plane = centered @ directions[:, :-3:-1]
    noise = np.random.default_rng(seed).normal(scale=1e-5, size=plane.shape)  # parts duplicates
    return (10 * (plane / np.abs(plane).max() + noise)).astype(np.float32)


def _nearly(points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each unit-length point, itself left out, from an inverted file of faiss.

    Cells are the Voronoi cells of √N · 2 centers; the 8 nearest cells are searched. Where they
    hold fewer than k others, a place is filled by the point itself.
    """
    import faiss

    cells = int(2 * np.sqrt(len(points)))
    coarse = faiss.IndexFlatIP(points.shape[1])
    index = faiss.IndexIVFFlat(coarse, points.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.seed, index.nprobe = 10, 0, 8
    index.cp.max_points_per_centroid = 64  # enough for cells, and half the time
    index.train(points)
    index.add(points)
    similarities, found = index.search(points, k + 1)
    own = np.arange(len(points))[:, None]
    similarities = np.where(found < 0, 1.0, similarities).astype(np.float32)
    found = np.where(found < 0, own, found)
    keep = found != own
    keep[keep.all(axis=1), -1] = False  # itself not listed, as among duplicates: drop the last
    order = np.argsort(~keep, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, 1), np.take_along_axis(found, order, 1)


def quality(embeddings, plane, *, k: int = 15, most: int = 2000, seed: int = 0) -> MapQuality:
    """Trustworthiness and neighborhood overlap of a map.

    Args:
        embeddings: (N, D).
        plane: (N, 2).
        k: neighbors to look at.
        most: of more points than this, a random sample is looked at.
        seed: of the sample.
    """
    from sklearn.manifold import trustworthiness

    plane = np.asarray(plane)
    if len(plane) != len(embeddings):
        raise SobookError(f"{len(embeddings)} embeddings but {len(plane)} places on the map")
    chosen = np.random.default_rng(seed).permutation(len(plane))[:most]
    unit = geometry.unit_rows(embeddings, "embeddings")[chosen]
    k = max(1, min(k, (len(chosen) - 1) // 2))
    trust = trustworthiness(unit, plane[chosen], n_neighbors=k, metric="cosine")
    kept = [
        np.isin(a, b)
        for a, b in zip(nearest_neighbors(unit, k)[1], _on_map(plane[chosen], k), strict=True)
    ]
    return MapQuality(float(trust), float(np.mean(kept)), k, len(chosen))


def place(points, others, plane, *, k: int = 15) -> np.ndarray:
    """Where new points would lie on a map: the weighted mean of the places of their neighbors.

    Weights fall off as e^((s − s₁)/τ) with the cosine s, s₁ that of the nearest and τ the spread
    of the k cosines: a rough form of UMAP's own transform, enough to follow a proxy over epochs.

    Args:
        points: (M, D) to be placed.
        others: (N, D) on the map.
        plane: (N, 2) their places.
        k: neighbors that take part.

    Returns:
        (M, 2)
    """
    similarities, found = nearest_neighbors(points, min(k, len(others)), gallery=others)
    spread = similarities[:, :1] - similarities.mean(axis=1, keepdims=True)
    weights = np.exp((similarities - similarities[:, :1]) / np.maximum(spread, 1e-6))
    weights /= weights.sum(axis=1, keepdims=True)
    return (weights[:, :, None] * np.asarray(plane)[found]).sum(axis=1)


def align(plane, onto) -> np.ndarray:
    """A map turned, mirrored, shifted and scaled to lie as near as it can on another of the same
    points; nothing within the map changes.

    Args:
        plane, onto: (N, 2) each.
    """
    plane, onto = np.asarray(plane, float), np.asarray(onto, float)
    middle, target = plane.mean(axis=0), onto.mean(axis=0)
    left, size, right = np.linalg.svd((plane - middle).T @ (onto - target))
    scale = size.sum() / np.square(plane - middle).sum()
    return scale * (plane - middle) @ left @ right + target


def _on_map(plane: np.ndarray, k: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k).fit(plane).kneighbors(return_distance=False)
