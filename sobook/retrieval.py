"""Exact retrieval: nearest neighbours by cosine, and the measures of the field.

Letters: N queries, M gallery images, D embedding dimension, K neighbours looked at, R the number
of gallery images that share the query's class. Neighbours are found by faiss, exactly.
"""

from dataclasses import dataclass, field

import faiss
import numpy as np

from sobook.resources import suggest

UNMATCHED = ("exclude", "miss")
_CHUNK = 4096  # queries searched at a time: bounds memory, and faiss is at full speed well below it


@dataclass(frozen=True)
class Retrieval:
    """Result of `evaluate`.

    Attributes:
        recall: {K: share of queries with at least one right image among the first K}.
        map_at_r: mean average precision at R (Musgrave et al., arXiv 2003.08505).
        r_precision: mean share of right images among the first R.
        nmi: normalised mutual information of k-means clusters and classes, None unless asked for.
        hits: (N, len(ks)) bool, one row a query, in the order given.
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

    def interval(
        self, k: int, level: float = 0.95, *, resamples: int = 10_000, seed: int = 0
    ) -> tuple[float, float]:
        """Bootstrap interval of Recall@K, resampling whole classes.

        Queries of one class succeed and fail together, so the class, not the query, is drawn anew.

        Args:
            k: one of `ks`.
            level: coverage, between 0 and 1.
            resamples: bootstrap samples.
            seed: of the resampling.

        Returns:
            Lower and upper end of the percentile interval.
        """
        queries, successes = self._by_class(k)
        draws = _class_draws(len(queries), resamples, seed)
        recalls = np.concatenate([(d @ successes) / (d @ queries) for d in draws])
        return _percentiles(recalls, level)

    def _by_class(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Queries and successes at K of every class, (C,) each."""
        if k not in self.ks:
            raise ValueError(f"Recall@{k} was not computed: choose one of {list(self.ks)}.")
        counted = self._counted()
        hit = self.hits[counted, self.ks.index(k)]
        _, classes = np.unique(self.labels[counted], return_inverse=True)
        queries = np.bincount(classes).astype(np.float64)
        return queries, np.bincount(classes, weights=hit)

    def _counted(self) -> np.ndarray:
        return self.matched if self.unmatched == "exclude" else np.ones(len(self.labels), bool)

    def summary(self) -> dict:
        """The single numbers, with a 95 % interval of the first recall, for a JSON file."""
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
    embeddings,
    labels,
    *,
    gallery=None,
    gallery_labels=None,
    ks=(1, 2, 4, 8),
    clusters: bool = False,
    unmatched: str = "exclude",
    seed: int = 0,
) -> Retrieval:
    """Retrieval measures by exact cosine search.

    Without a gallery every image queries all the others: itself is excluded by its index, never
    by its position among the neighbours, so exact duplicates count as the neighbours they are.

    Args:
        embeddings: (N, D) queries, tensor or array, any length but zero.
        labels: (N,) integers.
        gallery, gallery_labels: (M, D) and (M,), where queries search another set (In-Shop).
        ks: the Ks of Recall@K, each at most the number of images a query can find.
        clusters: also cluster the queries by k-means, k = number of classes, and give the NMI.
        unmatched: "exclude" leaves queries without any match out of every mean (as
            pytorch-metric-learning does), "miss" counts them as failures (as Proxy Anchor's code).
        seed: of the k-means.

    Returns:
        A `Retrieval`.

    Raises:
        ValueError: shapes that do not fit, NaN or zero vectors, K larger than the gallery, one
            class only, no query with a match.

    Sources: Recall@K, Jégou et al. 2011; MAP@R and R-precision, Musgrave et al. 2020.

    >>> points = [[1, 0], [1, 0.1], [0, 1], [0.1, 1]]
    >>> evaluate(points, [0, 0, 1, 1], ks=(1, 2)).recall
    {1: 1.0, 2: 1.0}
    """
    queries, labels = _unit_float32(embeddings, "embeddings"), _checked_labels(labels, embeddings)
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("give gallery and gallery_labels together, or neither.")
    own = gallery is None
    found = queries if own else _unit_float32(gallery, "gallery")
    found_labels = labels if own else _checked_labels(gallery_labels, gallery)
    ks = _checked_ks(ks, len(found) - own)
    if unmatched not in UNMATCHED:
        raise ValueError(
            f"unknown option unmatched={unmatched!r}: choose 'exclude' or 'miss'."
            f"{suggest(unmatched, UNMATCHED)}"
        )
    if len(np.unique(np.concatenate([labels, found_labels]))) < 2:
        raise ValueError("all labels are the same: with one class only every answer is right.")

    _check_dimensions(queries, found)
    relevant = _count_relevant(labels, found_labels, own)  # (N,) R of each query
    matched = relevant > 0
    if not matched.any():
        raise ValueError("no query has an image of its class in the gallery: check the labels.")
    depth = max(max(ks), int(relevant.max()))
    hits = np.zeros((len(queries), len(ks)), bool)
    average_precision = np.zeros(len(queries))
    precision = np.zeros(len(queries))
    for rows, _, indices in _search(queries, found, depth, own):
        right = found_labels[indices] == labels[rows, None]  # (chunk, depth)
        hits[rows] = np.stack([right[:, :k].any(1) for k in ks], axis=1)
        average_precision[rows], precision[rows] = _at_r(right, relevant[rows])

    counted = matched if unmatched == "exclude" else np.ones(len(queries), bool)
    return Retrieval(
        recall={k: float(hits[counted, i].mean()) for i, k in enumerate(ks)},
        map_at_r=float(average_precision[counted].mean()),
        r_precision=float(precision[counted].mean()),
        nmi=_nmi(queries, labels, seed) if clusters else None,
        hits=hits,
        matched=matched,
        labels=labels,
        ks=ks,
        unmatched=unmatched,
    )


def difference(
    first: Retrieval,
    second: Retrieval,
    k: int = 1,
    level: float = 0.95,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Recall@K of the second minus that of the first, with a paired bootstrap interval.

    Both are results on the same queries; each resample draws the same classes for both, so that
    what makes a class hard cancels.

    Returns:
        The difference, and the lower and upper end of its interval.

    Raises:
        ValueError: the two are not on the same queries.
    """
    if not np.array_equal(first.labels, second.labels) or not np.array_equal(
        first._counted(), second._counted()
    ):
        raise ValueError("the two results are not on the same queries: evaluate both alike.")
    queries, before = first._by_class(k)
    _, after = second._by_class(k)
    change = after - before
    draws = _class_draws(len(queries), resamples, seed)
    changes = np.concatenate([(d @ change) / (d @ queries) for d in draws])
    low, high = _percentiles(changes, level)
    return float(change.sum() / queries.sum()), low, high


def _class_draws(classes: int, resamples: int, seed: int, block: int = 500):
    """Bootstrap samples of classes, a block at a time: (block, C) how often each was drawn."""
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}: give at least 1, usually 10,000.")
    rng = np.random.default_rng(seed)
    share = np.full(classes, 1 / classes)
    for start in range(0, resamples, block):
        yield rng.multinomial(classes, share, size=min(block, resamples - start)).astype(float)


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: it must lie between 0 and 1, e.g. 0.95.")
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def neighbours(embeddings, k: int, *, gallery=None) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest images of each query by cosine, nearest first.

    Args:
        embeddings: (N, D) queries.
        k: neighbours wanted, at most the number of images a query can find.
        gallery: (M, D) images to search; without it, the queries themselves, each leaving out
            itself by index.

    Returns:
        similarities (N, k) float32 and indices (N, k) int64 into the gallery. Similarities that
        are equal as computed come in the order of their index, also where the last of them are
        cut off.
    """
    queries = _unit_float32(embeddings, "embeddings")
    found = queries if gallery is None else _unit_float32(gallery, "gallery")
    _check_dimensions(queries, found)
    (k,) = _checked_ks((k,), len(found) - (gallery is None))
    chunks = list(_search(queries, found, k, own=gallery is None))
    return np.concatenate([chunk[1] for chunk in chunks]), np.concatenate([c[2] for c in chunks])


def _search(queries, found, k: int, own: bool):
    """Exact top k in chunks: yields (rows, similarities, indices).

    With `own`, queries and gallery are the same images and each leaves out itself.
    """
    index = faiss.IndexFlatIP(found.shape[1])
    index.add(found)
    for start in range(0, len(queries), _CHUNK):
        rows = slice(start, min(start + _CHUNK, len(queries)))
        own_index = np.arange(rows.start, rows.stop) if own else None
        similarities, indices = index.search(queries[rows], min(k + own + 1, len(found)))
        if own:
            similarities, indices = _drop(similarities, indices, own_index)
        _settle_cut(similarities, indices, queries[rows], found, k, own_index)
        yield rows, *_order_ties(similarities[:, :k], indices[:, :k])


def _drop(similarities, indices, own_index):
    """Leave each query's own index out of its k + 1 neighbours."""
    drop = indices == own_index[:, None]
    # Among more than k exact duplicates the query itself may not be listed: then drop the last.
    drop[~drop.any(1), -1] = True
    shape = (len(indices), indices.shape[1] - 1)
    return similarities[~drop].reshape(shape), indices[~drop].reshape(shape)


def _settle_cut(similarities, indices, queries, found, k: int, own_index) -> None:
    """Where the k-th and the next neighbour are equally near, keep those of lowest index."""
    if similarities.shape[1] <= k:
        return  # everything there is was found
    for i in np.flatnonzero(similarities[:, k - 1] == similarities[:, k]):
        cosines = found @ queries[i]
        if own_index is not None:
            cosines[own_index[i]] = -np.inf
        last = -np.partition(-cosines, k - 1)[k - 1]
        nearer = np.flatnonzero(cosines > last)
        indices[i, :k] = np.r_[nearer, np.flatnonzero(cosines == last)[: k - len(nearer)]]
        similarities[i, :k] = cosines[indices[i, :k]]


def _order_ties(similarities, indices):
    order = np.lexsort((indices, -similarities), axis=1)
    return np.take_along_axis(similarities, order, 1), np.take_along_axis(indices, order, 1)


def _count_relevant(labels, found_labels, own) -> np.ndarray:
    classes, counts = np.unique(found_labels, return_counts=True)
    position = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    return np.where(classes[position] == labels, counts[position], 0) - own


def _at_r(right: np.ndarray, relevant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision at R and R-precision per query; right is (n, depth), depth ≥ R."""
    ranks = np.arange(1, right.shape[1] + 1)
    within = right & (ranks <= relevant[:, None])
    precision_at_rank = within.cumsum(1) / ranks
    divisor = np.maximum(relevant, 1)
    return (precision_at_rank * within).sum(1) / divisor, within.sum(1) / divisor


def _nmi(queries, labels, seed) -> float:
    from sklearn.metrics import normalized_mutual_info_score

    classes = len(np.unique(labels))
    kmeans = faiss.Kmeans(queries.shape[1], classes, niter=20, seed=seed, min_points_per_centroid=1)
    kmeans.train(queries)
    _, clusters = kmeans.index.search(queries, 1)
    return float(normalized_mutual_info_score(labels, clusters[:, 0]))


def _unit_float32(rows, name: str) -> np.ndarray:
    if hasattr(rows, "detach"):
        rows = rows.detach().float().cpu().numpy()
    rows = np.array(rows, dtype=np.float32, order="C")  # a copy: normalised in place below
    if rows.ndim != 2 or rows.size == 0:
        raise ValueError(f"{name} have shape {rows.shape}, expected (N, D) with N, D ≥ 1.")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
    if len(bad):
        kind = "zero length" if lengths[bad[0], 0] == 0 else "NaN or infinite values"
        raise ValueError(
            f"row {bad[0]} of the {name} has {kind} ({len(bad)} such rows): it has no direction, "
            "so it has no neighbours; find out what made it, or leave it out."
        )
    rows /= lengths
    return rows


def _checked_labels(labels, rows) -> np.ndarray:
    if hasattr(labels, "detach"):
        labels = labels.detach().cpu().numpy()
    labels = np.asarray(labels)
    if labels.shape != (len(rows),):
        raise ValueError(f"labels have shape {labels.shape}, expected ({len(rows)},).")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype}: give whole numbers.")
    return labels.astype(np.int64)


def _check_dimensions(queries: np.ndarray, found: np.ndarray) -> None:
    if queries.shape[1] != found.shape[1]:
        raise ValueError(
            f"the gallery has dimension {found.shape[1]}, the queries {queries.shape[1]}: embed "
            "both with the same encoder."
        )


def _checked_ks(ks, available: int) -> tuple[int, ...]:
    ks = tuple(sorted(set(ks)))
    if not ks or ks[0] < 1 or any(k != int(k) for k in ks):
        raise ValueError(f"ks are {list(ks)}: give whole numbers from 1 upwards.")
    if ks[-1] > available:
        raise ValueError(
            f"K = {ks[-1]} is larger than the gallery: a query can find {available} images; "
            "ask for fewer neighbours or give more images."
        )
    return ks
