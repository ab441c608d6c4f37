"""How each exercise of the course is judged: on which inputs, and which mistakes are known.

One function per exercise, in the order of the notebooks; `CHECKS` at the end numbers them. Each
computes the truth the slow way, and beside it what typical mistakes give, so that
`sobook.course.exercises.check` can name the one that was made.
"""

import math

import numpy as np
import torch
from scipy import stats
from torch.nn.functional import cross_entropy

from sobook import geometry
from sobook.course.compare import Check, Wrong, array, as_array, call, number, unit_rows


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """The C(C−1) entries off the diagonal."""
    return matrix[~np.eye(len(matrix), dtype=bool)]


# --- 00 · start here -----------------------------------------------------------------------------


def recall_at_k(answer) -> None:
    rows, labels = unit_rows(_rng().standard_normal((40, 6))), np.repeat(np.arange(10), 4)
    cosines = rows @ rows.T
    by_rank = labels[np.argsort(-(cosines - 10 * np.eye(len(rows))), axis=1)] == labels[:, None]
    farthest_first = labels[np.argsort(cosines, axis=1)] == labels[:, None]
    for k in (1, 3):
        relevant, hits = by_rank[:, :k], by_rank[:, :k].any(1)
        number(
            call(answer, rows, labels, k),
            hits.mean(),
            (1.0, "every query found itself: set the diagonal of the cosines aside first."),
            (farthest_first[:, :k].any(1).mean(), "these are the *least* similar: sort downwards."),
            (relevant.mean(), "that is precision; Recall@K asks if *any* of the k is relevant."),
            (by_rank[:, : k - 1].any(1).mean(), "one neighbor too few: k besides the query."),
            (hits.sum(), "that is the number of queries with a hit: divide by all queries."),
        )


def errors_removed(answer) -> None:
    for before, after in ((0.4, 0.7), (0.6, 0.5)):
        gain, errors = after - before, 1 - before
        number(
            call(answer, before, after),
            gain / errors,
            (gain, "that is the change of Recall@1 itself: divide by the errors, 1 − before."),
            (gain / before, "that is relative to the hits; divide by the errors, 1 − before."),
            ((1 - after) / errors, "that is the fraction of the errors that is *left*."),
        )


def rms_cosine(answer) -> None:
    rows = _rng(1).standard_normal((12, 5)) * _rng(2).uniform(0.5, 3, (12, 1))
    gram = unit_rows(rows) @ unit_rows(rows).T
    off, off_raw = _off_diagonal(gram), _off_diagonal(rows @ rows.T)
    number(
        call(answer, rows),
        np.sqrt((off**2).mean()),
        (np.sqrt((gram**2).mean()), "leave out the diagonal: its C ones are not pairs."),
        (np.sqrt((off**2).sum() / gram.size), "divide by the C(C−1) pairs, not by C²."),
        (np.sqrt((off_raw**2).mean()), "scale the rows to unit length first."),
        (off.mean(), "that is the mean cosine: square before you average."),
        (np.abs(off).mean(), "that is the mean absolute cosine: square, average, root."),
    )


# --- 01 · data -----------------------------------------------------------------------------------


def split_by_class(answer) -> None:
    labels = _rng().permutation(np.repeat(np.arange(20), _rng(1).integers(2, 6, 20)))
    parts = call(answer, labels, 0.25, 0)
    if not isinstance(parts, (tuple, list)) or len(parts) != 2:
        raise Wrong("two arrays of indices are asked for: (train, held out).")
    train, held_out = (as_array(part) for part in parts)
    if train.dtype == bool or held_out.dtype == bool:
        raise Wrong("these are masks; indices are asked for: np.flatnonzero(mask).")
    if len(held_out) == 0:
        raise Wrong("nothing is held out.")
    if len(train) + len(held_out) != len(labels) or len(np.union1d(train, held_out)) != len(labels):
        raise Wrong("every image must be in exactly one of the two parts.")
    if len(both := np.intersect1d(labels[train], labels[held_out])):
        raise Wrong(f"{len(both)} classes are in both parts: draw *classes*, not images.")
    if (got := len(np.unique(labels[held_out]))) != 5:
        raise Wrong(f"{got} classes are held out; a fraction of 0.25 of 20 classes is 5.")
    if np.array_equal(train, as_array(call(answer, labels, 0.25, 1)[0])):
        raise Wrong("another seed gives the same split: draw the classes with the seed.")


def chance_recall(answer) -> None:
    labels = np.repeat(np.arange(5), [2, 3, 4, 10, 21])
    counts, total = np.bincount(labels), len(labels)
    pairs = (counts * (counts - 1)).sum()
    number(
        call(answer, labels),
        pairs / (total * (total - 1)),
        (((counts / total) ** 2).sum(), "an image cannot find itself: n_c − 1 of N − 1."),
        (1 / len(counts), "that holds for very many images, equally many in each class."),
        (pairs / total**2, "there are N − 1 others, not N."),
        (((counts - 1) / (total - 1)).mean(), "larger classes send more queries: weight n_c / N."),
    )


def labels_from_zero(answer) -> None:
    labels = np.array([101, 101, 150, 103, 150, 200])
    array(
        call(answer, labels),
        [0, 0, 2, 1, 2, 3],
        (labels - 101, "gaps remain, and with them rows of proxies that belong to no class."),
        ([0, 0, 1, 2, 1, 3], "numbered in order of appearance; use the order of the old labels."),
        ([1, 1, 3, 2, 3, 4], "off by one: the first class is 0."),
    )


# --- 02 · DeiT features --------------------------------------------------------------------------


def patchify(answer) -> None:
    batch = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    blocks = batch.reshape(2, 3, 2, 2, 3, 2)  # (B, channel, row, y, column, x)

    def ordered(*axes):
        return blocks.permute(*axes).reshape(2, 6, 12).numpy()

    value = call(answer, batch, 2)
    if not np.any(as_array(value)):
        raise Wrong("all zeros: that is still the stub.")
    reshaped = batch.reshape(2, 6, 12).numpy()
    array(
        value,
        ordered(0, 2, 4, 1, 3, 5),
        (reshaped, "one reshape cuts across patches: split rows and columns, then permute."),
        (ordered(0, 2, 4, 3, 5, 1), "within a patch, channels come first; yours have them last."),
        (ordered(0, 4, 2, 1, 3, 5), "patches go row by row; yours go column by column."),
        (ordered(0, 2, 4, 1, 5, 3), "within a patch, rows and columns are exchanged."),
    )


def tokens(answer) -> None:
    for side, patch, prefix in ((64, 8, 2), (224, 16, 1)):
        grid = side // patch
        number(
            call(answer, side, patch, prefix),
            grid**2 + prefix,
            (grid**2, "the tokens before the patches are missing."),
            (grid + prefix, "patches fill a square: rows times columns."),
            ((grid + prefix) ** 2, "add the prefix tokens after squaring."),
            (side**2 // patch + prefix, "a patch has p × p pixels, not p."),
        )


def genus_recall(answer) -> None:
    wrong, related = 0.4, 0.7
    number(
        call(answer, wrong, related),
        1 - wrong + wrong * related,
        (wrong * related, "those are the errors within the genus; right species count, too."),
        (1 - wrong + related, "related_share is a fraction of the *errors*: multiply."),
        (1 - wrong * related, "errors of the right genus are hits here, not misses."),
        (1 - wrong, "that is the recall of the species: some errors are of the right genus."),
    )


# --- 03 · Proxy Anchor ---------------------------------------------------------------------------


def loss_at_zero(answer) -> None:
    labels, classes = torch.tensor([0, 0, 1, 3, 3, 3, 4]), 6
    positives = np.bincount(labels, minlength=classes)
    negatives, present = len(labels) - positives, positives > 0

    def terms(margin, scale):
        """Pull and push of each class, with every cosine 0."""
        e = math.exp(margin * scale)
        return np.log1p(positives * e), np.log1p(negatives * e)

    pull, push = terms(0.1, 32.0)
    wrong_sign = np.log1p(positives[present] * math.exp(-0.1 * 32))
    no_one = 0.1 * 32 + np.log(positives[present]), 0.1 * 32 + np.log(negatives)
    number(
        call(answer, labels, classes, 0.1, 32.0),
        pull[present].mean() + push.mean(),
        (pull.mean() + push.mean(), "average the pull over the classes *in the batch*, P⁺, only."),
        (pull[present].mean() + push[present].mean(), "average the push over *all* C proxies."),
        (pull[present].sum() + push.sum(), "these are sums: both terms are means."),
        (pull[present].mean(), "only the pull is there: where is the push?"),
        (push.mean(), "only the push is there: where is the pull?"),
        (wrong_sign.mean() + push.mean(), "the sign of the margin in the pull: −α(0 − δ) is +αδ."),
        (no_one[0].mean() + no_one[1].mean(), "the 1 in log(1 + …) is missing."),
    )
    pull, push = terms(0.05, 20.0)
    value = float(as_array(call(answer, labels, classes, 0.05, 20.0)))
    if abs(value - pull[present].mean() - push.mean()) > 1e-3:
        raise Wrong("right for α = 32 and δ = 0.1, but it does not follow other values of them.")


def row_softmax(answer) -> None:
    cosines = torch.from_numpy(_rng().uniform(-1, 1, (5, 4))).float()
    labels, logits = torch.tensor([0, 3, 1, 1, 2]), 32 * cosines
    total = cross_entropy(logits, labels, reduction="sum")
    applied_twice = "cross_entropy takes logits: it applies the softmax itself."
    number(
        call(answer, cosines, labels),
        float(cross_entropy(logits, labels)),
        (0.0, "0 is what the stub returns."),
        (cross_entropy(cosines, labels), "the scale α is missing: logits are α·s."),
        (total, "that is the sum over images: take the mean."),
        (cross_entropy(cosines.softmax(1), labels), applied_twice),
        (cross_entropy(logits.softmax(1), labels), applied_twice),
        (cross_entropy(-logits, labels), "the sign of the logits: a large cosine is good."),
    )


def effective_negatives(answer) -> None:
    weights = torch.from_numpy(_rng().random((7, 3)) ** 4).float()
    w = weights.numpy().astype(float)
    total, squares = w.sum(0), (w**2).sum(0)
    array(
        call(answer, weights),
        total**2 / squares,
        (total / squares, "square the sum in the numerator: a column's weights need not sum to 1."),
        (squares / total**2, "it is upside down: n equal weights must give n."),
        (1 / squares, "weights of a column need not sum to 1: divide by (Σw)²."),
        ((w > 0).sum(0), "that counts all negatives, however small their weight."),
    )


# --- 04 · soft orthogonality ---------------------------------------------------------------------


def so_from_spectrum(answer) -> None:
    for shape in ((6, 9), (9, 4)):
        unit = unit_rows(_rng().standard_normal(shape))
        sigma, classes = np.linalg.svd(unit, compute_uv=False), shape[0]
        fourth, pairs = (sigma**4).sum(), classes * (classes - 1)
        mean = "that is the mean over pairs; the sum is asked for."
        number(
            call(answer, sigma, classes),
            np.square(unit @ unit.T - np.eye(classes)).sum(),
            ((sigma**2).sum() - classes, "Σσ² is always C: the norm squares them *again*, to σ⁴."),
            (fourth, "subtract the identity: −2‖P̂‖² + C = −C."),
            (fourth - 2 * classes, "the + C at the end of the identity is missing."),
            (fourth + classes, "the sign: −2‖P̂‖² + C is −C."),
            (fourth / pairs, mean),
            ((fourth - classes) / pairs, mean),
            (((sigma - 1) ** 2).sum(), "the eigenvalues of P̂P̂ᵀ are σ², not σ."),
        )


def simplex(answer) -> None:
    for dim in (2, 3, 8):
        rows = as_array(call(answer, dim))
        if rows.shape != (dim + 1, dim):
            raise Wrong(f"for D = {dim} the shape is {rows.shape}, expected {(dim + 1, dim)}.")
        if not np.isfinite(rows).all() or (np.linalg.norm(rows, axis=1) < 1e-9).any():
            raise Wrong("a row has length 0 or is not a number: it has no direction.")
        shape = geometry.describe(rows)
        off, bound = _off_diagonal(shape.cosines), shape.welch_bound
        if shape.coherence <= bound + 1e-4:
            continue
        got = f"D = {dim}: largest |cosine| {shape.coherence:.3f}, bound {bound:.3f}."
        if off.max() > 0.999:
            raise Wrong(f"two of the directions coincide. {got}")
        tight = abs(shape.orthogonality) < 1.05 * max(shape.orthogonality_floor, 1e-9)
        if tight and off.max() > bound + 1e-4:
            raise Wrong(f"a tight frame: the mean is as low as can be, but not the max. {got}")
        if (off < -0.999).any():
            raise Wrong(f"two directions are opposite: SO sees them as the same line. {got}")
        raise Wrong(f"not equiangular yet: cosines from {off.min():.3f} to {off.max():.3f}. {got}")


def one_sided(answer) -> None:
    lengths = np.array([[1], [2], [0.5], [3], [1]])
    proxies = torch.from_numpy(_rng().standard_normal((5, 3)) * lengths).float()
    rows = proxies.numpy().astype(float)
    off = _off_diagonal(unit_rows(rows) @ unit_rows(rows).T)
    acute, count = np.maximum(off, 0), len(rows)
    raw = np.maximum(_off_diagonal(rows @ rows.T), 0)
    total = (acute**2).sum()
    value = call(answer, proxies)
    number(
        value,
        (acute**2).mean(),
        ((off**2).mean(), "that is still the two-sided one: negative cosines are punished."),
        (total, "that is the sum over pairs: take the mean."),
        ((total + count) / count**2, "leave out the diagonal: its ones are not pairs."),
        (total / count**2, "divide by the C(C−1) pairs, not by C²."),
        ((raw**2).mean(), "scale the rows to unit length first."),
        (acute.mean(), "the square is missing."),
        ((np.minimum(off, 0) ** 2).mean(), "that punishes the *obtuse* angles."),
        (total / (acute > 0).sum(), "average over all pairs; negative cosines count as 0."),
    )
    if not torch.is_tensor(value):
        raise Wrong("the value is right, but it is no longer a tensor: no gradient can flow.")


# --- 05 · proxy geometry -------------------------------------------------------------------------


def closest_pair(answer) -> None:
    unit = unit_rows(_rng(3).standard_normal((9, 4)))
    cosines = unit @ unit.T
    off = _off_diagonal(cosines)
    pair = as_array(call(answer, cosines))
    if pair.shape != (2,):
        raise Wrong(f"two numbers (i, j) are asked for, not an array of shape {pair.shape}.")
    i, j = (int(index) for index in pair)
    if i == j:
        raise Wrong("i and j are the same: leave the diagonal out.")
    if not (0 <= i < 9 and 0 <= j < 9):
        raise Wrong(f"({i}, {j}) is outside the 9 × 9 matrix: np.unravel_index gives both.")
    number(
        cosines[i, j],
        off.max(),
        (off.min(), "that is the *most distant* pair: take the maximum."),
        (off[np.abs(off).argmax()], "that is the largest |cosine|; here the sign counts."),
    )


def mean_cosine(answer) -> None:
    unit = unit_rows(_rng().standard_normal((8, 3)) + 0.5)
    count, mean = len(unit), unit.mean(0)
    square = mean @ mean
    number(
        call(answer, unit),
        _off_diagonal(unit @ unit.T).mean(),
        (square, "‖mean‖² is the mean over all C² entries, including the diagonal."),
        (np.linalg.norm(mean), "that is the length of the mean proxy, and not squared."),
        (count * square / (count - 1), "the C ones of the diagonal are still in it."),
        (unit.mean(), "that averages coordinates; average the rows to one vector (axis 0)."),
        ((count * square - 1) / count, "divide by C − 1, the partners of a proxy."),
    )


def centered(answer) -> None:
    unit = unit_rows(_rng().standard_normal((8, 3)) + 0.8)
    centered_rows = unit - unit.mean(1, keepdims=True)
    own_mean = "that subtracts each row's own mean; subtract the mean *proxy*, unit.mean(axis=0)."
    array(
        call(answer, unit),
        unit_rows(unit - unit.mean(0)),
        (unit, "nothing has changed."),
        (unit_rows(centered_rows), own_mean),
        (centered_rows, own_mean),
        (unit_rows(unit + unit.mean(0)), "the sign: subtract the mean proxy."),
    )


# --- 06 · embedding maps -------------------------------------------------------------------------


def directions_for(answer) -> None:
    points = _rng().standard_normal((60, 8)) * 2.0 ** -np.arange(8) + 5
    sigma = np.linalg.svd(points - points.mean(0), compute_uv=False)
    variance_kept, sigma_kept = (np.cumsum(s) / s.sum() for s in (sigma**2, sigma))
    for fraction in (0.5, 0.9, 0.99):
        expected = (variance_kept < fraction).sum() + 1
        number(
            call(answer, fraction, points),
            expected,
            (expected - 1, "off by one: an index counts from 0, a number of components from 1."),
            ((sigma_kept < fraction).sum() + 1, "variance goes with σ²."),
            (8 - expected, "that is how many are left over."),
        )


def shared_neighbors(answer) -> None:
    first = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [2, 1, 0]])
    second = np.array([[3, 2, 1], [0, 4, 5], [4, 5, 6], [2, 5, 1]])
    common = np.array([len(np.intersect1d(a, b)) for a, b in zip(first, second, strict=True)])
    number(
        call(answer, first, second),
        common.mean() / 3,
        ((first == second).mean(), "order does not matter: look anywhere in the same row."),
        (common.mean(), "that is the number of shared neighbors: divide by k."),
        ((common > 0).mean(), "that asks for at least one; the mean fraction is asked for."),
        (np.isin(first, second).mean(), "compare row with row: np.isin looks everywhere."),
        (common.mean() / 6, "divide by k, not by 2k."),
    )


def nearest_in_plane(answer) -> None:
    plane = _rng().uniform(1, 9, (15, 2))
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    cosines, far = unit_rows(plane) @ unit_rows(plane).T, np.eye(len(plane)) * 1e6
    array(
        call(answer, plane),
        (distances + far).argmin(1),
        (np.arange(len(plane)), "every point is its own nearest: set the diagonal aside."),
        ((cosines - far).argmax(1), "that is by cosine: on a map, plain distance counts."),
        (distances.argmax(1), "these are the points furthest away."),
        ((plane @ plane.T - far).argmax(1), "a large dot product is not a small distance."),
    )


# --- 07 · benchmark ------------------------------------------------------------------------------


def interval_by_hand(answer) -> None:
    differences = np.array([0.012, -0.004, 0.02, 0.007, -0.001])
    n, mean, deviation = len(differences), differences.mean(), differences.std(ddof=1)
    t, error = stats.t.ppf(0.975, n - 1), deviation / math.sqrt(n)

    def around(half_width):
        return np.array([mean - half_width, mean + half_width])

    array(
        as_array(call(answer, differences)).ravel(),
        around(t * error),
        (around(t * differences.std() / math.sqrt(n)), "ddof=1: a sample's deviation has n − 1."),
        (around(t * deviation), "the interval of the *mean* is narrower by √n."),
        (around(t * deviation / n), "divide by √n, not by n."),
        (around(stats.norm.ppf(0.975) * error), "that is the normal's 1.96; five values need t."),
        (around(stats.t.ppf(0.95, n - 1) * error), "that is 90 %: two tails share the 5 %."),
        (around(stats.t.ppf(0.975, n) * error), "n − 1 degrees of freedom, not n."),
        (around(-t * error), "low and high are exchanged."),
        tolerance=1e-5,
    )


def seeds_needed(answer) -> None:
    def smallest(factor, half_width, deviation):
        n = 2
        while factor(n) * deviation / math.sqrt(n) > half_width:
            n += 1
        return n

    normal = "with the normal's 1.96: for few seeds t is larger, and depends on n."
    for half_width, deviation in ((0.01, 0.02), (0.005, 0.013)):
        expected = smallest(lambda n: stats.t.ppf(0.975, n - 1), half_width, deviation)
        ratio = deviation / half_width
        number(
            call(answer, half_width, deviation),
            expected,
            (2, "2 is what the stub returns."),
            (expected - 1, "one too few: its interval is still a little too wide."),
            (expected + 1, "one too many: the interval is narrow enough one seed earlier."),
            (smallest(lambda n: 1.959964, half_width, deviation), normal),
            (math.ceil((1.959964 * ratio) ** 2), normal),
            (math.ceil(ratio**2), "the factor t is missing."),
        )


def optimism(answer) -> None:
    recalls = 0.6 + 0.02 * _rng().standard_normal((40, 6))
    best, mean = recalls.max(1), recalls.mean()
    number(
        call(answer, recalls),
        best.mean() - mean,
        (recalls.max() - mean, "that is the best of all: take each row's best, then the mean."),
        (recalls.max(0).mean() - mean, "the axis: a row is one try of E looks."),
        (best.mean(), "that is what gets reported; how much *too high* is it?"),
        (np.median(best) - np.median(recalls), "means, not medians."),
        tolerance=1e-5,
    )


# --- 08 · your images ----------------------------------------------------------------------------


def nearest(answer) -> None:
    query = _rng().standard_normal(5)
    gallery = _rng(1).standard_normal((20, 5)) * _rng(2).uniform(0.2, 5, (20, 1))
    cosines = unit_rows(gallery) @ query
    by_distance = np.argsort(np.linalg.norm(gallery - query, axis=1))
    order = np.argsort(-cosines)
    array(
        call(answer, query, gallery, 4),
        order[:4],
        (np.argsort(-(gallery @ query))[:4], "by dot product, long rows win: scale them first."),
        (order[:-5:-1], "these are the *least* similar: sort downwards."),
        (order[3::-1], "the right four, but the furthest first: nearest first, please."),
        (by_distance[:4], "by distance, of rows of different lengths: use cosines."),
        (order[1:5], "the first is left out; but this query is not part of the gallery."),
    )


def threshold_for(answer) -> None:
    similarities = np.round(_rng().uniform(0.2, 1, 30), 3)
    right = _rng(1).random(30) < similarities
    precision = {t: right[similarities >= t].mean() for t in similarities}
    quantile = "a quantile looks at similarities only; what counts is how many above it are right."
    for wanted in (0.7, 0.8):
        good_enough = [t for t, value in precision.items() if value >= wanted]
        number(
            call(answer, similarities, right, wanted),
            min(good_enough),
            (max(good_enough), "that refuses nearly everything: the *smallest* that will do."),
            (similarities.min(), "that one answers everything, however unsure."),
            (wanted, "that is the fraction wanted, not a similarity."),
            (np.quantile(similarities, wanted), quantile),
            (np.quantile(similarities, 1 - wanted), quantile),
        )


def class_centers(answer) -> None:
    rows, labels = unit_rows(_rng().standard_normal((12, 4)) + 0.3), np.arange(12) % 3
    array(
        call(answer, rows, labels),
        unit_rows(np.stack([rows[labels == c].mean(0) for c in range(3)])),
        (rows[:3], "that is one image of each class, not their mean."),
    )


CHECKS: dict[str, Check] = {
    "00.1": recall_at_k,
    "00.2": errors_removed,
    "00.3": rms_cosine,
    "01.1": split_by_class,
    "01.2": chance_recall,
    "01.3": labels_from_zero,
    "02.1": patchify,
    "02.2": tokens,
    "02.3": genus_recall,
    "03.1": loss_at_zero,
    "03.2": row_softmax,
    "03.3": effective_negatives,
    "04.1": so_from_spectrum,
    "04.2": simplex,
    "04.3": one_sided,
    "05.1": closest_pair,
    "05.2": mean_cosine,
    "05.3": centered,
    "06.1": directions_for,
    "06.2": shared_neighbors,
    "06.3": nearest_in_plane,
    "07.1": interval_by_hand,
    "07.2": seeds_needed,
    "07.3": optimism,
    "08.1": nearest,
    "08.2": threshold_for,
    "08.3": class_centers,
}
