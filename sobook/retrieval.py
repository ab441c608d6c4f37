"""Retrieval: nearest neighbors by cosine, and the metrics of the field; start with `evaluate`.

Notation: N queries, M gallery images, D embedding dimension, K neighbors looked at, R the number
of relevant images of a query: those of its class in the gallery, itself left out.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from sobook import statistics
from sobook.errors import SobookError, check_choice, plain

if sys.platform == "darwin":  # threads of its OpenMP beside those of torch's would crash
    faiss.omp_set_num_threads(1)

KS = (1, 2, 4, 8)  # of Recall@K where nothing else is asked for
_CHUNK = 4096  # queries that faiss searches at a time, which bounds memory
_ROUNDING = 1.5e-6  # cosines this close may be in either order in float32, up to 2,048 dimensions
_SPARE = 8  # neighbors searched beyond the last one wanted, to see those that are as near
_GPU_PAYS = 10**7  # queries × gallery images from which a search is moved to a GPU, our guess


@dataclass(frozen=True)
class Retrieval:
    """Result of `evaluate`; the metrics are defined there.

    Attributes:
        recall: {K: Recall@K}.
        map_at_r: MAP@R.
        r_precision: R-precision.
        nmi: normalized mutual information of k-means clusters and classes, None unless asked for.
        hits: (N, len(ks)) bool, one row per query, in the order given: is any of the first K
            relevant?
        matched: (N,) bool: does the gallery hold any image of the query's class?
        labels: (N,) labels of the queries.
        ks: the Ks, ascending.
        unmatched: how queries without a match were counted: "exclude" or "miss".
    """

    recall: dict[int, float]
    map_at_r: float
    r_precision: float
    nmi: float | None
    hits: np.ndarray = field(repr=False)
    matched: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    ks: tuple[int, ...]
    unmatched: str = "exclude"

    @property
    def counted(self) -> np.ndarray:
        """(N,) bool: the queries that the means are taken over."""
        return self.matched | (self.unmatched == "miss")

    def by_class(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Counted queries, and those with a hit among the first k, of every class: (C,) each."""
        if k not in self.ks:
            raise SobookError(f"Recall@{k} was not computed: choose one of {list(self.ks)}.")
        hits = self.hits[self.counted, self.ks.index(k)]
        _, classes = np.unique(self.labels[self.counted], return_inverse=True)
        return np.bincount(classes).astype(np.float64), np.bincount(classes, weights=hits)

    def interval(
        self, k: int, level: float = 0.95, *, resamples: int = 10_000, seed: int = 0
    ) -> tuple[float, float]:
        """Bootstrap interval of Recall@K, drawing whole classes (`statistics.class_interval`)."""
        queries, hits = self.by_class(k)
        return statistics.class_interval(hits, queries, level, resamples=resamples, seed=seed)

    def summary(self) -> dict[str, Any]:
        """The scalar results, with a 95 % interval of the first recall, for a JSON file."""
        first = self.ks[0]
        return {
            "queries": int(len(self.labels)),
            "unmatched": int((~self.matched).sum()),
            "recall": {str(k): round(value, 6) for k, value in self.recall.items()},
            f"recall_at_{first}_interval": [round(end, 6) for end in self.interval(first)],
            "map_at_r": round(self.map_at_r, 6),
            "r_precision": round(self.r_precision, 6),
            "nmi": None if self.nmi is None else round(self.nmi, 6),
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
    clusters: bool = False,
    unmatched: str = "exclude",
    seed: int = 0,
) -> Retrieval:
    """Retrieval metrics by exact cosine search, averaged over queries.

    Recall@K is 1 for a query with at least one relevant image among its first K neighbors, else 0.
    R-precision is the fraction of relevant images among the first R. MAP@R also asks where they
    stand: (1/R)·Σ P(i) over those ranks i ≤ R that hold a relevant image, with P(i) the fraction of
    relevant images among the first i.

    Without a gallery every image queries all the others: itself is excluded by its index, never
    by its position among the neighbors, so exact duplicates count as the neighbors they are.
    Images at the same similarity, as computed, count in the order of their index.

    Args:
        embeddings: (N, D) queries, tensor or array, any length but zero.
        labels: (N,) integers.
        gallery, gallery_labels: (M, D) and (M,), where queries search another set (In-Shop).
        ks: the Ks of Recall@K, each at most the number of images a query can find. None: those of
            1, 2, 4 and 8 that are.
        clusters: also cluster the queries by k-means, k = number of classes, and give the NMI.
        unmatched: "exclude" leaves queries without any match out of every mean (as
            pytorch-metric-learning does), "miss" counts them as failures (as Proxy Anchor's code).
        seed: of the k-means.

    Raises:
        SobookError: shapes that do not fit, NaN or zero vectors, and what `check_labels` refuses.

    Sources: Recall@K, Jégou, Douze and Schmid, "Product quantization for nearest neighbor search",
    PAMI 2011; MAP@R and R-precision, Musgrave, Belongie and Lim, "A metric learning reality check",
    ECCV 2020.

    >>> points = [[1, 0], [1, 0.1], [0, 1], [0.1, 1]]
    >>> evaluate(points, [0, 0, 1, 1], ks=(1, 2)).recall
    {1: 1.0, 2: 1.0}
    """
    if (gallery is None) != (gallery_labels is None):
        raise SobookError("give gallery and gallery_labels together, or neither.")
    check_choice("unmatched", unmatched, ("exclude", "miss"))
    if not 0 <= (seed := plain("seed", seed, int)) < 2**31:
        raise SobookError(f"seed is {seed}: it must be between 0 and {2**31 - 1:,}.")
    own = gallery is None
    queries, gallery = _unit_pair(embeddings, gallery)
    labels = _checked_labels(labels, queries)
    gallery_labels = labels if own else _checked_labels(gallery_labels, gallery)
    ks, num_relevant = check_labels(labels, None if own else gallery_labels, ks=ks)
    matched = num_relevant > 0

    depth = max(max(ks), int(num_relevant.max()))
    first_hit = np.empty(len(queries), int)  # rank of the first relevant image, from 0
    average_precision, r_precision = np.empty(len(queries)), np.empty(len(queries))
    for rows, _, indices in _search(queries, gallery, depth, own, (labels, gallery_labels)):
        relevant = gallery_labels[indices] == labels[rows, None]  # (chunk, depth)
        first_hit[rows] = np.where(relevant.any(1), relevant.argmax(1), depth)
        average_precision[rows], r_precision[rows] = _at_r(relevant, num_relevant[rows])

    hits = first_hit[:, None] < np.array(ks)  # (N, len(ks))
    counted = matched | (unmatched == "miss")
    return Retrieval(
        recall={k: float(hits[counted, i].mean()) for i, k in enumerate(ks)},
        map_at_r=float(average_precision[counted].mean()),
        r_precision=float(r_precision[counted].mean()),
        nmi=_nmi(queries.cpu().numpy(), labels, seed) if clusters else None,
        hits=hits,
        matched=matched,
        labels=labels,
        ks=ks,
        unmatched=unmatched,
    )


def check_labels(
    labels: np.ndarray, gallery_labels: np.ndarray | None = None, *, ks: Iterable[int] | None = None
) -> tuple[tuple[int, ...], np.ndarray]:
    """What can be known before anything is embedded: can images of these labels be evaluated?

    Args:
        labels: (N,) of the queries.
        gallery_labels: (M,), where queries search another set.
        ks: as for `evaluate`.

    Returns:
        The Ks, ascending, and (N,) the number R of relevant images of every query.

    Raises:
        SobookError: K larger than the gallery, one class only, no query with a match.
    """
    own = gallery_labels is None
    gallery_labels = labels if gallery_labels is None else gallery_labels
    available = len(gallery_labels) - own
    if len(np.unique(np.concatenate([labels, gallery_labels]))) < 2:
        raise SobookError("all labels are the same: with one class only, every image is relevant.")
    count = Counter(gallery_labels.tolist())
    num_relevant = np.array([count[label] for label in labels.tolist()]) - own  # (N,): R
    if not (num_relevant > 0).any():
        raise SobookError("no query has an image of its class in the gallery: check the labels.")
    return _checked_ks(fitting(KS, available) if ks is None else ks, available), num_relevant


def fitting(ks: Iterable[int], available: int) -> tuple[int, ...]:
    """Those of the Ks that can be reported where a query can find so many images."""
    return tuple(k for k in ks if k <= available)


def nearest_neighbors(
    embeddings: Any, k: int, *, gallery: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest images of each query by cosine, nearest first.

    Args:
        embeddings: (N, D) queries, tensor or array, any length but zero.
        k: neighbors wanted, at most the number of images a query can find.
        gallery: (M, D) images to search; without it, the queries themselves, each leaving out
            itself by index.

    Returns:
        similarities (N, k) float32 and indices (N, k) int64 into the gallery. Similarities that
        are equal as computed come in the order of their index.

    Raises:
        SobookError: shapes that do not fit, NaN or zero vectors, k larger than the gallery.
    """
    own = gallery is None
    queries, gallery = _unit_pair(embeddings, gallery)
    (k,) = _checked_ks((k,), len(gallery) - own)
    _, similarities, indices = zip(*_search(queries, gallery, k, own), strict=True)
    return np.concatenate(similarities), np.concatenate(indices)


def _search(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    own: bool,
    classes: tuple[np.ndarray, np.ndarray] | None = None,
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yields, a chunk of queries at a time, which they are, and their k neighbors by index in ties.

    With `own`, queries and gallery are the same images and each leaves out itself. The search is in
    float32; where that cannot tell which of two is nearer, cosines in float64, rounded once to
    float32, decide: so no rank depends on k, on the chunk, or on how a library adds up. With
    `classes`, labels (N,) and (M,), this is left out where all that are close are relevant, or none
    is: then only who is relevant at which rank is sure.
    """
    listed = min(k + own + _SPARE, len(gallery))
    if gallery.device.type == "cpu":
        top, size = _top_by_faiss, _CHUNK
    else:
        top, size = _top_by_torch, 1 + 2**26 // len(gallery)  # cosines of 256 MB
    for start in range(0, len(queries), size):
        rows = slice(start, min(start + size, len(queries)))
        similarities, indices = top(queries[rows], gallery, listed)
        if own:
            similarities, indices = _without_own(similarities, indices, rows)
        close = similarities[:, :-1] - similarities[:, 1:] <= _ROUNDING
        matters = close
        if classes is not None:
            matters = _mixed(close, classes[1][indices] == classes[0][rows, None])
        _settle(queries[rows], gallery, similarities, indices, matters)
        # Close down to the last one listed: what is not listed may be as near.
        unsure = np.flatnonzero(close[:, k - 1 :].all(1) & (listed < len(gallery)))
        for at in range(0, len(unsure), block := 1 + 2**23 // len(gallery)):
            some = unsure[at : at + block]
            found = _rank_all(queries, gallery, start + some, k, own)
            similarities[some, :k], indices[some, :k] = found
        yield rows, similarities[:, :k], indices[:, :k]


def _settle(
    queries: Tensor,
    gallery: Tensor,
    similarities: np.ndarray,
    indices: np.ndarray,
    close: np.ndarray,
) -> None:
    """Put groups of neighbors (n, L), each close to the next one (n, L − 1), in order, in place."""
    follows = np.pad(close, ((0, 0), (1, 0)))
    row, place = np.nonzero(follows | np.pad(close, ((0, 0), (0, 1))))
    found, cosines = indices[row, place], similarities[row, place]
    for at in range(0, len(row), block := 1 + 2**18 // queries.shape[1]):
        some = slice(at, at + block)
        products = _double(queries[row[some]]) * _double(gallery[found[some]])  # (block, D)
        cosines[some] = products.sum(1).float().cpu().numpy()
    group = np.cumsum(~follows[row, place])
    order = np.lexsort((found, -cosines, group))
    similarities[row, place], indices[row, place] = cosines[order], found[order]


def _mixed(close: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Of neighbors close to the next one, (n, L − 1), those in groups with both kinds of (n, L)."""
    starts = np.pad(~close, ((0, 0), (1, 0)), constant_values=True)
    group = (np.cumsum(starts) - 1).reshape(relevant.shape)[:, :-1]
    mixed = np.zeros(starts.sum(), bool)
    mixed[group[close & (relevant[:, :-1] != relevant[:, 1:])]] = True
    return close & mixed[group]


def _rank_all(
    queries: Tensor, gallery: Tensor, rows: np.ndarray, k: int, own: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of the whole gallery for some of the queries, in float64."""
    cosines = (_double(queries[rows]) @ _double(gallery).T).float().cpu().numpy()
    if own:
        cosines[np.arange(len(rows)), rows] = -np.inf
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, order, 1), order


def _double(rows: Tensor) -> Tensor:
    """In float64, which Apple's GPUs do not have."""
    return (rows.cpu() if rows.device.type == "mps" else rows).double()


def _top_by_faiss(queries: Tensor, gallery: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    return faiss.knn(queries.numpy(), gallery.numpy(), count, metric=faiss.METRIC_INNER_PRODUCT)


def _top_by_torch(queries: Tensor, gallery: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    nearest = (queries @ gallery.T).topk(count, dim=1)
    return nearest.values.cpu().numpy(), nearest.indices.cpu().numpy()


def _without_own(
    similarities: np.ndarray, indices: np.ndarray, rows: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Leave each query's own index out of its neighbors."""
    keep = indices != np.arange(rows.start, rows.stop)[:, None]
    if not keep[:, 0].any():  # no duplicates: everyone is nearest to itself
        return similarities[:, 1:], indices[:, 1:]
    # Among more than k exact duplicates the query itself may not be listed: then drop the last.
    keep[keep.all(1), -1] = False
    return tuple(part[keep].reshape(len(part), -1) for part in (similarities, indices))


def _at_r(relevant: np.ndarray, num_relevant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision at R and R-precision per query; relevant is (n, depth), depth ≥ R."""
    relevant = relevant[:, : max(1, num_relevant.max())]  # nothing further back counts
    ranks = np.arange(1, relevant.shape[1] + 1)
    within = relevant & (ranks <= num_relevant[:, None])
    precision_at_rank = within.cumsum(1) / ranks
    divisor = np.maximum(num_relevant, 1)
    return (precision_at_rank * within).sum(1) / divisor, within.sum(1) / divisor


def _nmi(queries: np.ndarray, labels: np.ndarray, seed: int) -> float:
    from sklearn.metrics import normalized_mutual_info_score

    classes = len(np.unique(labels))
    kmeans = faiss.Kmeans(queries.shape[1], classes, niter=20, seed=seed, min_points_per_centroid=1)
    kmeans.train(queries)
    _, clusters = kmeans.index.search(queries, 1)
    return float(normalized_mutual_info_score(labels, clusters[:, 0]))


def _unit_pair(embeddings: Any, gallery: Any) -> tuple[Tensor, Tensor]:
    """Unit rows of queries and gallery on the device that searches; without one, the same twice."""
    queries = _unit_rows(embeddings, "embeddings")
    searched = queries if gallery is None else _unit_rows(gallery, "gallery")
    if queries.shape[1] != searched.shape[1]:
        raise SobookError(
            f"the gallery has dimension {searched.shape[1]}, the queries {queries.shape[1]}."
        )
    device = queries.device
    if torch.cuda.is_available() and len(queries) * len(searched) >= _GPU_PAYS:
        device = torch.device("cuda")
    queries = queries.to(device)
    return queries, queries if gallery is None else searched.to(device)


def _unit_rows(rows: Any, name: str) -> Tensor:
    """(N, D) float32 rows of unit length, on the device they are on."""
    if not torch.is_tensor(rows):
        rows = np.asarray(rows)
        if rows.dtype.kind not in "biufO":
            raise SobookError(f"{name} are {rows.dtype}, expected numbers (N, D).")
        try:
            rows = torch.tensor(rows.astype(np.float32))
        except (TypeError, ValueError):  # of objects that are no numbers
            raise SobookError(
                f"{name} hold something that is no number, expected (N, D)."
            ) from None
    rows = rows.detach().float()
    if rows.ndim != 2 or rows.numel() == 0:
        raise SobookError(f"{name} have shape {tuple(rows.shape)}, expected (N, D) with N, D ≥ 1.")
    lengths = _double(rows).norm(dim=1, keepdim=True)
    bad = (~(lengths.isfinite() & (lengths > 0))).flatten().nonzero()
    if len(bad):
        raise SobookError(
            f"row {int(bad[0])} of the {name} is zero, NaN or infinite ({len(bad)} such rows): "
            "leave it out, or find out what made it."
        )
    return (_double(rows) / lengths).float().to(rows.device)  # rounded once


def _checked_labels(labels: Any, rows: Tensor) -> np.ndarray:
    labels = np.asarray(labels.cpu() if torch.is_tensor(labels) else labels)
    if labels.shape != (len(rows),) or not np.issubdtype(labels.dtype, np.integer):
        raise SobookError(
            f"labels are {labels.dtype} {labels.shape}, expected whole numbers ({len(rows)},)."
        )
    return labels.astype(np.int64)


def _checked_ks(ks: Iterable[int], available: int) -> tuple[int, ...]:
    ks = tuple(ks) if isinstance(ks, Iterable) else (ks,)
    ks = tuple(sorted({plain("K", k, int) for k in ks}))
    if not ks or ks[0] < 1:
        raise SobookError(f"ks are {list(ks)}: give whole numbers from 1 upwards.")
    if ks[-1] > available:
        raise SobookError(
            f"K = {ks[-1]} is larger than the gallery: a query can find {available} images."
        )
    return ks
