"""Retrieval: nearest neighbors by cosine, and the metrics of the field; start with `evaluate`.

Notation: N queries, M gallery images, D embedding dimension, K neighbors looked at, R the number
of relevant images of a query: those of its class in the gallery, itself left out.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np

from sobook import statistics
from sobook.errors import SobookError, plain

if sys.platform == "darwin":  # threads of its OpenMP beside those of torch's would crash
    faiss.omp_set_num_threads(1)

KS = (1, 2, 4, 8)  # default Ks of Recall@K
_CHUNK = 4096  # queries per search, which bounds memory


@dataclass(frozen=True)
class Retrieval:
    """Result of `evaluate`; the metrics are defined there.

    Attributes:
        recall, map_at_r, r_precision: means over the counted queries; recall is {K: Recall@K}.
        hits: (N, len(ks)) bool, a row per query: is any of its first K neighbors relevant?
        counted: (N,) bool: the queries that have a relevant image.
        labels: (N,) labels of the queries.
        ks: the Ks, ascending.
    """

    recall: dict[int, float]
    map_at_r: float
    r_precision: float
    hits: np.ndarray = field(repr=False)
    counted: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    ks: tuple[int, ...]

    def by_class(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Counted queries, and those with a hit among the first k, of every class: (C,) each."""
        if k not in self.ks:
            raise SobookError(f"Recall@{k} was not computed: choose one of {list(self.ks)}.")
        hits = self.hits[self.counted, self.ks.index(k)]
        _, classes = np.unique(self.labels[self.counted], return_inverse=True)
        return np.bincount(classes).astype(np.float64), np.bincount(classes, weights=hits)

    def interval(self, k: int) -> tuple[float, float]:
        """95 % interval of Recall@K over classes, see `statistics.class_interval`."""
        queries, hits = self.by_class(k)
        return statistics.class_interval(hits, queries)

    def summary(self) -> dict[str, Any]:
        """The scalar results, with a 95 % interval of the first recall, for a JSON file."""
        first = self.ks[0]
        interval = [round(end, 6) for end in self.interval(first) if np.isfinite(end)]
        return {
            "queries": len(self.labels),
            "unmatched": int((~self.counted).sum()),
            "recall": {str(k): round(value, 6) for k, value in self.recall.items()},
            f"recall_at_{first}_interval": interval or None,
            "map_at_r": round(self.map_at_r, 6),
            "r_precision": round(self.r_precision, 6),
        }

    def __str__(self) -> str:
        recalls = "  ".join(f"R@{k} {value:.3f}" for k, value in self.recall.items())
        return f"{recalls}  MAP@R {self.map_at_r:.3f}  R-precision {self.r_precision:.3f}"


def evaluate(
    embeddings: Any,
    labels: Any,
    *,
    gallery: Any = None,
    gallery_labels: Any = None,
    ks: Iterable[int] | None = None,
) -> Retrieval:
    """Retrieval metrics by exact cosine search, averaged over the queries with a relevant image.

    Recall@K is 1 for a query with at least one relevant image among its first K neighbors, else 0.
    R-precision is the fraction of relevant images among the first R. MAP@R also asks where they
    stand: (1/R)·Σ P(i) over those ranks i ≤ R that hold a relevant image, with P(i) the fraction of
    relevant images among the first i.

    Args:
        embeddings: (N, D) queries, tensor or array, any length but zero.
        labels: (N,) integers.
        gallery, gallery_labels: (M, D) and (M,), where queries search another set (In-Shop).
            Without them every image queries all the others.
        ks: the Ks of Recall@K, each at most the number of images a query can find. None: those of
            1, 2, 4 and 8 that are.

    Raises:
        SobookError: shapes that do not fit, NaN or zero vectors, and what `check_labels` refuses.

    Sources: Jégou, Douze and Schmid, PAMI 2011 (Recall@K); Musgrave, Belongie and Lim, "A metric
    learning reality check", ECCV 2020 (MAP@R, R-precision).

    >>> points = [[1, 0], [1, 0.1], [0, 1], [0.1, 1]]
    >>> evaluate(points, [0, 0, 1, 1], ks=(1, 2)).recall
    {1: 1.0, 2: 1.0}
    """
    if (gallery is None) != (gallery_labels is None):
        raise SobookError("give gallery and gallery_labels together, or neither.")
    labels = _checked_labels(labels, len(embeddings))
    if gallery is not None:
        gallery_labels = _checked_labels(gallery_labels, len(gallery))
    ks, num_relevant = check_labels(labels, gallery_labels, ks=ks)
    searched_labels = labels if gallery is None else gallery_labels

    depth = max(*ks, int(num_relevant.max()))
    first_hit = np.empty(len(labels), int)  # rank of the first relevant image, from 0
    average_precision, r_precision = np.empty(len(labels)), np.empty(len(labels))
    for rows, _, indices in _search(embeddings, gallery, depth):
        relevant = searched_labels[indices] == labels[rows, None]  # (chunk, depth)
        first_hit[rows] = np.where(relevant.any(1), relevant.argmax(1), depth)
        average_precision[rows], r_precision[rows] = _at_r(relevant, num_relevant[rows])

    hits, counted = first_hit[:, None] < np.array(ks), num_relevant > 0  # (N, len(ks)), (N,)
    return Retrieval(
        recall={k: float(hits[counted, i].mean()) for i, k in enumerate(ks)},
        map_at_r=float(average_precision[counted].mean()),
        r_precision=float(r_precision[counted].mean()),
        hits=hits,
        counted=counted,
        labels=labels,
        ks=ks,
    )


def check_labels(
    labels: np.ndarray, gallery_labels: np.ndarray | None = None, *, ks: Iterable[int] | None = None
) -> tuple[tuple[int, ...], np.ndarray]:
    """Check that retrieval on these labels is defined, before anything is embedded.

    Args:
        labels, gallery_labels, ks: as for `evaluate`.

    Returns:
        The Ks, ascending, and (N,) the number R of relevant images of every query.

    Raises:
        SobookError: K larger than the gallery, one class only, no query with a relevant image.
    """
    searched, itself = (labels, 1) if gallery_labels is None else (gallery_labels, 0)
    classes, indices = np.unique(np.concatenate([labels, searched]), return_inverse=True)
    if len(classes) < 2:
        raise SobookError("all labels are the same: with one class only, every image is relevant.")
    counts = np.bincount(indices[len(labels) :], minlength=len(classes))
    num_relevant = counts[indices[: len(labels)]] - itself  # (N,): R
    if not (num_relevant > 0).any():
        raise SobookError("no query has an image of its class in the gallery: check the labels.")
    available = len(searched) - itself
    return _checked_ks(feasible_ks(KS, available) if ks is None else ks, available), num_relevant


def feasible_ks(ks: Iterable[int], available: int) -> tuple[int, ...]:
    """The Ks that can be reported where a query can find so many images."""
    return tuple(k for k in ks if k <= available)


def nearest_neighbors(
    embeddings: Any, k: int, *, gallery: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest images of each query by cosine, nearest first.

    Args:
        embeddings: (N, D) queries, tensor or array, any length but zero.
        k: neighbors wanted, at most the number of images a query can find.
        gallery: (M, D) images to search; without it, the other queries.

    Returns:
        similarities (N, k) float32 and indices (N, k) int64 into the gallery.

    Raises:
        SobookError: shapes that do not fit, NaN or zero vectors, k larger than the gallery.
    """
    (k,) = _checked_ks((k,), len(embeddings) - 1 if gallery is None else len(gallery))
    _, similarities, indices = zip(*_search(embeddings, gallery, k), strict=True)
    return np.concatenate(similarities), np.concatenate(indices)


def _search(queries: Any, gallery: Any, k: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the rows of each chunk of queries, and cosines and indices of their neighbors.

    Without a gallery each query leaves out itself, by its index and never by its position: among
    exact duplicates it may stand anywhere, or not be listed at all.
    """
    unit, itself = _unit_rows(queries, "embeddings"), gallery is None
    searched = unit if itself else _unit_rows(gallery, "gallery")
    if unit.shape[1] != searched.shape[1]:
        raise SobookError(f"dimensions differ: queries {unit.shape}, gallery {searched.shape}.")
    for rows in np.array_split(np.arange(len(unit)), 1 + len(unit) // _CHUNK):
        cosines, indices = faiss.knn(unit[rows], searched, k + itself, faiss.METRIC_INNER_PRODUCT)
        if itself:
            keep = indices != rows[:, None]
            keep[keep.all(1), -1] = False  # not listed: leave out the last neighbor
            cosines, indices = (part[keep].reshape(-1, k) for part in (cosines, indices))
        yield rows, cosines, indices


def _at_r(relevant: np.ndarray, num_relevant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision at R and R-precision per query; relevant is (n, depth), depth ≥ R."""
    relevant = relevant[:, : max(1, num_relevant.max())]  # nothing further back counts
    ranks = np.arange(1, relevant.shape[1] + 1)
    within = relevant & (ranks <= num_relevant[:, None])
    divisor = np.maximum(num_relevant, 1)
    return (within.cumsum(1) / ranks * within).sum(1) / divisor, within.sum(1) / divisor


def _unit_rows(rows: Any, name: str) -> np.ndarray:
    """(N, D) float32 rows of unit length."""
    rows = statistics.as_array(rows.detach().float().cpu() if hasattr(rows, "detach") else rows)
    if rows.ndim != 2 or not rows.size or rows.dtype.kind not in "biuf":
        raise SobookError(f"{name} are {rows.dtype} {rows.shape}, expected numbers (N, D).")
    rows = rows.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(bad):
        raise SobookError(f"row {bad[0]} of the {name} is zero, NaN or infinite: leave it out.")
    return (rows / lengths).astype(np.float32)  # rounded once


def _checked_labels(labels: Any, size: int) -> np.ndarray:
    labels = statistics.as_array(labels.cpu() if hasattr(labels, "cpu") else labels)
    if labels.shape != (size,) or labels.dtype.kind not in "iu":
        raise SobookError(f"labels are {labels.dtype} {labels.shape}, expected integers ({size},).")
    return labels.astype(np.int64)


def _checked_ks(ks: Iterable[int], available: int) -> tuple[int, ...]:
    ks = tuple(sorted({plain("K", k, int) for k in ks}))
    if not ks or not 1 <= ks[0] <= ks[-1] <= available:
        raise SobookError(f"K is {list(ks)}: a query can find from 1 to {available} images.")
    return ks
