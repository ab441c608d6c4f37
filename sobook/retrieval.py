"""Retrieval: nearest neighbors by cosine, the measures of the field, and how sure they are.

Notation: N queries, M gallery images, D embedding dimension, K neighbors looked at, R the number
of gallery images that share the query's class. Neighbors are exact unless asked otherwise: found
by faiss, or by torch where the embeddings are on a GPU.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import faiss
import numpy as np
import torch
from scipy import stats

from sobook.errors import SobookError, suggest

UNMATCHED = ("exclude", "miss")
BACKENDS = ("faiss", "torch")
_CHUNK = 4096  # queries searched at a time: bounds memory, and faiss is at full speed well below it
_SAMPLE = 1000  # queries on which an approximate search is compared with the exact one
_MOST_ENUMERATED = 14  # pairs up to which all 2ⁿ signs are tried, above it they are drawn


@dataclass(frozen=True)
class Retrieval:
    """Result of `evaluate`.

    Attributes:
        recall: {K: share of queries with at least one right image among the first K}.
        precision_at_1: share of queries whose nearest image is right; equal to Recall@1.
        map_at_r: mean average precision at R (Musgrave et al., arXiv 2003.08505).
        r_precision: mean share of right images among the first R.
        nmi: normalized mutual information of k-means clusters and classes, None unless asked for.
        hits: (N, len(ks)) bool, one row a query, in the order given.
        matched: (N,) bool: does the gallery hold any image of the query's class?
        labels: (N,) labels of the queries.
        ks: the Ks, ascending.
        unmatched: how queries without a match were counted: "exclude" or "miss".
        neighbors_found: share of the exact K nearest (the largest K) that an approximate search
            found, measured on a sample of the queries; None where the search was exact.
    """

    recall: dict[int, float]
    precision_at_1: float
    map_at_r: float
    r_precision: float
    nmi: float | None
    hits: np.ndarray = field(repr=False)
    matched: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    ks: tuple[int, ...]
    unmatched: str = "exclude"
    neighbors_found: float | None = None

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
        kinds, counts = _kinds(queries, successes)  # (U, 2), (U,)
        sums = _class_draws(counts, resamples, seed) @ kinds  # (resamples, 2)
        return _percentiles(sums[:, 1] / sums[:, 0], level)

    def _by_class(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Queries and successes at K of every class, (C,) each."""
        if k not in self.ks:
            raise SobookError(f"Recall@{k} was not computed: choose one of {list(self.ks)}.")
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
            "precision_at_1": round(self.precision_at_1, 6),
            f"recall_at_{first}_interval": [round(end, 6) for end in self.interval(first)],
            "map_at_r": round(self.map_at_r, 6),
            "r_precision": round(self.r_precision, 6),
            "nmi": None if self.nmi is None else round(self.nmi, 6),
            **({} if self.neighbors_found is None else {"neighbors_found": self.neighbors_found}),
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
    backend: str | None = None,
    approximate: bool = False,
    seed: int = 0,
) -> Retrieval:
    """Retrieval measures by cosine search, exact unless `approximate`.

    Without a gallery every image queries all the others: itself is excluded by its index, never
    by its position among the neighbors, so exact duplicates count as the neighbors they are.
    Images at the same similarity, as computed, count in the order of their index.

    Args:
        embeddings: (N, D) queries, tensor or array, any length but zero.
        labels: (N,) integers.
        gallery, gallery_labels: (M, D) and (M,), where queries search another set (In-Shop).
        ks: the Ks of Recall@K, each at most the number of images a query can find.
        clusters: also cluster the queries by k-means, k = number of classes, and give the NMI.
        unmatched: "exclude" leaves queries without any match out of every mean (as
            pytorch-metric-learning does), "miss" counts them as failures (as Proxy Anchor's code).
        backend: "faiss" or "torch" (in chunks, on the device of the embeddings). None: torch for
            embeddings on a GPU, else faiss. Both are exact.
        approximate: search a faiss index of inverted lists instead of everything: for millions of
            images. What it finds is compared with the exact search on 1,000 queries and reported
            as `neighbors_found`.
        seed: of the k-means, and of that sample.

    Returns:
        A `Retrieval`.

    Raises:
        SobookError: shapes that do not fit, NaN or zero vectors, K larger than the gallery, one
            class only, no query with a match.

    Sources: Recall@K, Jégou et al. 2011; MAP@R and R-precision, Musgrave et al. 2020.

    >>> points = [[1, 0], [1, 0.1], [0, 1], [0.1, 1]]
    >>> evaluate(points, [0, 0, 1, 1], ks=(1, 2)).recall
    {1: 1.0, 2: 1.0}
    """
    if (gallery is None) != (gallery_labels is None):
        raise SobookError("give gallery and gallery_labels together, or neither.")
    _check_choice("unmatched", unmatched, UNMATCHED)
    own = gallery is None
    backend = _backend(backend, embeddings)
    prepare = _unit_tensor if backend == "torch" and not approximate else _unit_float32
    queries, labels = prepare(embeddings, "embeddings"), _checked_labels(labels, embeddings)
    found = queries if own else prepare(gallery, "gallery")
    found_labels = labels if own else _checked_labels(gallery_labels, gallery)
    ks = _checked_ks(ks, len(found) - own)
    if len(np.unique(np.concatenate([labels, found_labels]))) < 2:
        raise SobookError("all labels are the same: with one class only every answer is right.")
    _check_dimensions(queries, found)
    relevant = _count_relevant(labels, found_labels, own)  # (N,) R of each query
    matched = relevant > 0
    if not matched.any():
        raise SobookError("no query has an image of its class in the gallery: check the labels.")

    depth = max(max(ks), int(relevant.max()))
    search = _search_inverted_lists if approximate else _EXACT[backend]
    first_right = np.empty(len(queries), int)
    average_precision, precision = np.empty(len(queries)), np.empty(len(queries))
    for rows, _, indices in search(queries, found, depth, own):
        right = _is_right(indices, found_labels, labels[rows])  # (chunk, depth)
        first_right[rows] = np.where(right.any(1), right.argmax(1), depth)
        average_precision[rows], precision[rows] = _at_r(right, relevant[rows])

    hits = first_right[:, None] < np.array(ks)  # (N, len(ks))
    counted = matched if unmatched == "exclude" else np.ones(len(queries), bool)
    return Retrieval(
        recall={k: float(hits[counted, i].mean()) for i, k in enumerate(ks)},
        precision_at_1=float((first_right[counted] == 0).mean()),
        map_at_r=float(average_precision[counted].mean()),
        r_precision=float(precision[counted].mean()),
        nmi=_nmi(_numpy(queries), labels, seed) if clusters else None,
        hits=hits,
        matched=matched,
        labels=labels,
        ks=ks,
        unmatched=unmatched,
        neighbors_found=_overlap(queries, found, max(ks), own, seed) if approximate else None,
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
        SobookError: the two are not on the same queries.
    """
    queries, before, after = _paired_by_class(first, second, k)
    change = after - before
    kinds, counts = _kinds(queries, change)
    sums = _class_draws(counts, resamples, seed) @ kinds
    low, high = _percentiles(sums[:, 1] / sums[:, 0], level)
    return float(change.sum() / queries.sum()), low, high


@dataclass(frozen=True)
class Comparison:
    """A paired difference, second minus first. Made by `compare_classes` and `compare_seeds`.

    Attributes:
        difference: the mean difference.
        low, high: ends of its interval.
        p_value: of a two-sided permutation test: how often a difference at least as large comes
            about when, in each pair, chance decides which of the two is called first.
        pairs: how many classes or seeds.
        over: "classes" (would other test classes say the same?) or "seeds" (would another training
            run?).
    """

    difference: float
    low: float
    high: float
    p_value: float
    pairs: int
    over: str

    def __str__(self) -> str:
        return (
            f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}] over {self.pairs} "
            f"{self.over}, p = {self.p_value:.3f}"
        )


def compare_classes(
    first: Retrieval,
    second: Retrieval,
    k: int = 1,
    level: float = 0.95,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Recall@K of two results on the same queries: `difference` with a permutation test.

    The test exchanges the two results of whole classes, since queries of a class are alike.

    Raises:
        SobookError: the two are not on the same queries.
    """
    value, low, high = difference(first, second, k, level, resamples=resamples, seed=seed)
    queries, before, after = _paired_by_class(first, second, k)
    sizes, counts = np.unique(np.abs(after - before), return_counts=True)
    rng = np.random.default_rng(seed)
    # Of n classes whose change has size v, Binomial(n, ½) keep their sign.
    signs = 2 * rng.binomial(counts, 0.5, (resamples, len(counts))) - counts
    extreme = np.abs(signs @ sizes) >= abs((after - before).sum()) - 1e-9
    return Comparison(
        value, low, high, float((extreme.sum() + 1) / (resamples + 1)), len(queries), "classes"
    )


def compare_seeds(
    first, second, level: float = 0.95, *, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """A measure of two methods over the same seeds: t interval and sign-flip permutation test.

    Args:
        first, second: (S,) numbers, the measure at each seed, S ≥ 2, in the same order.
        level: coverage of the interval.
        resamples: sign patterns drawn where there are too many to try all (more than 14 seeds).
        seed: of those draws.

    >>> print(compare_seeds([0.50, 0.52, 0.51], [0.53, 0.54, 0.53]))
    +0.0233 [+0.0090, +0.0377] over 3 seeds, p = 0.250
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise SobookError(
            f"the measures have shapes {first.shape} and {second.shape}: give two rows of equal "
            "length, one number a seed, at least two seeds."
        )
    if not np.isfinite([first, second]).all():
        raise SobookError("a measure is NaN or infinite: leave that seed out of both methods.")
    change = second - first
    half = stats.t.ppf((1 + level) / 2, len(change) - 1) * stats.sem(change)
    if len(change) <= _MOST_ENUMERATED:
        signs = np.array(list(itertools.product((-1, 1), repeat=len(change))))
        offset = 0  # all patterns were tried, the observed one among them
    else:
        signs = np.random.default_rng(seed).choice((-1, 1), (resamples, len(change)))
        offset = 1
    extreme = np.abs(signs @ change) >= abs(change.sum()) * (1 - 1e-9)
    return Comparison(
        float(change.mean()),
        float(change.mean() - half),
        float(change.mean() + half),
        float((extreme.sum() + offset) / (len(signs) + offset)),
        len(change),
        "seeds",
    )


def _paired_by_class(first: Retrieval, second: Retrieval, k: int):
    """Queries, and the successes at K of both results, of every class: (C,) each."""
    if not np.array_equal(first.labels, second.labels) or not np.array_equal(
        first._counted(), second._counted()
    ):
        raise SobookError("the two results are not on the same queries: evaluate both alike.")
    queries, before = first._by_class(k)
    return queries, before, second._by_class(k)[1]


def _kinds(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes with the same numbers are one kind: (U, len(columns)) kinds and (U,) how many.

    Drawing kinds instead of classes is the same bootstrap with far fewer numbers: the 11,316 test
    classes of SOP are of some 80 kinds.
    """
    return np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)


def _class_draws(counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Bootstrap samples of classes: (resamples, U), how many of each kind were drawn."""
    if resamples < 1:
        raise SobookError(f"resamples is {resamples}: give at least 1, usually 10,000.")
    classes = counts.sum()
    draws = np.random.default_rng(seed).multinomial(classes, counts / classes, size=resamples)
    return draws.astype(np.float64)


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise SobookError(f"level is {level}: it must lie between 0 and 1, e.g. 0.95.")
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def nearest_neighbors(embeddings, k: int, *, gallery=None) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest images of each query by cosine, nearest first.

    Args:
        embeddings: (N, D) queries.
        k: neighbors wanted, at most the number of images a query can find.
        gallery: (M, D) images to search; without it, the queries themselves, each leaving out
            itself by index.

    Returns:
        similarities (N, k) float32 and indices (N, k) int64 into the gallery. Similarities that
        are equal as computed come in the order of their index, also where the last of them are
        cut off.
    """
    backend = _backend(None, embeddings)
    prepare = _unit_tensor if backend == "torch" else _unit_float32
    queries = prepare(embeddings, "embeddings")
    found = queries if gallery is None else prepare(gallery, "gallery")
    _check_dimensions(queries, found)
    (k,) = _checked_ks((k,), len(found) - (gallery is None))
    chunks = list(_EXACT[backend](queries, found, k, own=gallery is None))
    return np.concatenate([chunk[1] for chunk in chunks]), np.concatenate([c[2] for c in chunks])


def _search(queries: np.ndarray, found: np.ndarray, k: int, own: bool):
    """Exact top k in chunks, by faiss: yields (rows, similarities, indices).

    With `own`, queries and gallery are the same images and each leaves out itself.
    """
    index = faiss.IndexFlatIP(found.shape[1])
    index.add(found)
    for rows in _chunks(len(queries)):
        nearest = index.search(queries[rows], min(k + own + 1, len(found)))
        yield rows, *_settle(*nearest, lambda i, at=rows: found @ queries[at][i], rows, k, own)


def _search_torch(queries: torch.Tensor, found: torch.Tensor, k: int, own: bool):
    """As `_search`, on the device of the tensors; a chunk takes at most about 1 GB."""
    size = max(1, min(_CHUNK, 2**27 // len(found)))
    for rows in _chunks(len(queries), size):
        cosines = queries[rows] @ found.T  # (chunk, M)
        nearest = cosines.topk(min(k + own + 1, len(found)), dim=1)
        nearest = (part.cpu().numpy() for part in nearest)
        yield rows, *_settle(*nearest, lambda i, at=cosines: at[i].cpu().numpy(), rows, k, own)


def _search_inverted_lists(queries: np.ndarray, found: np.ndarray, k: int, own: bool):
    """Approximate top k: the gallery in √M clusters, of which a query looks at the nearest 32.

    Where a query's clusters hold fewer than k images, the rest of its indices is −1.
    """
    lists = max(1, round(len(found) ** 0.5))
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(found.shape[1]), found.shape[1], lists, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.min_points_per_centroid = 1
    index.train(found)
    index.add(found)
    index.nprobe = min(32, lists)
    for rows in _chunks(len(queries)):
        similarities, indices = index.search(queries[rows], min(k + own, len(found)))
        if own:
            similarities, indices = _drop(similarities, indices, np.arange(rows.start, rows.stop))
        yield rows, similarities, indices


_EXACT = {"faiss": _search, "torch": _search_torch}


def _chunks(count: int, size: int = _CHUNK):
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _overlap(queries, found, k: int, own: bool, seed: int) -> float:
    """Share of the exact k nearest that the approximate search finds, on a sample of queries."""
    sample = np.random.default_rng(seed).permutation(len(queries))[:_SAMPLE]
    # Both searches look for the sample in the gallery; where the sample is part of it, each query
    # finds itself as well, which is left out of both.
    exact, near = (
        next(search(queries[sample], found, min(k + own, len(found)), False))[2]
        for search in (_search, _search_inverted_lists)
    )
    shares = []
    for i, row in enumerate(sample):
        wanted = set(exact[i].tolist()) - ({int(row)} if own else set())
        shares.append(len(wanted & set(near[i].tolist())) / len(wanted))
    return round(float(np.mean(shares)), 6)


def _is_right(indices: np.ndarray, found_labels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Does the image found share the query's class? An index of −1 is no image."""
    right = found_labels[indices] == labels[:, None]
    if (indices[:, -1] < 0).any():
        right &= indices >= 0
    return right


def _settle(similarities, indices, cosines_of: Callable, rows: slice, k: int, own: bool):
    """From the k + 1 or k + 2 nearest to the k nearest others, ties in the order of their index.

    Args:
        similarities, indices: (n, ≤ k + own + 1), nearest first.
        cosines_of: gives all cosines of a query of the chunk, for ties at the cut.
        rows: which queries these are.
    """
    own_index = np.arange(rows.start, rows.stop) if own else None
    if own:
        similarities, indices = _drop(similarities, indices, own_index)
    tied = similarities[:, 1:] == similarities[:, :-1]
    if not tied.any():
        return similarities[:, :k], indices[:, :k]
    similarities, indices = similarities.copy(), indices.copy()
    _settle_cut(similarities, indices, cosines_of, k, own_index)
    similarities, indices = similarities[:, :k], indices[:, :k]
    unordered = np.flatnonzero(tied.any(1))
    order = np.lexsort((indices[unordered], -similarities[unordered]), axis=1)
    for part in (similarities, indices):
        part[unordered] = np.take_along_axis(part[unordered], order, 1)
    return similarities, indices


def _drop(similarities, indices, own_index):
    """Leave each query's own index out of its k + 1 neighbors."""
    drop = indices == own_index[:, None]
    if drop[:, 0].all():  # no duplicates: everyone is nearest to itself
        return similarities[:, 1:], indices[:, 1:]
    # Among more than k exact duplicates the query itself may not be listed: then drop the last.
    drop[~drop.any(1), -1] = True
    shape = (len(indices), indices.shape[1] - 1)
    return similarities[~drop].reshape(shape), indices[~drop].reshape(shape)


def _settle_cut(similarities, indices, cosines_of, k: int, own_index) -> None:
    """Where the k-th and the next neighbor are equally near, keep those of lowest index."""
    if similarities.shape[1] <= k:
        return  # everything there is was found
    for i in np.flatnonzero(similarities[:, k - 1] == similarities[:, k]):
        cosines = cosines_of(i)
        if own_index is not None:
            cosines[own_index[i]] = -np.inf
        last = -np.partition(-cosines, k - 1)[k - 1]
        nearer = np.flatnonzero(cosines > last)
        indices[i, :k] = np.r_[nearer, np.flatnonzero(cosines == last)[: k - len(nearer)]]
        similarities[i, :k] = cosines[indices[i, :k]]


def _count_relevant(labels, found_labels, own) -> np.ndarray:
    classes, counts = np.unique(found_labels, return_counts=True)
    position = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    return np.where(classes[position] == labels, counts[position], 0) - own


def _at_r(right: np.ndarray, relevant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision at R and R-precision per query; right is (n, depth), depth ≥ R."""
    right = right[:, : max(1, relevant.max())]  # nothing further back counts
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


def _backend(name: str | None, embeddings) -> str:
    if name is None:
        return "torch" if getattr(embeddings, "is_cuda", False) else "faiss"
    _check_choice("backend", name, BACKENDS)
    return name


def _check_choice(name: str, value: str, choices) -> None:
    if value not in choices:
        listed = " or ".join(map(repr, choices))
        raise SobookError(
            f"unknown option {name}={value!r}: choose {listed}.{suggest(value, choices)}"
        )


def _numpy(rows) -> np.ndarray:
    return rows.cpu().numpy() if hasattr(rows, "detach") else rows


def _unit_tensor(rows, name: str) -> torch.Tensor:
    """As `_unit_float32`, staying on the device of the rows."""
    rows = torch.as_tensor(rows).detach().float()
    if rows.ndim != 2 or rows.numel() == 0:
        raise SobookError(f"{name} have shape {tuple(rows.shape)}, expected (N, D) with N, D ≥ 1.")
    lengths = rows.norm(dim=1, keepdim=True)
    _check_lengths(lengths.cpu().numpy(), name)
    return rows / lengths


def _unit_float32(rows, name: str) -> np.ndarray:
    if hasattr(rows, "detach"):
        rows = rows.detach().float().cpu().numpy()
    rows = np.array(rows, dtype=np.float32, order="C")  # a copy: normalized in place below
    if rows.ndim != 2 or rows.size == 0:
        raise SobookError(f"{name} have shape {rows.shape}, expected (N, D) with N, D ≥ 1.")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    _check_lengths(lengths, name)
    rows /= lengths
    return rows


def _check_lengths(lengths: np.ndarray, name: str) -> None:
    """Refuse rows without a direction; lengths is (N, 1)."""
    bad = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
    if len(bad):
        kind = "zero length" if lengths[bad[0], 0] == 0 else "NaN or infinite values"
        raise SobookError(
            f"row {bad[0]} of the {name} has {kind} ({len(bad)} such rows): it has no direction, "
            "so it has no neighbors; find out what made it, or leave it out."
        )


def _checked_labels(labels, rows) -> np.ndarray:
    if hasattr(labels, "detach"):
        labels = labels.detach().cpu().numpy()
    labels = np.asarray(labels)
    if labels.shape != (len(rows),):
        raise SobookError(f"labels have shape {labels.shape}, expected ({len(rows)},).")
    if not np.issubdtype(labels.dtype, np.integer):
        raise SobookError(f"labels are {labels.dtype}: give whole numbers.")
    return labels.astype(np.int64)


def _check_dimensions(queries: np.ndarray, found: np.ndarray) -> None:
    if queries.shape[1] != found.shape[1]:
        raise SobookError(
            f"the gallery has dimension {found.shape[1]}, the queries {queries.shape[1]}: embed "
            "both with the same encoder."
        )


def _checked_ks(ks, available: int) -> tuple[int, ...]:
    ks = tuple(sorted(set(ks)))
    if not ks or ks[0] < 1 or any(k != int(k) for k in ks):
        raise SobookError(f"ks are {list(ks)}: give whole numbers from 1 upwards.")
    if ks[-1] > available:
        raise SobookError(
            f"K = {ks[-1]} is larger than the gallery: a query can find {available} images; "
            "ask for fewer neighbors or give more images."
        )
    return ks
